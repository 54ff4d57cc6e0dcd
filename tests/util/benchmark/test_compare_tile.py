"""The comparison of `tile` with windows that know nothing of each other."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.masks import MaskConfig
from guided_diffusion.measurements import OPERATORS, OperatorContext
from models.prior import build_prior
from tests.tiny import SIZE, TinyRun
from util.benchmark.compare_tile import main
from util.benchmark.windows import Comparison, NoiseOfPart, border_visibility, parts
from util.config.run_config import DiffusionConfig, load_model_config
from util.randomness import ImageKey, PerImageNoise


@pytest.mark.parametrize("task", ["super_resolution", "inpainting"])
def test_parts_of_a_measurement_are_the_measurements_of_the_parts(task):
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = torch.nn.functional.interpolate(x[..., :2, :3], size=(64, 96), mode="nearest")
    context = OperatorContext(64, 96, mask=MaskConfig())
    operator = OPERATORS.get(task)(context=context).bind([ImageKey(0, "x")])
    found = parts(operator(x), operator, 32)
    assert len(found) == 6
    for rows, columns, part, own in found:
        inner = (..., slice(2, -2), slice(2, -2))  # a window does not see beyond its borders
        measured = own(x[..., rows, columns])
        torch.testing.assert_close(measured[inner], part[inner], atol=1e-5, rtol=0)


def test_windows_draw_their_part_of_the_noise_of_the_whole():
    def whole() -> PerImageNoise:
        return PerImageNoise([ImageKey(0, "x")], torch.device("cpu"))

    rows, columns = slice(32, 64), slice(0, 32)
    of_part, of_whole = NoiseOfPart(whole(), 64, 96, rows, columns), whole()
    for draw in ("normal", "uniform"):
        part = getattr(of_part, draw)("start", 5, (3, 32, 32))
        expected = getattr(of_whole, draw)("start", 5, (3, 64, 96))[..., rows, columns]
        assert torch.equal(part, expected)
    part = torch.cat(list(of_part.candidates(4, 10, (3, 32, 32))))
    expected = torch.cat(list(of_whole.candidates(4, 10, (3, 64, 96))))[..., rows, columns]
    assert part.shape == (10, 1, 3, 32, 32)
    assert torch.equal(part, expected)


def test_border_visibility_sees_a_step_between_windows():
    label = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert border_visibility(label, label, 32) == pytest.approx(1)
    shifted = label.clone()
    shifted[:, :, 32:] += 1
    assert border_visibility(shifted, label, 32) > 1.5


def test_the_steps_are_those_of_the_config(tmp_path):
    tiny = TinyRun(tmp_path)
    model = load_model_config(tiny.folder / "model.yaml")
    diffusion = DiffusionConfig(num_steps=3)
    prior = build_prior(model, diffusion, "cpu")
    label = torch.zeros(1, 3, SIZE, 2 * SIZE)
    comparison = Comparison.measure("super_resolution", label, model, prior, diffusion)
    assert comparison.prior.diffusion.num_timesteps == 3
    assert comparison.method.guidance_rule == "line_search"


def test_command_line(tmp_path, capsys):
    tiny = TinyRun(tmp_path / "tiny")
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE + 5, 2 * SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    out = tmp_path / "out"
    configs = [f"--{name}_config={tiny.folder}/{name}.yaml" for name in ("model", "diffusion")]
    options = [*configs, "--device=cpu", "--save_dir", str(out)]
    assert main([str(photo), "--tasks", "inpainting", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["inpainting, windows", "inpainting, tile"]
    assert Image.open(out / "inpainting.png").size == (4 * 2 * SIZE, SIZE)

    other = tmp_path / "other.png"
    Image.fromarray(pixels[:, ::-1].copy()).save(other)
    both = [str(photo), str(other)]
    assert main([*both, "--seeds=2", "--tasks", "inpainting", *options]) == 0
    several = capsys.readouterr().out.splitlines()
    assert [line.rpartition(", seed 0, ")[2] for line in several[:2]] == lines
    mean, difference = (
        float(line.split(": ")[1].split(" dB")[0]) for line in (several[8], several[10])
    )
    singles = [float(line.split(": ")[1].split(" dB")[0]) for line in several[:8]]
    assert mean == pytest.approx(sum(singles[::2]) / 4, abs=0.01)
    assert difference == pytest.approx((sum(singles[1::2]) - sum(singles[::2])) / 4, abs=0.011)
    assert several[10].endswith("(2 photograph(s), 2 seed(s))")
    assert (out / "2_inpainting_tile.png").exists()

    Image.fromarray(pixels[:SIZE, :SIZE]).save(photo)
    assert main([str(photo), *options]) == 2
    assert "larger than 64x64" in capsys.readouterr().err
