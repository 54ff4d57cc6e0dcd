"""Bicubic resizing as matrices."""

import math

import numpy as np


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def fold_symmetric(index: np.ndarray, size: int) -> np.ndarray:
    """Indices beyond a border mirrored back inside, the edge pixel repeated."""
    index = np.mod(index, 2 * size)
    return np.where(index < size, index, 2 * size - 1 - index)


def fold_reflect(index: np.ndarray, size: int) -> np.ndarray:
    """Indices beyond a border mirrored back inside, the edge pixel not repeated."""
    if size == 1:
        return np.zeros_like(index)
    index = np.mod(index, 2 * (size - 1))
    return np.where(index < size, index, 2 * (size - 1) - index)


def bicubic_matrix(size: int, scale: float) -> np.ndarray:
    """Resizing of one axis: float64 [ceil(size * scale), size].

    Antialiased when shrinking: the kernel is widened by 1 / scale. Output pixel o is centred at
    (o + 1/2) / scale - 1/2; weights are normalised before the symmetric border is folded in.
    """
    out_size = math.ceil(size * scale)
    widening = min(scale, 1.0)
    radius = 2 / widening
    centres = (np.arange(out_size) + 0.5) / scale - 0.5
    taps = np.floor(centres - radius)[:, None] + np.arange(math.ceil(2 * radius) + 2)
    weights = _cubic((centres[:, None] - taps) * widening)
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((out_size, size))
    rows = np.arange(out_size)[:, None]
    np.add.at(matrix, (rows, fold_symmetric(taps.astype(int), size)), weights)
    return matrix


def filter_matrix(kernel: np.ndarray, size: int) -> np.ndarray:
    """Cross-correlation of one axis with an odd `kernel`, reflected border: [size, size]."""
    radius = len(kernel) // 2
    taps = np.arange(size)[:, None] + np.arange(-radius, radius + 1)
    matrix = np.zeros((size, size))
    rows = np.arange(size)[:, None]
    np.add.at(matrix, (rows, fold_reflect(taps, size)), np.broadcast_to(kernel, taps.shape))
    return matrix
