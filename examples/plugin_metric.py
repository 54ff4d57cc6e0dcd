"""A metric of your own: mean absolute difference in grey levels.

    python -m util.compute_metric --plugin examples/plugin_metric.py --metrics psnr mae \\
        --label results/super_resolution/label --recon results/super_resolution/recon
"""

import numpy as np

from util.metrics.base import Metric, register


def mean_error(label: np.ndarray, image: np.ndarray) -> float:
    """Of uint8 images [H, W, 3]."""
    return float(np.abs(label.astype(int) - image).mean())


register("mae", Metric("MAE", lambda options: mean_error, higher_is_better=False, digits=2))
