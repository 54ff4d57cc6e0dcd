"""Whole runs of the command line on folders and files that are not as one would wish."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample_condition
from data.dataloader import ImageFolder, find_images
from tests.tiny import SIZE, TinyRun, result_files, write_images
from tests.tiny_run import photograph, run, save, write_configs
from util.errors import UserError
from util.img_utils import read_mask


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyRun:
    return TinyRun(tmp_path_factory.mktemp("tiny"))


def records(folder: Path) -> list[dict]:
    lines = (folder / "manifest.0.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "file" in line]


def test_results_among_the_photographs_are_not_restored(tiny, tmp_path):
    images = write_images(tmp_path, ["a.png", "sub/b.png"])
    command = tiny.arguments(images, images / "results")
    assert sample_condition.main(command) == 0
    before = result_files(images / "results")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert sample_condition.main(command) == 0
    done = {record["file"] for record in records(images / "results" / "inpainting")}
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
    done = [record["file"] for record in records(tmp_path / "out" / "inpainting")]
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


def test_an_image_below_the_window_of_ssim_is_restored(tmp_path):
    arguments = write_configs(tmp_path, "inpainting")
    save(tmp_path / "images" / "small.png", photograph(5, 40))
    save(tmp_path / "images" / "usual.png", photograph(32, 32))
    assert run(*arguments, "--data_root", tmp_path / "images", "--fit", "pad") == 0
    found = {r["file"]: r["metrics"] for r in records(tmp_path / "results" / "inpainting")}
    assert set(found["small.png"]) == {"psnr"}
    assert set(found["usual.png"]) == {"psnr", "ssim"}
    lines = (tmp_path / "results" / "inpainting" / "metrics.csv").read_text().splitlines()
    assert lines[1].split(",")[0] == "small"
    assert lines[1].endswith(",")


def test_memory_running_out_while_reading_costs_that_image_alone(
    tiny, tmp_path, monkeypatch, capsys
):
    images = write_images(tmp_path / "images", ["a.png", "b.png", "c.png", "d.png"])
    load, tries = ImageFolder.load, {"b.png": 1, "c.png": 9}

    def scarce(self, name):
        if tries.get(name, 0):
            tries[name] -= 1
            raise MemoryError
        return load(self, name)

    monkeypatch.setattr(ImageFolder, "load", scarce)
    out = tmp_path / "out"
    assert sample_condition.main(tiny.arguments(images, out, "--batch_size", "4")) == 1
    failed = {r["file"]: r["error"] for r in records(out / "inpainting") if r["error"]}
    assert list(failed) == ["c.png"]
    assert failed["c.png"].startswith("out of memory")
    assert len(list((out / "inpainting" / "recon").glob("*.png"))) == 3


def test_a_method_that_cannot_work_at_one_size_does_the_other_images(tmp_path, capsys):
    arguments = write_configs(tmp_path, "gaussian_blur")
    save(tmp_path / "images" / "fits.png", photograph(32, 32))
    save(tmp_path / "images" / "odd.png", photograph(35, 45))
    method = ["--set", "task.conditioning.method=ddnm+", "--fit", "pad"]
    assert run(*arguments, "--data_root", tmp_path / "images", *method) == 1
    found = {r["file"]: r["error"] for r in records(tmp_path / "results" / "gaussian_blur")}
    assert found["fits.png"] is None
    assert "images that do not fill the network's input" in found["odd.png"]


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
        (["--set", "task.data.overlap=4"], "windows overlap, and there are none with fit: crop"),
        (["--set", "diffusion.eta=0.5"], "eta belongs to sampler ddim; ddpm has none"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tiny, tmp_path, capsys, more, message):
    images = write_images(tmp_path / "images", ["a.png"])
    assert sample_condition.main(tiny.arguments(images, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
