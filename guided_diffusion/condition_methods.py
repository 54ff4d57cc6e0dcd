"""Conditioning methods: how one reverse step takes the measurement into account.

Each method is a class whose keyword arguments are the config's `conditioning.params`; `start`
gives x_T and `step` turns x_t into x_{t-1}. To add one, register a class with these two methods.
Notation is the paper's (DPPS, arXiv 2402.16907); acp are cumulative alphas, norms are taken per
image. Shapes: x_t [B, 3, H, W], y [B, ...].
"""

from dataclasses import dataclass, field
from math import sqrt
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import GaussianDiffusion, PriorStep, Transition
from guided_diffusion.guidance import GUIDANCE_RULES, GuidanceRule, gradient_of
from guided_diffusion.measurements import Operator
from guided_diffusion.noise_models import NoiseModel
from guided_diffusion.problem import Problem, per_image
from util.errors import UnsupportedError, UserError
from util.randomness import NoiseSource
from util.registry import Registry


class Reverse(Protocol):
    """What a method is told of the prior."""

    def __call__(self, x_t: Tensor, t: int) -> tuple[PriorStep, Transition]:
        """The unconditional prediction and the sampler's transition at step t."""

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """x0_hat from x = x_0 + sigma z, at any noise level; both [B, 3, H, W]."""


@dataclass(frozen=True)
class StepResult:
    """One finished step."""

    x: Tensor  # x_{t-1}, [B, 3, H, W]
    x0_hat: Tensor  # [B, 3, H, W]
    distance: Tensor  # [B], on the images' device
    num_candidates: int = 1
    best: Tensor | None = None  # index of the chosen candidate, [B] or [B, parts...]


Init = Literal["aligned", "inverse", "noise"]
Selection = Literal["predicted_noise", "interpolated"]


@dataclass
class ConditioningMethod:
    """Start and step; what the methods share.

    init: where sampling begins. "noise": at random; "aligned": from the noised measurement (the
      paper's); "inverse": from the noised `Operator.inverse` of the measurement
    """

    init: Init = field(default="noise", kw_only=True)

    # True: makes no sense where the sampler adds no noise (DDIM, eta 0)
    needs_noise: ClassVar[bool] = False

    def check(self, operator: Operator, noiser: NoiseModel) -> None:
        """UserError where the method cannot work with this operator or noise."""

    def first_step(self, diffusion: GaussianDiffusion) -> int:
        """The step that sampling begins with; the last one is 0."""
        return diffusion.num_timesteps - 1

    def first_guess(self, operator: Operator, y: Tensor, sigma: float | Tensor) -> Tensor | None:
        """The image [B, 3, H, W] that sampling begins from, without its noise; None: from noise.

        sigma: of the noise of y, as `Operator.inverse` has it
        """
        if self.init == "noise":
            return None
        if self.init == "aligned":
            return operator.initial(y)
        if self.init != "inverse":
            raise UserError(f'init "{self.init}": expected one of {", ".join(get_args(Init))}')
        u = operator.inverse(y, sigma)
        return None if u is None else u.clamp(-1, 1)

    def start(self, problem: Problem, noise: NoiseSource) -> Tensor:
        """x_T = sqrt(acp) u + sqrt(1 - acp) z with u the first guess; z alone without one."""
        u, diffusion = self.begun(problem), problem.diffusion
        z = noise.normal("start", diffusion.num_timesteps, problem.image_shape)
        if u is None:
            return z
        acp = diffusion.alphas_cumprod[self.first_step(diffusion)]
        return sqrt(acp) * u + sqrt(1 - acp) * z

    def begun(self, problem: Problem) -> Tensor | None:
        """The first guess of a problem of which nothing is remembered from now on."""
        problem.memory.clear()
        with torch.no_grad():
            return self.first_guess(problem.operator, problem.y, problem.sigma)

    def step(
        self, reverse: Reverse, x_t: Tensor, t: int, problem: Problem, noise: NoiseSource
    ) -> StepResult:
        raise NotImplementedError


CONDITIONING: Registry[ConditioningMethod] = Registry(
    "conditioning method", meant={"dps": "ps", "dps+": "ps+", "DPS": "ps", "DPS+": "ps+"}
)


def ancestral(move: Transition, t: int, noise: NoiseSource) -> Tensor:
    """mean + std z; the mean alone at t = 0."""
    if t == 0:
        return move.mean.detach()
    return move.mean.detach() + move.std.detach() * noise.normal("step", t, move.mean.shape[1:])


def _rule(method: Any) -> GuidanceRule:
    """The guidance rule that a method's parameters name, with those of them that it takes."""
    name = method.guidance_rule
    given = {key: getattr(method, key) for key in GUIDANCE_RULES.keys(name) if hasattr(method, key)}
    return GUIDANCE_RULES.get(name)(**given)


@CONDITIONING.register("vanilla")
class Vanilla(ConditioningMethod):
    """No conditioning: ancestral sampling of the prior."""

    def __init__(self) -> None:
        super().__init__()

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
@dataclass
class PosteriorSampling(ConditioningMethod):
    """DPS (Chung et al. 2023): an unconditional step, moved by the guidance.

    scale: of the published rule
    guidance_rule: see guidance.py
    """

    scale: float = 1.0
    guidance_rule: str = "published"

    def __post_init__(self) -> None:
        self._rule = _rule(self)

    def step(self, reverse, x_t, t, problem, noise):
        x_t = x_t.detach().requires_grad_()
        prior, move = reverse(x_t, t)
        guided = self._rule(prior, move, x_t, t, problem)
        x = ancestral(move, t, noise) + guided.offset
        return StepResult(x, guided.x0_hat, per_image(guided.distances))


@CONDITIONING.register("ps+")
@dataclass
class PosteriorSamplingPlus(ConditioningMethod):
    """DPS with the distance averaged over `num_sampling` slightly perturbed x0_hat.

    That distance is what the method is, so it has the published rule alone.
    """

    _PERTURBATION = 0.05  # times uniform noise on [0, 1)

    scale: float = 1.0
    num_sampling: int = 5

    def __post_init__(self) -> None:
        if self.num_sampling < 1:
            raise UserError(f"ps+: num_sampling must be at least 1, got {self.num_sampling}")

    def step(self, reverse, x_t, t, problem, noise):
        x_t = x_t.detach().requires_grad_()
        prior, move = reverse(x_t, t)
        d: Any = 0.0
        for _ in range(self.num_sampling):
            shift = self._PERTURBATION * noise.uniform("step", t, problem.image_shape)
            d = d + problem.distance(prior.x0_hat + shift)
        d = d / self.num_sampling
        x = ancestral(move, t, noise) - self.scale * gradient_of(d, x_t)
        return StepResult(x, prior.x0_hat.detach(), d.detach())


@CONDITIONING.register("mcg")
@dataclass
class ManifoldConstrainedGradient(PosteriorSampling):
    """MCG (Chung et al. 2022): a DPS step, then the projection."""

    def check(self, operator: Operator, noiser: NoiseModel) -> None:
        _check_projection(operator)

    def step(self, reverse, x_t, t, problem, noise):
        result = super().step(reverse, x_t, t, problem, noise)
        x = _project(result.x, t, problem, noise)
        return StepResult(x, result.x0_hat, result.distance)


@CONDITIONING.register("dpps")
@dataclass
class ProximalSampling(ConditioningMethod):
    """DPPS: aligned start, guidance, and the candidate that agrees best with the measurement.

    scale: guidance scale s of the published rule, which belongs to 1000 steps
    n_max: candidates at high signal-to-noise ratio
    candidates: "adaptive" (the published rule) or a fixed number; 1 is DPS with this start
    selection: target of the choice, "predicted_noise" (published program) or "interpolated"
      (the form in the paper's text)
    max_timestep: begin below this original timestep (of 1000), at the noise level of that step.
      Published: all timesteps
    limit_scale: see FixedScale. Published: False
    guidance_rule: see guidance.py
    """

    needs_noise = True

    scale: float = 1.0
    n_max: int = 50
    candidates: Literal["adaptive"] | int = "adaptive"
    init: Init = "aligned"
    selection: Selection = "predicted_noise"
    max_timestep: int | None = None
    limit_scale: bool = False
    guidance_rule: str = "published"

    def __post_init__(self) -> None:
        if self.n_max < 1 or (self.candidates != "adaptive" and self.candidates < 1):
            raise UserError("dpps: n_max and candidates must be at least 1")
        if self.selection not in get_args(Selection):
            known = ", ".join(get_args(Selection))
            raise UserError(f'dpps: selection "{self.selection}": expected one of {known}')
        if self.max_timestep is not None and (self.max_timestep < 1 or self.init == "noise"):
            raise UserError(
                "dpps: max_timestep must be at least 1, and needs init: aligned or inverse"
            )
        self._rule = _rule(self)

    def check(self, operator: Operator, noiser: NoiseModel) -> None:
        if self.max_timestep is None or operator.differs_by_image:
            return
        y = operator(operator.context.empty())
        if self.first_guess(operator, y, 0.0) is None:
            raise UnsupportedError(
                f"dpps: max_timestep needs a measurement that is an image, unlike "
                f"{type(operator).__name__}'s"
            )

    def first_step(self, diffusion: GaussianDiffusion) -> int:
        if self.max_timestep is None:
            return super().first_step(diffusion)
        return max(0, int((diffusion.timesteps < self.max_timestep).sum()) - 1)

    def num_candidates(self, diffusion: GaussianDiffusion, t: int) -> int:
        """n = floor(max(n_max (1 - exp(-SNR_t)), 2)), or the fixed number."""
        if self.candidates != "adaptive":
            return self.candidates
        return int(max(self.n_max * (1 - np.exp(-diffusion.snr[t])), 2))

    def step(self, reverse, x_t, t, problem, noise):
        x_t = x_t.detach().requires_grad_()
        prior, move = reverse(x_t, t)
        guided = self._rule(prior, move, x_t, t, problem)
        mu, d = move.mean.detach() + guided.offset, per_image(guided.distances)
        if t == 0:
            return StepResult(mu, guided.x0_hat, d)
        n = self.num_candidates(problem.diffusion, t)
        with torch.no_grad():
            best, z = self.choose(mu, move.std.detach(), prior.eps, x_t, t, n, problem, noise)
            return StepResult(mu + move.std * z, guided.x0_hat, d, n, best)

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
