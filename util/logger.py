"""The program's log: plain lines on stderr that do not tear the progress bar."""

import logging

from tqdm import tqdm


class _TqdmHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=None)


def get_logger() -> logging.Logger:
    """The logger of the whole program."""
    logger = logging.getLogger("dpps")
    if not logger.handlers:
        handler = _TqdmHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger
