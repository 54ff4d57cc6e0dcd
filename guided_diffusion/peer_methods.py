"""Methods of other papers as conditioning methods, for comparison: DiffPIR, DDNM+, PiGDM.

They use the prior's x0_hat like the methods of condition_methods.py, but bring the measurement in
by solving with the operator. For operators and noises that a method cannot work with it raises
UnsupportedError. `diffusion.sampler` concerns "pigdm" alone: the others bring their own transition.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from guided_diffusion.condition_methods import (
    CONDITIONING,
    ConditioningMethod,
    StepResult,
    ancestral,
)
from guided_diffusion.conjugate_gradients import conjugate_gradients
from guided_diffusion.linear_solvers import tikhonov
from guided_diffusion.measurements import LinearOperator, Operator
from guided_diffusion.noise_models import LEAST_SIGMA, Clean, GaussianNoise, NoiseModel, at_least
from guided_diffusion.problem import Problem
from guided_diffusion.pullback import pullback
from guided_diffusion.spectra import CUTOFF
from util.errors import UnsupportedError, UserError
from util.randomness import NoiseSource


class PeerMethod(ConditioningMethod):
    """A method that says what it needs of the operator and the noise."""

    title: ClassVar[str] = ""
    needs_linear: ClassVar[bool] = False
    needs_gaussian: ClassVar[bool] = False
    needs_spectrum: ClassVar[bool] = False

    def check(self, operator: Operator, noiser: NoiseModel) -> None:
        objection = self._objection(operator, noiser)
        if objection:
            noise = type(noiser).__name__
            raise UnsupportedError(f"{self.title} {objection}: not {operator.title} with {noise}")

    def _objection(self, operator: Operator, noiser: NoiseModel) -> str | None:
        if self.needs_linear and not isinstance(operator, LinearOperator):
            return "needs a linear operator"
        if self.needs_gaussian and not isinstance(noiser, GaussianNoise | Clean):
            return "needs Gaussian noise, or none"
        if self.needs_spectrum and not (
            isinstance(operator, LinearOperator) and operator.has_spectrum
        ):
            return "needs an operator whose singular values are known in closed form"
        return None

    def start(self, problem: Problem, noise: NoiseSource) -> Tensor:
        self.check(problem.operator, problem.noiser)
        return super().start(problem, noise)


class LinearMethod(PeerMethod):
    """A method for linear operators and Gaussian noise."""

    needs_linear = True
    needs_gaussian = True


@CONDITIONING.register("diffpir")
@dataclass
class DiffPIR(LinearMethod):
    """DiffPIR (Zhu et al. 2023, arXiv 2305.08995, algorithm 1).

    lam: lambda of eq. 13, the weight of the prior
    zeta: share of fresh noise in the transition (0: deterministic, 1: all)
    cg_iterations: for operators without a closed-form solution (motion blur)
    """

    title = "DiffPIR"

    lam: float = 1.0
    zeta: float = 0.3
    cg_iterations: int = 10

    def __post_init__(self) -> None:
        if self.lam <= 0 or not 0 <= self.zeta <= 1 or self.cg_iterations < 1:
            raise UserError("diffpir: lam must be positive, zeta in [0, 1], cg_iterations from 1")

    def step(self, reverse, x_t, t, problem, noise):
        diffusion = problem.diffusion
        acp, prev = diffusion.alphas_cumprod[t], diffusion.alphas_cumprod_prev[t]
        with torch.no_grad():
            prior, _ = reverse(x_t, t)
            d = problem.distance(prior.x0_hat)
            # rho_t = lambda sigma^2 / sigma_bar_t^2, sigma_bar_t^2 = (1 - acp) / acp
            rho = self.lam * at_least(problem.sigma, LEAST_SIGMA) ** 2 * acp / (1 - acp)
            x0 = tikhonov(problem.operator, problem.y, prior.x0_hat, rho, self.cg_iterations)
            if t == 0:
                return StepResult(x0, prior.x0_hat, d)
            eps = (x_t - sqrt(acp) * x0) / sqrt(1 - acp)
            z = noise.normal("step", t, x_t.shape[1:])
            mixed = sqrt(1 - self.zeta) * eps + sqrt(self.zeta) * z
            return StepResult(sqrt(prev) * x0 + sqrt(1 - prev) * mixed, prior.x0_hat, d)


@CONDITIONING.register("ddnm+")
class DDNMPlus(LinearMethod):
    """DDNM+ (Wang et al. 2023, arXiv 2212.00490, eq. 17-19 and appendix I), without time travel.

    The measured components of x0_hat are replaced by A^+ y as far as the noise that comes with
    them fits into the noise of the step; the rest of that noise is drawn.
    """

    title = "DDNM+"
    needs_spectrum = True

    def step(self, reverse, x_t, t, problem, noise):
        diffusion = problem.diffusion
        a, b = diffusion.posterior_mean_coef1[t], diffusion.posterior_mean_coef2[t]
        sigma_t = sqrt(diffusion.posterior_variance[t])
        with torch.no_grad():
            prior, _ = reverse(x_t, t)
            d = problem.distance(prior.x0_hat)
            spectrum = problem.operator.spectrum(CUTOFF)
            inverse = spectrum.inverse_values()
            added = a * problem.sigma * inverse  # std that A^+ y would bring into x_{t-1}
            share = torch.where(added > sigma_t, sigma_t / added.clamp(min=1e-12), 1.0)
            share = torch.where(spectrum.values > 0, share, 0.0)
            x0 = spectrum.coefficients(prior.x0_hat)
            x0 = x0 + share * (spectrum.measured(problem.y) * inverse - x0)
            x = a * x0 + b * spectrum.coefficients(x_t)
            if t > 0:
                left = (sigma_t**2 - (share * added) ** 2).clamp(min=0).sqrt()
                x = x + left * spectrum.coefficients(noise.normal("step", t, x_t.shape[1:]))
            return StepResult(spectrum.image(x), prior.x0_hat, d)


@CONDITIONING.register("pigdm")
@dataclass
class PseudoinverseGuidance(LinearMethod):
    """Pseudoinverse-guided sampling (PiGDM; Song et al. 2023, ICLR, eq. 7 and algorithm 1).

    x_{t-1} = sample + sqrt(acp) r^2 J^T A^T (r^2 A A^T + sigma^2 I)^-1 (y - A x0_hat), J the
    derivative of x0_hat by x_t, r^2 = 1 - acp. The sample is that of `diffusion.sampler`.

    weight: factor of the guidance (1: the paper's)
    cg_iterations: for operators without a closed-form solution (motion blur)
    """

    title = "PiGDM"

    weight: float = 1.0
    cg_iterations: int = 10

    def __post_init__(self) -> None:
        if self.weight < 0 or self.cg_iterations < 1:
            raise UserError("pigdm: weight must not be negative, cg_iterations from 1")

    def step(self, reverse, x_t, t, problem, noise):
        acp = problem.diffusion.alphas_cumprod[t]
        x_t = x_t.detach().requires_grad_()
        prior, move = reverse(x_t, t)
        x0_hat = prior.x0_hat.detach()
        with torch.no_grad():
            direction = self._direction(x0_hat, 1 - acp, problem)
            d = problem.distance(x0_hat)
        g = pullback(prior.x0_hat, x_t, direction)
        x = ancestral(move, t, noise) + self.weight * sqrt(acp) * g
        return StepResult(x, x0_hat, d)

    def _direction(self, x0_hat: Tensor, r2: float, problem: Problem) -> Tensor:
        """r^2 A^T (r^2 A A^T + sigma^2 I)^-1 (y - A x0_hat), [B, 3, H, W]."""
        A: Any = problem.operator  # linear, as `check` has seen to
        y = problem.y
        sigma2 = at_least(problem.sigma, LEAST_SIGMA) ** 2
        spectrum = A.spectrum(CUTOFF)
        if spectrum is not None:
            s = spectrum.values
            gap = spectrum.measured(y) - s * spectrum.coefficients(x0_hat)
            return spectrum.image(r2 * s / (r2 * s**2 + sigma2) * gap)
        gap = y - A(x0_hat)

        def system(v: Tensor) -> Tensor:
            return r2 * A(A.adjoint(v)) + sigma2 * v

        solved = conjugate_gradients(system, gap, None, self.cg_iterations)
        return r2 * A.adjoint(solved)
