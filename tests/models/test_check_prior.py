"""The look at a prior: losses, denoising, samples."""

import pytest
import torch
from PIL import Image

from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from models.check_prior import VALIDATION_TIMESTEPS, main, validation_loss
from tests.tiny import SIZE, TinyRun, write_images


def test_validation_loss_of_a_network_that_predicts_no_noise():
    images = [torch.zeros(3, 16, 16), torch.zeros(3, 24, 16)]
    process = GaussianDiffusion.create(model_var_type="fixed_small")
    losses = validation_loss(lambda x, t: torch.zeros_like(x), process, images)
    assert set(losses) == set(VALIDATION_TIMESTEPS)
    assert all(loss == pytest.approx(1, abs=0.1) for loss in losses.values())


def test_pictures_and_losses(tmp_path, capsys):
    tiny = TinyRun(tmp_path / "tiny")
    photos = write_images(tmp_path / "photos", ["a.png", "b.png"])
    options = ["--model_config", str(tiny.folder / "model.yaml"), "--device", "cpu"]
    options += ["--diffusion_config", str(tiny.folder / "diffusion.yaml"), "--respacing", "3"]
    options += ["--photographs", str(photos), "--sizes", "32", "--count", "2"]
    out = tmp_path / "out"
    assert main([*options, "--save_dir", str(out)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(VALIDATION_TIMESTEPS)
    assert Image.open(out / "samples_32.png").size == (64, 32)
    assert Image.open(out / "denoising_1.png").size == (9 * SIZE, SIZE)
    assert main([*options, "--sizes", "33"]) == 2
