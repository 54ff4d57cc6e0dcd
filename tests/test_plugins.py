"""Plug-ins, from the command line; the ones of examples/ and those that are wrong."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from guided_diffusion.condition_methods import CONDITIONING
from guided_diffusion.guidance import GUIDANCE_RULES
from guided_diffusion.measurements import OPERATORS, OperatorContext
from guided_diffusion.noise_models import NOISES
from guided_diffusion.pretrained import PRIORS
from tests.tiny import ROOT
from tests.tiny_run import photograph, run, save, write_configs
from util import compute_metric, plugins
from util.metrics.base import _METRICS

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What a test registers is forgotten after it, what the program registers is not."""
    for package in ("guided_diffusion", "models.priors"):
        plugins.import_all(package)
    for registry in (OPERATORS, CONDITIONING, NOISES, GUIDANCE_RULES, PRIORS, _METRICS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(plugins, "_loaded", {})


@pytest.fixture
def images(tmp_path):
    save(tmp_path / "images" / "a.png", photograph(32, 32))
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("file", "override"),
    [
        ("operator", "task.measurement.operator={name: interlaced, first: 1}"),
        ("compressed", "task.measurement.operator={name: fourier, share: 0.3}"),
        ("compressed", "task.measurement.operator={name: projections, share: 0.3}"),
        ("jpeg", "task.measurement.operator={name: jpeg, quality: 20}"),
        ("noise", "task.measurement.noise={name: salt_and_pepper, share: 0.2}"),
        ("method", "task.conditioning={method: pull, params: {weight: 0.5, init: inverse}}"),
        ("rule", "task.conditioning.params.guidance_rule=squared"),
        ("prior", "model={prior: wiener, image_size: 32}"),
        ("prior", "model={prior: wiener, image_size: 32, grey: true}"),
    ],
)
def test_examples(tmp_path, images, file, override):
    arguments = [*write_configs(tmp_path, "super_resolution"), "--data_root", images]
    assert run(*arguments, "--set", override) == 2
    plugin = ["--plugin", EXAMPLES / f"plugin_{file}.py"]
    assert run(*arguments, *plugin, "--set", override, "--steps", 3) == 0
    (recon,) = (tmp_path / "results").glob("*/recon/a.png")
    manifest = (recon.parent.parent / "manifest.0.jsonl").read_text().splitlines()
    assert any("plugins" in json.dumps(json.loads(line)) for line in manifest)


@pytest.mark.parametrize("quality", [10, 90])
@pytest.mark.parametrize("channels", [3, 1])
def test_the_example_of_jpeg_is_what_pillow_writes(quality, channels):
    plugins.load_plugins([str(EXAMPLES / "plugin_jpeg.py")])
    pixels = photograph(40, 52)  # no multiples of 8
    pixels = pixels if channels == 3 else pixels[..., 0]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    expected = np.array(Image.open(file)).reshape(40, 52, channels) / 127.5 - 1
    context = OperatorContext(40, 52, channels=channels, dtype=torch.float64)
    operator = OPERATORS.get("jpeg")(quality=quality, context=context)
    x = context.tensor(pixels.reshape(40, 52, channels) / 127.5 - 1).permute(2, 0, 1)[None]
    found = operator(x)[0].permute(1, 2, 0).clamp(-1, 1)
    assert (found - context.tensor(expected)).abs().mean() < 1 / 127.5
    assert quality == 90 or (operator(x) - x).abs().mean() > 2 / 127.5


def test_the_example_of_a_metric(tmp_path):
    for folder, shift in (("label", 0), ("recon", 4)):
        save(tmp_path / folder / "a.png", photograph(32, 32) // 2 + shift)
    folders = [f"--{name}={tmp_path / name}" for name in ("label", "recon")]
    arguments = [*folders, f"--csv={tmp_path / 'out.csv'}", "--metrics", "mae"]
    assert compute_metric.main(arguments) == 2
    plugin = f"--plugin={EXAMPLES / 'plugin_metric.py'}"
    assert compute_metric.main([plugin, *arguments]) == 0
    with open(tmp_path / "out.csv") as file:
        assert float(next(csv.DictReader(file))["mae"]) == 4


def test_a_metric_of_runs_stands_in_their_reports(tiny, tmp_path):
    plugin = tmp_path / "own.py"
    plugin.write_text(
        "from util.metrics.base import Metric, register\n"
        "def lightness(label, image):\n    return float(image.mean())\n"
        "register('lightness', Metric('lightness', lambda options: lightness, of_runs=True))\n"
    )
    save(tmp_path / "images" / "a.png", photograph(64, 64))
    arguments = tiny.arguments(tmp_path / "images", tmp_path / "out", f"--plugin={plugin}")
    assert run(*arguments) == 0
    (table,) = (tmp_path / "out").rglob("metrics.csv")
    with open(table) as file:
        assert 0 < float(next(csv.DictReader(file))["lightness"]) < 255
    assert "lightness" in (table.parent / "report.html").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "registers nothing"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        (
            "from guided_diffusion.measurements import OPERATORS\n"
            "OPERATORS.register('inpainting')(int)",
            "'inpainting' is registered twice",
        ),
        (None, "expected a Python file"),
    ],
)
def test_plugins_that_are_wrong(tmp_path, images, capsys, text, message):
    file = tmp_path / "own.py"
    if text is not None:
        file.write_text(text)
    arguments = [*write_configs(tmp_path, "super_resolution"), "--data_root", images]
    assert run(*arguments, "--plugin", file) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--plugin" in told
    assert message in told
    assert not (tmp_path / "results").exists()


OPERATOR = """
import torch
from guided_diffusion.measurements import OPERATORS, LinearOperator, Operator

@OPERATORS.register("own")
class Own({base}):
    def __init__(self, *, context):
        super().__init__(context)
{body}
"""


@pytest.mark.parametrize(
    ("base", "body", "message"),
    [
        (
            "LinearOperator",
            "    def __call__(self, x): return 2 * x\n    def adjoint(self, y): return y",
            "own: adjoint is not the transpose of A",
        ),
        ("LinearOperator", "    def __call__(self, x): return x.abs()", "it is linear; derive"),
        (
            "LinearOperator",
            "    def __call__(self, x): return torch.fft.fft(x)",
            "torch.view_as_real",
        ),
        ("Operator", "    def __call__(self, x): return x.sum()", "its first dimension must be"),
        ("Operator", "    def __call__(self, x): return x / 0", "is not finite"),
        ("Operator", "    def __call__(self, x): return x @ x[0, 0, :5]", "own: A(x) failed for"),
        ("Operator", "    def __call__(self, x): return x.flatten(1)", "candidates"),
        ("Operator", "    def __call__(self, x): return x.round()", "has no derivative"),
        ("Operator", "    def __call__(self, x): return x.detach()", "has no derivative"),
        (
            "Operator",
            "    def __call__(self, x): return x\n    def view(self, y): return y[:, 0]",
            "expected [B, 3, h, w]",
        ),
    ],
)
def test_operators_that_are_wrong(tmp_path, images, capsys, base, body, message):
    (tmp_path / "own.py").write_text(OPERATOR.format(base=base, body=body))
    arguments = [*write_configs(tmp_path, "super_resolution"), "--data_root", images]
    own = ["--plugin", tmp_path / "own.py", "--set", "task.measurement.operator={name: own}"]
    assert run(*arguments, *own) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "results").exists()


def test_a_plugin_of_dataclasses(tmp_path, images):
    """Also one whose annotations are strings, and whose operators cannot be hashed."""
    text = OPERATOR.format(base="LinearOperator", body="    def __call__(self, x): return 0.5 * x")
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n" + text
    text += "    __hash__ = None\n@dataclass\nclass Value:\n    number: int = 3\n"
    (tmp_path / "own.py").write_text(text)
    arguments = [*write_configs(tmp_path, "super_resolution"), "--data_root", images]
    own = ["--plugin", tmp_path / "own.py", "--set", "task.measurement.operator={name: own}"]
    assert run(*arguments, *own, "--steps", 2) == 0


def test_files_that_cannot_be_the_measurement(tmp_path, images, capsys):
    plugin = ["--plugin", EXAMPLES / "plugin_operator.py"]
    arguments = [*write_configs(tmp_path, "super_resolution"), *plugin]
    section = "task.measurement.operator={name: interlaced}"
    assert run(*arguments, "--measurements", images, "--set", section) == 1
    assert "it cannot be its measurement" in capsys.readouterr().err


@pytest.mark.parametrize(
    "body",
    [
        "    def __call__(self, x): return x.flatten(-3)[..., ::7]",
        "    def __call__(self, x): return torch.view_as_real(torch.fft.rfft2(x)).flatten(-2)",
        "    def __call__(self, x): return x[..., :1, ::2, :]",
    ],
)
@pytest.mark.parametrize("method", ["dpps", "ps", "pigdm", "diffpir"])
def test_measurements_of_any_shape(tmp_path, images, body, method):
    """A call is all that an operator needs: vectors, complex numbers as pairs, one channel."""
    (tmp_path / "own.py").write_text(OPERATOR.format(base="LinearOperator", body=body))
    arguments = [*write_configs(tmp_path, "super_resolution"), "--data_root", images]
    own = ["--plugin", tmp_path / "own.py", "--set", "task.measurement.operator={name: own}"]
    own += ["--set", f"task.conditioning={{method: {method}}}"]
    assert run(*arguments, *own, "--steps", 3) == 0
    assert (tmp_path / "results" / "own" / "input" / "a.png").exists()
