"""Guidance rules: how far, and along what, the measurement moves a step.

A rule looks at the prior's prediction at x_t and says what is to be added to the mean of x_{t-1}.
To add one, register a class whose keyword arguments are parameters of the conditioning methods.
"""

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from guided_diffusion.conjugate_gradients import conjugate_gradients
from guided_diffusion.gaussian_diffusion import PriorStep, Transition
from guided_diffusion.operator_base import Linearised, LinearOperator
from guided_diffusion.problem import Extent, Problem
from guided_diffusion.pullback import pullback
from util.registry import Registry


class Guidance(NamedTuple):
    """What a rule makes of a step."""

    offset: Tensor  # to be added to the mean of x_{t-1}, [B, 3, H, W]
    x0_hat: Tensor  # the estimate of the clean image that follows, [B, 3, H, W]
    distances: Tensor  # of the prior's x0_hat from the measurement, [B, parts...]


class GuidanceRule:
    """x_t must require a gradient, and `prior` and `move` must have been computed from it."""

    def __call__(
        self, prior: PriorStep, move: Transition, x_t: Tensor, t: int, problem: Problem
    ) -> Guidance:
        raise NotImplementedError


GUIDANCE_RULES: Registry[GuidanceRule] = Registry("guidance_rule")


def gradient_of(distances: Tensor, x_t: Tensor) -> Tensor:
    """Gradient of each image's distances with respect to its own x_t."""
    return torch.autograd.grad(distances.sum(), x_t)[0]


@GUIDANCE_RULES.register("published")
class FixedScale(GuidanceRule):
    """A step of `scale` along the gradient of || y - A x0_hat || (DPS, Chung et al. 2023, eq. 16).

    limit_scale: no step longer than Polyak's, (d - d*) / || g ||^2, with d* what the noise alone
      leaves of the distance d, and g its gradient. A norm's gradient does not shrink with the
      norm, so that a scale for few steps overshoots in the last ones.
    """

    def __init__(self, scale: float = 1.0, limit_scale: bool = False) -> None:
        self.scale, self.limit_scale = scale, limit_scale

    def __call__(self, prior, move, x_t, t, problem):
        distances = problem.distances(prior.x0_hat)
        g = gradient_of(distances, x_t)
        distances = distances.detach()
        return Guidance(-self._length(distances, g, problem) * g, prior.x0_hat.detach(), distances)

    def _length(self, distances: Tensor, g: Tensor, problem: Problem) -> float | Tensor:
        """Length of the step along -g: the scale, or what expands to g."""
        if not self.limit_scale:
            return self.scale
        extent = problem.extent
        excess = (distances - problem.expected_distances()).clamp(min=0)
        energies = extent.image_sums(g.square())
        polyak = excess / energies.clamp(min=torch.finfo(g.dtype).tiny)
        return extent.blend(polyak.clamp(max=self.scale))


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """a / b, 0 where one of them is not positive."""
    positive = (a > 0) & (b > 0)
    return torch.where(positive, a / b.where(positive, 1.0), 0.0)


@GUIDANCE_RULES.register("line_search")
class LineSearch(GuidanceRule):
    """Pseudoinverse guidance with an exact line search: no scale, for any operator and noise.

    The direction is that of PiGDM (Song et al. 2023, ICLR, eq. 7): g = J^T w with w = A^T u,
    u = (r^2 A A^T + S)^-1 e, e = y - A x0_hat, S the covariance of the noise and J the derivative
    of x0_hat by x_t. r^2, the variance of the image about x0_hat, is PiGDM's 1 - acp or, where the
    measurement shows that the prior is further off, what it shows: the r^2 for which
    e^T S^-1 e = r^2 tr(A^T S^-1 A) + (number of values), its mean, is met.

    The prior's covariance given x_t is C = r^2 / sqrt(acp) J, by Tweedie's formula (Boys et al.
    2024, arXiv 2310.06721), so that the posterior mean is x0_hat + C A^T z with
    z = (K + S)^-1 e, K = A C A^T. The length of the step is the one that comes closest to it in
    the prior's own metric: C A^T (a u) = a h with the a that minimises (z - a u)^T K (z - a u).
    The sampler's transition then goes towards x0_hat + a h in place of x0_hat.

    K is known along u alone. Of k / (k + 1), the part of a component of S^-1/2 K S^-1/2 that is
    not noise, the tangent at kappa is taken, the root mean square of k in u. No step is so long
    that the misfit e^T S^-1 e and the prior's term h^T C^-1 h together would be more than before:
    that is twice the length that makes them least.

    An operator that is not linear is replaced by its derivative at x0_hat, and the length is halved
    until the misfit and the prior's term together do not rise with A itself.
    """

    _ITERATIONS = 12  # of conjugate gradients, where the operator's spectrum is not known
    _HALVINGS = 5  # at most; then no step is taken

    def __call__(self, prior, move, x_t, t, problem):
        acp = problem.diffusion.alphas_cumprod[t]
        extent = problem.extent
        x0_hat = prior.x0_hat.detach()
        A = problem.operator.linearised(x0_hat)
        with torch.no_grad():
            measured = problem.operator(x0_hat)
            variance = problem.variance(measured)
            distances = extent.distances(problem.noiser, problem.y, measured)
            e = problem.y - measured
            r2 = self._prior_variance(A, e, variance, 1 - acp, problem)
            u, w = self._directions(A, e, r2, variance)
        g = pullback(prior.x0_hat, x_t, w)
        with torch.no_grad():
            h = r2 / sqrt(acp) * g
            ku = A(h)
            u_ku = extent.image_sums(w * h)  # also h^T C^-1 h
            length = self._length(u * problem.measured_values, ku, e, variance, u_ku, extent)
            if isinstance(A, Linearised):
                length = self._falling(length, x0_hat, h, u_ku, variance, problem)
            shift = extent.blend(length) * h
            return Guidance(move.per_x0 * shift, x0_hat + shift, distances)

    def _length(
        self,
        u: Tensor,
        ku: Tensor,
        e: Tensor,
        variance: float | Tensor,
        u_ku: Tensor,
        extent: Extent,
    ) -> Tensor:
        """a [B, parts...]; 0 where the misfit does not fall along h.

        u, ku, e: u, K u and the residual, like y
        u_ku: u^T K u, [B, parts...]
        """

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return extent.measured_sums(a * b)

        kk = dot(ku, ku / variance)
        tiny = torch.finfo(e.dtype).tiny
        kappa2 = kk / dot(u, u * variance).clamp(min=tiny)
        gain = dot(ku, e / variance)
        nearest = _quotient(gain + kappa2 * dot(u, e), 2 * kk + (1 + kappa2) * u_ku)
        return nearest.minimum(2 * _quotient(gain, kk + u_ku.clamp(min=0)))

    def _prior_variance(
        self,
        A: LinearOperator | Linearised,
        e: Tensor,
        variance: float | Tensor,
        least: float,
        problem: Problem,
    ) -> Tensor:
        """r^2 of each image, [B, 1, 1, 1], at least `least`."""
        known = problem.measured_values
        gap, count = e * known / variance**0.5, known.flatten(1).sum(1)
        # What two standard deviations of chi^2 allow may be the noise alone.
        excess = gap.square().flatten(1).sum(1) - count - 2 * (2 * count).sqrt()
        trace = (problem.probe(A).square() / variance).flatten(1).sum(1)
        found = excess / trace.clamp(min=torch.finfo(e.dtype).tiny)
        return found.clamp(min=least).view(-1, 1, 1, 1)

    def _directions(
        self, A: LinearOperator | Linearised, e: Tensor, r2: Tensor, variance: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """u = (r^2 A A^T + S)^-1 e, like e, and w = A^T u, [B, 3, H, W]."""
        spectrum = A.spectrum(0.0) if isinstance(A, LinearOperator) else None
        if spectrum is not None and not isinstance(variance, Tensor):
            s = spectrum.values
            c = spectrum.measured(e) / (r2 * s**2 + variance)
            return spectrum.measurement(c), spectrum.image(s * c)

        weight = r2.view(-1, *[1] * (e.ndim - 1))

        def system(u: Tensor) -> Tensor:
            return weight * A(A.adjoint(u)) + variance * u

        u = conjugate_gradients(system, e, None, self._ITERATIONS)
        return u, A.adjoint(u)

    def _falling(
        self,
        length: Tensor,
        x0_hat: Tensor,
        h: Tensor,
        penalty: Tensor,
        variance: float | Tensor,
        problem: Problem,
    ) -> Tensor:
        """length [B, parts...], halved where the misfit and the prior's term length^2 penalty
        would be more than the misfit of x0_hat."""
        extent = problem.extent

        def objective(a: Tensor) -> Tensor:
            e = problem.y - problem.operator(x0_hat + extent.blend(a) * h)
            return extent.measured_sums(e * e / variance) + a**2 * penalty.clamp(min=0)

        start = objective(torch.zeros_like(length))
        for _ in range(self._HALVINGS):
            rises = ~(objective(length) <= start)  # also where it is not a number
            if not rises.any():
                return length
            length = torch.where(rises, length / 2, length)
        return torch.where(objective(length) <= start, length, 0.0)
