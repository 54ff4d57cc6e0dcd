"""DAPS, DDRM, MMPS, RED-diff and DPS with Adam where the right answer is known."""

from math import sqrt

import numpy as np
import pytest
import torch

from guided_diffusion.adaptive_moments import adapted
from guided_diffusion.daps import DAPS
from guided_diffusion.ddrm import DDRM
from guided_diffusion.dps_adam import AdamPosteriorSampling
from guided_diffusion.framing import Frame, FramedOperator
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.measurements import (
    Denoising,
    GaussianBlur,
    Inpainting,
    MotionBlur,
    OperatorContext,
    PhaseRetrieval,
    SuperResolution,
)
from guided_diffusion.mmps import MomentMatching
from guided_diffusion.noise_models import Clean, GaussianNoise, PoissonNoise
from guided_diffusion.problem import Problem
from guided_diffusion.red_diff import RedDiff
from guided_diffusion.sampling import Prior, sample
from tests import golden_data
from util.errors import UnsupportedError, UserError
from util.randomness import ImageKey, PerImageNoise

METHODS = {
    "daps": DAPS,
    "ddrm": DDRM,
    "mmps": MomentMatching,
    "red-diff": RedDiff,
    "dps-adam": AdamPosteriorSampling,
}
SIZE, STEP = 8, 12
SHAPE = (3, SIZE, SIZE)
CONTEXT = OperatorContext(SIZE, SIZE, dtype=torch.float64)
DIFFUSION = GaussianDiffusion.create(timestep_respacing=20, clip_denoised=False)
ACP = torch.as_tensor(DIFFUSION.all_alphas_cumprod)


def gaussian_prior(covariance: torch.Tensor) -> Prior:
    """x ~ N(0, C), C [HW, HW] for each channel: the network is the exact one, at any level."""

    def model(x, t):
        acp = torch.as_tensor(np.interp(t[0].item(), np.arange(1000), ACP))
        C, unit = covariance.to(x), torch.eye(SIZE * SIZE).to(x)
        x0 = sqrt(acp) * C @ torch.linalg.inv(acp * C + (1 - acp) * unit)
        eps = (x - sqrt(acp) * (x.flatten(2) @ x0.T).view(x.shape)) / sqrt(1 - acp)
        return torch.cat([eps, 0 * eps], 1)

    return Prior(model, DIFFUSION)


def isotropic(variance: float = 1.0) -> Prior:
    return gaussian_prior(variance * torch.eye(SIZE * SIZE, dtype=torch.float64))


def knowing(x: torch.Tensor) -> Prior:
    """The prior of this image alone: x0_hat is x."""

    def model(x_t, t):
        acp = ACP[t].view(-1, 1, 1, 1)
        eps = (x_t - acp.sqrt() * x) / (1 - acp).sqrt()
        return torch.cat([eps, 0 * eps], 1)

    return Prior(model, DIFFUSION)


def normal(*key, count=2):
    return golden_data.normal((count, *SHAPE), *key).double()


class Draws:
    """Standard normal draws of a batch, all from one stream; `scale` 0: none."""

    def __init__(self, count, scale=1.0, seed=0):
        self.count, self.scale = count, scale
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, purpose, step, shape):
        z = torch.randn(self.count, *shape, generator=self.generator, dtype=torch.float64)
        return self.scale * z


def inpainting(count=2):
    masks = torch.rand(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return Inpainting(context=CONTEXT, masks=(masks < 0.5).double())


def posed(operator, y, noiser=None):
    return Problem(y, operator, noiser or GaussianNoise(0.1), DIFFUSION, SHAPE)


class Counted:
    """A reverse that counts what it is asked for."""

    def __init__(self, prior):
        self.prior, self.calls = prior.reverse, 0

    def __call__(self, x_t, t):
        self.calls += 1
        return self.prior(x_t, t)

    def denoise(self, x, sigma):
        self.calls += 1
        return self.prior.denoise(x, sigma)


# MMPS


def smooth_covariance():
    """exp(-distance / 2) of the pixels, with a variance that falls from left to right."""
    place = torch.cartesian_prod(*[torch.arange(SIZE, dtype=torch.float64)] * 2)
    scale = 0.5 - 0.04 * place[:, 1]
    return scale * (-torch.cdist(place, place) / 2).exp() * scale[:, None]


@pytest.mark.parametrize("noiser", [GaussianNoise(0.1), PoissonNoise(0.2)])
def test_mmps_has_the_posterior_mean_of_a_gaussian_prior(noiser):
    covariance, acp = smooth_covariance(), DIFFUSION.alphas_cumprod[STEP]
    prior = gaussian_prior(covariance)
    operator = MotionBlur(5, context=CONTEXT)
    y, x_t = operator(normal(2)).clamp(-0.9, 0.9), normal(3)
    problem = posed(operator, y, noiser)
    result = MomentMatching(iterations=150).step(prior.reverse, x_t, STEP, problem, Draws(2, 0.0))
    unit = torch.eye(SIZE * SIZE, dtype=torch.float64).view(-1, 1, SIZE, SIZE)
    A = operator(unit.expand(-1, 3, -1, -1))[:, 0].flatten(1).T
    variance = problem.variance(operator(prior.reverse(x_t, STEP)[0].x0_hat))
    weight = 1 / torch.as_tensor(variance, dtype=torch.float64).expand_as(y).flatten(2)
    precision = torch.linalg.inv(covariance) + acp / (1 - acp) * unit.flatten(1)
    known = sqrt(acp) / (1 - acp) * x_t.flatten(2) + (weight * y.flatten(2)) @ A
    system = precision + A.T @ (weight[..., None] * A)
    mean = torch.linalg.solve(system, known[..., None]).view(x_t.shape)
    torch.testing.assert_close(result.x0_hat, mean, rtol=0, atol=1e-6)


def test_mmps_moves_the_sampler_towards_it():
    """One iteration solves a system that is a multiple of the identity."""
    variance, sigma, acp = 0.4, 0.3, DIFFUSION.alphas_cumprod[STEP]
    prior, y, x_t = isotropic(variance), normal(2), normal(3)
    method = MomentMatching()
    problem = posed(Denoising(context=CONTEXT), y, GaussianNoise(sigma))
    result = method.step(prior.reverse, x_t, STEP, problem, Draws(2, 0.0))
    precision = 1 / variance + acp / (1 - acp) + 1 / sigma**2
    mean = (sqrt(acp) / (1 - acp) * x_t + y / sigma**2) / precision
    torch.testing.assert_close(result.x0_hat, mean)
    time = torch.full((2,), STEP)
    torch.testing.assert_close(result.x, DIFFUSION.posterior_mean(mean, x_t, time))


# DDRM


@pytest.mark.parametrize("operator", [inpainting(), SuperResolution(2, context=CONTEXT)])
def test_ddrm_keeps_clean_measurements(operator):
    y = operator(normal(2))
    method = DDRM()
    restored = sample(isotropic(), method, posed(operator, y, Clean()), Draws(2))
    torch.testing.assert_close(operator(restored), y, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.1, 0.6])
def test_ddrm_keeps_the_noise_of_every_component_at_the_level_of_the_step(sigma):
    """Whether it comes from the measurement or is drawn: what the three cases are made for."""
    count = 60
    operator, x = SuperResolution(2, context=CONTEXT), normal(2, count=1)
    draws = Draws(count)
    clean = operator(x)
    y = clean + sigma * draws.normal("measurement", 0, clean.shape[1:])
    problem, prior = posed(operator, y, GaussianNoise(sigma)), knowing(x)
    method = DDRM()
    x_t = method.start(problem, draws)
    spectrum = operator.spectrum()
    known = (spectrum.values > 0).expand_as(x[0])
    for t in range(DIFFUSION.num_timesteps - 1, 0, -1):
        x_t = method.step(prior.reverse, x_t, t, problem, draws).x
        prev = DIFFUSION.alphas_cumprod_prev[t]
        error = spectrum.coefficients(x_t / sqrt(prev) - x) / sqrt(1 / prev - 1)
        for part in (error[:, known], error[:, ~known]):
            assert abs(part.square().mean().sqrt() - 1) < 0.04


# DAPS


def test_the_chain_of_daps_has_the_mean_and_variance_of_its_posterior():
    """Langevin steps of size eta on a Gaussian of precision p end with 1 / (p (1 - eta p / 2))."""
    r, beta, eta, count, steps = 0.5, 0.2, 0.004, 200, 60
    x0_hat, y = normal(2, count=1).expand(count, -1, -1, -1), normal(3, count=1)
    method = DAPS(langevin_steps=steps, eta=eta, delta=1.0, beta_y=beta)
    problem = posed(Denoising(context=CONTEXT), y.expand(count, -1, -1, -1))
    found = method.chain(x0_hat, r, STEP, problem, Draws(count))
    p = 1 / r**2 + 1 / beta**2
    mean = (x0_hat[0] / r**2 + y[0] / beta**2) / p
    left = (1 - eta * p) ** steps
    expected = mean + left * (x0_hat[0] - mean)
    variance = (1 - left**2) / (p * (1 - eta * p / 2))
    assert abs((found.mean(0) - expected).square().mean() / (variance / count) - 1) < 0.3
    assert abs(found.var(0).mean() / variance - 1) < 0.03


def test_the_step_size_of_daps_falls_from_eta_to_delta_eta():
    """Seen in the spread of a single Langevin step."""
    method = DAPS(langevin_steps=1, eta=0.01, delta=0.04, beta_y=1e6)
    problem = posed(Denoising(context=CONTEXT), normal(3))
    x0_hat, last = normal(2), DIFFUSION.num_timesteps - 1
    spreads = [
        (method.chain(x0_hat, 1.0, t, problem, Draws(2)) - x0_hat).std().item() for t in (last, 0)
    ]
    share = 0.04 + 0.96 / DIFFUSION.num_timesteps
    assert spreads[1] / spreads[0] == pytest.approx(sqrt(share))
    assert spreads[0] == pytest.approx(sqrt(2 * 0.01), rel=0.1)


def test_the_probability_flow_of_daps_is_that_of_a_gaussian_prior():
    variance, sigma, x = 0.3, 2.0, normal(2)
    method = DAPS(ode_steps=400)
    found = method.probability_flow(isotropic(variance).reverse, x, sigma)
    torch.testing.assert_close(found, x * sqrt(variance / (variance + sigma**2)), rtol=0.02, atol=0)


def test_daps_takes_operators_that_are_not_linear():
    operator = PhaseRetrieval(context=CONTEXT)
    y = operator(normal(2))
    method = DAPS(langevin_steps=60, beta_y=0.05)
    problem, x0_hat = posed(operator, y), normal(2) + 0.1 * normal(3)
    moved = method.chain(x0_hat, 1.0, STEP, problem, Draws(2, 0.0))
    assert (problem.distance(moved) < 0.6 * problem.distance(x0_hat)).all()


# RED-diff and DPS with Adam


def test_red_diff_ends_where_its_objective_is_least():
    """At one level of a prior N(0, c), without noise: a quadratic objective."""
    c, lam, acp = 0.5, 0.7, DIFFUSION.alphas_cumprod[STEP]
    operator = SuperResolution(2, context=CONTEXT)
    y = operator(normal(2))
    problem = posed(operator, y)
    mu = torch.zeros(2, *SHAPE, dtype=torch.float64)
    reverse = isotropic(c).reverse
    for lr in (0.05, 0.005, 0.0005):
        method = RedDiff(lr=lr, lam=lam)
        for _ in range(150):
            mu = method.step(reverse, mu, STEP, problem, Draws(2, 0.0)).x
    # lam sqrt((1 - acp) / acp) eps_hat(sqrt(acp) mu) of that prior is k mu.
    k = lam * (1 - acp) / (acp * c + 1 - acp)
    spectrum, weight = operator.spectrum(0.0), y[0].numel() / mu[0].numel() * k
    s = spectrum.values
    least = spectrum.image(s * spectrum.measured(y) / (s**2 + weight))
    torch.testing.assert_close(mu, least, rtol=0, atol=1e-3)


def test_the_first_step_of_adam_is_a_sign_and_later_ones_remember():
    memory = {}
    g = torch.tensor([2.0, -3.0])
    torch.testing.assert_close(adapted(g, memory, 0.9, 0.99), torch.tensor([1.0, -1.0]))
    # m = (0.9 * 0.1 * 2 + 0.1 * 4) / (1 - 0.81), v = (0.99 * 0.01 * 4 + 0.01 * 16) / (1 - 0.9801)
    second = adapted(2 * g, memory, 0.9, 0.99)[0].item()
    assert second == pytest.approx((0.58 / 0.19) / sqrt(0.1996 / 0.0199), rel=1e-5)


def test_dps_adam_moves_each_value_by_its_strength():
    prior, x_t, y = isotropic(), normal(3), normal(2)
    problem = posed(Denoising(context=CONTEXT), y)
    moved, still = (
        AdamPosteriorSampling(strength=strength).step(
            prior.reverse, x_t, STEP, posed(problem.operator, y), Draws(2, 0.0)
        )
        for strength in (0.1, 0.0)
    )
    gap = y - still.x0_hat
    torch.testing.assert_close(moved.x - still.x, 0.1 * gap.sign(), rtol=0.01, atol=0)


# What they have in common


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noiser", [GaussianNoise(0.05), Clean()])
def test_batch_equals_singles(method, noiser):
    params = {"langevin_steps": 5} if method == "daps" else {}
    operator, chosen = inpainting(), METHODS[method](**params)
    prior = gaussian_prior(smooth_covariance())
    y = operator(normal(2))

    def run(some: slice) -> torch.Tensor:
        part = Inpainting(context=CONTEXT, masks=operator.masks[some])
        keys = [ImageKey(0, name) for name in "ab"[some]]
        problem = posed(part, y[some], noiser)
        return sample(prior, chosen, problem, PerImageNoise(keys, torch.device("cpu")))

    singles = torch.cat([run(slice(0, 1)), run(slice(1, 2))])
    both = run(slice(0, 2))
    assert torch.isfinite(both).all()
    torch.testing.assert_close(both, singles, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run(slice(0, 2)), both, rtol=0, atol=0)  # nothing is remembered


@pytest.mark.parametrize("method", ["daps", "mmps", "red-diff", "dps-adam"])
def test_images_in_a_frame(method):
    """With --fit pad and tile, y knows of a part of the image: that part comes to explain it."""
    inner = OperatorContext(6, 6, dtype=torch.float64)
    operator = FramedOperator(GaussianBlur(3, 0.5, context=inner), Frame(6, 6, SIZE, SIZE))
    y = 0.3 * operator(normal(2))
    problem = posed(operator, y, GaussianNoise(0.02))
    prior = gaussian_prior(smooth_covariance())
    params = {"dps-adam": {"strength": 0.1}, "daps": {"langevin_steps": 40}}.get(method, {})
    restored = sample(prior, METHODS[method](**params), problem, Draws(2))
    assert (problem.distance(restored) < 0.7 * y.flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize(("method", "calls"), [("daps", 5), ("ddrm", 1), ("red-diff", 1)])
def test_evaluations_of_a_step(method, calls):
    reverse, operator = Counted(isotropic()), inpainting()
    problem = posed(operator, operator(normal(2)))
    METHODS[method]().step(reverse, normal(3), STEP, problem, Draws(2))
    assert reverse.calls == calls


@pytest.mark.parametrize(
    ("method", "operator", "noiser", "reason"),
    [
        ("ddrm", MotionBlur(5, context=CONTEXT), GaussianNoise(), "singular values"),
        ("ddrm", inpainting(), PoissonNoise(), "Gaussian noise"),
        ("mmps", PhaseRetrieval(context=CONTEXT), GaussianNoise(), "linear operator"),
        ("daps", inpainting(), PoissonNoise(), "Gaussian noise"),
    ],
)
def test_what_a_method_cannot_do_is_refused(method, operator, noiser, reason):
    with pytest.raises(UnsupportedError, match=reason):
        METHODS[method]().check(operator, noiser)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("daps", {"ode_steps": 0}),
        ("daps", {"beta_y": 0.0}),
        ("ddrm", {"eta": 1.5}),
        ("mmps", {"iterations": 0}),
        ("red-diff", {"lr": 0.0}),
        ("dps-adam", {"beta2": 1.0}),
    ],
)
def test_parameters_are_checked(method, params):
    with pytest.raises(UserError, match=method):
        METHODS[method](**params)
