"""What must not end a run, and what must be made again: bad images among good ones, damaged results
and records, lost readers."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import sample_condition
from guided_diffusion.classical import interpolation
from guided_diffusion.measurements import GaussianBlur, OperatorContext, SuperResolution
from guided_diffusion.noise_models import GaussianNoise, PoissonNoise
from tests import golden_data
from tests.tiny import ROOT, records, result_files, write_images
from util import compute_metric
from util.errors import OutputError
from util.resizer import bicubic_matrix
from util.runs import measuring, restoration
from util.runs.manifest import read_records
from util.runs.problems import Batch
from util.runs.results import Results


@pytest.fixture
def job(tiny, tmp_path):
    """Three images and a function that runs the program on them, to a folder or again."""
    images = write_images(tmp_path / "images", ["a.png", "b.png", "c.png"])

    def start(*more: str) -> int:
        return sample_condition.main(tiny.arguments(images, tmp_path / "out", *more))

    start.images, start.folder = images, tmp_path / "out" / "inpainting"
    return start


def test_figures_of_removed_results_do_not_stay(job):
    assert job() == 0
    assert (job.folder / "metrics.csv").exists()
    for image in job.images.iterdir():
        image.write_bytes(b"no image")
    assert job("--overwrite", "--seed", "5") == 1
    assert not (job.folder / "metrics.csv").exists()
    assert not (job.folder / "contact_sheet.png").exists()


@pytest.mark.parametrize("shape", ["column", "diagonal", "point", "two"])
def test_masks_without_a_triangle_are_interpolated_all_the_same(shape):
    masks = torch.zeros(1, 1, 8, 8)
    if shape == "column":
        masks[..., 3] = 1
    elif shape == "diagonal":
        masks[0, 0] = torch.eye(8)
    else:
        masks[..., 2, 5] = 1
        masks[..., 6, 1] = float(shape == "two")
    y = golden_data.normal((1, 3, 8, 8), 1) * masks
    x = interpolation(y, masks)
    kept = masks.expand_as(x) > 0
    torch.testing.assert_close(x[kept], y[kept])
    assert torch.isfinite(x).all()
    values = {round(v, 5) for v in y[kept].tolist()}
    assert {round(v, 5) for v in x.flatten().tolist()} <= values  # the nearest one


@pytest.mark.parametrize("error", [ValueError("odd\nsecond line"), ZeroDivisionError()])
@pytest.mark.parametrize("batch", ["1", "3"])
def test_whatever_goes_wrong_with_one_image_costs_that_image(
    job, monkeypatch, capsys, batch, error
):
    results = Batch.results

    def broken(self, x):
        if any(case.key.name == "b.png" for case in self.cases):
            raise error
        return results(self, x)

    monkeypatch.setattr(Batch, "results", broken)
    assert job("--batch_size", batch) == 1
    told = capsys.readouterr().err
    assert f"failed b.png: {type(error).__name__}" in told
    assert "second line" not in told
    assert "Traceback" not in told
    errors = {r["file"]: r["error"] for r in records(job.folder.parent)}
    assert [name for name, reason in errors.items() if reason] == ["b.png"]
    monkeypatch.undo()
    assert job() == 0
    assert sorted(p.name for p in (job.folder / "recon").iterdir()) == ["a.png", "b.png", "c.png"]


def test_verbose_shows_where_it_went_wrong(job, monkeypatch, capsys):
    def broken(self, x):
        raise ZeroDivisionError

    monkeypatch.setattr(Batch, "results", broken)
    assert job("--verbose", "--limit", "1") == 1
    assert "in broken" in capsys.readouterr().err


def test_an_error_after_the_sampling_costs_that_image(job, monkeypatch):
    def broken(label, image):
        raise RuntimeError("metric")

    monkeypatch.setattr("util.runs.results.run_metrics", broken)
    assert job("--limit", "1") == 1
    (record,) = records(job.folder.parent)
    assert record["error"].startswith("RuntimeError: metric")


def test_a_file_name_stands_once_in_a_message(job, capsys):
    (job.images / "b.png").write_bytes(b"no image")
    assert job() == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "b.png" in line]
    assert lines
    assert all(line.count("b.png") == 1 for line in lines)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_pipes_and_devices_among_photographs_fail_alone(job):
    os.mkfifo(job.images / "pipe.png")
    (job.images / "zero.png").symlink_to("/dev/zero")
    (job.images / "gone.png").symlink_to("/nowhere")
    (job.images / "folder.png").mkdir()
    assert job() == 1
    errors = {r["file"]: r["error"] for r in records(job.folder.parent) if r["error"]}
    assert errors == {
        "pipe.png": "is no plain file",
        "zero.png": "is no plain file",
        "gone.png": "no such file",
    }


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("recon/a.png", "emptied"),
        ("recon/a.png", "cut"),
        ("recon/a.png", "replaced"),
        ("recon/a.png", "removed"),
        ("label/a.png", "cut"),
        ("input/a.png", "emptied"),
        ("input/a.npy", "emptied"),
        ("input/a.npy", "removed"),
        ("input/a.npy", "replaced"),
        ("mask/a.png", "removed"),
    ],
)
def test_damaged_results_are_made_again(job, capsys, file, damage):
    assert job() == 0
    before = result_files(job.folder)
    path = job.folder / file
    if damage == "removed":
        path.unlink()
    elif damage == "replaced":
        shutil.copy(path.with_stem("b"), path)
    else:
        path.write_bytes(b"" if damage == "emptied" else path.read_bytes()[:-20])
    capsys.readouterr()
    assert job() == 0
    assert "2 of them finished before; 1 to go" in capsys.readouterr().err
    assert result_files(job.folder) == before


def test_results_of_an_older_version_are_kept_or_made_again(job):
    """Records without marks of the files: those that are there to their end are finished."""
    assert job() == 0
    manifest = job.folder / "manifest.0.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for line in lines:
        line.pop("files", None)
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert job() == 0
    assert len(records(job.folder.parent)) == 3
    path = job.folder / "recon" / "b.png"
    path.write_bytes(path.read_bytes()[:-4])
    assert job() == 0
    assert [r["file"] for r in records(job.folder.parent)] == ["a.png", "b.png", "c.png", "b.png"]


def _deep(depth: int) -> str:
    return '{"file": ' + "[" * depth + "]" * depth + ', "config": "C"}'


@pytest.mark.parametrize(
    "change",
    [
        {"source": ["image"]},
        {"source": "image"},
        {"source": {"image": 3}},
        {"metrics": [1.0]},
        {"metrics": {"psnr": "high"}},
        {"residual": "small"},
        {"expected_residual": []},
        {"seconds": "3"},
        {"file": ["a.png"]},
        {"file": ""},
        {"file": 3},
        {"time": "now"},
        {"time": None},
        {"config": 3},
        {"files": [1]},
        {"error": 5},
        None,
        "deep",
    ],
)
def test_odd_lines_of_a_manifest_are_passed_over(job, capsys, change):
    assert job() == 0
    manifest = job.folder / "manifest.0.jsonl"
    *lines, last = manifest.read_text().splitlines()
    if change == "deep":
        last = _deep(3000)
    elif change is None:
        last = last[: len(last) // 2]
    else:
        last = json.dumps({**json.loads(last), **change})
    manifest.write_text("\n".join([*lines, last]) + "\n")
    capsys.readouterr()
    assert job() == 0
    assert "1 to go" in capsys.readouterr().err
    with manifest.open("a") as file:  # a second line of an image that is finished
        file.write(last + "\n")
    assert job() == 0
    assert "0 to go" in capsys.readouterr().err


def test_the_last_line_of_an_image_counts(job):
    assert job() == 0
    manifest = job.folder / "manifest.0.jsonl"
    lines = manifest.read_text().splitlines()
    done = json.loads(lines[-1])
    failed = {**done, "error": "a clock that was wrong", "time": done["time"] + 1e9}
    manifest.write_text("\n".join([*lines, json.dumps(failed)]) + "\n")
    assert not read_records(job.folder, done["config"])["c.png"].done
    assert job() == 0  # restored again
    assert read_records(job.folder, done["config"])["c.png"].done
    # A job of two processes: the other one's file is older, whatever its clock said.
    (job.folder / "manifest.1.jsonl").write_text(json.dumps(failed) + "\n")
    past = manifest.stat().st_mtime - 100
    os.utime(job.folder / "manifest.1.jsonl", (past, past))
    assert read_records(job.folder, done["config"])["c.png"].done


def test_a_photograph_that_is_replaced_while_it_waits(job, monkeypatch):
    """Hash and pixels belong to one and the same content."""
    read, replaced = measuring.Measuring.read, []

    def late(self, name):
        found = read(self, name)
        if name == "c.png" and not replaced:
            replaced.append(name)
            shutil.copy(job.images / "a.png", job.images / "c.png")
        return found

    monkeypatch.setattr(measuring.Measuring, "read", late)
    assert job() == 0
    label = np.asarray(Image.open(job.folder / "label" / "c.png"))
    np.testing.assert_array_equal(label, np.asarray(Image.open(job.images / "c.png")))
    marks = {r["file"]: r["source"]["image"]["sha256"] for r in records(job.folder.parent)}
    assert marks["c.png"] == marks["a.png"]


def test_a_photograph_that_never_rests_fails(job, monkeypatch):
    read, count = measuring.Measuring.read, iter(range(99))

    def restless(self, name):
        found = read(self, name)
        if name == "b.png":
            Image.new("RGB", (64, 64), (next(count), 0, 0)).save(job.images / "b.png")
        return found

    monkeypatch.setattr(measuring.Measuring, "read", restless)
    assert job() == 1
    errors = {r["file"]: r["error"] for r in records(job.folder.parent) if r["error"]}
    assert errors == {"b.png": "changes while it is read"}


def test_a_results_folder_that_is_taken_away_ends_in_one_line(job, monkeypatch, capsys):
    run = restoration.Restoration.run

    def taken(self, *args):
        run(self, *args)
        shutil.rmtree(job.folder)

    monkeypatch.setattr(restoration.Restoration, "run", taken)
    assert job() == 2
    told = capsys.readouterr().err
    assert "config.yaml: no such file" in told
    assert "Traceback" not in told


def test_images_that_left_the_folder_are_named(job, capsys):
    assert job() == 0
    assert "no longer" not in capsys.readouterr().err
    (job.images / "b.png").unlink()
    assert job("--limit", "1") == 0
    told = capsys.readouterr().err
    assert "1 finished image(s) are no longer among the images" in told
    assert ": b;" in told


@pytest.mark.parametrize("streams", ["2>&1 | head -1", "2>&-", ">&- 2>&- <&-", "2>/dev/full"])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_lost_reader_ends_no_run(tiny, tmp_path, streams):
    images = write_images(tmp_path / "images", ["a.png", "b.png"])
    command = " ".join(
        [sys.executable, str(ROOT / "sample_condition.py"), *tiny.arguments(images, tmp_path / "o")]
    )
    status = f"{command} {streams}; echo ${{PIPESTATUS[0]}} >{tmp_path}/status"
    subprocess.run(["bash", "-c", status], cwd=ROOT, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "status").read_text().strip() == "0"
    assert len(list((tmp_path / "o" / "inpainting" / "recon").iterdir())) == 2


def test_progress_is_recorded_on_demand_alone(job):
    assert job("--limit", "1") == 0
    assert not (job.folder / "progress").exists()
    assert (job.folder / "report.html").exists()


def test_a_disk_too_small_is_told_before_the_first_image(job, monkeypatch, capsys):
    usage = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr("util.runs.results.shutil.disk_usage", lambda folder: usage)
    assert job() == 2
    assert "the results take at least 0 MiB, and 0 are free" in capsys.readouterr().err
    assert not (job.folder / "recon").exists()
    with pytest.raises(OutputError):
        Results(job.folder).check_space(10**9)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "task.measurement.noise.sigma=25"], "25 of 255 levels are 0.196"),
        (["--set", "task.conditioning.params=[1, 2]"], "expected keys and values, got [1, 2]"),
        (["--save_dir", "x" * 5000], "(5011 characters): cannot be written"),
        (["--data_root", "x" * 5000], "(5000 characters): no such folder"),
        (["--masks", "x" * 5000], "(5000 characters): no such mask"),
        (["--set", "model.model_path=" + "x" * 5000], "(5000 characters): no such checkpoint"),
        (["--set", "diffusion.steps=" + "1" * 5000], "cannot be read (ValueError)"),
        (["--mask_is", "damage"], "--mask_is says what white means in --masks"),
    ],
)
def test_plain_mistakes_are_told_at_once(job, capsys, more, message):
    assert job(*more) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told) < 1500
    assert not job.folder.exists()


@pytest.mark.parametrize(
    ("size", "message"), [("2", "not set are RANK, MASTER_ADDR"), ("two", 'WORLD_SIZE is "two"')]
)
def test_half_an_environment_of_torchrun(job, monkeypatch, capsys, size, message):
    monkeypatch.setenv("WORLD_SIZE", size)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert job() == 2
    assert message in capsys.readouterr().err


def test_shipped_configs_work_from_any_folder(tmp_path):
    """Paths in them belong to the project; those on the command line are the user's."""
    images = write_images(tmp_path / "photos", ["a.png"])
    assert images.is_dir()
    configs = [
        f"--{kind}_config={ROOT / 'configs' / name}"
        for kind, name in (
            ("model", "demo_model_config.yaml"),
            ("diffusion", "demo_diffusion_config.yaml"),
            ("task", "super_resolution_config.yaml"),
        )
    ]
    few = [
        "--set",
        "diffusion.timestep_respacing=1",
        "--set",
        "task.conditioning={method: vanilla}",
    ]
    program = [sys.executable, str(ROOT / "sample_condition.py"), *configs, *few]
    rest = ["--data_root", "photos", "--fit", "resize", "--device", "cpu", "--quiet"]
    done = subprocess.run([*program, *rest], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "super_resolution"
    assert (folder / "recon" / "a.png").exists()
    script = [sys.executable, str(ROOT / "util" / "compute_metric.py")]
    both = ["--label", folder / "label", "--recon", folder / "recon"]
    done = subprocess.run([*script, *both], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "PSNR" in done.stdout


def test_names_that_a_terminal_cannot_show_are_escaped(tmp_path):
    for folder in ("l", "r"):
        write_images(tmp_path / folder, ["照片.png"])
    program = [sys.executable, "-m", "util.compute_metric", "--csv", str(tmp_path / "m.csv")]
    both = ["--label", str(tmp_path / "l"), "--recon", str(tmp_path / "r")]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([*program, *both], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert rb"\u7167" in done.stdout
    assert "照片" in (tmp_path / "m.csv").read_text(encoding="utf-8")
    assert (tmp_path / "compute_metric_r.json").exists()


def test_metrics_of_small_pictures_are_left_out_one_by_one(tmp_path, capsys):
    pytest.importorskip("lpips")
    state = {}
    import lpips

    for key, value in (
        lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).net.state_dict().items()
    ):
        state[f"features.{key.split('.', 1)[1]}"] = value
    torch.save(state, tmp_path / "vgg.pt")
    for folder in ("l", "r"):
        for size in (6, 15, 16):
            pixels = np.full((size, size, 3), 9 * size + (folder == "l"), np.uint8)
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"s{size}.png")
    both = ["--label", str(tmp_path / "l"), "--recon", str(tmp_path / "r")]
    weights = ["--weights", f"vgg={tmp_path / 'vgg.pt'}", "--device", "cpu"]
    assert compute_metric.main([*both, *weights, "--metrics", "psnr", "ssim", "lpips"]) == 0
    rows = json.loads((tmp_path / "compute_metric_r.json").read_text())["images"]
    assert {name: sorted(row) for name, row in rows.items()} == {
        "s6": ["psnr"],
        "s15": ["psnr", "ssim"],
        "s16": ["lpips", "psnr", "ssim"],
    }
    assert "no LPIPS below 16x16" in capsys.readouterr().err


@pytest.mark.parametrize(("height", "width", "factor"), [(30, 31, 3), (29, 33, 4), (40, 37, 8)])
def test_enlargements_follow_the_factor_where_sides_are_no_multiples(height, width, factor):
    A = SuperResolution(factor, context=OperatorContext(height, width))
    y = A(golden_data.normal((1, 3, height, width), 1))
    nearest = y.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    torch.testing.assert_close(A.initial(y), nearest[..., :height, :width])
    rows, columns = (
        torch.as_tensor(bicubic_matrix(n, float(factor))[:side]).to(y)
        for n, side in zip(y.shape[-2:], (height, width))
    )
    torch.testing.assert_close(A.classical(y), rows @ y @ columns.T)


def test_poisson_noise_has_an_equivalent_sigma():
    rng = np.random.RandomState(0)
    clean = torch.linspace(-0.9, 0.9, 64 * 64).reshape(1, 1, 64, 64).expand(2, 3, 64, 64).clone()
    clean[1] = -0.5
    noise = PoissonNoise(rate=0.5)
    y = torch.stack([noise(image, rng) for image in clean])
    true = (y - clean).flatten(1).std(dim=1)
    sigma = noise.equivalent_sigma(y)
    assert sigma.shape == (2, 1, 1, 1)
    torch.testing.assert_close(sigma.flatten(), true, rtol=0.05, atol=0)
    assert sigma[0] > sigma[1]
    known = torch.zeros_like(y)
    known[..., :32, :] = 1
    half = noise.equivalent_sigma(y, known)
    assert half[0] < sigma[0]
    ones = torch.ones_like(y)
    expected = noise.expected_distance(ones, y=y)
    torch.testing.assert_close(expected, noise.distance(y, clean), rtol=0.05, atol=0)
    torch.testing.assert_close(
        noise.expected_norm(ones, y=y), (y - clean).flatten(1).norm(dim=1), rtol=0.05, atol=0
    )
    assert GaussianNoise(0.3).equivalent_sigma(y) == 0.3


def test_an_inverse_takes_a_sigma_for_each_image():
    A = GaussianBlur(9, 1.0, context=OperatorContext(16, 16))
    y = A(golden_data.normal((2, 3, 16, 16), 1))
    both = A.inverse(y, torch.tensor([0.05, 0.4]).view(2, 1, 1, 1))
    for i, sigma in enumerate((0.05, 0.4)):
        torch.testing.assert_close(both[i], A.inverse(y[i : i + 1], sigma)[0])


def test_both_readings_of_a_kernel_are_left_to_look_at(tmp_path, capsys):
    from tests.tiny_run import photograph, run, save, write_configs

    save(tmp_path / "blurred" / "a.png", photograph(40, 40))
    kernel = np.zeros((5, 5))
    kernel[2, 2:] = [3, 2, 1]
    np.save(tmp_path / "k.npy", kernel / 6)
    arguments = [*write_configs(tmp_path, "motion_blur"), "--measurements", tmp_path / "blurred"]
    assert run(*arguments, "--kernel", tmp_path / "k.npy", "--verbose") == 0
    folder = tmp_path / "results" / "motion_blur"
    pictures = [
        (folder / f"kernel_{kind}" / "a.png").read_bytes() for kind in ("as_read", "turned")
    ]
    assert pictures[0] != pictures[1]
    assert "the sharper one tells" in capsys.readouterr().err
    np.testing.assert_allclose(np.load(folder / "kernel.npy"), kernel / 6, atol=1e-6)
