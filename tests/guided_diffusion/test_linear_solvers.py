"""Adjoints, pseudo-inverses and Tikhonov solutions against dense linear algebra."""

import numpy as np
import pytest
import torch

from data.masks import MaskConfig
from guided_diffusion.linear_solvers import conjugate_gradients, tikhonov
from guided_diffusion.measurements import (
    Denoising,
    GaussianBlur,
    Inpainting,
    KernelBlur,
    MotionBlur,
    OperatorContext,
    PhaseRetrieval,
    SuperResolution,
)
from guided_diffusion.spectra import CUTOFF
from util.randomness import ImageKey

H, W = 12, 16


def context(**changes):
    return OperatorContext(H, W, dtype=torch.float64, **changes)


def operators():
    kernel = np.random.default_rng(0).random((5, 5))
    kernel /= kernel.sum()
    masked = Inpainting(context=context(mask=MaskConfig()))
    return {
        "noise": Denoising(context=context()),
        "super_resolution": SuperResolution(4, context=context()),
        "gaussian_blur": GaussianBlur(9, 1.0, context=context()),
        "inpainting": masked.bind([ImageKey(0, "a"), ImageKey(0, "b")]),
        "kernel_blur": KernelBlur(context(), kernel),
    }


CLOSED_FORM = ["noise", "super_resolution", "gaussian_blur", "inpainting"]


def images(seed=0, shape=(2, 3, H, W)):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def dense(operator):
    """Matrix of the operator on the first image's first channel."""
    columns = []
    for i in range(H * W):
        x = torch.zeros(2, 3, H * W, dtype=torch.float64)
        x[:, :, i] = 1
        columns.append(operator(x.view(2, 3, H, W))[0, 0].flatten())
    return torch.stack(columns, dim=1).numpy()


@pytest.mark.parametrize("name", operators())
def test_adjoint_is_the_transpose(name):
    operator = operators()[name]
    x = images(1)
    y = images(2, tuple(operator(x).shape))
    left, right = (operator(x) * y).sum(), (x * operator.adjoint(y)).sum()
    torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_spectrum_is_a_decomposition(name):
    operator = operators()[name]
    spectrum = operator.spectrum(0.0)
    x = images(3)
    c = spectrum.coefficients(x)
    torch.testing.assert_close(spectrum.image(c), x)
    torch.testing.assert_close((c**2).sum(), (x**2).sum())
    torch.testing.assert_close(spectrum.measured(operator(x)), spectrum.values * c)
    torch.testing.assert_close(spectrum.measurement(spectrum.values * c), operator(x))


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_pseudo_inverse_equals_the_dense_one(name):
    operator = operators()[name]
    matrix = dense(operator)
    y = operator(images(4)) + 0.1 * images(5, tuple(operator(images(4)).shape))
    expected = np.linalg.pinv(matrix, rcond=CUTOFF) @ y[0, 0].flatten().numpy()
    spectrum = operator.spectrum(CUTOFF)
    found = spectrum.image(spectrum.measured(y) * spectrum.inverse_values())[0, 0].flatten().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_where_there_is_no_spectrum():
    assert operators()["kernel_blur"].spectrum() is None
    assert not hasattr(PhaseRetrieval(context=context()), "spectrum")
    assert MotionBlur(5, context=context()).spectrum() is None


@pytest.mark.parametrize("name", operators())
def test_tikhonov_solves_the_normal_equations(name):
    operator, weight = operators()[name], 0.05
    x0 = images(6)
    y = operator(images(7))
    x = tikhonov(operator, y, x0, weight, iterations=200)
    gradient = operator.adjoint(operator(x) - y) + weight * (x - x0)
    assert gradient.abs().max() < 1e-6


def test_conjugate_gradients_treats_images_on_their_own():
    a = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).view(1, 3, 1, 1)
    b = images(8, (2, 3, 2, 2))
    b[1] *= 1e4
    x = conjugate_gradients(lambda v: a * v, b, torch.zeros_like(b), 3)
    torch.testing.assert_close(x, b / a)


def test_conjugate_gradients_start_from_zero_without_applying_the_system():
    calls, b = [], images(8, (1, 3, 2, 2))

    def doubled(v):
        calls.append(v)
        return 2 * v

    torch.testing.assert_close(conjugate_gradients(doubled, b, None, 1), b / 2)
    assert len(calls) == 1


def test_no_step_is_taken_where_a_system_is_not_positive():
    """One image's system has a negative value along b; the other's is solved all the same."""
    a = torch.tensor([2.0, -1.0], dtype=torch.float64).view(2, 1, 1, 1)
    b = images(8, (2, 3, 2, 2))
    x = conjugate_gradients(lambda v: a * v, b, None, 2)
    torch.testing.assert_close(x[0], b[0] / 2)
    assert not x[1].any()
