"""Random motion-blur kernels: a jittery path drawn as a thin line.

The order of the draws is part of the definition: with NumPy's legacy generator it reproduces
the published kernels.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def motion_kernel(size: int, intensity: float, rng: np.random.RandomState) -> np.ndarray:
    """Blur kernel of a random camera path: float32 [size, size], non-negative, sum 1.

    `intensity` in [0, 1]: 0 is close to a straight line, 1 a long path with sharp turns.
    """
    if size < 3:
        raise ValueError(f"a motion kernel needs a size of at least 3, got {size}")
    if not 0 <= intensity <= 1:
        raise ValueError(f"motion-blur intensity must be in [0, 1], got {intensity}")
    canvas = 2 * size
    diagonal = math.hypot(canvas, canvas)
    steps = _step_lengths(diagonal, intensity, rng)
    angles = _step_angles(len(steps), intensity, rng)
    path = np.cumsum(steps * np.exp(1j * angles))
    path -= path.mean()
    path *= np.exp(1j * rng.uniform(0, math.pi))
    path += (canvas + 1j * canvas) / 2
    return _draw(path, canvas, diagonal, size)


def _step_lengths(diagonal: float, intensity: float, rng: np.random.RandomState) -> np.ndarray:
    length = 0.75 * diagonal * (rng.uniform() + rng.uniform(0, intensity**2))
    steps: list[float] = []
    while sum(steps) < length:
        step = rng.beta(1, 30) * (1 - intensity + 0.1) * diagonal
        if step < length:
            steps.append(step)
    return np.array(steps)


def _step_angles(count: int, intensity: float, rng: np.random.RandomState) -> np.ndarray:
    largest = rng.uniform(0, intensity * math.pi)
    jitter = rng.beta(2, 20)
    angles = [rng.uniform(low=-largest, high=largest)]
    while len(angles) < count:
        angle = rng.triangular(0, intensity * largest, largest + 0.1)
        sign = -1 if angles[-1] < 0 else 1
        if rng.uniform() < jitter:
            sign = -sign
        angles.append(sign * angle)
    return np.array(angles[:count])


def _draw(path: np.ndarray, canvas: int, diagonal: float, size: int) -> np.ndarray:
    image = Image.new("RGB", (canvas, canvas))
    points = list(zip(path.real, path.imag, strict=True))
    # A width of 0 draws nothing: kernels below 54 pixels would be empty.
    width = max(1, int(diagonal / 150))
    ImageDraw.Draw(image).line(xy=points, width=width)
    image = image.filter(ImageFilter.GaussianBlur(radius=int(diagonal * 0.01)))
    image = image.resize((size, size), resample=Image.Resampling.LANCZOS).convert("L")
    kernel = np.asarray(image, dtype=np.float32)
    return kernel / kernel.sum()
