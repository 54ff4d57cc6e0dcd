"""The program's log: plain lines on stderr that do not tear the progress bars."""

import logging
import sys

from tqdm import tqdm


class _TqdmHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


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


def set_verbosity(quiet: bool = False, verbose: bool = False) -> None:
    """quiet: warnings and errors only; verbose: every image's steps as well."""
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    get_logger().setLevel(level)
