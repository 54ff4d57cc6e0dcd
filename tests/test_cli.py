"""The command line as a user calls it: outputs, errors, exit status."""

import csv
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tests.tiny_run import photograph, run, save, write_configs

ROOT = Path(__file__).parent.parent


@pytest.fixture
def images(tmp_path) -> Path:
    for i, name in enumerate(["a.png", "class 1/ü.JPEG", "class 2/ü.JPEG"]):
        save(tmp_path / "images" / name, photograph(40, 33, seed=i))
    return tmp_path / "images"


def snapshot(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_results_of_a_run(tmp_path, images):
    arguments = write_configs(tmp_path, "inpainting")
    overrides = ["--set", "task.conditioning.params.scale=0.7", "--seed", "5"]
    record = ["--record", "every=2"]
    assert run(*arguments, "--data_root", images, "--batch_size", "2", *overrides, *record) == 0
    results = tmp_path / "results" / "inpainting"
    names = ["a", "class 1/ü", "class 2/ü"]
    for name in names:
        for kind in ("input", "recon", "label"):
            assert Image.open(results / kind / f"{name}.png").size == (32, 32)
        y = np.load(results / "input" / f"{name}.npy")
        assert y.dtype == np.float32
        assert y.shape == (3, 32, 32)
        assert list((results / "progress" / name).glob("x0_hat_*.png"))
        mask = np.asarray(Image.open(results / "mask" / f"{name}.png"))
        assert set(np.unique(mask)) == {0, 255}
        assert 0.6 < (mask == 0).mean() < 0.95
    assert Image.open(results / "contact_sheet.png").width > 3 * 32
    saved = yaml.safe_load((results / "config.yaml").read_text())
    assert saved["task"]["conditioning"]["params"]["scale"] == 0.7
    assert saved["run"]["seed"] == 5
    assert saved["run"]["versions"]["torch"] == version("torch")
    with (results / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [*names, "mean"]
    for row in rows[:-1]:
        label, recon = (
            np.asarray(Image.open(results / kind / f"{row['file']}.png"))
            for kind in ("label", "recon")
        )
        assert float(row["psnr"]) == pytest.approx(peak_signal_noise_ratio(label, recon), abs=1e-3)
        ssim = structural_similarity(label, recon, channel_axis=2)
        assert float(row["ssim"]) == pytest.approx(ssim, abs=1e-4)
    mean = np.mean([float(row["psnr"]) for row in rows[:-1]])
    assert float(rows[-1]["psnr"]) == pytest.approx(mean, abs=1e-3)


def test_saved_masks_and_kernels_can_be_given_back(tmp_path, images):
    arguments = write_configs(tmp_path, "inpainting")
    assert run(*arguments, "--data_root", images) == 0
    results = tmp_path / "results" / "inpainting"
    again = tmp_path / "again"
    masks = ["--masks", results / "mask", "--save_dir", again]
    assert run(*arguments, "--data_root", images, *masks) == 0
    for name in ("a", "class 1/ü"):
        first = np.load(results / "input" / f"{name}.npy")
        assert np.array_equal(first, np.load(again / "inpainting" / "input" / f"{name}.npy"))
    arguments = write_configs(tmp_path, "motion_blur")
    assert run(*arguments, "--data_root", images) == 0
    results = tmp_path / "results" / "motion_blur"
    kernel = ["--kernel", results / "kernel.npy", "--save_dir", again, "--seed", "0"]
    assert run(*arguments, "--data_root", images, *kernel) == 0
    first, second = (
        np.asarray(Image.open(folder / "recon" / "a.png")).astype(int)
        for folder in (results, again / "motion_blur")
    )
    assert np.abs(first - second).max() <= 1


def test_an_image_does_not_depend_on_its_neighbours(tmp_path, images):
    arguments = write_configs(tmp_path, "inpainting")
    assert run(*arguments, "--data_root", images) == 0
    (images / "a.png").unlink()
    alone = tmp_path / "alone"
    assert run(*arguments, "--data_root", images, "--save_dir", alone) == 0
    for name in ("class 1/ü", "class 2/ü"):
        first, second = (
            (folder / "inpainting" / "recon" / f"{name}.png").read_bytes()
            for folder in (tmp_path / "results", alone)
        )
        assert first == second


@pytest.mark.parametrize("method", ["ddnm+", "pigdm", "diffpir", "mcg", "projection"])
def test_methods_of_linear_operators_take_masks(tmp_path, images, method):
    arguments = [*write_configs(tmp_path, "inpainting"), "--data_root", images, "--limit", "1"]
    assert run(*arguments, "--set", f"task.conditioning.method={method}") == 0
    assert (tmp_path / "results" / "inpainting" / "recon" / "a.png").exists()


@pytest.mark.parametrize("method", ["ps", "ps+", "mcg", "projection", "vanilla", "diffpir"])
def test_every_method_and_sampler(tmp_path, images, method):
    arguments = write_configs(tmp_path, "super_resolution")
    restored = []
    for sampler in ("ddpm", "ddim"):
        out = tmp_path / sampler
        overrides = [f"task.conditioning.method={method}", f"diffusion.sampler={sampler}"]
        sets = [word for override in overrides for word in ("--set", override)]
        more = ["--data_root", images, "--limit", "1", "--save_dir", out]
        assert run(*arguments, *more, *sets) == 0
        (path,) = (out / "super_resolution" / "recon").rglob("*.png")
        restored.append(path.read_bytes())
    # DiffPIR has a transition of its own.
    assert (restored[0] == restored[1]) == (method == "diffpir")


def test_help_has_defaults_and_examples():
    shown = subprocess.run(
        [sys.executable, "sample_condition.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert shown.returncode == 0
    assert shown.stdout.count("sample_condition.py --") >= 6
    for text in ("--seed SEED", "(default: 0)", "(default: ./results)", "--set SECTION.KEY=VALUE"):
        assert text in shown.stdout


def test_help_shows_defaults_where_there_are_any(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    with pytest.raises(SystemExit):
        run("--help")
    text = capsys.readouterr().out
    assert "seed of all random numbers (default: 0)" in text
    assert "of the network (default: the model config's)" in text
    for nothing in ("None", "False", "[]"):
        assert f"(default: {nothing})" not in text


def test_the_published_command_without_its_checkpoint(tmp_path, images):
    shown = subprocess.run(
        [
            sys.executable,
            "sample_condition.py",
            "--model_config=configs/model_config.yaml",
            "--diffusion_config=configs/diffusion_config.yaml",
            "--task_config=configs/super_resolution_config.yaml",
            f"--save_dir={tmp_path / 'results'}",
            f"--data_root={images}",
            "--device=cpu",
            "--set=model.model_path=models/not_here/ffhq_10m.pt",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: ")
    assert "python -m models.download ffhq" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data_root", "nowhere"], "nowhere: no such folder"),
        (["--data_root", "EMPTY"], "no images in this folder"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--gpu", "0"], "say the same thing"),
        (["--device", "tpu"], "--device tpu"),
        (["--batch_size", "0"], "--batch_size 0"),
        (["--batch_size", "many"], "--batch_size many"),
        (["--limit", "0"], "--limit 0"),
        (["--set", "model.model_path="], "model_path"),
        (["--set", "model.model_path=''"], "model_path is empty"),
        (["--set", "model.num_channels=64"], "does not fit the model config"),
        (["--set", "task.measurement.operator.name=blur"], 'unknown operator "blur"'),
        (["--set", "diffusion.sampler=ddim"], "eta"),
        (["--task_config", "nowhere.yaml"], "no such config file"),
        (["--set", "model.learn_sigma=False"], "learn_sigma: True"),
        (["--masks", "configs"], "only inpainting has masks"),
        (["--set", "task.measurement.operator={name: phase_retrieval}", "--set",
          "task.conditioning={method: mcg}"], "no projection"),
        (["--set", "task.measurement.operator={name: phase_retrieval}", "--set",
          "task.conditioning.params.max_timestep=400"], "max_timestep needs a measurement"),
        (["--set", "task.measurement.operator={name: phase_retrieval}", "--set",
          "task.measurement.noise={name: poisson}"], "photons of pictures"),
        (["--set", "task.measurement.operator={name: motion_blur, kernel_size: 9}", "--set",
          "task.conditioning={method: ddnm+}"], "closed form"),
    ],
)  # fmt: skip
def test_errors_write_nothing(tmp_path, images, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    arguments = [str(tmp_path / "empty") if a == "EMPTY" else a for a in arguments]
    before_arguments = write_configs(tmp_path, "super_resolution")
    before = snapshot(tmp_path)
    assert run(*before_arguments, "--data_root", images, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("error: ")
    assert "\n" not in error
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("mask_opt", "message"),
    [
        ("{mask_prob_range: [0.7, 1.5]}", "mask_prob_range"),
        ("{mask_type: box, mask_len_range: [9, 3]}", "mask_len_range"),
        ("{mask_type: box, mask_len_range: [31, 32]}", "does not fit"),
        ("{mask: nowhere}", "no such mask file"),
    ],
)
def test_impossible_masks_write_nothing(tmp_path, images, capsys, mask_opt, message):
    arguments = write_configs(tmp_path, "inpainting")
    arguments += ["--data_root", images, "--set", f"task.measurement.mask_opt={mask_opt}"]
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_one_bad_image_does_not_stop_the_others(tmp_path, images, capsys):
    (images / "b.png").write_bytes((images / "a.png").read_bytes()[:100])
    save(images / "small.png", photograph(10, 40))
    arguments = write_configs(tmp_path, "super_resolution")
    assert run(*arguments, "--data_root", images) == 1
    error = capsys.readouterr().err
    assert "b.png: not a readable image" in error
    assert "small.png: 40x10 is smaller than the model's 32x32" in error
    recon = tmp_path / "results" / "super_resolution" / "recon"
    assert {p.relative_to(recon).as_posix() for p in recon.rglob("*.png")} == {
        "a.png",
        "class 1/ü.png",
        "class 2/ü.png",
    }


def test_a_sample_that_is_not_finite_is_not_saved(tmp_path, images, capsys):
    arguments = write_configs(tmp_path, "super_resolution")
    huge = ["--set", "task.conditioning.params.scale=1.0e+38"]
    assert run(*arguments, "--data_root", images, "--limit", "1", *huge) == 1
    assert "not finite" in capsys.readouterr().err
    assert not list((tmp_path / "results").rglob("recon/*.png"))


def test_bundled_photographs_need_no_folder(tmp_path):
    arguments = write_configs(tmp_path, "super_resolution", {"name": "skimage"})
    assert run(*arguments) == 0
    recon = tmp_path / "results" / "super_resolution" / "recon"
    assert sorted(p.stem for p in recon.iterdir()) == ["astronaut", "chelsea", "coffee", "rocket"]


def test_without_images_the_options_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--task", "inpainting", "--save_dir", tmp_path) == 2
    assert "no folder of images: give --data_root FOLDER" in capsys.readouterr().err


def test_windows_are_announced(tmp_path, images, capsys):
    save(tmp_path / "images" / "a.png", photograph(48, 70))
    arguments = [*write_configs(tmp_path, "super_resolution"), "--data_root", images]
    assert run(*arguments, "--fit", "tile", "--limit", "1") == 0
    assert "a.png: 70x48, 6 windows a step, 3 steps" in capsys.readouterr().err


def test_compiling_for_a_processor_is_refused(tmp_path, images, capsys):
    arguments = write_configs(tmp_path, "inpainting")
    more = ["--data_root", images, "--compile", "--device", "cpu"]
    assert run(*arguments, *more) == 2
    assert "give that" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
