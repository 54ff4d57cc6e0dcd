"""Measures of image quality. Each module of this folder registers its own: to add one, add a file.

They are known by name to compute_metric and to tables; those with `of_runs` also stand in the
metrics.csv and report.html of every run.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
