import numpy as np
import pytest
import torch

from data.masks import MaskConfig
from guided_diffusion.chain import LinearChain
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.measurements import OPERATORS, GaussianBlur, OperatorContext, SuperResolution
from guided_diffusion.noise_models import PoissonNoise
from guided_diffusion.problem import Problem
from tests.tiny_run import photograph, run, save, write_configs
from util.config.run_config import parse_named
from util.errors import UserError
from util.randomness import ImageKey

BLUR = {"name": "gaussian_blur", "kernel_size": 9, "intensity": 1.0}
REDUCED = {"name": "super_resolution", "scale_factor": 2}
MASK = MaskConfig(mask_type="random", mask_prob_range=(0.4, 0.6))


def build(*parts, **context):
    context = OperatorContext(
        24,
        16,
        mask=MASK,
        build_part=lambda part, c: parse_named(OPERATORS, part, "").build(OPERATORS, context=c),
        **context,
    )
    return OPERATORS.get("chain")(list(parts), context=context)


def test_blur_and_reduction():
    chain = build(BLUR, REDUCED)
    x = torch.randn(2, 3, 24, 16)
    blur = GaussianBlur(9, 1.0, context=OperatorContext(24, 16))
    expected = SuperResolution(2, context=OperatorContext(24, 16))(blur(x))
    torch.testing.assert_close(chain(x), expected)
    y = torch.randn(2, 3, 12, 8)
    torch.testing.assert_close((chain(x) * y).sum(), (x * chain.adjoint(y)).sum())
    assert isinstance(chain, LinearChain)
    assert chain.scale_factor == 2
    assert chain.initial(y).shape == x.shape
    assert list(chain.saved()) == ["kernel_1"]


def test_two_parts_alike_draw_their_own():
    shake = {"name": "motion_blur", "kernel_size": 9}
    saved = build(shake, shake).saved()
    assert not np.array_equal(saved["kernel_1"], saved["kernel_2"])
    alone = OPERATORS.get("motion_blur")(9, context=OperatorContext(24, 16)).saved()["kernel"]
    np.testing.assert_array_equal(saved["kernel_1"], alone)


def test_masks_at_the_end():
    chain = build(REDUCED, {"name": "inpainting"})
    keys = [ImageKey(0, "a"), ImageKey(0, "b")]
    x = torch.randn(2, 3, 24, 16)
    both = chain.bind(keys)
    joined = chain.bind(keys[:1]).join([chain.bind(keys[1:])])
    torch.testing.assert_close(joined(x), both(x))
    torch.testing.assert_close(both.take([1])(x[1:]), both(x)[1:])
    assert [array["mask"].shape for array in both.saved_per_image()] == [(12, 8)] * 2
    assert np.allclose(both.measured_values(both(x)).mean((1, 2, 3)), 0.5, atol=0.2)


def test_with_a_part_that_is_not_linear():
    chain = build(BLUR, {"name": "phase_retrieval"})
    assert not chain.linear
    assert chain.initial(chain(torch.zeros(1, 3, 24, 16))) is None


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([BLUR], "at least two"),
        ([BLUR, {"name": "nothing"}], 'unknown operator "nothing"'),
        ([{"name": "inpainting"}, BLUR], "must be the last part"),
        ([{"name": "colorization"}, BLUR], "does not measure colour images"),
        ([{"kernel_size": 3}, BLUR], "missing key name"),
    ],
)
def test_parts_that_do_not_fit(parts, message):
    with pytest.raises(UserError, match=message):
        build(*parts)


@pytest.mark.parametrize("name", ["chain", "colorization"])
def test_from_the_command_line(tmp_path, name):
    """Measured here, then from the files that this run has written."""
    save(tmp_path / "images" / "a.png", photograph(32, 32))
    arguments = write_configs(tmp_path, "super_resolution")
    parts = ", parts: [{name: gaussian_blur, kernel_size: 9}, {name: super_resolution}]"
    section = f"{{name: {name}{parts if name == 'chain' else ''}}}"
    arguments += ["--set", f"task.measurement.operator={section}", "--steps", 2]
    assert run(*arguments, "--data_root", tmp_path / "images") == 0
    measured = tmp_path / "results" / name / "input"
    (measured / "a.npy").unlink()
    again = ["--measurements", measured, "--save_dir", tmp_path / "again"]
    assert run(*arguments, *again) == 0
    assert (tmp_path / "again" / name / "recon" / "a.png").exists()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("{name: super_resolution}, {name: inpainting}", "differs from image to image"),
        ("{name: motion_blur}, {name: super_resolution}", "measurements need their kernel"),
    ],
)
def test_chains_that_no_file_tells_of(tmp_path, capsys, parts, message):
    save(tmp_path / "files" / "a.png", photograph(32, 32))
    arguments = write_configs(tmp_path, "inpainting")
    arguments += ["--set", f"task.measurement.operator={{name: chain, parts: [{parts}]}}"]
    assert run(*arguments, "--measurements", tmp_path / "files") == 2
    assert message in capsys.readouterr().err


def test_poisson_noise_is_that_of_what_is_kept():
    """A dropped pixel tells nothing of the noise."""
    chain = build(REDUCED, {"name": "inpainting"}).bind([ImageKey(0, "a")])
    y = chain(torch.full((1, 3, 24, 16), -0.9))
    noiser, diffusion = PoissonNoise(0.5), GaussianDiffusion.create()
    problem = Problem(y, chain, noiser, diffusion, (3, 24, 16))
    kept = noiser.variance(torch.tensor(-0.9)) ** 0.5
    torch.testing.assert_close(problem.sigma.squeeze(), kept, rtol=0.02, atol=0)
