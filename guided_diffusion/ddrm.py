"""Denoising diffusion restoration models as a conditioning method, for comparison."""

from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from guided_diffusion.condition_methods import CONDITIONING, StepResult
from guided_diffusion.peer_methods import LinearMethod
from guided_diffusion.problem import Problem
from guided_diffusion.spectra import CUTOFF, Spectrum
from util.errors import UserError
from util.randomness import NoiseSource


@CONDITIONING.register("ddrm")
@dataclass
class DDRM(LinearMethod):
    """DDRM (Kawar et al. 2022, arXiv 2201.11793, section 3).

    The components of the image by the operator's singular vectors are drawn one by one, about
    x0_hat or about A^+ y, whose noise has the standard deviation sigma_y / s_i. The transition is
    its own: `diffusion.sampler` has no part in it.

    eta: share of fresh noise where the noise of the step does not drown that of A^+ y, in [0, 1]
    eta_b: weight of A^+ y where it does, in [0, 1]
    """

    title = "DDRM"
    needs_spectrum = True

    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.eta <= 1 and 0 <= self.eta_b <= 1):
            raise UserError("ddrm: eta and eta_b must be in [0, 1]")

    def start(self, problem: Problem, noise: NoiseSource) -> Tensor:
        """x_T about A^+ y, as the paper has it; with another `init`, the usual one."""
        z = super().start(problem, noise)
        if self.init != "noise":
            return z
        acp = problem.diffusion.alphas_cumprod[-1]
        sigma = sqrt(1 / acp - 1)
        with torch.no_grad():
            spectrum, known, y, noise_of_y = _measured(problem)
            z = spectrum.coefficients(z)
            left = (sigma**2 - noise_of_y**2).clamp(min=0).sqrt()
            return sqrt(acp) * spectrum.image(torch.where(known, y + left * z, sigma * z))

    def step(self, reverse, x_t, t, problem, noise):
        diffusion = problem.diffusion
        acp, prev = diffusion.alphas_cumprod[t], diffusion.alphas_cumprod_prev[t]
        before, after = sqrt(1 / acp - 1), sqrt(1 / prev - 1)  # sigma_{t+1}, sigma_t of the paper
        with torch.no_grad():
            prior, _ = reverse(x_t, t)
            d = problem.distance(prior.x0_hat)
            spectrum, known, y, noise_of_y = _measured(problem)
            x0 = spectrum.coefficients(prior.x0_hat)
            x = spectrum.coefficients(x_t) / sqrt(acp)
            kept = sqrt(1 - self.eta**2) * after
            gap = torch.where(known, (y - x0) / noise_of_y.clamp(min=1e-12), (x - x0) / before)
            drowned = known & (noise_of_y <= after)
            mean = torch.where(drowned, x0 + self.eta_b * (y - x0), x0 + kept * gap)
            if t > 0:
                fresh = (after**2 - (self.eta_b * noise_of_y) ** 2).clamp(min=0).sqrt()
                std = torch.where(drowned, fresh, self.eta * after)
                z = noise.normal("step", t, x_t.shape[1:])
                mean = mean + std * spectrum.coefficients(z)
            return StepResult(sqrt(prev) * spectrum.image(mean), prior.x0_hat, d)


def _measured(problem: Problem) -> tuple[Spectrum, Tensor, Tensor, Tensor]:
    """The spectrum; where its values are not 0; A^+ y by components; the standard deviation of
    their noise. Each but the first like an image's components."""
    A: Any = problem.operator  # has a spectrum, as `check` has seen to
    spectrum = A.spectrum(CUTOFF)
    inverse = spectrum.inverse_values()
    return (
        spectrum,
        spectrum.values > 0,
        spectrum.measured(problem.y) * inverse,
        problem.sigma * inverse,
    )
