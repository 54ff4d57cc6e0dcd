"""A Gaussian model of photographs, and what it makes of a measurement before any network is asked.

In the mean over photographs, power falls with frequency f about as f^-2 (Field 1987), and most of
it is in the luminance. The exponent, the power and the colours below were measured on 46
photographs of 256x256. With such a model the linear estimate of least squared error (Wiener's) is
there for every linear operator and every noise, and its error can be told beforehand.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.conjugate_gradients import conjugate_gradients
from guided_diffusion.cosines import dct2, inverse_dct2
from guided_diffusion.noise_models import at_least

# Variance of an orthonormal cosine coefficient at frequency f in cycles per pixel: POWER f^-SLOPE.
_POWER, _SLOPE = 0.002, 2.3
# Luminance and two opponent colours (rows), and their variances over the mean of red, green, blue.
_COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
_COLOUR_POWER = (2.76, 0.206, 0.034)

_LEAST_SIGMA = 0.01  # "no noise" would still be rounded to 8 bits
# Where little is measured, conjugate gradients need long for a small sigma; from the solution for
# a larger one they need few iterations.
_SIGMAS = (0.5, 0.1, 0.03, 0.0)
_ITERATIONS = 25  # at each sigma, at most
_TOLERANCE = 1e-7
_PIXELS, _MOST_DRAWN = 2**16, 64  # of the images that an error is measured on, and how many
_BLOCK = 8  # pixels: errors count by their energy in squares of this side


class Linear(Protocol):
    """What is asked of an operator; see LinearOperator."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def adjoint(self, y: Tensor) -> Tensor: ...


class NaturalImages:
    """Images [B, *shape] whose cosine coefficients are independent and Gaussian.

    shape: (3, height, width), or (1, height, width) for grey ones
    variances: of the coefficients, [C, H, W]
    """

    def __init__(self, shape: tuple[int, int, int], like: Tensor) -> None:
        self.shape = shape
        channels, height, width = shape
        # A grey image has the luminance's values in its one channel, not sqrt(3) times them.
        luminance = ((1.0,),), (_COLOUR_POWER[0] / 3,)
        vectors, powers = (_COLOURS, _COLOUR_POWER) if channels == 3 else luminance
        colours = torch.tensor(vectors, dtype=torch.float64)
        self._colours = (colours / colours.norm(dim=1, keepdim=True)).to(like)
        down, across = (torch.arange(n, dtype=torch.float64) / (2 * n) for n in (height, width))
        frequency = (down[:, None] ** 2 + across**2).sqrt()
        frequency[0, 0] = 1 / (4 * max(height, width))
        power = torch.tensor(powers, dtype=torch.float64)[:, None, None]
        self.variances = (power * _POWER * frequency**-_SLOPE).to(like)

    def coefficients(self, x: Tensor) -> Tensor:
        """Images -> coefficients, both [B, C, H, W]; an orthogonal transform."""
        return dct2(_mixed(self._colours, x))

    def image(self, c: Tensor) -> Tensor:
        """The way back."""
        return _mixed(self._colours.T, inverse_dct2(c))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` images, most values in [-1, 1]."""
        z = torch.randn(count, *self.shape, generator=generator).to(self.variances)
        return self.image(self.variances.sqrt() * z)


def _mixed(colours: Tensor, x: Tensor) -> Tensor:
    return (colours @ x.flatten(2)).view(x.shape)


def wiener(
    operator: Linear, y: Tensor, shape: tuple[int, int, int], sigma: float | Tensor
) -> Tensor:
    """The mean of natural images [B, *shape] given y = A x + noise.

    sigma: of the noise, a number or one for each image, [B, 1, ...]

    Conjugate gradients on the coefficients: (A^T A / sigma^2 + V^-1) x = A^T y / sigma^2 with V
    the model's covariance, preconditioned as if A^T A were a multiple of the identity.
    """
    images = NaturalImages(shape, y)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, *images.shape, generator=generator).to(y)
    measured = images.coefficients(operator.adjoint(y))
    c = torch.zeros_like(measured)
    share = operator(probe.expand_as(c)).square().flatten(1).sum(1) / probe.square().sum()
    share = share.view(-1, 1, 1, 1)  # mean eigenvalue of A^T A
    for least in _SIGMAS:
        precision = at_least(sigma, max(least, _LEAST_SIGMA)) ** -2
        if isinstance(precision, Tensor):
            precision = precision.view(-1, 1, 1, 1)
        scale = (share * precision + 1 / images.variances).rsqrt()

        def system(k: Tensor, precision=precision, scale=scale) -> Tensor:
            x = scale * k
            seen = images.coefficients(operator.adjoint(operator(images.image(x))))
            return scale * (precision * seen + x / images.variances)

        b = scale * precision * measured
        c = scale * conjugate_gradients(system, b, c / scale, _ITERATIONS, _TOLERANCE)
    return images.image(c)


def expected_error(
    start: Callable[[Tensor, int], Tensor],
    shape: tuple[int, int, int],
    like: Tensor,
    at_a_time: int | None = None,
) -> float:
    """Mean squared error of what `start` makes of measured images, where it has its energy.

    start: (images [B, *shape], number of the first) -> their estimates from measurements of them
    at_a_time: images that `start` takes, B; None: all

    An error that is confined to a part of the image (a hole) counts as it is there.
    """
    images, generator = NaturalImages(shape, like), torch.Generator().manual_seed(0)
    _, height, width = shape
    total, energy = 0.0, 0.0
    count = min(-(-_PIXELS // (height * width)), _MOST_DRAWN)
    for first in range(0, count, at_a_time or count):
        together = min(at_a_time or count, count - first)
        drawn = torch.cat([images.draw(1, generator) for _ in range(together)]).clamp(-1, 1)
        error = (start(drawn, first) - drawn).square().mean(1, keepdim=True)
        blocks = torch.nn.functional.avg_pool2d(error, min(_BLOCK, height, width))
        total += blocks.sum().item()
        energy += blocks.square().sum().item()
    return energy / max(total, float(np.finfo(np.float32).tiny))
