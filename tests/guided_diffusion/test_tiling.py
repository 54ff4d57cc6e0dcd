"""Restoring images that are larger than the model by overlapping windows."""

import numpy as np
import pytest
import torch

from guided_diffusion.condition_methods import ProximalSampling
from guided_diffusion.framing import Frame
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.measurements import (
    Denoising,
    GaussianBlur,
    Inpainting,
    OperatorContext,
    SuperResolution,
)
from guided_diffusion.noise_models import GaussianNoise, PoissonNoise
from guided_diffusion.problem import Problem
from guided_diffusion.sampling import Prior, sample
from guided_diffusion.tiling import Axis, TiledModel, Tiling, WindowExtent
from tests import golden_data
from tests.tiny_run import MODEL
from util.errors import UserError
from util.randomness import ImageKey, PerImageNoise

DOUBLE = torch.float64
CPU = torch.device("cpu")


def random(*shape, seed=0):
    return torch.rand(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


class Linear:
    """A network without memory of where a pixel is: its tiles agree wherever they overlap."""

    def __init__(self):
        self.largest = 0

    def __call__(self, x, timesteps):
        self.largest = max(self.largest, x.shape[-2] * x.shape[-1])
        return torch.cat([0.3 * x, torch.zeros_like(x)], 1)


def pose(y, operator, noiser, diffusion, tiling):
    height, width = operator.context.height, operator.context.width
    extent = WindowExtent(tiling, Frame(height, width, height, width), y)
    return Problem(y, operator, noiser, diffusion, (3, height, width), extent)


@pytest.mark.parametrize(("length", "size", "overlap"), [(32, 32, 8), (48, 32, 8), (200, 32, 16)])
def test_weights_sum_to_one_and_windows_overlap(length, size, overlap):
    axis = Axis(length, size, overlap)
    assert axis.starts[0] == 0
    assert axis.starts[-1] == length - size
    assert all(b - a <= size - overlap for a, b in zip(axis.starts, axis.starts[1:]))
    np.testing.assert_allclose(axis.weights.sum(0), 1)


@pytest.mark.parametrize(("size", "overlap"), [(32, 32), (64, 8), (32, -1)])
def test_windows_that_cannot_be_laid_are_refused(size, overlap):
    with pytest.raises(UserError, match="overlap must be smaller"):
        Axis(48, size, overlap)


def test_where_windows_agree_output_and_gradient_are_those_of_the_whole_image():
    x = random(2, 3, 40, 56).requires_grad_()
    whole = Linear()
    tiled = TiledModel(Linear(), Tiling(40, 56, 16, 4))
    time = torch.zeros(2)
    torch.testing.assert_close(tiled(x, time), whole(x, time))
    pull = random(2, 6, 40, 56, seed=1)
    expected = torch.autograd.grad(whole(x, time), x, pull)[0]
    torch.testing.assert_close(torch.autograd.grad(tiled(x, time), x, pull)[0], expected)


def test_gradient_through_windows_is_that_of_the_blended_outputs():
    model = golden_data.network(MODEL, seed=1).double()
    tiling = Tiling(16, 24, 16, 4)
    tiled, time = TiledModel(model, tiling), torch.tensor([3])
    x, direction = random(1, 3, 16, 24).requires_grad_(), random(1, 3, 16, 24, seed=1)
    pull = random(1, 6, 16, 24, seed=2)
    gradient = torch.autograd.grad(tiled(x, time), x, pull)[0]
    with torch.no_grad():
        step = 1e-5 * direction
        difference = (tiled(x + step, time) - tiled(x - step, time)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), (pull * difference).sum())


def build(kind, height, width, batch=1):
    context = OperatorContext(height, width, dtype=DOUBLE)
    if kind == "super_resolution":
        return SuperResolution(4, context=context)
    if kind == "gaussian_blur":
        return GaussianBlur(9, 1.0, context=context)
    masks = (random(batch, 1, height, width, seed=5) > 0.5).double()
    return Inpainting(context=context, masks=masks)


@pytest.mark.parametrize("kind", ["super_resolution", "gaussian_blur", "inpainting"])
@pytest.mark.parametrize("noiser", [GaussianNoise(0.05), PoissonNoise(1.0)])
@pytest.mark.parametrize("limit_scale", [False, True])
def test_one_window_is_the_ordinary_run(kind, noiser, limit_scale):
    diffusion = GaussianDiffusion.create(timestep_respacing=3)
    prior = Prior(golden_data.network(MODEL, seed=1).double(), diffusion)
    operator = build(kind, 32, 32)
    y = operator(random(1, 3, 32, 32) * 2 - 1)
    tiling = Tiling(32, 32, 32, 8)
    problems = (
        (prior, Problem(y, operator, noiser, diffusion, (3, 32, 32))),
        (
            Prior(TiledModel(prior.model, tiling), diffusion),
            pose(y, operator, noiser, diffusion, tiling),
        ),
    )
    runs = []
    for chosen, problem in problems:
        noise = PerImageNoise([ImageKey(0, "a")], CPU)
        steps = []
        method = ProximalSampling(scale=2.0, n_max=4, candidates=4, limit_scale=limit_scale)
        x = sample(chosen, method, problem, noise, lambda t, r: steps.append(r))  # noqa: B023
        runs.append((x, steps))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=0, atol=1e-6)
    for ordinary, tiled in zip(runs[0][1], runs[1][1], strict=True):
        torch.testing.assert_close(ordinary.distance, tiled.distance)
        assert ordinary.best is None or torch.equal(ordinary.best, tiled.best.flatten())


def test_the_network_never_sees_more_than_one_window():
    model = Linear()
    diffusion = GaussianDiffusion.create(timestep_respacing=3)
    tiling = Tiling(48, 80, 16, 4)
    operator = build("super_resolution", 48, 80)
    problem = pose(random(1, 3, 12, 20), operator, GaussianNoise(), diffusion, tiling)
    noise = PerImageNoise([ImageKey(0, "a")], CPU)
    x = sample(Prior(TiledModel(model, tiling), diffusion), ProximalSampling(), problem, noise)
    assert x.shape == (1, 3, 48, 80)
    assert model.largest == 16 * 16


@pytest.mark.parametrize("kind", ["super_resolution", "gaussian_blur"])
def test_guidance_on_a_pixel_does_not_depend_on_the_size_of_the_image(kind):
    """A residual of equal strength everywhere pulls as in an image of one window."""
    diffusion = GaussianDiffusion.create(timestep_respacing=3)
    strength = []
    for height, width in ((32, 32), (96, 128)):
        operator = build(kind, height, width)
        x = torch.zeros(1, 3, height, width, dtype=DOUBLE, requires_grad=True)
        y = torch.ones_like(operator(x.detach()))
        tiling = Tiling(height, width, 32, 8)
        problem = pose(y, operator, GaussianNoise(), diffusion, tiling)
        gradient = torch.autograd.grad(problem.distance(x).sum(), x)[0]
        strength.append(gradient.mean().item())
    assert strength[1] == pytest.approx(strength[0], rel=0.02)


def test_each_part_has_the_candidate_that_fits_it():
    """Two candidates, each right in one half: both halves come out right."""
    tiling = Tiling(16, 24, 16, 4)
    noises = random(2, 1, 3, 16, 24)
    right = noises[0].clone()
    right[..., 12:] = noises[1][..., 12:]
    operator = Denoising(context=OperatorContext(16, 24, dtype=DOUBLE))
    diffusion = GaussianDiffusion.create(timestep_respacing=3)
    problem = pose(right, operator, GaussianNoise(), diffusion, tiling)
    residuals = right - noises
    index = problem.extent.scores(residuals).argmin(0)
    assert index.flatten().tolist() == [0, 1]
    chosen = noises.gather(0, problem.extent.at_pixels(index).expand(1, 1, 3, 16, 24))[0]
    assert torch.equal(chosen, right)


@pytest.mark.parametrize("border", [0, 2])
def test_norms_of_windows_see_every_measured_pixel_once(border):
    """Framed, at a quarter of the size, with and without a border."""
    tiling = Tiling(48, 64, 32, 8)
    y = random(1, 3, 10 - 2 * border, 13 - 2 * border) + 0.1
    extent = WindowExtent(tiling, Frame(40, 52, 48, 64), y, border)
    squares = GaussianNoise().distance(y, torch.zeros_like(y), extent.measured_sums) ** 2
    torch.testing.assert_close(squares.sum(), y.square().sum())
    torch.testing.assert_close(extent.scores(y[None]).sum(), y.square().sum())
    known = GaussianNoise(0.1).expected_distance(torch.ones_like(y), extent.measured_sums) ** 2
    torch.testing.assert_close(known.sum().item(), 0.01 * y.numel())


def test_limits_of_windows_meet_smoothly():
    tiling = Tiling(48, 64, 32, 8)
    extent = WindowExtent(tiling, Frame(40, 52, 48, 64), random(1, 3, 40, 52))
    g = random(2, 3, 48, 64)
    torch.testing.assert_close(extent.image_sums(g.square()).sum((1, 2)), g.square().sum((1, 2, 3)))
    limits = random(2, 2, 3, seed=1)
    assert extent.image_sums(g).shape == limits.shape
    blended = extent.blend(limits)
    assert blended.shape == (2, 1, 48, 64)
    assert blended.diff(dim=-1).abs().max() < 0.1
    assert blended.amax() <= limits.amax()
    torch.testing.assert_close(extent.blend(torch.full_like(limits, 2)), 0 * blended + 2)


def test_a_window_that_fits_exactly_does_not_spoil_the_gradient():
    tiling = Tiling(16, 24, 16, 4)
    operator = Inpainting(
        context=OperatorContext(16, 24, dtype=DOUBLE), masks=torch.zeros(1, 1, 16, 24)
    )
    x = random(1, 3, 16, 24).requires_grad_()
    diffusion = GaussianDiffusion.create(timestep_respacing=3)
    problem = pose(operator(x.detach()), operator, GaussianNoise(), diffusion, tiling)
    gradient = torch.autograd.grad(problem.distance(x).sum(), x)[0]
    assert torch.equal(gradient, torch.zeros_like(gradient))
