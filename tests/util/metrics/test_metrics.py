"""The metrics command: numbers, matching of files, reports, bad input."""

import csv
import json

import numpy as np
import pytest
import skimage.metrics
import torch
from PIL import Image

from models import perceptual
from util import compute_metric
from util.compute_metric import Matched, match_folders, measure
from util.errors import UserError
from util.metrics import base
from util.runs.manifest import Record
from util.runs.results import Results


def save(path, seed=0, size=(24, 20), noise=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 190, (*size, 3))
    pixels = pixels + np.random.default_rng(99).integers(-noise, noise + 1, pixels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path):
    for i in range(3):
        save(tmp_path / "label" / f"{i}.png", seed=i)
        save(tmp_path / "recon" / f"{i}.png", seed=i, noise=5 * (i + 1))
    return tmp_path


def run(root, *options):
    return compute_metric.main(
        [f"--label={root / 'label'}", f"--recon={root / 'recon'}", "--device=cpu", *options]
    )


def test_numbers_are_scikit_images(folders):
    measured = measure(match_folders(folders / "label", folders / "recon"))
    for name, row in measured.rows.items():
        label, image = (
            np.asarray(Image.open(folders / kind / f"{name}.png")) for kind in ("label", "recon")
        )
        assert row["psnr"] == skimage.metrics.peak_signal_noise_ratio(label, image)
        assert row["ssim"] == skimage.metrics.structural_similarity(label, image, channel_axis=2)
    assert len(measured.rows) == 3


def test_equals_the_metrics_of_a_run(tmp_path):
    results, rows = Results(tmp_path), []
    for i in range(2):
        label = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(i)) * 2 - 1
        noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(9 + i))
        results.save_measurement(f"deep/{i}", label, label)
        metrics = results.save_restored(f"deep/{i}", label, label + 0.2 * noise)
        rows.append(Record(f"deep/{i}.png", "", 0, 0.0, metrics=metrics))
    results.save_report(rows)
    assert run(tmp_path) == 0
    own = {r[0]: r[1:] for r in csv.reader((tmp_path / "metrics.csv").open())}
    found = {r[0]: r[1:] for r in csv.reader((tmp_path / "compute_metric.csv").open())}
    for name in ("file", "deep/0", "deep/1", "mean"):
        assert own[name][:2] == found[name][:2]


def test_images_too_small_for_a_metric_have_none(tmp_path, capsys):
    for name, size in (("small", (5, 40)), ("usual", (16, 16))):
        save(tmp_path / "label" / f"{name}.png", size=size)
        save(tmp_path / "recon" / f"{name}.png", size=size, noise=9)
    assert run(tmp_path) == 0
    assert "no SSIM below 7x7 pixels" in capsys.readouterr().err
    with (tmp_path / "compute_metric.csv").open() as file:
        rows = {r["file"]: r for r in csv.DictReader(file)}
    assert rows["small"]["psnr"]
    assert rows["small"]["ssim"] == ""
    assert rows["mean"]["ssim"] == rows["usual"]["ssim"] != ""


def test_reports(folders, capsys):
    assert run(folders) == 0
    printed = capsys.readouterr().out
    document = json.loads((folders / "compute_metric.json").read_text())
    values = [row["psnr"] for row in document["images"].values()]
    assert document["mean"]["psnr"] == pytest.approx(np.mean(values))
    assert document["standard_error"]["psnr"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert f"{np.mean(values):.2f}" in printed
    assert "standard error" in printed


def test_files_without_partner_are_named(folders):
    save(folders / "label" / "lonely.png")
    save(folders / "recon" / "stray.jpg")
    run(folders)
    document = json.loads((folders / "compute_metric.json").read_text())
    assert (document["only_label"], document["only_recon"]) == (["lonely"], ["stray"])
    assert document["count"] == 3


def test_equal_images(tmp_path):
    for kind in ("label", "recon"):
        save(tmp_path / kind / "a.png")
    assert run(tmp_path) == 0
    document = json.loads((tmp_path / "compute_metric.json").read_text())
    assert document["mean"] == {"psnr": "inf", "ssim": 1.0}


def test_bad_folders(folders, capsys):
    def error(*options):
        assert run(folders, *options) == 2
        return capsys.readouterr().err

    for file in (folders / "recon").iterdir():
        file.rename(file.with_name("x" + file.name))
    assert "no file names in common" in error()
    for file in (folders / "recon").iterdir():
        file.unlink()
    assert "no images in this folder" in error()
    assert "expected NAME=FILE" in error("--weights", "lpips.pt")


def test_a_bad_pair_fails_alone(folders, capsys):
    save(folders / "recon" / "1.png", size=(24, 24))
    (folders / "recon" / "2.png").write_bytes(b"no image")
    assert run(folders) == 1
    told = capsys.readouterr().err
    assert "2 pair(s) could not be compared" in told
    assert "24x24, but its label" in told
    assert "not a readable image" in told
    document = json.loads((folders / "compute_metric.json").read_text())
    assert (set(document["failed"]), set(document["images"])) == ({"1", "2"}, {"0"})
    (folders / "label" / "0.png").write_bytes(b"no image")
    assert run(folders) == 2
    assert "no pair could be compared" in capsys.readouterr().err


def test_folders_side_by_side_get_files_of_their_own(folders):
    (folders / "recon").rename(folders / "A")
    both = ["--label", str(folders / "label"), "--recon", str(folders / "A")]
    assert compute_metric.main(both) == 0
    assert (folders / "compute_metric_A.csv").exists()


def test_two_files_of_one_name(folders):
    save(folders / "label" / "1.jpg")
    with pytest.raises(UserError, match="the same name"):
        match_folders(folders / "label", folders / "recon")


def test_fid_needs_two_images(tmp_path):
    paths = (tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(UserError, match="at least 2 images"):
        measure(Matched({"a": paths}, [], []), ["fid"])


def test_without_the_packages(folders, monkeypatch, capsys):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(perceptual.importlib, "import_module", missing)
    assert run(folders) == 0
    for metric in ("lpips", "fid"):
        assert run(folders, "--metrics", "psnr", metric) == 2
        assert "pip install -r requirements-metrics.txt" in capsys.readouterr().err


def alexnet_features():
    """Random convolutions of torchvision's AlexNet, by its names."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        0: (64, 3, 11),
        3: (192, 64, 5),
        6: (384, 192, 3),
        8: (256, 384, 3),
        10: (256, 256, 3),
    }
    state = {}
    for layer, (out, channels, side) in shapes.items():
        weight = torch.randn(out, channels, side, side, generator=generator)
        state[f"features.{layer}.weight"] = weight * (2 / (channels * side**2)) ** 0.5
        state[f"features.{layer}.bias"] = torch.zeros(out)
    return state


def test_lpips_with_local_weights(tmp_path):
    pytest.importorskip("lpips")
    torch.save(alexnet_features(), tmp_path / "alex.pt")
    lpips = perceptual.Lpips("alex", tmp_path / "alex.pt")
    a, b = (np.random.default_rng(i).integers(0, 255, (64, 64, 3)).astype("uint8") for i in (0, 1))
    near = np.clip(a.astype(int) + 3, 0, 255).astype("uint8")
    assert lpips(a, a) == 0
    assert 0 < lpips(a, near) < lpips(a, b)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="not the ImageNet weights of the alex backbone"):
        perceptual.Lpips("alex", tmp_path / "other.pt")


class PooledColours(torch.nn.Module):
    """Stands in for Inception: 2048 averages of a small picture of the input."""

    def forward(self, x):
        pooled = torch.nn.functional.adaptive_avg_pool2d(x, 27).flatten(1)
        return pooled[:, :2048]


def test_fid_with_a_torchscript_network(tmp_path):
    pytest.importorskip("torch_fidelity")
    torch.jit.script(PooledColours()).save(str(tmp_path / "net.pt"))
    fid = perceptual.Fid(tmp_path / "net.pt")
    images = [np.random.default_rng(i).integers(0, 255, (27, 27, 3)) for i in range(4)]
    images = [image.astype("uint8") for image in images]
    darker = [(image * f).astype("uint8") for image, f in zip(images, [0.8] * 4, strict=True)]
    darkest = [(image * 0.5).astype("uint8") for image in images]
    assert abs(fid(images, images)) < 1e-3
    assert 0.1 < fid(images, darker) < fid(images, darkest)
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"broken\.pt: "):
        perceptual.Fid(tmp_path / "broken.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="not the weights of torch-fidelity's Inception"):
        perceptual.Fid(tmp_path / "other.pt")


def test_a_new_metric_needs_one_registration(folders, capsys, monkeypatch):
    monkeypatch.setattr(base._METRICS, "_entries", dict(base._METRICS._entries))

    def mae(label, image):
        return float(np.abs(label.astype(int) - image).mean())

    base.register("mae", base.Metric("MAE", lambda options: mae, "levels", higher_is_better=False))
    assert run(folders, "--metrics", "mae", "psnr") == 0
    assert "MAE (levels)" in capsys.readouterr().out
    with (folders / "compute_metric.csv").open() as file:
        mean = next(row for row in csv.DictReader(file) if row["file"] == "mean")
    assert float(mean["mae"]) > 0
    assert len(mean["mae"].split(".")[1]) == 5
