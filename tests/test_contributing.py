"""The examples of CONTRIBUTING.md do what it says."""

import re

import numpy as np
import pytest
import torch
import yaml

from guided_diffusion.condition_methods import CONDITIONING
from guided_diffusion.measurements import OPERATORS, OperatorContext
from guided_diffusion.unet import UNetConfig, UNetModel
from models.prior import build_prior
from tests.tiny import ROOT
from tests.tiny_run import photograph, run, save, write_configs
from util.config.run_config import load_diffusion_config, load_model_config
from util.metrics.base import _METRICS, get_metric, metric_names

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def examples(monkeypatch):
    """The blocks of Python, run; what they register is forgotten afterwards."""
    for registry in (OPERATORS, CONDITIONING, _METRICS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "CONTRIBUTING.md", "exec"), {"__name__": "example"})


@pytest.mark.usefixtures("examples")
def test_operator_method_and_metric(tmp_path):
    save(tmp_path / "images" / "a.png", photograph(32, 32))
    arguments = [*write_configs(tmp_path, "super_resolution"), "--data_root", tmp_path / "images"]
    grey = ["--set", "task.measurement.operator={name: grey}"]
    pull = ["--set", "task.conditioning={method: pull, params: {weight: 0.5}}"]
    assert run(*arguments, *grey, *pull) == 0
    assert (tmp_path / "results" / "grey" / "recon" / "a.png").exists()
    A = OPERATORS.get("grey")(context=OperatorContext(8, 8))
    x, y = torch.randn(2, 1, 3, 8, 8)
    torch.testing.assert_close((A(x) * y).sum(), (x * A.adjoint(y)).sum())
    assert "mae" in metric_names()
    measure = get_metric("mae").build(None)
    black, four = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 4, np.uint8)
    assert measure(black, four) == 4


def test_prior(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    (tmp_path / "model.yaml").write_text(block)
    config = {k: v for k, v in yaml.safe_load(block).items() if k != "model_path"}
    torch.save(UNetModel(UNetConfig(**config)).state_dict(), tmp_path / "my_prior.pt")
    diffusion = load_diffusion_config(ROOT / "configs" / "diffusion_config.yaml")
    prior = build_prior(load_model_config("model.yaml"), diffusion, "cpu")
    assert prior.model(torch.zeros(1, 3, 64, 64), torch.tensor([3])).shape == (1, 6, 64, 64)
