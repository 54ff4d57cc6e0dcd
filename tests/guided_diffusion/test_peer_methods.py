"""DiffPIR, DDNM+ and PiGDM on a Gaussian prior, where the right answer is known."""

import numpy as np
import pytest
import torch

from guided_diffusion.condition_methods import CONDITIONING
from guided_diffusion.gaussian_diffusion import GaussianDiffusion, linear_betas
from guided_diffusion.measurements import (
    GaussianBlur,
    Inpainting,
    MotionBlur,
    OperatorContext,
    PhaseRetrieval,
    SuperResolution,
)
from guided_diffusion.noise_models import Clean, GaussianNoise, PoissonNoise
from guided_diffusion.problem import Problem
from guided_diffusion.sampling import Prior
from models.prior import restore
from util.errors import UnsupportedError, UserError

PEERS = ["diffpir", "ddnm+", "pigdm", "ddrm"]
SIZE = 16
NAMES = ["a", "b"]
ACP = torch.from_numpy(np.cumprod(1 - linear_betas(1000)))


def gaussian_prior(steps=60):
    """x ~ N(0, I): then eps = sqrt(1 - acp) x_t."""

    def model(x, t):
        return (1 - ACP[t]).sqrt().to(x).view(-1, 1, 1, 1) * x

    diffusion = GaussianDiffusion.create(
        timestep_respacing=steps, model_var_type="fixed_small", clip_denoised=False
    )
    return Prior(model, diffusion)


def images(seed=0, shape=(2, 3, SIZE, SIZE)):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def inpainting():
    masks = (torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    return Inpainting(context=OperatorContext(SIZE, SIZE), masks=masks)


def run(method, operator, noiser, y, **params):
    return restore(
        y, operator, gaussian_prior(), method=method, params=params, noiser=noiser, names=NAMES
    )


@pytest.mark.parametrize("sigma", [0.0, 0.05])
@pytest.mark.parametrize("method", PEERS)
def test_known_pixels_are_kept_and_the_others_drawn_from_the_prior(method, sigma):
    operator, x = inpainting(), images()
    noiser = GaussianNoise(sigma) if sigma else Clean()
    y = operator(x) + sigma * images(1)
    restored = run(method, operator, noiser, y)
    known = operator.masks.expand_as(x) > 0
    error = (restored - x)[known].std().item()
    spread = restored[~known].std().item()
    assert error < max(0.05, 1.5 * sigma)
    assert 0.8 < spread < 1.2


@pytest.mark.parametrize("method", PEERS)
@pytest.mark.parametrize("task", ["super_resolution", "gaussian_blur"])
def test_restorations_measure_as_the_measurement(method, task):
    context = OperatorContext(SIZE, SIZE)
    operator = (
        SuperResolution(4, context=context)
        if task == "super_resolution"
        else GaussianBlur(9, 1.0, context=context)
    )
    y = operator(images()) + 0.02 * images(1, tuple(operator(images()).shape))
    residual = operator(run(method, operator, GaussianNoise(0.02), y)) - y
    assert residual.std() < 0.1 * operator(images(2)).std()


def test_ddnm_plus_does_not_take_the_noise_for_image():
    """Its posterior mean on known pixels is y / (1 + sigma^2), not y."""
    operator, x, sigma = inpainting(), images(), 1.0
    y = operator(x) + sigma * images(1)
    restored = run("ddnm+", operator, GaussianNoise(sigma), y)
    known = operator.masks.expand_as(x) > 0
    assert (restored - x)[known].std() < 0.97 * (y - x)[known].std()


@pytest.mark.parametrize("method", ["diffpir", "pigdm"])
def test_without_closed_form_by_conjugate_gradients(method):
    operator = MotionBlur(5, context=OperatorContext(SIZE, SIZE))
    y = operator(images())
    restored = run(method, operator, GaussianNoise(0.02), y, cg_iterations=10)
    assert (operator(restored) - y).std() < 0.15 * y.std()


@pytest.mark.parametrize("method", ["diffpir", "pigdm"])
def test_cg_agrees_with_the_closed_form(method, monkeypatch):
    operator = GaussianBlur(9, 1.0, context=OperatorContext(SIZE, SIZE))
    y = operator(images())
    prior = gaussian_prior()
    problem = Problem(y, operator, GaussianNoise(0.3), prior.diffusion, (3, SIZE, SIZE))
    chosen = CONDITIONING.get(method)(cg_iterations=60)

    class NoNoise:
        def normal(self, purpose, step, shape):
            return torch.zeros(2, *shape)

    closed = chosen.step(prior.reverse, images(3), 30, problem, NoNoise()).x
    monkeypatch.setattr(GaussianBlur, "spectrum", lambda self, cutoff=0.0: None)
    iterated = chosen.step(prior.reverse, images(3), 30, problem, NoNoise()).x
    torch.testing.assert_close(iterated, closed, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("method", "operator", "noiser", "reason"),
    [
        ("ddnm+", MotionBlur, GaussianNoise(), "singular values"),
        ("diffpir", PhaseRetrieval, GaussianNoise(), "linear operator"),
        ("pigdm", SuperResolution, PoissonNoise(), "Gaussian noise"),
    ],
)
def test_what_a_method_cannot_do_is_refused(method, operator, noiser, reason):
    options = {"kernel_size": 5} if operator is MotionBlur else {}
    A = operator(**options, context=OperatorContext(SIZE, SIZE))
    y = A(images())
    with pytest.raises(UnsupportedError, match=reason):
        run(method, A, noiser, y)


@pytest.mark.parametrize(
    ("method", "params"),
    [("diffpir", {"lam": 0.0}), ("diffpir", {"zeta": 2.0}), ("pigdm", {"cg_iterations": 0})],
)
def test_parameters_are_checked(method, params):
    with pytest.raises(UserError, match=method):
        run(method, inpainting(), Clean(), images(), **params)
