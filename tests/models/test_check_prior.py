"""The look at a prior: losses, denoising, samples."""

import pytest
import torch
from PIL import Image

from data.dataloader import find_images
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from models.check_prior import main
from models.memory import neighbours, read_split
from models.validation import VALIDATION_TIMESTEPS, validation_loss
from tests.tiny import SIZE, TinyRun, diffusers_unet, write_images
from tests.tiny_run import MODEL, write_configs


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


def test_copies_are_told_from_new_pictures():
    training = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    new = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    copies = training[:16].flip(-1) + 0.01 * new  # mirrored, too
    learned = neighbours(copies, training)
    assert learned.median_ratio < 0.1
    torch.testing.assert_close(learned.nearest, training[:16].flip(-1))
    assert 0.8 < neighbours(new, training).median_ratio < 1
    ratios = neighbours(new[:1], training).ratios
    distances = torch.stack(
        [(torch.stack([t, t.flip(-1)]) - new[0]).square().sum((1, 2, 3)).min() for t in training]
    ).sqrt()
    ranked = distances.sort().values
    torch.testing.assert_close(ratios[0], ranked[0] / ranked[9])


def test_samples_beside_their_nearest_photographs(tmp_path, capsys):
    tiny = TinyRun(tmp_path / "tiny")
    photos = write_images(tmp_path / "photos", [f"{i}.png" for i in range(14)])
    options = ["--model_config", str(tiny.folder / "model.yaml"), "--device", "cpu"]
    options += ["--diffusion_config", str(tiny.folder / "diffusion.yaml"), "--respacing", "2"]
    options += ["--sizes", str(SIZE), "--count", "3", "--save_dir", str(tmp_path / "out")]
    assert main([*options, "--training", str(photos), "--holdout", "2"]) == 0
    told = capsys.readouterr().out
    assert "3 samples" in told
    assert "2 held out" in told
    assert Image.open(tmp_path / "out" / "neighbours.png").size == (6 * SIZE, SIZE)
    assert Image.open(tmp_path / "out" / f"samples_{SIZE}.png").size == (3 * SIZE, SIZE)
    trained, held_out = read_split(photos, 2, SIZE)
    assert (len(trained), len(held_out)) == (12, 2)
    assert read_split(photos, 2, SIZE, channels=1)[0].shape == (12, 1, SIZE, SIZE)
    assert len(find_images(photos)) == 14
    assert main([*options, "--training", str(photos), "--holdout", "5"]) == 2
    assert "fewer than 10 photographs" in capsys.readouterr().err


@pytest.mark.parametrize("model", [{"class_cond": True}, {"prior": "diffusers"}])
def test_priors_of_other_kinds(tmp_path, capsys, model):
    """Class-conditional ones are told a class; those with a process of their own keep it."""
    if "prior" in model:
        diffusers = pytest.importorskip("diffusers")
        network = diffusers_unet(32, channels=1, down=["DownBlock2D"])
        scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
        diffusers.DDPMPipeline(network, scheduler).save_pretrained(tmp_path / "folder")
        model = {**model, "model_path": str(tmp_path / "folder")}
    else:
        model = {**MODEL, **model}
    write_configs(tmp_path, "super_resolution", model=model)
    photos = write_images(tmp_path / "photos", ["a.png"])
    options = ["--model_config", str(tmp_path / "model.yaml"), "--device", "cpu", "--sizes", "32"]
    options += ["--photographs", str(photos), "--count", "1", "--respacing", "2"]
    assert main([*options, "--save_dir", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    losses = {int(line.split()[0]): float(line.split()[1]) for line in lines}
    if "prior" in model:  # v near 0 means eps_hat = sqrt(1 - acp) x_t
        acp = GaussianDiffusion.create().alphas_cumprod[300]
        assert acp**2 < losses[300] < acp
