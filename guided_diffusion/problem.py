"""What is to be solved: a measurement, how it came about, and over what parts norms are taken."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.measurements import Operator
from guided_diffusion.noise_models import NoiseModel
from guided_diffusion.operator_base import Linearised, LinearOperator


class Extent(Protocol):
    """Over what norm and choice are taken: the image, or parts of it."""

    def distances(self, noiser: NoiseModel, y: Tensor, measured: Tensor) -> Tensor:
        """Distances of measured from y, both [B, ...], over the parts: [B, parts...]."""

    def expected_distances(self, noiser: NoiseModel, y: Tensor, known: Tensor) -> Tensor:
        """Those that the noise alone leaves, for `known` like y: [B, parts...]."""

    def image_sums(self, values: Tensor) -> Tensor:
        """Sums of values [B, 3, H, W] over the parts: [B, parts...]."""

    def measured_sums(self, values: Tensor) -> Tensor:
        """Sums of values like y, [B, ...], over the parts: [B, parts...]."""

    def blend(self, values: Tensor) -> Tensor:
        """Values [B, parts...] spread over the pixels of their parts: like `at_pixels`, but
        changing smoothly."""

    def scores(self, residuals: Tensor) -> Tensor:
        """Squared norms of the residuals [m, B, ...] of m candidates: [m, B, parts...]."""

    def at_pixels(self, values: Tensor) -> Tensor:
        """Values [B, parts...] where they hold: [B, 1, H, W], or what expands to it."""


@dataclass(frozen=True)
class WholeImage:
    """The published extent: one norm and one candidate for an image.

    factor: of the distance, for images of another size than the model's
    """

    factor: float = 1.0

    def distances(self, noiser: NoiseModel, y: Tensor, measured: Tensor) -> Tensor:
        return self.factor * noiser.distance(y, measured)

    def expected_distances(self, noiser: NoiseModel, y: Tensor, known: Tensor) -> Tensor:
        return self.factor * noiser.expected_distance(known, y=y)

    def image_sums(self, values: Tensor) -> Tensor:
        return values.flatten(1).sum(1)

    def measured_sums(self, values: Tensor) -> Tensor:
        return values.flatten(1).sum(1)

    def blend(self, values: Tensor) -> Tensor:
        return self.at_pixels(values)

    def scores(self, residuals: Tensor) -> Tensor:
        return residuals.flatten(2).square().sum(2)

    def at_pixels(self, values: Tensor) -> Tensor:
        return values[:, None, None, None]


@dataclass(frozen=True)
class Problem:
    """What is to be solved: y = noise(A(x)), and the diffusion process that knows about x.

    memory: what a method keeps from one step to the next, of all images of the batch; emptied by
      `ConditioningMethod.start`. A step that finds nothing in it begins anew: memory and time are
      measured on single steps.
    """

    y: Tensor
    operator: Operator
    noiser: NoiseModel
    diffusion: GaussianDiffusion
    image_shape: tuple[int, int, int]  # [3, H, W]
    extent: Extent = WholeImage()
    known: Tensor | None = None  # 1 where y holds a measurement, like y; None: everywhere
    memory: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def distances(self, x0_hat: Tensor) -> Tensor:
        """Distances of A(x0_hat) from y over the parts of the extent: [B, parts...]."""
        return self.extent.distances(self.noiser, self.y, self.operator(x0_hat))

    def distance(self, x0_hat: Tensor) -> Tensor:
        """d, the distance of A(x0_hat) from y: [B]."""
        return per_image(self.distances(x0_hat))

    def expected_distances(self) -> Tensor:
        """The distances that the noise alone leaves: [B, parts...]."""
        known = torch.ones_like(self.y) if self.known is None else self.known
        return self.extent.expected_distances(self.noiser, self.y, known)

    @property
    def sigma(self) -> float | Tensor:
        """Standard deviation of the noise, or what is equivalent to it: a number, or one for each
        image, [B, 1, ...]."""
        return self.noiser.equivalent_sigma(self.y, self.measured_values)

    @cached_property
    def measured_values(self) -> Tensor:
        """1 where a value of y tells of the image, 0 elsewhere; like y."""
        return self.operator.measured_values(self.y) if self.known is None else self.known

    def probe(self, A: LinearOperator | Linearised) -> Tensor:
        """A z, like y, for one random image z, the same whenever it is asked for: the squares of
        its values have the diagonal of A A^T as their mean (Hutchinson 1990)."""
        return self._probed if A is self.operator else self._measured_noise(A)

    @cached_property
    def _probed(self) -> Tensor:
        return self._measured_noise(self.operator)

    def _measured_noise(self, A: Callable[[Tensor], Tensor]) -> Tensor:
        z = torch.randn(1, *self.image_shape, generator=torch.Generator().manual_seed(0))
        return A(z.to(self.y).expand(len(self.y), -1, -1, -1))

    def variance(self, measured: Tensor) -> float | Tensor:
        """Variance of the noise where `measured`, like y, is what there would be without it: a
        number, or like y; never 0. The noisy y itself would give its dark values most weight."""
        return self.noiser.variance(measured)


def data_gradient(problem: Problem, x: Tensor) -> Tensor:
    """Gradient of || y - A(x) ||^2 / 2 by x, both [B, 3, H, W], for any operator."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        half_square = (problem.y - problem.operator(x)).square().sum() / 2
        return torch.autograd.grad(half_square, x)[0]


def per_image(values: Tensor) -> Tensor:
    """Sums [B] of values [B, parts...]."""
    return values if values.ndim == 1 else values.flatten(1).sum(1)
