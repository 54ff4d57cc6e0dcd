import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.masks import MaskConfig, random_mask
from guided_diffusion.measurements import (
    OPERATORS,
    GaussianBlur,
    Inpainting,
    KernelBlur,
    LinearOperator,
    MotionBlur,
    OperatorContext,
    PhaseRetrieval,
    SuperResolution,
)
from guided_diffusion.noise_models import NOISES, GaussianNoise, PoissonNoise
from models.kernel_wizard import load_kernel_wizard
from motionblur.motionblur import motion_kernel
from tests import golden_data
from util.errors import UserError
from util.randomness import ImageKey

GOLDEN = golden_data.load("operators")
IMAGE = torch.from_numpy(GOLDEN["image"])
CONTEXT = OperatorContext(64, 64)


def assert_golden(found: torch.Tensor, name: str) -> None:
    np.testing.assert_allclose(found.numpy(), GOLDEN[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
def test_super_resolution(factor):
    found = SuperResolution(factor, context=CONTEXT)(IMAGE)
    assert_golden(found, f"super_resolution_{factor}")


@pytest.mark.parametrize(("size", "std"), [(61, 3.0), (31, 1.5)])
def test_gaussian_blur(size, std):
    assert_golden(GaussianBlur(size, std, context=CONTEXT)(IMAGE), f"gaussian_blur_{size}_{std}")


@pytest.mark.parametrize(("intensity", "seed"), [(0.5, 60), (0.2, 61)])
def test_motion_blur(intensity, seed):
    kernel = motion_kernel(61, intensity, np.random.RandomState(seed))
    np.testing.assert_allclose(kernel, GOLDEN[f"motion_kernel_61_{intensity}_{seed}"], atol=1e-7)
    assert_golden(KernelBlur(CONTEXT, kernel)(IMAGE), f"motion_blur_61_{intensity}_{seed}")


@pytest.mark.parametrize("size", [3, 5, 15, 31, 53])
def test_small_motion_kernels_are_finite(size):
    kernel = motion_kernel(size, 0.5, np.random.RandomState(0))
    assert kernel.shape == (size, size)
    assert np.isfinite(kernel).all()
    assert kernel.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("kind", "seed"), [("random", 60), ("box", 61), ("extreme", 62)])
def test_masks(kind, seed):
    config = MaskConfig(mask_type=kind, mask_len_range=(24, 33), margin=(4, 4))
    mask = random_mask(config, 64, 64, np.random.RandomState(seed))
    np.testing.assert_array_equal(mask, GOLDEN[f"mask_{kind}_{seed}"][0, 0])


def test_phase_retrieval():
    from tests.golden import streams

    x = torch.from_numpy(streams.image(60, 256))
    found = PhaseRetrieval(2.0, context=OperatorContext(256, 256))(x)[..., ::8, ::8]
    assert_golden(found, "phase_retrieval_2.0_size256_every8")


@pytest.mark.parametrize("size", [(64, 64), (96, 80)])
def test_phase_retrieval_at_any_size(size):
    operator = PhaseRetrieval(2.0, context=OperatorContext(*size))
    x = torch.rand(1, 3, *size)
    y = operator(x)
    assert y.shape == (1, 3, *(side + 2 * (side // 4) for side in size))
    torch.testing.assert_close(y.square().sum(), x.square().sum())  # Parseval


def test_poisson_noise():
    assert_golden(PoissonNoise(1.0)(IMAGE, np.random.RandomState(60)), "poisson_rate1.0_60")


def test_poisson_distance_survives_zeros():
    y = torch.tensor([[[[0.0, 0.5]]]])
    distance = PoissonNoise(1.0).distance(y, torch.zeros_like(y))
    torch.testing.assert_close(distance, torch.tensor([1.0]))  # 0.5 / 0.5


def test_gaussian_noise_has_its_sigma():
    noise = GaussianNoise(0.05)(torch.zeros(3, 64, 64), np.random.RandomState(0))
    assert noise.std().item() == pytest.approx(0.05, rel=0.02)


def dense_blur(x: torch.Tensor, kernel: np.ndarray) -> torch.Tensor:
    """The blur as the published program computes it."""
    radius = kernel.shape[0] // 2
    padded = torch.nn.functional.pad(x, [radius] * 4, mode="reflect")
    weight = torch.as_tensor(kernel, dtype=x.dtype).expand(3, 1, *kernel.shape)
    return torch.nn.functional.conv2d(padded, weight, groups=3)


@pytest.mark.parametrize("size", [(64, 64), (70, 96)])
def test_fast_blurs_equal_dense_ones(size):
    x = torch.rand(2, 3, *size) * 2 - 1
    context = OperatorContext(*size)
    motion = MotionBlur(31, 0.5, context=context)
    torch.testing.assert_close(motion(x), dense_blur(x, motion.kernel), rtol=0, atol=1e-5)
    gaussian = GaussianBlur(61, 2.0, context=context)
    kernel = gaussian.saved()["kernel"]
    torch.testing.assert_close(gaussian(x), dense_blur(x, kernel), rtol=0, atol=1e-5)


def linear_operators(context: OperatorContext) -> list[LinearOperator]:
    names = ["noise", "super_resolution", "gaussian_blur", "motion_blur", "inpainting"]
    made = [OPERATORS.get(name)(context=context) for name in names]
    return [operator.bind([ImageKey(0, "a"), ImageKey(0, "b")]) for operator in made]


def test_config_keys_are_what_a_config_can_say():
    assert set(OPERATORS.keys("inpainting")) == set()  # its masks come from mask_opt
    assert set(OPERATORS.keys("motion_blur")) == {
        *("kernel_size", "intensity", "kernel", "kernel_is")
    }


@pytest.mark.parametrize("index", range(5))
def test_adjoint(index):
    context = OperatorContext(64, 80, dtype=torch.float64, mask=MaskConfig())
    A = linear_operators(context)[index]
    assert A.linear
    x = torch.randn(2, 3, 64, 80, dtype=torch.float64)
    y = torch.randn_like(A(x))
    torch.testing.assert_close((A(x) * y).sum(), (x * A.adjoint(y)).sum())
    # linear, and the same for a stack of candidates
    stack = torch.randn(3, 2, 3, 64, 80, dtype=torch.float64)
    torch.testing.assert_close(A(stack)[1], A(stack[1]))
    torch.testing.assert_close(A(2 * x - stack[0]), 2 * A(x) - A(stack[0]))


def test_masks_belong_to_the_image_not_to_the_batch():
    operator = Inpainting(context=OperatorContext(64, 64, mask=MaskConfig()))
    together = operator.bind([ImageKey(1, "a"), ImageKey(1, "b")]).masks
    alone = operator.bind([ImageKey(1, "b")]).masks
    assert torch.equal(together[1:], alone)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(operator.bind([ImageKey(2, "b")]).masks, alone)


def test_a_kernel_has_to_fit_each_side_by_itself():
    tall = np.full((31, 5), 1 / 155)
    blurred = KernelBlur(OperatorContext(40, 8), tall)(torch.ones(1, 3, 40, 8))
    torch.testing.assert_close(blurred, torch.ones(1, 3, 40, 8))
    with pytest.raises(UserError, match="reaching 15 pixels down and 2 across"):
        KernelBlur(OperatorContext(8, 40), tall)


def test_kernel_and_masks_from_files(tmp_path):
    kernel = np.zeros((5, 5))
    kernel[2, 1:4] = 2.0
    np.save(tmp_path / "k.npy", kernel)
    operator = MotionBlur(kernel=str(tmp_path / "k.npy"), context=CONTEXT)
    torch.testing.assert_close(operator(IMAGE), dense_blur(IMAGE, kernel / 6), rtol=0, atol=1e-5)
    mask = np.zeros((64, 64), dtype=np.float64)
    mask[:32] = 1
    (tmp_path / "masks" / "sub").mkdir(parents=True)
    np.save(tmp_path / "masks" / "sub" / "a.npy", mask)
    context = OperatorContext(64, 64, mask=MaskConfig(mask=str(tmp_path / "masks")))
    bound = Inpainting(context=context).bind([ImageKey(0, "sub/a.png")])
    torch.testing.assert_close(bound(IMAGE)[0, :, :32], IMAGE[0, :, :32])
    assert bound(IMAGE)[0, :, 32:].abs().max() == 0
    with pytest.raises(UserError, match="no mask for other"):
        Inpainting(context=context).bind([ImageKey(0, "other.png")])


@pytest.mark.parametrize(
    ("array", "message"),
    [(-np.ones((4, 4)), "positive sum"), (np.diag([2.0, -2.5, 2.0]), "positive sum"),
     (np.zeros((3, 3)), "all zero"), (np.array([["a"]]), "values of type"),
     (np.full((3, 3), np.nan), "finite"), (np.ones(7), "two-dimensional")],
)  # fmt: skip
def test_bad_kernels(tmp_path, array, message):
    np.save(tmp_path / "k.npy", array)
    with pytest.raises(UserError, match=message):
        MotionBlur(kernel=str(tmp_path / "k.npy"), context=CONTEXT)


def test_bad_masks(tmp_path):
    np.save(tmp_path / "m.npy", np.ones((32, 64)))
    context = OperatorContext(64, 64, mask=MaskConfig(mask=str(tmp_path / "m.npy")))
    with pytest.raises(UserError, match="64x32, the image 64x64"):
        Inpainting(context=context).bind([ImageKey(0, "a")])
    box = OperatorContext(64, 64, mask=MaskConfig(mask_type="box"))
    with pytest.raises(UserError, match="does not fit"):
        Inpainting(context=box).bind([ImageKey(0, "a")])


@pytest.mark.parametrize(
    ("registry", "name", "params", "message"),
    [
        (OPERATORS, "super_resolution", {"scale_factor": 0}, "scale_factor"),
        (OPERATORS, "gaussian_blur", {"kernel_size": 4}, "odd"),
        (OPERATORS, "gaussian_blur", {"intensity": 0.0}, "positive"),
        (OPERATORS, "motion_blur", {"intensity": 2.0}, r"\[0, 1\]"),
        (OPERATORS, "motion_blur", {"kernel_size": 61, "kernel": "nowhere.npy"}, "no such kernel"),
        (NOISES, "gaussian", {"sigma": -1.0}, "negative"),
        (NOISES, "poisson", {"rate": 0.0}, "positive"),
    ],
)
def test_impossible_settings(registry, name, params, message):
    provided = {"context": CONTEXT} if registry is OPERATORS else {}
    with pytest.raises(UserError, match=message):
        registry.get(name)(**params, **provided)


FAKE_WIZARD = """
import torch
class KernelWizard(torch.nn.Module):
    def __init__(self, options):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros(()))
    def adaptKernel(self, x, kernel):
        assert kernel.shape == (len(x), 512, 2, 2)
        return x * self.gain
"""


def test_nonlinear_blur(tmp_path, monkeypatch):
    package = tmp_path / "bkse" / "models" / "kernel_encoding"
    package.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    context = replace(CONTEXT, load_network=load_kernel_wizard)
    with pytest.raises(UserError, match="blur-kernel-space-exploring"):
        OPERATORS.get("nonlinear_blur")(context=context)
    with pytest.raises(UserError, match="needs its network"):
        OPERATORS.get("nonlinear_blur")(context=CONTEXT)
    (package / "kernel_wizard.py").write_text(FAKE_WIZARD)
    for name in [m for m in sys.modules if m.split(".")[0] == "bkse"]:
        monkeypatch.delitem(sys.modules, name)
    torch.save({"gain": torch.tensor(0.5)}, tmp_path / "weights.pth")
    options = tmp_path / "options.yml"
    options.write_text("KernelWizard:\n  pretrained: weights.pth\n")
    operator = OPERATORS.get("nonlinear_blur")(opt_yml_path=str(options), context=context)
    assert not operator.linear
    torch.testing.assert_close(operator(IMAGE), (IMAGE + 1) / 2 - 1)


def test_what_is_measured():
    mask = MaskConfig(mask_type="box", mask_len_range=(4, 5), margin=(4, 4))
    context = OperatorContext(16, 16, mask=mask)
    operator = Inpainting(context=context).bind([ImageKey(0, "a"), ImageKey(0, "b")])
    y = operator(torch.randn(2, 3, 16, 16))
    assert operator.measured_values(y).sum((1, 2, 3)).tolist() == [3 * (256 - 16)] * 2
    assert SuperResolution(4, context=context).measured_values(torch.zeros(2, 3, 4, 4)).all()
