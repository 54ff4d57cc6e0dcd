"""The commands that an installation brings: dpps, dpps-metrics, dpps-table, dpps-posterior,
dpps-train, dpps-download, dpps-export."""

from collections.abc import Callable
from importlib import import_module


def _program(module: str) -> Callable[[], int]:
    """main() of a module, imported when it is called: they are slow to load."""
    return lambda: import_module(module).main()


restore = _program("sample_condition")
metrics = _program("util.compute_metric")
table = _program("util.make_table")
posterior = _program("util.check_posterior")
train = _program("models.train_prior")
download = _program("models.download")
export = _program("models.export")
