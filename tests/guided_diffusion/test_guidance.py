from dataclasses import replace
from math import sqrt

import pytest
import torch

from guided_diffusion.condition_methods import CONDITIONING, ProximalSampling
from guided_diffusion.framing import Frame
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.guidance import LineSearch
from guided_diffusion.measurements import (
    OPERATORS,
    Denoising,
    GaussianBlur,
    LinearOperator,
    Operator,
    OperatorContext,
    PhaseRetrieval,
    SuperResolution,
)
from guided_diffusion.noise_models import Clean, GaussianNoise, PoissonNoise
from guided_diffusion.problem import Problem
from guided_diffusion.sampling import Prior, sample
from guided_diffusion.tiling import Tiling, WindowExtent
from tests import golden_data
from util.errors import UserError
from util.randomness import ImageKey, PerImageNoise

SIZE, STEP = 16, 6
CONTEXT = OperatorContext(SIZE, SIZE, dtype=torch.float64)


class WithoutSpectrum(LinearOperator):
    """Another operator whose singular values nobody knows."""

    def __init__(self, inner: LinearOperator, factor: float = 1.0) -> None:
        super().__init__(inner.context)
        self.inner, self.factor = inner, factor

    def __call__(self, x):
        return self.factor * self.inner(x)


def smooth_model(x, t):
    """Predicts noise by the difference from the neighbours: a Jacobian that is not diagonal, but
    symmetric, as that of a prior is."""
    eps = x - 0.25 * (x.roll(1, -1) + x.roll(-1, -1) + x.roll(1, -2) + x.roll(-1, -2))
    return torch.cat([eps, 0 * eps], 1)


def prior_of(steps: int = 20) -> Prior:
    diffusion = GaussianDiffusion.create(timestep_respacing=steps, clip_denoised=False)
    return Prior(smooth_model, diffusion)


def guided(operator, y, noiser=None, x_t=None, extent=None):
    """What the line search does at STEP, its problem, and the prior's step."""
    prior = prior_of()
    shape = (3, operator.context.height, operator.context.width)
    x_t = golden_data.normal((len(y), *shape), 5).double() if x_t is None else x_t
    x_t = x_t.requires_grad_()
    problem = Problem(y, operator, noiser or GaussianNoise(0.1), prior.diffusion, shape)
    problem = problem if extent is None else replace(problem, extent=extent)
    step, move = prior.reverse(x_t, STEP)
    return LineSearch()(step, move, x_t, STEP, problem), problem, step


def measured(operator, count=2):
    context = operator.context
    return operator(
        golden_data.normal((count, 3, context.height, context.width), 2).double().clamp(-1, 1)
    )


@pytest.mark.parametrize("noiser", [GaussianNoise(0.1), PoissonNoise(0.1)])
def test_the_length_minimises_what_it_is_said_to(noiser):
    """(z - a u)^T K (z - a u), with all of it as matrices, a value a row."""
    operator = SuperResolution(4, context=CONTEXT)
    y = measured(operator)
    result, problem, step = guided(operator, y, noiser)
    x0_hat = step.x0_hat.detach()
    moved = (result.x0_hat - x0_hat).flatten(1)
    acp = problem.diffusion.alphas_cumprod[STEP]
    variance = torch.as_tensor(problem.variance(operator(x0_hat))).expand_as(y).flatten(1)
    e = (y - operator(x0_hat)).flatten(1)
    flat_variance = variance.view_as(y) if isinstance(noiser, PoissonNoise) else variance[0, 0]
    r2 = LineSearch()._prior_variance(operator, e.view_as(y), flat_variance, 1 - acp, problem)
    unit = torch.eye(3 * SIZE * SIZE, dtype=torch.float64).reshape(-1, 3, SIZE, SIZE)
    a = operator(unit).flatten(1).T
    eps = smooth_model(unit, None)[:, :3]
    j = problem.diffusion.x0_from_eps(unit, torch.full((len(unit),), STEP), eps).flatten(1).T
    one = torch.eye(y[0].numel(), dtype=torch.float64)
    for i in range(len(y)):
        noise, r = variance[i].diag(), r2[i].item()
        u = torch.linalg.solve(r * a @ a.T + noise, e[i])
        h = r / sqrt(acp) * j @ a.T @ u
        k = r / sqrt(acp) * a @ j @ a.T
        z = torch.linalg.solve(k + noise, e[i])
        length = h.dot(moved[i]) / h.square().sum()
        torch.testing.assert_close(length * h, moved[i], rtol=1e-3, atol=1e-4)
        # From here in units of the noise, and k / (k + 1) replaced by its tangent at kappa.
        k = k / variance[i].sqrt().outer(variance[i].sqrt())
        z, u = variance[i].sqrt() * z, variance[i].sqrt() * u
        kappa2 = (k @ u).square().sum() / u.square().sum()
        metric = (k + kappa2 * one) @ (k + one)

        def distance(length, z=z, u=u, metric=metric):
            return (z - length * u) @ metric @ (z - length * u)

        assert distance(length) < min(distance(0.99 * length), distance(1.01 * length))


def test_where_the_prior_knows_each_pixel_the_step_ends_at_the_posterior_mean():
    """With K a multiple of the unit matrix, whatever its size beside the noise."""
    operator = Denoising(context=CONTEXT)
    x_t = golden_data.normal((1, 3, SIZE, SIZE), 5).double().requires_grad_()
    y = measured(operator, 1)
    prior = replace(prior_of(), model=lambda x, t: torch.cat([0.9 * x, 0 * x], 1))
    for sigma in (0.02, 0.2, 2.0):
        problem = Problem(y, operator, GaussianNoise(sigma), prior.diffusion, tuple(y.shape[1:]))
        step, move = prior.reverse(x_t, STEP)
        x0_hat, acp = step.x0_hat.detach(), problem.diffusion.alphas_cumprod[STEP]
        r2 = LineSearch()._prior_variance(operator, y - x0_hat, sigma**2, 1 - acp, problem)
        # x0_hat = x_t (1 - 0.9 sqrt(1 - acp)) / sqrt(acp)
        k = r2 / sqrt(acp) * (1 - 0.9 * sqrt(1 - acp)) / sqrt(acp)
        expected = x0_hat + k / (k + sigma**2) * (y - x0_hat)
        found = LineSearch()(step, move, x_t, STEP, problem).x0_hat
        torch.testing.assert_close(found, expected)


def test_no_step_leaves_a_greater_misfit():
    """Also where what is seen well and what is seen badly would take very different lengths."""
    operator, noiser = GaussianBlur(5, 1.0, context=CONTEXT), GaussianNoise(0.002)
    rough = golden_data.normal((4, 3, SIZE, SIZE), 7).double()
    result, problem, step = guided(operator, measured(operator, 4) + 0.1 * rough, noiser)
    before, after = (problem.distance(x.detach()) for x in (step.x0_hat, result.x0_hat))
    assert (after <= before * (1 + 1e-9)).all()


@pytest.mark.parametrize("kind", [Denoising, SuperResolution, GaussianBlur])
def test_single_precision_is_enough_for_clean_measurements(kind):
    arguments = {SuperResolution: (2,), GaussianBlur: (9, 1.0)}.get(kind, ())
    y = measured(kind(*arguments, context=CONTEXT))
    x_t = golden_data.normal((2, 3, SIZE, SIZE), 5)
    single = kind(*arguments, context=OperatorContext(SIZE, SIZE))
    found = guided(single, y.float(), Clean(), x_t.float())[0].offset
    exact = guided(kind(*arguments, context=CONTEXT), y, Clean(), x_t.double())[0].offset
    assert (found - exact).norm() < 1e-3 * exact.norm()


def test_without_a_spectrum_the_same_step_is_found():
    known, x_t = GaussianBlur(5, 0.5, context=CONTEXT), golden_data.normal((1, 3, SIZE, SIZE), 5)
    y = known(prior_of().reverse(x_t.double(), STEP)[0].x0_hat) + 0.1
    args = {"y": y, "noiser": GaussianNoise(0.1), "x_t": x_t.double()}
    expected, found = (guided(A, **args)[0].offset for A in (known, WithoutSpectrum(known)))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_unit_of_the_measurement_does_not_matter():
    operator = GaussianBlur(5, 0.5, context=CONTEXT)
    y, ten = measured(operator), WithoutSpectrum(operator, 10.0)
    expected = guided(WithoutSpectrum(operator), y)[0].offset
    found = guided(ten, 10 * y, GaussianNoise(1.0))[0].offset
    torch.testing.assert_close(found, expected)


def test_where_the_measurement_is_met_nothing_is_done():
    operator = Denoising(context=CONTEXT)
    x_t = golden_data.normal((1, 3, SIZE, SIZE), 5).double()
    x0_hat = prior_of().reverse(x_t, STEP)[0].x0_hat
    assert not guided(operator, x0_hat, x_t=x_t)[0].offset.any()


def test_one_window_is_the_whole_image():
    operator = SuperResolution(4, context=CONTEXT)
    y = measured(operator)
    window = WindowExtent(Tiling(SIZE, SIZE, SIZE, 8), Frame(SIZE, SIZE, SIZE, SIZE), y)
    torch.testing.assert_close(
        guided(operator, y, extent=window)[0].offset, guided(operator, y)[0].offset
    )


def test_windows_take_lengths_of_their_own():
    context = OperatorContext(SIZE, 3 * SIZE, dtype=torch.float64)
    operator = Denoising(context=context)
    y = measured(operator, 1)
    y[..., 2 * SIZE :] *= 5  # far from the prior on one side alone
    extent = WindowExtent(Tiling(SIZE, 3 * SIZE, SIZE, 0), Frame(*[SIZE, 3 * SIZE] * 2), y)
    apart = guided(operator, y, extent=extent)[0].offset[..., :SIZE]
    together = guided(operator, y)[0].offset[..., :SIZE]
    assert not torch.allclose(apart, together, rtol=1e-3)


@pytest.mark.parametrize("name", ["phase_retrieval", "gamma"])
def test_a_curved_operator_is_replaced_by_its_derivative(name):
    if name == "gamma":
        operator = WithoutSpectrum(Denoising(context=CONTEXT))
        operator.linearised = lambda x: super(LinearOperator, operator).linearised(x)
        operator.inner = lambda x: (x + 2) ** 1.5
    else:
        operator = OPERATORS.get(name)(context=CONTEXT)
    x, v = (golden_data.normal((2, 3, SIZE, SIZE), seed).double() for seed in (3, 4))
    x = 0.3 * x
    derivative = operator.linearised(x)
    step = 1e-6
    slope = (operator(x + step * v) - operator(x - step * v)) / (2 * step)
    torch.testing.assert_close(derivative(v), slope, rtol=1e-4, atol=1e-5)
    u = golden_data.normal(tuple(slope.shape), 6).double()
    torch.testing.assert_close(
        (derivative.adjoint(u) * v).sum(), (u * slope).sum(), rtol=1e-5, atol=1e-5
    )
    result, problem, step_ = guided(operator, operator(x), x_t=0.3 * v)
    before, after = (problem.distance(z).sum() for z in (step_.x0_hat, result.x0_hat))
    assert after < before


class Saturated(Operator):
    """Too bright, through a camera's curve, and rounded."""

    def __call__(self, x):
        bright = (1.5 * ((x + 1) / 2).clamp(0.01, 1) ** 2.2).clamp(max=1)
        levels = 8 * bright ** (1 / 2.2)
        return (levels + (levels.round() - levels).detach()) / 4 - 1


CURVED = [PhaseRetrieval, Saturated]


@pytest.mark.parametrize("kind", CURVED)
@pytest.mark.parametrize("sigma", [0.01, 0.1])
def test_a_step_with_a_curved_operator_does_not_raise_the_misfit(kind, sigma):
    """Also where its derivative tells little: far from the measurement."""
    operator = kind(context=CONTEXT)
    y, noiser = measured(operator, 8), GaussianNoise(sigma)
    result, problem, step = guided(operator, y, noiser)
    before, after = (problem.distance(x.detach()) for x in (step.x0_hat, result.x0_hat))
    assert (after <= before).all()
    assert after.sum() < before.sum()


def test_a_length_is_halved_until_the_misfit_falls():
    operator = PhaseRetrieval(context=CONTEXT)
    y = measured(operator)
    _, problem, step = guided(operator, y)
    x0_hat = step.x0_hat.detach()
    x = x0_hat.clone().requires_grad_()
    g = -torch.autograd.grad((y - operator(x)).square().sum(), x)[0]
    zero = torch.zeros(len(y), dtype=torch.float64)

    def halved(g: torch.Tensor) -> torch.Tensor:
        return LineSearch()._falling(zero + 4.0, x0_hat, g, zero, 1.0, problem)

    length = halved(g)
    assert ((length > 0) & (length < 4)).all()
    shift = length.view(-1, 1, 1, 1) * g
    assert (problem.distance(x0_hat + shift) < problem.distance(x0_hat)).all()
    assert not halved(-g).any()


def test_a_linear_operator_that_does_not_say_so_gives_the_same_step():
    linear = WithoutSpectrum(GaussianBlur(5, 0.5, context=CONTEXT))

    class Unsaid(Operator):
        def __call__(self, x):
            return linear(x)

    y, noiser = measured(linear), GaussianNoise(1.0)  # so much that no step is too long
    expected, found = (guided(A, y, noiser)[0].offset for A in (linear, Unsaid(CONTEXT)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", CURVED)
@pytest.mark.parametrize("method", ["dpps", "ps"])
def test_batch_equals_singles_with_curved_operators(method, kind):
    _check_batch(method, kind(context=CONTEXT))


@pytest.mark.parametrize("method", ["dpps", "ps", "mcg"])
def test_batch_equals_singles(method):
    operator = WithoutSpectrum(SuperResolution(2, context=OperatorContext(SIZE, SIZE)))
    operator.project = operator.inner.project
    _check_batch(method, operator)


def _check_batch(method, operator):
    prior, noiser = prior_of(5), GaussianNoise(0.05)
    x = golden_data.normal((2, 3, SIZE, SIZE), 2).clamp(-1, 1)
    y = operator(x.to(operator.context.dtype))
    chosen = CONDITIONING.get(method)(guidance_rule="line_search", init="inverse")

    def run(some: slice) -> torch.Tensor:
        keys = [ImageKey(0, name) for name in "ab"[some]]
        problem = Problem(y[some], operator, noiser, prior.diffusion, (3, SIZE, SIZE))
        return sample(prior, chosen, problem, PerImageNoise(keys, torch.device("cpu")))

    both = run(slice(0, 2))
    singles = torch.cat([run(slice(0, 1)), run(slice(1, 2))])
    torch.testing.assert_close(both, singles, rtol=1e-4, atol=1e-4)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match='unknown guidance_rule "line"'):
        ProximalSampling(guidance_rule="line")


def gaussian_prior(variances: torch.Tensor, diffusion: GaussianDiffusion) -> Prior:
    """The exact prior of independent pixels N(0, variances), [3, H, W]."""

    def model(x, t):
        acp = torch.as_tensor(diffusion.alphas_cumprod)[
            torch.searchsorted(torch.as_tensor(diffusion.timesteps), t)
        ].view(-1, 1, 1, 1)
        return (1 - acp).sqrt() * x / (acp * variances + 1 - acp)

    return Prior(model, diffusion)


@pytest.mark.parametrize(("steps", "spread"), [(100, (0.9, 1.1)), (1000, (0.9, 1.1))])
def test_the_posterior_of_a_gaussian_prior(steps, spread):
    """Denoising with one candidate: the mean and the spread of the exact posterior."""
    side, count, sigma = 8, 150, 0.2
    whole = GaussianDiffusion.create(clip_denoised=False, model_var_type="fixed_small")
    diffusion = Prior(smooth_model, whole, num_steps=steps).scheduled(None).diffusion
    generator = torch.Generator().manual_seed(0)
    variances = torch.rand(3, side, side, generator=generator, dtype=torch.float64) * 0.2 + 0.02
    prior = gaussian_prior(variances, diffusion)
    x = variances.sqrt() * torch.randn(3, side, side, generator=generator, dtype=torch.float64)
    y = x + sigma * torch.randn(3, side, side, generator=generator, dtype=torch.float64)
    operator = Denoising(context=OperatorContext(side, side, dtype=torch.float64))
    keys = [ImageKey(0, str(i)) for i in range(count)]
    problem = Problem(
        y.expand(count, -1, -1, -1),
        operator,
        GaussianNoise(sigma),
        diffusion,
        (3, side, side),
    )
    method = ProximalSampling(candidates=1, init="noise", guidance_rule="line_search")
    noise = PerImageNoise(keys, torch.device("cpu"))
    samples = sample(prior, method, problem, noise)
    gain = variances / (variances + sigma**2)
    mean, variance = gain * y, gain * sigma**2
    # The part of the squared error that drawing `count` samples makes is taken off.
    bias = (samples.mean(0) - mean).square() - samples.var(0) / count
    assert bias.sum() / variance.sum() < 0.05
    ratio = (samples.var(0).sum() / variance.sum()).sqrt()
    assert spread[0] < ratio < spread[1]


def test_a_prior_that_is_far_off_is_trusted_less():
    """r^2 follows the measurement where that shows more than the process has, and only there."""
    operator, least = SuperResolution(2, context=CONTEXT), 0.01
    problem = guided(operator, measured(operator))[1]
    generator = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(problem.y.shape, generator=generator, dtype=torch.float64)
    off = 0.5 * torch.randn(2, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    assert (LineSearch()._prior_variance(operator, noise, 0.01, least, problem) == least).all()
    found = LineSearch()._prior_variance(operator, noise + operator(off), 0.01, least, problem)
    assert ((found - 0.25).abs() < 0.08).all()
