"""Whole runs of the command line on folders and files that are not as one would wish."""

import csv
import errno
import os
import resource
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample_condition
from data.dataloader import ImageFolder, find_images
from data.masks import read_mask
from tests.tiny import NAMES, SIZE, records, result_files, write_images
from tests.tiny_run import photograph, run, save, write_configs
from util import compute_metric
from util.errors import UserError
from util.runs import recording, restoration, saving

pytestmark = pytest.mark.usefixtures("one_thread")


def test_results_among_the_photographs_are_not_restored(tiny, tmp_path):
    images = write_images(tmp_path, ["a.png", "sub/b.png"])
    command = tiny.arguments(images, images / "results")
    assert sample_condition.main(command) == 0
    before = result_files(images / "results")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert sample_condition.main(command) == 0
    done = {record["file"] for record in records(images / "results")}
    assert done == {"a.png", "sub/b.png", "c.png"}
    assert before.keys() < result_files(images / "results").keys()
    # A folder of results that is named itself holds images like any other.
    recon = images / "results" / "inpainting" / "recon"
    assert len(find_images(recon)) == 3


def test_links_in_a_circle_end(tmp_path):
    images = write_images(tmp_path / "images", ["a.png", "sub/b.png"])
    (images / "sub" / "up").symlink_to(images)
    (tmp_path / "elsewhere").mkdir()
    write_images(tmp_path / "elsewhere", ["c.png"])
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    names = [path.relative_to(images).as_posix() for path in find_images(images)]
    assert names == ["a.png", "linked/c.png", "sub/b.png"]


def test_a_mask_is_found_by_its_whole_name(tmp_path):
    for name, value in (("img.png", 0), ("img.2.png", 255)):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / name)
    (tmp_path / "img.json").write_text("{}")
    assert not read_mask(str(tmp_path), "img.jpg", 4, 4).any()
    assert read_mask(str(tmp_path), "img.2.jpg", 4, 4).all()
    np.save(tmp_path / "img.npy", np.ones((4, 4)))
    with pytest.raises(UserError, match=r"several masks \(img.npy, img.png\) for img.jpg"):
        read_mask(str(tmp_path), "img.jpg", 4, 4)


def test_another_image_and_mask_do_not_stop_a_run_from_going_on(tiny, tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    masks.mkdir()

    def mask(name: str, first: int) -> None:
        pixels = np.zeros((SIZE, SIZE), np.uint8)
        pixels[:, first::2] = 255
        Image.fromarray(pixels).save(masks / name)

    write_images(images, ["a.png", "b.png"])
    mask("a.png", 0), mask("b.png", 0)
    command = tiny.arguments(images, tmp_path / "out", "--masks", str(masks))
    assert sample_condition.main(command) == 0
    write_images(images, ["c.png"])
    mask("c.png", 0), mask("b.png", 1)
    assert sample_condition.main(command) == 0
    done = [record["file"] for record in records(tmp_path / "out")]
    assert done == ["a.png", "b.png", "b.png", "c.png"]


def test_overwriting_leaves_nothing_of_the_old_settings(tiny, tmp_path):
    images, out = write_images(tmp_path / "images", ["a.png", "b.png"]), tmp_path / "out"
    assert sample_condition.main(tiny.arguments(images, out, "--record", "every=2,gif")) == 0
    (out / "inpainting" / "recon" / "mine.png").write_bytes(b"kept")
    more = ("--seed", "1", "--limit", "1", "--record", "none", "--overwrite")
    assert sample_condition.main(tiny.arguments(images, out, *more)) == 0
    found = result_files(out / "inpainting").keys()
    assert not [name for name in found if Path(name).stem == "b"]
    assert not [name for name in found if "progress" in name]
    assert "recon/mine.png" in found


def test_overwriting_some_images_keeps_the_others(tiny, tmp_path):
    images, out = write_images(tmp_path / "images", ["a.png", "b.png"]), tmp_path / "out"
    assert sample_condition.main(tiny.arguments(images, out)) == 0
    before = result_files(out / "inpainting")
    assert sample_condition.main(tiny.arguments(images, out, "--limit", "1", "--overwrite")) == 0
    after = result_files(out / "inpainting")
    assert {n: d for n, d in before.items() if n.endswith(".png")} == {
        n: d for n, d in after.items() if n.endswith(".png")
    }
    assert [record["file"] for record in records(out)] == ["a.png", "b.png", "a.png"]


def test_what_killed_runs_left_half_written_is_swept(tiny, tmp_path):
    images, out = write_images(tmp_path / "images", ["a.png"]), tmp_path / "out"
    left = [out / "inpainting" / "recon" / f".{name}.part" for name in ("old", "new")]
    left[0].parent.mkdir(parents=True)
    for path in left:
        path.write_bytes(b"half")
    os.utime(left[0], (0, 0))
    assert sample_condition.main(tiny.arguments(images, out)) == 0
    assert [path.exists() for path in left] == [False, True]  # the new one may be another's


def test_a_file_that_was_lost_costs_its_row_in_the_report(tiny, tmp_path):
    images, out = write_images(tmp_path / "images", ["a.png", "b.png"]), tmp_path / "out"
    assert sample_condition.main(tiny.arguments(images, out)) == 0
    root = out / "inpainting"
    (root / "input" / "b.png").unlink()
    assert sample_condition.main(tiny.arguments(images, out, "--limit", "1")) == 0
    with (root / "metrics.csv").open() as file:
        assert [row[0] for row in csv.reader(file)] == ["file", "a", "mean"]
    assert sample_condition.main(tiny.arguments(images, out)) == 0
    assert (root / "input" / "b.png").is_file()


def test_a_film_that_cannot_be_made_costs_no_image(tiny, tmp_path, monkeypatch, capsys):
    def broken(file, frames):
        raise RuntimeError("no encoder")

    monkeypatch.setattr(recording, "_write_gif", broken)
    images, out = write_images(tmp_path / "images", ["a.png", "b.png"]), tmp_path / "out"
    assert sample_condition.main(tiny.arguments(images, out, "--record", "every=1,gif")) == 0
    assert [record["error"] for record in records(out)] == [None, None]
    told = capsys.readouterr().err
    assert "a.png: restored, but without a film (RuntimeError: no encoder)" in told


def test_pictures_of_kinds_that_are_not_read_are_counted(tmp_path, capsys):
    images = write_images(tmp_path, ["a.png", "sub/b.jpg"])
    for name in ("x.heic", "sub/y.HEIC", "z.exr", "notes.txt", "._x.heic"):
        (images / name).write_bytes(b"")
    (images / "a.png").rename(images / "a.jfif")
    assert [path.name for path in find_images(images)] == ["a.jfif", "b.jpg"]
    assert "kinds that are not read: 1 .exr, 2 .heic" in capsys.readouterr().err
    with pytest.raises(UserError, match="is a file; give the folder"):
        find_images(images / "a.jfif")


def test_a_job_that_torchrun_starts_again_overwrites_once(tiny, tmp_path, monkeypatch):
    images, out = write_images(tmp_path / "images", ["a.png", "b.png"]), tmp_path / "out"
    command = tiny.arguments(images, out, "--overwrite")
    assert sample_condition.main([*command, "--limit", "1"]) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert sample_condition.main(command) == 0
    assert [record["file"] for record in records(out)] == ["a.png", "b.png"]


def test_an_image_below_the_window_of_ssim_is_restored(tmp_path):
    arguments = write_configs(tmp_path, "inpainting")
    save(tmp_path / "images" / "small.png", photograph(5, 40))
    save(tmp_path / "images" / "usual.png", photograph(32, 32))
    assert run(*arguments, "--data_root", tmp_path / "images", "--fit", "pad") == 0
    found = {r["file"]: r["metrics"] for r in records(tmp_path / "results")}
    assert set(found["small.png"]) == {"psnr"}
    assert set(found["usual.png"]) == {"psnr", "ssim"}
    lines = (tmp_path / "results" / "inpainting" / "metrics.csv").read_text().splitlines()
    assert lines[1].split(",")[0] == "small"
    assert lines[1].split(",")[2] == ""


def test_memory_running_out_while_reading_costs_that_image_alone(
    tiny, tmp_path, monkeypatch, capsys
):
    images = write_images(tmp_path / "images", ["a.png", "b.png", "c.png", "d.png"])
    load, tries = ImageFolder.read, {"b.png": 1, "c.png": 9}

    def scarce(self, name):
        if tries.get(name, 0):
            tries[name] -= 1
            raise MemoryError
        return load(self, name)

    monkeypatch.setattr(ImageFolder, "read", scarce)
    out = tmp_path / "out"
    assert sample_condition.main(tiny.arguments(images, out, "--batch_size", "4")) == 1
    failed = {r["file"]: r["error"] for r in records(out) if r["error"]}
    assert list(failed) == ["c.png"]
    assert failed["c.png"].startswith("out of memory")
    assert len(list((out / "inpainting" / "recon").glob("*.png"))) == 3


def test_a_method_that_cannot_work_at_one_size_does_the_other_images(tmp_path, capsys):
    arguments = write_configs(tmp_path, "gaussian_blur")
    save(tmp_path / "images" / "fits.png", photograph(32, 32))
    save(tmp_path / "images" / "odd.png", photograph(35, 45))
    method = ["--set", "task.conditioning.method=ddnm+", "--fit", "pad"]
    assert run(*arguments, "--data_root", tmp_path / "images", *method) == 1
    found = {r["file"]: r["error"] for r in records(tmp_path / "results", "gaussian_blur")}
    assert found["fits.png"] is None
    assert "images that do not fill the network's input" in found["odd.png"]


def test_trying_batch_sizes_on_an_image_that_a_method_cannot_take(tmp_path, monkeypatch):
    arguments = write_configs(tmp_path, "gaussian_blur")
    for name, size in (("a.png", (35, 45)), ("b.png", (32, 32))):
        save(tmp_path / "images" / name, photograph(*size))

    def try_one(run, device, most):
        run(1)
        return 1

    monkeypatch.setattr(restoration, "fitting_batch", try_one)
    more = ["--set", "task.conditioning.method=ddnm+", "--fit", "pad", "--batch_size", "auto"]
    assert run(*arguments, "--data_root", tmp_path / "images", *more) == 1
    found = {r["file"]: r["error"] for r in records(tmp_path / "results", "gaussian_blur")}
    assert found["b.png"] is None
    assert "images that do not fill the network's input" in found["a.png"]


def test_one_measurement_with_several_seeds(tmp_path):
    arguments = write_configs(tmp_path, "inpainting")
    save(tmp_path / "images" / "a.png", photograph(32, 32))
    files = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        more = ["--seed", seed, "--measurement_seed", "7", "--save_dir", out]
        assert run(*arguments, "--data_root", tmp_path / "images", *more) == 0
        files.append(
            {k: (out / "inpainting" / k / "a.png").read_bytes() for k in ("input", "recon")}
        )
    assert files[0]["input"] == files[1]["input"]
    assert files[0]["recon"] != files[1]["recon"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--measurements", "y"], "--data_root holds clean images, --measurements degraded ones"),
        (["--set", "task.data.name=skimage"], "skimage has no folder"),
        (["--set", "task.data.name=skimage_face"], "skimage_face has no folder"),
        (["--steps", "3", "--set", "diffusion.num_steps=2"], "say the same thing; give one"),
        (["--border", "5"], "--border has no part in this run"),
        (["--task", "super_resolution", "--kernel", "k.png"], "--kernel has no part in this run"),
        (["--set", "task.data.overlap=4"], "windows overlap, and there are none with fit: crop"),
        (["--set", "diffusion.eta=0.5"], "eta belongs to sampler ddim; ddpm has none"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tiny, tmp_path, capsys, more, message):
    images = write_images(tmp_path / "images", ["a.png"])
    assert sample_condition.main(tiny.arguments(images, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err


def test_folders_of_any_name(tiny, tmp_path):
    for name in ("\U0001f4f7 photos", "caf\xe9: a, b", 'x"y\\z', "a\x7fb"):
        images = write_images(tmp_path / name, ["a.png"])
        assert sample_condition.main(tiny.arguments(images, tmp_path / "out" / name)) == 0


def test_a_pipe_among_photographs_does_not_hold_up_a_plan(tiny, tmp_path, capsys):
    images = write_images(tmp_path / "images", ["a.png"])
    os.mkfifo(images / "pipe.png")
    arguments = tiny.arguments(images, tmp_path / "out", "--set", "task.data.fit=pad", "--plan")
    assert sample_condition.main(arguments) == 0
    assert "2 image(s)" in capsys.readouterr().out


def test_bad_files_are_reported_and_the_rest_restored(tiny, images, tmp_path, capsys, monkeypatch):
    source = tmp_path / "bad images"
    good = ["with space.png", "\u00e4\u00f6 \u6f22.png", "a/same.png", "b/same.png", "1#50%.png"]
    write_images(source, good)
    whole = (images / "p0.png").read_bytes()
    (source / "zero.png").write_bytes(b"")
    (source / "cut.png").write_bytes(whole[: len(whole) // 2])
    (source / "text.jpg").write_text("no image")
    (source / "notes.txt").write_text("not looked at")
    os.symlink(tmp_path / "nowhere", source / "gone.png")
    Image.new("L", (2000, 2000)).save(source / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    bad = ["zero.png", "cut.png", "text.jpg", "gone.png", "bomb.png"]
    folder = tmp_path / "results"
    assert sample_condition.main(tiny.arguments(source, folder)) == 1
    said = capsys.readouterr().err
    by_name = {r["file"]: r for r in records(folder)}
    assert sorted(by_name) == sorted(good + bad)
    assert all(by_name[name]["error"] for name in bad)
    assert all(by_name[name]["error"] is None for name in good)
    assert all(f"failed {name}: " in said for name in bad)
    assert "more pixels than are safe" in by_name["bomb.png"]["error"]
    root = folder / "inpainting"
    assert all((root / "recon" / name).exists() for name in good)
    with open(root / "metrics.csv", encoding="utf-8") as file:
        rows = [row["file"] + ".png" for row in csv.DictReader(file)]
    assert rows == [*sorted(good), "mean.png"]
    # A failed image is tried again at the next start, a finished one is not.
    (source / "zero.png").write_bytes(whole)
    for name in bad[1:]:
        (source / name).unlink()
    assert sample_condition.main(tiny.arguments(source, folder)) == 0
    assert [r["file"] for r in records(folder)].count("zero.png") == 2
    assert len(records(folder)) == len(good) + len(bad) + 1


@pytest.mark.parametrize("option", ["--data_root", "--measurements"])
def test_names_that_are_no_valid_text(tmp_path, option):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        save(tmp_path / "images" / name, photograph(32, 32))
    except OSError:
        pytest.skip("this file system takes valid UTF-8 alone")
    arguments = write_configs(tmp_path, "gaussian_blur")
    assert run(*arguments, option, tmp_path / "images") == 0
    root = tmp_path / "results" / "gaussian_blur"
    assert (root / "recon" / name).exists()
    assert b"caf\xe9," in (root / "metrics.csv").read_bytes()
    if option == "--data_root":
        folders = ["--label", str(root / "label"), "--recon", str(root / "recon")]
        assert compute_metric.main(folders) == 0
        assert b"caf\xe9," in (root / "compute_metric.csv").read_bytes()


def test_of_images_with_equal_stems_the_first_is_restored(tiny, tmp_path):
    source = write_images(tmp_path / "images", ["same.png", "same.bmp", "sub/same.png"])
    assert sample_condition.main(tiny.arguments(source, tmp_path / "results")) == 1
    errors = {r["file"]: r["error"] for r in records(tmp_path / "results")}
    assert errors["same.bmp"] is errors["sub/same.png"] is None
    assert "would be saved as same, as same.bmp is" in errors["same.png"]


def test_another_image_of_the_same_stem_does_not_replace_results(tiny, tmp_path, capsys):
    first = write_images(tmp_path / "first", ["a.png", "b.png"])
    second = write_images(tmp_path / "second", ["a.bmp"])
    assert sample_condition.main(tiny.arguments(first, tmp_path / "out")) == 0
    before = result_files(tmp_path / "out")
    assert sample_condition.main(tiny.arguments(second, tmp_path / "out")) == 2
    assert "a.bmp" in (message := capsys.readouterr().err)
    assert "holds results of a.png under the same name" in message
    after = result_files(tmp_path / "out")
    assert {k: v for k, v in after.items() if "recon" in k} == {
        k: v for k, v in before.items() if "recon" in k
    }
    assert sample_condition.main(tiny.arguments(second, tmp_path / "out", "--overwrite")) == 0


@pytest.fixture
def batches(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the measurements that are restored together, as runs go on."""
    shapes, whole = [], restoration.sample

    def watch(prior, method, problem, noise, callback):
        shapes.append(tuple(problem.y.shape))
        return whole(prior, method, problem, noise, callback)

    monkeypatch.setattr(restoration, "sample", watch)
    return shapes


def test_images_of_several_sizes_are_batched_size_by_size(tmp_path, batches):
    arguments = write_configs(tmp_path, "gaussian_blur")
    for i, size in enumerate([(40, 32), (32, 40), (36, 36), (34, 34), (48, 32)] * 2):
        save(tmp_path / "images" / f"{i}.png", photograph(*size))
    more = ["--fit", "pad", "--batch_size", "2"]
    assert run(*arguments, "--data_root", tmp_path / "images", *more) == 0
    assert sum(shape[0] for shape in batches) == 10
    assert [shape[0] for shape in batches].count(2) >= 3
    assert len(records(tmp_path / "results", "gaussian_blur")) == 10


def test_images_that_fail_between_do_not_part_a_batch(tmp_path, batches):
    arguments = write_configs(tmp_path, "gaussian_blur")
    images = tmp_path / "images"
    for i in (0, 9):
        save(images / f"{i}.png", photograph(40, 40))
    for i in range(1, 8):  # nothing is left of these within the border
        save(images / f"{i}.png", photograph(8 + i, 8 + i))
    more = ["--measurements", images, "--batch_size", "2", "--border", "8"]
    assert run(*arguments, *more) == 1
    errors = {r["file"]: r["error"] for r in records(tmp_path / "results", "gaussian_blur")}
    assert [name for name, error in errors.items() if error is None] == ["0.png", "9.png"]
    assert len(errors) == 9
    assert [shape[0] for shape in batches] == [2]


def test_a_kernel_may_be_larger_than_the_model(tmp_path):
    arguments = write_configs(tmp_path, "motion_blur")
    save(tmp_path / "images" / "a.png", photograph(80, 90))
    np.save(tmp_path / "kernel.npy", np.full((71, 71), 1 / 71**2, np.float32))
    more = ["--measurements", tmp_path / "images", "--kernel", tmp_path / "kernel.npy"]
    assert run(*arguments, *more) == 0


def test_settings_of_the_files_stay_with_measurements(tmp_path):
    data = {"name": "measurements", "root": "elsewhere", "border": 5}
    arguments = write_configs(tmp_path, "gaussian_blur", data)
    save(tmp_path / "images" / "a.png", photograph(40, 32))
    assert run(*arguments, "--measurements", tmp_path / "images") == 0
    (record,) = records(tmp_path / "results", "gaussian_blur")
    assert record["expected_residual"] == pytest.approx(0.05 * (3 * 30 * 22) ** 0.5, rel=1e-3)


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch, capsys):
    images = write_images(tmp_path / "images", ["a.png", "sub/b.png"])
    scan = os.scandir

    def locked(path):
        if Path(path).name == "sub":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert [path.name for path in find_images(images)] == ["a.png"]
    assert "sub: not searched (Permission denied)" in capsys.readouterr().err


def test_an_interrupted_overwriting_run_goes_on_without_that_option(
    tiny, tmp_path, monkeypatch, capsys
):
    images, out = write_images(tmp_path / "images", ["a.png", "b.png"]), tmp_path / "out"
    save_image = saving.Saver._save_image

    def stop_then_save(self, *rest):
        signal.raise_signal(signal.SIGINT)
        save_image(self, *rest)

    monkeypatch.setattr(saving.Saver, "_save_image", stop_then_save)
    assert sample_condition.main(tiny.arguments(images, out, "--overwrite")) == 130
    assert "the same command without --overwrite goes on" in capsys.readouterr().err


def test_full_disk_stops_with_a_message_and_damages_nothing(tiny, images, whole, tmp_path, capsys):
    arguments = tiny.arguments(images, tmp_path, "--record=none")
    assert sample_condition.main([*arguments, "--limit=1"]) == 0
    before = result_files(tmp_path / "inpainting")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # less than one measurement
    try:
        assert sample_condition.main(arguments) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = capsys.readouterr().err
    assert os.strerror(errno.EFBIG) in message
    assert "free some space" in message
    after = result_files(tmp_path / "inpainting")
    assert {n: after[n] for n in before} == before
    assert not [n for n in after if n.endswith(".part")]
    assert sample_condition.main(arguments) == 0
    recon = {n: d for n, d in result_files(whole).items() if "recon" in n}
    assert {n: d for n, d in result_files(tmp_path).items() if "recon" in n} == recon


def test_output_folder_that_cannot_be_written(tiny, images, tmp_path, capsys):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(folder, os.W_OK):  # root may write everywhere but into the kernel's folders
        folder = Path("/proc/results")
    assert sample_condition.main(tiny.arguments(images, folder)) == 2
    assert "cannot be written" in capsys.readouterr().err
    (tmp_path / "file").write_text("kept")
    assert sample_condition.main(tiny.arguments(images, tmp_path / "file")) == 2
    assert (tmp_path / "file").read_text() == "kept"


def test_masks_of_single_images_fail_alone_and_one_for_all_at_once(tiny, images, tmp_path, capsys):
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (64, 64), 255).save(masks / "p0.png")
    Image.new("L", (32, 64), 255).save(masks / "p1.png")
    folder = tmp_path / "results"
    arguments = tiny.arguments(images, folder, "--limit=3")
    many = ["--set", f"task.measurement.mask_opt.mask={masks}"]
    assert sample_condition.main([*arguments, *many]) == 1
    errors = {r["file"]: r["error"] for r in records(folder)}
    assert errors["p0.png"] is None
    assert "the mask is 32x64" in errors["p1.png"]
    assert "no mask" in errors["p2.png"]
    one = ["--set", f"task.measurement.mask_opt.mask={masks / 'p1.png'}", "--overwrite"]
    capsys.readouterr()
    assert sample_condition.main([*arguments, *one]) == 2
    assert "the mask is 32x64" in capsys.readouterr().err
    assert len(records(folder)) == 3


def test_memory_running_out_loses_no_image(tiny, images, whole, tmp_path, monkeypatch, capsys):
    sizes, sample = [], restoration.sample

    def small(prior, method, problem, noise, callback):
        sizes.append(len(problem.y))
        if len(problem.y) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample(prior, method, problem, noise, callback)

    monkeypatch.setattr(restoration, "sample", small)
    assert sample_condition.main(tiny.arguments(images, tmp_path, "--batch_size=5")) == 0
    assert sizes == [5, 2, 2, 1, 1]
    assert sorted(r["file"] for r in records(tmp_path)) == NAMES
    assert "out of memory with 5 images" in capsys.readouterr().err
    for name in NAMES:
        one, two = (Image.open(f / "inpainting/recon" / name) for f in (whole, tmp_path))
        assert abs(np.asarray(one, int) - np.asarray(two, int)).max() <= 1
