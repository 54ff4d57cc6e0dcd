"""Noise models of a measurement: y = noise(A(x)), everything on the range [-1, 1].

To add one, register a class whose keyword arguments are its config keys.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from util.errors import UserError
from util.registry import Registry

# Values of pixels [B, C, h, w] -> their sums over parts of the image, [B, parts...].
Pool = Callable[[Tensor], Tensor]
LEAST_SIGMA = 1e-3  # what no noise at all counts as where a system is solved
_OVERSHOOT = 2.0  # bicubic reduction and kernels with negative values leave [-1, 1] by less
_LEAST_SQUARE = 1e-30  # keeps the gradient of a norm finite where a part fits exactly


def _over_image(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


class NoiseModel:
    """Noise on a measurement, and the distance that belongs to it."""

    def __call__(self, clean: Tensor, rng: np.random.RandomState) -> Tensor:
        """The noisy measurement of one image, same shape as `clean`."""
        raise NotImplementedError

    def distance(self, y: Tensor, predicted: Tensor, pool: Pool | None = None) -> Tensor:
        """Distance of predicted measurements from y, both [B, ...]: the 2-norm per image, [B], or
        over the parts that `pool` sums over, [B, parts...]."""
        if pool is None:
            return (y - predicted).flatten(1).norm(dim=1)
        return pool((y - predicted).square()).clamp(min=_LEAST_SQUARE).sqrt()

    def expected_norm(
        self, known: Tensor, pool: Pool = _over_image, y: Tensor | None = None
    ) -> Tensor:
        """The 2-norm of the noise, [B] or [B, parts...]; 0 where its level is not stated.

        known: 1 where y [B, ...] holds a measurement, 0 elsewhere
        y: the measurement, for noise whose level follows it
        """
        return torch.zeros_like(pool(known))

    def expected_distance(
        self, known: Tensor, pool: Pool = _over_image, y: Tensor | None = None
    ) -> Tensor:
        """The distance that the noise alone leaves, as `expected_norm`."""
        return self.expected_norm(known, pool, y)

    def equivalent_sigma(self, y: Tensor, known: Tensor | None = None) -> float | Tensor:
        """Standard deviation of white Gaussian noise as strong as this on y [B, ...]: a number, or
        one for each image, [B, 1, ...]; 0 where it is not stated."""
        return getattr(self, "sigma", 0.0)

    def variance(self, y: Tensor) -> float | Tensor:
        """Variance of the noise of the values of y [B, ...]: a number, or like y; at least that of
        LEAST_SIGMA, so that systems with it can be solved."""
        return at_least(self.equivalent_sigma(y), LEAST_SIGMA) ** 2


def at_least(sigma: float | Tensor, least: float) -> float | Tensor:
    """sigma, or `least` where that is more."""
    return sigma.clamp(min=least) if isinstance(sigma, Tensor) else max(sigma, least)


NOISES: Registry[NoiseModel] = Registry("noise")


@NOISES.register("clean")
class Clean(NoiseModel):
    """No noise."""

    def __call__(self, clean: Tensor, rng: np.random.RandomState) -> Tensor:
        return clean


@NOISES.register("gaussian")
class GaussianNoise(NoiseModel):
    """White Gaussian noise; `sigma` is on the range [-1, 1] (0.01 is 0.005 on [0, 1])."""

    def __init__(self, sigma: float = 0.01) -> None:
        if sigma < 0:
            raise UserError(f"noise: sigma must not be negative, got {sigma}")
        self.sigma = sigma

    def __call__(self, clean: Tensor, rng: np.random.RandomState) -> Tensor:
        return clean + self.sigma * torch.as_tensor(rng.standard_normal(clean.shape)).to(clean)

    def expected_norm(
        self, known: Tensor, pool: Pool = _over_image, y: Tensor | None = None
    ) -> Tensor:
        """sigma sqrt(m) for m measured values."""
        return self.sigma * pool(known).sqrt()


@NOISES.register("poisson")
class PoissonNoise(NoiseModel):
    """Photon noise of 8-bit images: 255 * `rate` photons make a white pixel. What leaves [-1, 1] is
    cut; UserError for measurements that are no pictures and go far beyond it."""

    def __init__(self, rate: float = 1.0) -> None:
        if rate <= 0:
            raise UserError(f"noise: rate must be positive, got {rate}")
        self.rate = rate

    def __call__(self, clean: Tensor, rng: np.random.RandomState) -> Tensor:
        largest = clean.abs().max().item()
        if largest > _OVERSHOOT:
            raise UserError(
                f"noise poisson: counts the photons of pictures on [-1, 1], and this measurement "
                f"goes to {largest:.3g}; take noise gaussian"
            )
        unit = ((clean + 1) / 2).clamp(0, 1).cpu().numpy()
        photons = rng.poisson(unit * 255.0 * self.rate)
        noisy = torch.as_tensor(photons / 255.0 / self.rate).to(clean)
        return (noisy * 2 - 1).clamp(-1, 1)

    def distance(self, y: Tensor, predicted: Tensor, pool: Pool | None = None) -> Tensor:
        """Mean over pixels of the norm divided by |y|; pixels with y = 0 are left out."""
        return super().distance(y, predicted, pool) * self._weight(y, pool or _over_image)

    @staticmethod
    def _weight(y: Tensor, total: Pool) -> Tensor:
        magnitude = y.abs()
        known = magnitude > 0
        inverse = torch.where(known, 1 / magnitude.where(known, 1.0), 0.0)
        return total(inverse) / total(known.to(y)).clamp(min=1)

    def variance(self, y: Tensor) -> Tensor:
        """Variance of every value of y, by its own photons, at least one: 4 u / (255 rate) for
        the intensity u = (y + 1) / 2."""
        photon = 1 / (255.0 * self.rate)
        return 4 * photon * ((y + 1) / 2).clamp(min=photon)

    def expected_norm(
        self, known: Tensor, pool: Pool = _over_image, y: Tensor | None = None
    ) -> Tensor:
        if y is None:
            return super().expected_norm(known, pool)
        return pool(known * self.variance(y)).sqrt()

    def expected_distance(
        self, known: Tensor, pool: Pool = _over_image, y: Tensor | None = None
    ) -> Tensor:
        norm = self.expected_norm(known, pool, y)
        return norm if y is None else norm * self._weight(y, pool)

    def equivalent_sigma(self, y: Tensor, known: Tensor | None = None) -> Tensor:
        known = torch.ones_like(y) if known is None else known
        total = _over_image(known).clamp(min=1)
        sigma = (_over_image(known * self.variance(y)) / total).sqrt()
        return sigma.view(-1, *[1] * (y.ndim - 1))
