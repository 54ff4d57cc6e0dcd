"""Conditioning methods: how one reverse step takes the measurement into account.

Each method is a class whose keyword arguments are the config's `conditioning.params`; `start`
gives x_T and `step` turns x_t into x_{t-1}. To add one, register a class with these two methods.
Notation is the paper's (DPPS, arXiv 2402.16907); acp are cumulative alphas, norms are taken per
image. Shapes: x_t [B, 3, H, W], y [B, ...].
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import GaussianDiffusion, PriorStep, Transition
from guided_diffusion.measurements import Operator
from guided_diffusion.noise_models import NoiseModel
from util.errors import UnsupportedError, UserError
from util.randomness import NoiseSource
from util.registry import Registry


class Extent(Protocol):
    """Over what norm and choice are taken: the image, or parts of it."""

    def distances(self, noiser: NoiseModel, y: Tensor, measured: Tensor) -> Tensor:
        """Distances of measured from y, both [B, ...], over the parts: [B, parts...]."""

    def expected_distances(self, noiser: NoiseModel, y: Tensor, known: Tensor) -> Tensor:
        """Those that the noise alone leaves, for `known` like y: [B, parts...]."""

    def energies(self, gradient: Tensor) -> Tensor:
        """Squared norms of a gradient [B, 3, H, W] over the parts: [B, parts...]."""

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

    def energies(self, gradient: Tensor) -> Tensor:
        return gradient.flatten(1).square().sum(1)

    def blend(self, values: Tensor) -> Tensor:
        return self.at_pixels(values)

    def scores(self, residuals: Tensor) -> Tensor:
        return residuals.flatten(2).square().sum(2)

    def at_pixels(self, values: Tensor) -> Tensor:
        return values[:, None, None, None]


@dataclass(frozen=True)
class Problem:
    """What is to be solved: y = noise(A(x)), and the diffusion process that knows about x."""

    y: Tensor
    operator: Operator
    noiser: NoiseModel
    diffusion: GaussianDiffusion
    image_shape: tuple[int, int, int]  # [3, H, W]
    extent: Extent = WholeImage()
    known: Tensor | None = None  # 1 where y holds a measurement, like y; None: everywhere

    def distances(self, x0_hat: Tensor) -> Tensor:
        """Distances of A(x0_hat) from y over the parts of the extent: [B, parts...]."""
        return self.extent.distances(self.noiser, self.y, self.operator(x0_hat))

    def distance(self, x0_hat: Tensor) -> Tensor:
        """d, the distance of A(x0_hat) from y: [B]."""
        return _per_image(self.distances(x0_hat))

    def expected_distances(self) -> Tensor:
        """The distances that the noise alone leaves: [B, parts...]."""
        known = torch.ones_like(self.y) if self.known is None else self.known
        return self.extent.expected_distances(self.noiser, self.y, known)

    @property
    def sigma(self) -> float | Tensor:
        """Standard deviation of the noise, or what is equivalent to it: a number, or one for each
        image, [B, 1, ...]."""
        return self.noiser.equivalent_sigma(self.y, self.known)


def _per_image(values: Tensor) -> Tensor:
    """Sums [B] of values [B, parts...]."""
    return values if values.ndim == 1 else values.flatten(1).sum(1)


# x_t, t -> the unconditional prediction and the sampler's transition
Reverse = Callable[[Tensor, int], tuple[PriorStep, Transition]]


@dataclass(frozen=True)
class StepResult:
    """One finished step."""

    x: Tensor  # x_{t-1}, [B, 3, H, W]
    x0_hat: Tensor  # [B, 3, H, W]
    distance: Tensor  # [B], on the images' device
    num_candidates: int = 1
    best: Tensor | None = None  # index of the chosen candidate, [B] or [B, parts...]


class ConditioningMethod:
    """Start from noise and step; what the methods share."""

    needs_noise = False  # True: makes no sense where the sampler adds none (DDIM, eta 0)

    def check(self, operator: Operator, noiser: NoiseModel) -> None:
        """UserError where the method cannot work with this operator or noise."""

    def first_step(self, diffusion: GaussianDiffusion) -> int:
        """The step that sampling begins with; the last one is 0."""
        return diffusion.num_timesteps - 1

    def start(self, problem: Problem, noise: NoiseSource) -> Tensor:
        """x_T ~ N(0, I)."""
        return noise.normal("start", problem.diffusion.num_timesteps, problem.image_shape)

    def step(
        self, reverse: Reverse, x_t: Tensor, t: int, problem: Problem, noise: NoiseSource
    ) -> StepResult:
        raise NotImplementedError


CONDITIONING: Registry[ConditioningMethod] = Registry("conditioning method")


def ancestral(move: Transition, t: int, noise: NoiseSource) -> Tensor:
    """mean + std z; the mean alone at t = 0."""
    if t == 0:
        return move.mean.detach()
    return move.mean.detach() + move.std.detach() * noise.normal("step", t, move.mean.shape[1:])


def _gradient(distance: Tensor, x_t: Tensor) -> Tensor:
    """Gradient of each image's distance with respect to its own x_t."""
    return torch.autograd.grad(distance.sum(), x_t)[0]


@CONDITIONING.register("vanilla")
class Vanilla(ConditioningMethod):
    """No conditioning: ancestral sampling of the prior."""

    def step(self, reverse, x_t, t, problem, noise):
        with torch.no_grad():
            prior, move = reverse(x_t, t)
            x = ancestral(move, t, noise)
            return StepResult(x, prior.x0_hat, problem.distance(prior.x0_hat))


@CONDITIONING.register("projection")
class Projection(ConditioningMethod):
    """Each sample is projected onto the measurement at its own noise level."""

    def check(self, operator: Operator, noiser: NoiseModel) -> None:
        _check_projection(operator)

    def step(self, reverse, x_t, t, problem, noise):
        with torch.no_grad():
            prior, move = reverse(x_t, t)
            x = _project(ancestral(move, t, noise), t, problem, noise)
            return StepResult(x, prior.x0_hat, problem.distance(prior.x0_hat))


def _check_projection(operator: Operator) -> None:
    if type(operator).project is Operator.project:
        raise UnsupportedError(
            f"{type(operator).__name__}: no projection is known for this operator; use a "
            "conditioning method without one (dpps, ps, ps+)"
        )


def _project(x: Tensor, t: int, problem: Problem, noise: NoiseSource) -> Tensor:
    y = problem.y
    time = torch.full((len(y),), t, device=y.device)
    y_t = problem.diffusion.q_sample(y, time, noise.normal("measurement", t, y.shape[1:]))
    return problem.operator.project(x, y_t)


@CONDITIONING.register("ps")
class PosteriorSampling(ConditioningMethod):
    """DPS (Chung et al. 2023): a gradient step of `scale` on the distance of x0_hat."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def distance(self, x0_hat: Tensor, t: int, problem: Problem, noise: NoiseSource) -> Tensor:
        return problem.distance(x0_hat)

    def step(self, reverse, x_t, t, problem, noise):
        x_t = x_t.detach().requires_grad_()
        prior, move = reverse(x_t, t)
        d = self.distance(prior.x0_hat, t, problem, noise)
        g = _gradient(d, x_t)
        x = ancestral(move, t, noise) - self.scale * g
        return StepResult(x, prior.x0_hat.detach(), d.detach())


@CONDITIONING.register("ps+")
class PosteriorSamplingPlus(PosteriorSampling):
    """DPS with the distance averaged over `num_sampling` slightly perturbed x0_hat."""

    _PERTURBATION = 0.05  # times uniform noise on [0, 1)

    def __init__(self, scale: float = 1.0, num_sampling: int = 5) -> None:
        super().__init__(scale)
        if num_sampling < 1:
            raise UserError(f"ps+: num_sampling must be at least 1, got {num_sampling}")
        self.num_sampling = num_sampling

    def distance(self, x0_hat: Tensor, t: int, problem: Problem, noise: NoiseSource) -> Tensor:
        total: Any = 0.0
        for _ in range(self.num_sampling):
            shift = self._PERTURBATION * noise.uniform("step", t, problem.image_shape)
            total = total + problem.distance(x0_hat + shift)
        return total / self.num_sampling


@CONDITIONING.register("mcg")
class ManifoldConstrainedGradient(PosteriorSampling):
    """MCG (Chung et al. 2022): a DPS step, then the projection."""

    def check(self, operator: Operator, noiser: NoiseModel) -> None:
        _check_projection(operator)

    def step(self, reverse, x_t, t, problem, noise):
        result = super().step(reverse, x_t, t, problem, noise)
        x = _project(result.x, t, problem, noise)
        return StepResult(x, result.x0_hat, result.distance)


@CONDITIONING.register("dpps")
class ProximalSampling(ConditioningMethod):
    """DPPS: aligned start, guidance, and the candidate that agrees best with the measurement.

    scale: guidance scale s; with `scale_by_steps` it is multiplied by 1000 / T, since the
      guidance adds up over the steps and published scales belong to 1000
    limit_scale: no guidance step longer than Polyak's, (d - d*) / || g ||^2, with d* what the
      noise alone leaves of the distance d, and g its gradient. A norm's gradient does not shrink
      with the norm, so that a scale for few steps overshoots in the last ones. Published: False
    n_max: candidates at high signal-to-noise ratio
    candidates: "adaptive" (the published rule) or a fixed number; 1 is DPS with this start
    init: "aligned" (start from the noised measurement), "noise", or "inverse" (from the noised
      `Operator.inverse` of the measurement: a blur is then solved before the first step, and with
      max_timestep few steps are left)
    selection: target of the choice, "predicted_noise" (published program) or "interpolated"
      (the form in the paper's text)
    max_timestep: begin below this original timestep (of 1000), at the noise level of that step.
      The aligned start then keeps what a blur has left of the image, which saves steps and spares
      a small prior the levels it knows least. Published: all timesteps.
    """

    needs_noise = True

    def __init__(
        self,
        scale: float = 1.0,
        n_max: int = 50,
        candidates: Literal["adaptive"] | int = "adaptive",
        init: Literal["aligned", "inverse", "noise"] = "aligned",
        selection: Literal["predicted_noise", "interpolated"] = "predicted_noise",
        scale_by_steps: bool = False,
        max_timestep: int | None = None,
        limit_scale: bool = False,
    ) -> None:
        if n_max < 1 or (candidates != "adaptive" and candidates < 1):
            raise UserError("dpps: n_max and candidates must be at least 1")
        if max_timestep is not None and (max_timestep < 1 or init == "noise"):
            raise UserError(
                "dpps: max_timestep must be at least 1, and needs init: aligned or inverse"
            )
        self.scale = scale
        self.n_max = n_max
        self.candidates = candidates
        self.init = init
        self.selection = selection
        self.scale_by_steps = scale_by_steps
        self.max_timestep = max_timestep
        self.limit_scale = limit_scale

    def check(self, operator: Operator, noiser: NoiseModel) -> None:
        if self.max_timestep is not None and not operator.measures_images:
            raise UnsupportedError(
                f"dpps: max_timestep needs a measurement that is an image, unlike "
                f"{type(operator).__name__}'s"
            )
        if self.init == "inverse" and not operator.has_inverse:
            raise UnsupportedError(f"dpps: init: inverse: {operator.title} has none")

    def first_step(self, diffusion: GaussianDiffusion) -> int:
        if self.max_timestep is None:
            return super().first_step(diffusion)
        return max(0, int((diffusion.timesteps < self.max_timestep).sum()) - 1)

    def start(self, problem: Problem, noise: NoiseSource) -> Tensor:
        """x_T = sqrt(acp) u + sqrt(1 - acp) z, u the measurement as an image, or its inverse."""
        z = super().start(problem, noise)
        u = self._first_guess(problem)
        if u is None:
            return z
        acp = problem.diffusion.alphas_cumprod[self.first_step(problem.diffusion)]
        return sqrt(acp) * u + sqrt(1 - acp) * z

    def _first_guess(self, problem: Problem) -> Tensor | None:
        if self.init == "noise":
            return None
        if self.init == "aligned":
            return problem.operator.initial(problem.y)
        return problem.operator.inverse(problem.y, problem.sigma).clamp(-1, 1)

    def num_candidates(self, diffusion: GaussianDiffusion, t: int) -> int:
        """n = floor(max(n_max (1 - exp(-SNR_t)), 2)), or the fixed number."""
        if self.candidates != "adaptive":
            return self.candidates
        return int(max(self.n_max * (1 - np.exp(-diffusion.snr[t])), 2))

    def step(self, reverse, x_t, t, problem, noise):
        x_t = x_t.detach().requires_grad_()
        prior, move = reverse(x_t, t)
        distances = problem.distances(prior.x0_hat)
        g = _gradient(distances, x_t)
        x0_hat, distances = prior.x0_hat.detach(), distances.detach()
        mu = move.mean.detach() - self._guidance(distances, g, problem) * g
        d = _per_image(distances)
        if t == 0:
            return StepResult(mu, x0_hat, d)
        n = self.num_candidates(problem.diffusion, t)
        with torch.no_grad():
            best, z = self.choose(mu, move.std.detach(), prior.eps, x_t, t, n, problem, noise)
            return StepResult(mu + move.std * z, x0_hat, d, n, best)

    def _guidance(self, distances: Tensor, g: Tensor, problem: Problem) -> float | Tensor:
        """Length of the step along -g: the scale, or what expands to g."""
        steps = problem.diffusion.num_timesteps
        scale = self.scale * (1000 / steps if self.scale_by_steps else 1)
        if not self.limit_scale:
            return scale
        extent = problem.extent
        excess = (distances - problem.expected_distances()).clamp(min=0)
        polyak = excess / extent.energies(g).clamp(min=torch.finfo(g.dtype).tiny)
        return extent.blend(polyak.clamp(max=scale))

    def choose(
        self,
        mu: Tensor,
        std: Tensor,
        eps: Tensor,
        x_t: Tensor,
        t: int,
        n: int,
        problem: Problem,
        noise: NoiseSource,
    ) -> tuple[Tensor, Tensor]:
        """Index [B] and noise z [B, 3, H, W] of the candidate mu + std z with the least score; in
        an extent of several parts, index [B, parts...] and each part's z at its pixels.

        score_i = || sqrt(acp_prev) y - A(x_i - sqrt(1 - acp_prev) eps) ||, or, interpolated,
        || C2 y + C1 A(x_t) - A(x_i) ||. For a linear A both are || r - A(std z_i) || with r the
        same for all candidates, so no candidate image is formed.
        """
        A, y, diffusion, extent = problem.operator, problem.y, problem.diffusion, problem.extent
        prev = diffusion.alphas_cumprod_prev[t]
        if self.selection == "predicted_noise":
            target, base = sqrt(prev) * y, mu - sqrt(1 - prev) * eps
        else:
            acp = diffusion.alphas_cumprod[t]
            c1 = sqrt((1 - prev) / (1 - acp))
            target, base = (sqrt(prev) - sqrt(acp) * c1) * y + c1 * A(x_t), mu
        if A.linear:
            target = target - A(base)
        best: Any = None
        best_score, best_z, first = mu, mu, 0  # until the first block
        for z in noise.candidates(t, n, mu.shape[1:]):  # [m, B, 3, H, W]
            moved = std * z
            measured = A(moved if A.linear else base + moved)
            scores = extent.scores(target - measured)  # [m, B, parts...]
            score, index = scores.min(dim=0)
            z = z.gather(0, extent.at_pixels(index).expand(1, *z.shape[1:]))[0]
            if best is None:
                best, best_score, best_z = index, score, z
            else:
                better = score < best_score
                best = torch.where(better, index + first, best)
                best_score = torch.where(better, score, best_score)
                best_z = torch.where(extent.at_pixels(better), z, best_z)
            first += len(scores)
        return best, best_z
