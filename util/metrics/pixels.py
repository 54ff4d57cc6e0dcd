"""PSNR and SSIM, scikit-image's on 8-bit RGB pixels."""

import numpy as np

from util.metrics.base import Metric, register


def psnr(label: np.ndarray, image: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 [H, W, 3] images (infinite where equal)."""
    if np.array_equal(label, image):
        return float("inf")
    from skimage.metrics import peak_signal_noise_ratio  # slow to import

    return float(peak_signal_noise_ratio(label, image, data_range=255))


def ssim(label: np.ndarray, image: np.ndarray) -> float:
    """Structural similarity of uint8 [H, W, 3] images, scikit-image's default 7x7 window."""
    from skimage.metrics import structural_similarity  # slow to import

    return float(structural_similarity(label, image, channel_axis=2, data_range=255))


register("psnr", Metric("PSNR", lambda options: psnr, "dB", digits=2, of_runs=True))
register("ssim", Metric("SSIM", lambda options: ssim, of_runs=True, least_side=lambda options: 7))
