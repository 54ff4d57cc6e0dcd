import csv
import dataclasses
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data.dataloader import find_images
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from models.augmentation import LABELS, Augmentation
from models.checkpoint import load_model, model_config
from models.muon import orthogonalised, split_for_muon
from models.photo_store import PhotoStore, held_out_split
from models.train_config import CropSpec, TimestepBand, TrainConfig
from models.train_prior import main
from models.training import Trainer, draw_timesteps, hybrid_loss, train
from models.validation import VALIDATION_TIMESTEPS
from util.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    (tmp_path / "model.yaml").write_text(
        "image_size: 32\nnum_channels: 32\nnum_res_blocks: 1\nchannel_mult: '1,1'\n"
        "attention_resolutions: ''\nnum_head_channels: 32\nmodel_path: unused.pt\n"
    )
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate([(40, 32), (80, 96)]):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{i}.png")
    return TrainConfig(
        model_config=str(tmp_path / "model.yaml"),
        output=str(tmp_path / "weights.pt"),
        run_dir=str(tmp_path / "run"),
        data_root=str(photos),
        crops=[CropSpec(16, 2, 0.5), CropSpec(8, 3, 0.5)],
        iterations=6,
        timesteps=[TimestepBand(0, 1000, 1.0)],
        min_side=40,
        warmup=2,
        checkpoint_every=2,
    )


def losses(config: TrainConfig) -> list[tuple[str, str]]:
    with open(f"{config.run_dir}/loss.csv") as file:
        return [(row["iteration"], row["mse"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(("optimiser", "augmentation"), [("adamw", 0.5), ("muon", 0.0)])
def test_resumed_run_repeats_an_uninterrupted_one(
    config, optimiser, augmentation, tmp_path, monkeypatch
):
    config = dataclasses.replace(config, optimiser=optimiser, augmentation=augmentation)
    whole = train(config, CPU)
    resumed_config = dataclasses.replace(
        config, run_dir=str(tmp_path / "resumed"), output=str(tmp_path / "resumed.pt")
    )
    step = Trainer.step

    def interrupted(self, store):
        if self.iteration == 3:  # one step after the checkpoint: that step is repeated
            raise KeyboardInterrupt
        return step(self, store)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(resumed_config, CPU)
    resumed = train(resumed_config, CPU)
    assert len(losses(config)) == 3
    assert losses(resumed_config) == losses(config)
    for a, b in zip(whole.ema.parameters(), resumed.ema.parameters()):
        assert torch.equal(a, b)


def test_written_weights_load_strictly(config):
    trainer = train(config, CPU)
    model = load_model(model_config(config.model_config), config.output)
    for name, value in model.state_dict().items():
        assert torch.equal(value, trainer.ema.state_dict()[name].half().float())


def test_crops_come_from_the_photographs(config):
    store = PhotoStore(find_images(config.data_root), 16, CPU, config.min_side)
    assert store.count == 3  # the larger one is there at half size as well
    crops = store.crops(8, 16, torch.Generator().manual_seed(0))
    assert crops.shape == (8, 3, 16, 16)
    sources = [
        np.asarray(Image.open(f"{config.data_root}/{i}.png").convert("RGB")) for i in range(2)
    ]
    sources.append(np.asarray(Image.fromarray(sources[1]).reduce(2)))
    windows = [
        np.lib.stride_tricks.sliding_window_view(s, (16, 16, 3)).reshape(-1, 16, 16, 3)
        for s in sources
    ]
    for crop in crops:
        pixels = ((crop + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        assert any(
            (w == p).all((1, 2, 3)).any() for w in windows for p in (pixels, pixels[:, ::-1])
        )


def test_variance_gradient_does_not_reach_the_mean():
    diffusion = GaussianDiffusion.create()
    x0 = torch.rand(2, 3, 8, 8) * 2 - 1
    eps, t = torch.randn_like(x0), torch.tensor([0, 500])
    x_t = diffusion.q_sample(x0, t, eps)
    output = torch.cat([eps, torch.zeros_like(eps)], 1).requires_grad_()
    mse, bound = hybrid_loss(diffusion, output, x0, x_t, t, eps)
    assert mse.abs().max() < 1e-10
    assert torch.isfinite(bound).all()
    gradient = torch.autograd.grad(bound.sum(), output)[0]
    assert gradient[:, :3].abs().max() == 0
    assert gradient[:, 3:].abs().max() > 0


def test_bad_photographs(config, tmp_path, capsys):
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    store = PhotoStore(find_images(config.data_root), 16, CPU, config.min_side)
    assert store.count == 3
    assert "broken.png: not a readable image" in capsys.readouterr().err
    with pytest.raises(UserError, match="as large as the largest crop .512"):
        PhotoStore(find_images(config.data_root), 512, CPU)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no images"):
        PhotoStore(find_images(empty), 16, CPU)


def test_another_architecture_is_not_resumed(config, tmp_path):
    train(config, CPU)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    text = (tmp_path / "model.yaml").read_text().replace("'1,1'", "'1,2'")
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(UserError, match="another architecture"):
        train(config, CPU)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_another_optimiser_is_not_resumed(config):
    train(config, CPU)
    with pytest.raises(UserError, match="started with optimiser adamw"):
        train(dataclasses.replace(config, optimiser="muon"), CPU)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_orthogonalised_matrices_keep_their_singular_vectors(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalised(matrix) @ v.T  # the singular values on the diagonal
    values = inner.diagonal()
    assert 0.6 < values.min() < values.max() < 1.3
    assert (inner - values.diag()).abs().max() < 1e-5


def test_orthogonalised_is_the_newton_schulz_iteration():
    matrix = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    x = (matrix / matrix.norm()).double()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    torch.testing.assert_close(orthogonalised(matrix), x.float(), rtol=1e-4, atol=1e-5)


def test_muon_gets_the_hidden_matrices(config):
    model = Trainer(config, model_config(config.model_config), CPU).model
    hidden, others = (set(map(id, part)) for part in split_for_muon(model))
    names = {id(p): n for n, p in model.named_parameters()}
    assert hidden | others == names.keys()
    assert not hidden & others
    assert {"input_blocks.0.0.weight", "out.2.weight", "time_embed.0.weight"} <= {
        names[i] for i in others
    }
    assert {"middle_block.1.qkv.weight", "middle_block.0.in_layers.2.weight"} <= {
        names[i] for i in hidden
    }


def test_timesteps_come_from_the_bands_by_their_shares():
    bands = [TimestepBand(10, 20, 3.0), TimestepBand(500, 502, 1.0)]
    t = draw_timesteps(bands, 4000, torch.Generator().manual_seed(0))
    assert set(t.tolist()) == {*range(10, 20), 500, 501}
    assert abs((t < 20).float().mean().item() - 0.75) < 0.03


def test_initial_weights_are_where_training_starts(config, tmp_path):
    train(config, CPU)
    second = dataclasses.replace(
        config, initial_weights=config.output, run_dir=str(tmp_path / "second")
    )
    start = Trainer(second, model_config(config.model_config), CPU)
    saved = load_model(model_config(config.model_config), config.output)
    for a, b in zip(start.model.parameters(), saved.parameters()):
        assert a.requires_grad
        assert torch.equal(a, b)


def test_a_finished_run_writes_to_another_output(config, tmp_path):
    train(config, CPU)
    again = dataclasses.replace(config, output=str(tmp_path / "again.pt"))
    train(again, CPU)
    unet = model_config(config.model_config)
    one, two = (load_model(unet, c.output).state_dict() for c in (config, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_held_out_photographs_choose_the_weights(config, tmp_path, monkeypatch):
    for i in range(4):
        Image.new("RGB", (40, 40), (50 * i, 90, 90)).save(tmp_path / "photos" / f"flat_{i}.png")
    paths = find_images(config.data_root)
    kept, held_out = held_out_split(paths, 2)
    assert sorted(kept + held_out) == paths
    assert len(held_out) == 2
    errors = iter([0.5, 0.25, 1.0])
    monkeypatch.setattr(
        "models.training.validation_loss",
        lambda model, diffusion, images: dict.fromkeys(VALIDATION_TIMESTEPS, next(errors)),
    )
    seen = []
    save = Trainer.save

    def noted(self, score):
        seen.append({k: v.half() for k, v in self.ema.state_dict().items()})
        save(self, score)

    monkeypatch.setattr(Trainer, "save", noted)
    train(dataclasses.replace(config, holdout=2), CPU)
    written = torch.load(config.output, weights_only=True)
    assert len(seen) == 3
    assert all(torch.equal(written[name], seen[1][name]) for name in written)
    with open(f"{config.run_dir}/loss.csv") as file:
        assert [float(row["held_out_50"]) for row in csv.DictReader(file)] == [0.5, 0.25, 1.0]
    with pytest.raises(UserError, match="6 of 6 photographs leave none"):
        train(dataclasses.replace(config, holdout=6), CPU)
    with pytest.raises(UserError, match="started with holdout 2"):
        train(config, CPU)
    assert len(held_out_split([Path("caf\udce9.png"), Path("b.png")], 1)[1]) == 1


def test_a_run_keeps_to_its_augmentation(config, tmp_path):
    augmented = dataclasses.replace(config, augmentation=0.5)
    assert train(augmented, CPU).labels.weight.abs().max() > 0
    with pytest.raises(UserError, match="started with augmentation"):
        train(config, CPU)
    plain = dataclasses.replace(config, run_dir=str(tmp_path / "plain"))
    train(plain, CPU)
    with pytest.raises(UserError, match="started without augmentation"):
        train(dataclasses.replace(plain, augmentation=0.5), CPU)


def test_augmentation_says_what_it_did():
    crops = torch.rand(64, 3, 16, 16) * 2 - 1
    same, labels = Augmentation(0.0)(crops, torch.Generator().manual_seed(0))
    torch.testing.assert_close(same, crops)
    assert not labels.any()
    changed, labels = Augmentation(0.3)(crops, torch.Generator().manual_seed(0))
    moved = ((changed - crops).abs().amax((1, 2, 3)) > 1e-6).tolist()
    assert moved == labels.any(1).tolist()
    assert 0.2 < (labels != 0).float().mean() < 0.4


def test_augmentation_moves_by_its_labels(monkeypatch):
    """A shift of one pixel to the left, a half turn, half the size, all contrast taken away."""
    crops = torch.rand(1, 3, 16, 16) * 2 - 1
    labels = torch.zeros(1, LABELS)
    labels[0, 0] = 1.0  # 1/16 of the side
    moved = Augmentation._moved(crops, labels)
    torch.testing.assert_close(moved[..., :-1], crops[..., 1:])
    turn = torch.zeros(1, LABELS)
    turn[0, 4] = 15.0
    torch.testing.assert_close(
        Augmentation._moved(crops, turn), crops.flip(2, 3), rtol=0, atol=1e-4
    )
    grey = torch.zeros(1, LABELS)
    grey[0, 7] = -100.0
    luma = (crops * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(Augmentation._coloured(crops, grey), luma.expand_as(crops))


def test_patches_train_and_load(config, tmp_path):
    text = (tmp_path / "model.yaml").read_text()
    (tmp_path / "model.yaml").write_text(text + "patch_size: 2\n")
    train(config, CPU)
    model = load_model(model_config(config.model_config), config.output)
    assert model.config.size_multiple() == 4
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(UserError, match=r"input_blocks.0.0.weight: \(32, 12, 3, 3\) in the file"):
        load_model(model_config(config.model_config), config.output)


def test_a_list_of_the_wrong_kind_is_named(config, tmp_path, capsys):
    raw = dataclasses.asdict(config)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    assert main([str(tmp_path / "config.yaml"), "--set", "crops=5", "--device", "cpu"]) == 2
    assert "expected a list of CropSpecs, got 5" in capsys.readouterr().err


def test_divergence_keeps_the_last_checkpoint(config, tmp_path):
    train(dataclasses.replace(config, iterations=2), CPU)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match="diverged at iteration 2"):
        train(dataclasses.replace(config, vlb_weight=float("nan")), CPU)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_a_full_disk_keeps_the_last_checkpoint(config, tmp_path):
    train(dataclasses.replace(config, iterations=2), CPU)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match="checkpoint.pt: cannot be written"):
            train(config, CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert [p.name for p in (tmp_path / "run").iterdir() if p.suffix == ".part"] == []


def test_command_line_errors(config, tmp_path, capsys):
    path = tmp_path / "train.yaml"
    path.write_text("model_config: x\nepochs: 3\n")
    assert main([str(path), "--device", "cpu"]) == 2
    assert 'unknown key "epochs"' in capsys.readouterr().err
    shipped = "configs/train_demo_prior.yaml"
    assert main([shipped, "--data_root", str(tmp_path / "none"), "--device", "cpu"]) == 2
    assert "no such folder" in capsys.readouterr().err
    crops = ["--set", "crops=[{size: 63, batch_size: 1, share: 1}]"]
    assert main([shipped, *crops, "--device", "cpu"]) == 2
    assert "size 63 is not a multiple of 8" in capsys.readouterr().err
    band = ["--set", "timesteps=[{low: 400, high: 300, share: 1}]"]
    assert main([shipped, *band, "--device", "cpu"]) == 2
    assert "0 <= low < high <= 1000" in capsys.readouterr().err
