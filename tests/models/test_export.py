"""Priors as folders of their own, written and read back."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from models import export
from models.checkpoint import load_state
from models.prior import build_prior
from tests.tiny_run import MODEL, photograph, run, save, write_configs
from util.config.run_config import load_diffusion_config, load_model_config

safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture
def exported(tmp_path):
    arguments = write_configs(tmp_path, "super_resolution")
    command = [str(tmp_path / "model.yaml"), "--out", str(tmp_path / "mine")]
    assert export.main(command) == 0
    return arguments


def test_read_back(tmp_path, exported):
    stored = load_state(tmp_path / "tiny.pt")
    written = safetensors.load_file(tmp_path / "mine" / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == written.keys()
    for name, value in stored.items():
        assert value.dtype == written[name].dtype
        assert torch.equal(value, written[name])
    (tmp_path / "theirs.yaml").write_text(f"prior: diffusers\nmodel_path: {tmp_path / 'mine'}\n")
    diffusion = load_diffusion_config("diffusion")
    own, theirs = (
        build_prior(load_model_config(tmp_path / f"{name}.yaml"), diffusion, "cpu")
        for name in ("model", "theirs")
    )
    np.testing.assert_allclose(theirs.diffusion.betas, own.diffusion.betas, rtol=1e-12)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for t in (0, 500, 999):
        for mine, other in zip(own.reverse(x, t), theirs.reverse(x, t), strict=True):
            assert torch.equal(mine.mean, other.mean)
    assert (own.size_multiple, own.image_size) == (theirs.size_multiple, theirs.image_size)
    for respacing in (23, "ddim50", "10,20"):
        changed = dataclasses.replace(diffusion, timestep_respacing=respacing)
        first, second = (
            changed.build(load_model_config(tmp_path / f"{n}.yaml")) for n in ("model", "theirs")
        )
        assert list(first.timesteps) == list(second.timesteps)


def test_the_same_restorations(tmp_path, exported):
    save(tmp_path / "images" / "a.png", photograph(32, 32))
    arguments = [*exported, "--data_root", tmp_path / "images"]
    assert run(*arguments) == 0
    model = f"model={{prior: diffusers, model_path: {tmp_path / 'mine'}}}"
    assert run(*arguments, "--set", model, "--save_dir", tmp_path / "again") == 0
    first, second = (
        next((tmp_path / name).glob("*/recon/a.png")).read_bytes() for name in ("results", "again")
    )
    assert first == second


def test_a_card_of_ones_own(tmp_path, exported):
    assert "million parameters" in (tmp_path / "mine" / "README.md").read_text()
    (tmp_path / "card.md").write_text("# Mine\n")
    command = [str(tmp_path / "model.yaml"), "--out", str(tmp_path / "other")]
    assert export.main([*command, "--card", str(tmp_path / "card.md")]) == 0
    assert (tmp_path / "other" / "README.md").read_text() == "# Mine\n"


def test_a_card_that_is_no_text(tmp_path, exported, capsys):
    (tmp_path / "card.md").write_bytes(b"\xff\xfe\xe9")
    command = [str(tmp_path / "model.yaml"), "--out", str(tmp_path / "other")]
    assert export.main([*command, "--card", str(tmp_path / "card.md")]) == 2
    assert "cannot be read as text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "diffusion", "message"),
    [
        ({"class_cond": True}, {}, "no place for the class"),
        ({}, {"rescale_timesteps": True}, "have no name in diffusers"),
        ({}, {"model_mean_type": "previous_x"}, "have no name in a scheduler_config.json"),
    ],
)
def test_what_a_folder_cannot_say(tmp_path, capsys, model, diffusion, message):
    write_configs(tmp_path, "super_resolution", model={**MODEL, **model})
    (tmp_path / "process.yaml").write_text(json.dumps(diffusion))
    command = [str(tmp_path / "model.yaml"), "--out", str(tmp_path / "mine")]
    assert export.main([*command, "--diffusion_config", str(tmp_path / "process.yaml")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_networks_of_others_are_not_exported(tmp_path, exported, capsys):
    (tmp_path / "theirs.yaml").write_text(f"prior: diffusers\nmodel_path: {tmp_path / 'mine'}\n")
    assert export.main([str(tmp_path / "theirs.yaml"), "--out", str(tmp_path / "again")]) == 2
    assert "only networks of prior: guided_diffusion" in capsys.readouterr().err
