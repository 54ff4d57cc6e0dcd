"""Measures of image quality. Each module of this folder registers its own: to add one, add a file.

They are known by name to compute_metric and to tables; those with `of_runs` also stand in the
metrics.csv and report.html of every run. Command lines name them in --help, so they load torch,
which takes seconds, only when they are built.
"""

from util.plugins import import_all

import_all(__name__)
