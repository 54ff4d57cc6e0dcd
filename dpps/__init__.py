"""DPPS as an installed package.

The folders of the project have general names (util, data, models), so an installation keeps them
below this one name, and importing it makes them importable:

    import dpps
    from models.prior import load_prior, restore

In a clone of the project they are importable from its folder without it.
"""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
ROOT = _HERE if (_HERE / "sample_condition.py").is_file() else _HERE.parent

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
