"""Degraded files restored through the command line, without labels."""

import csv

import numpy as np
import pytest
from PIL import Image

from tests.tiny_run import photograph, run, save, write_configs
from util.runs import restoration
from util.runs.interrupt import Interrupted, StopRequest


def read_metrics(folder):
    with (folder / "metrics.csv").open() as file:
        return {
            row.pop("file"): {k: float(v) for k, v in row.items()} for row in csv.DictReader(file)
        }


@pytest.fixture
def files(tmp_path):
    return tmp_path / "mine"


def restored(folder, operator, name="a"):
    return np.asarray(Image.open(folder / "results" / operator / "recon" / f"{name}.png"))


def test_small_images_are_enlarged_by_the_factor(tmp_path, files):
    save(files / "a.png", photograph(10, 15))
    save(files / "b.png", photograph(8, 8))
    arguments = write_configs(tmp_path, "super_resolution")
    assert run(*arguments, "--measurements", files) == 0
    assert restored(tmp_path, "super_resolution").shape == (40, 60, 3)
    assert restored(tmp_path, "super_resolution", "b").shape == (32, 32, 3)
    metrics = read_metrics(tmp_path / "results" / "super_resolution")
    assert set(metrics["a"]) == {"residual", "expected_residual"}
    assert metrics["a"]["expected_residual"] == pytest.approx(0.05 * (3 * 10 * 15) ** 0.5, rel=1e-3)
    assert not (tmp_path / "results" / "super_resolution" / "label").exists()


def test_residual_is_that_of_the_saved_image(tmp_path, files):
    from guided_diffusion.measurements import OperatorContext, SuperResolution
    from util.img_utils import to_tensor

    path = save(files / "a.png", photograph(10, 15))
    run(*write_configs(tmp_path, "super_resolution"), "--measurements", files)
    folder = tmp_path / "results" / "super_resolution"
    recon = to_tensor(Image.open(folder / "recon" / "a.png"))
    A = SuperResolution(4, context=OperatorContext(40, 60))
    expected = (to_tensor(Image.open(path)) - A(recon)).norm().item()
    assert read_metrics(folder)["a"]["residual"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("operator", ["gaussian_blur", "motion_blur"])
@pytest.mark.parametrize("ending", ["npy", "pt", "png"])
def test_kernel_from_a_file(tmp_path, files, caplog, operator, ending):
    import torch

    from util.logger import get_logger

    save(files / "a.png", photograph(40, 32))
    kernel = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32)
    path = tmp_path / f"kernel.{ending}"
    if ending == "npy":
        np.save(path, kernel)
    elif ending == "pt":
        torch.save(torch.from_numpy(kernel), path)
    else:
        save(path, (kernel * 63).astype(np.uint8))
    arguments = write_configs(tmp_path, operator)
    get_logger().addHandler(caplog.handler)
    try:
        assert run(*arguments, "--measurements", files, "--kernel", path, "--border", 1) == 0
    finally:
        get_logger().removeHandler(caplog.handler)
    assert ("kernel sums to 16; it is normalised" in caplog.text) == (ending != "png")
    folder = tmp_path / "results" / operator
    np.testing.assert_allclose(np.load(folder / "kernel.npy"), kernel / 16, atol=1e-6)
    metrics = read_metrics(folder)["a"]
    assert metrics["expected_residual"] == pytest.approx(0.05 * (3 * 38 * 30) ** 0.5, rel=1e-3)


def test_motion_blurred_files_need_their_kernel(tmp_path, files, capsys):
    save(files / "a.png", photograph(40, 32))
    assert run(*write_configs(tmp_path, "motion_blur"), "--measurements", files) == 2
    assert "give --kernel FILE" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(4,), (0, 3), (3, 3, 3)])
def test_kernel_of_a_wrong_shape(tmp_path, files, capsys, shape):
    save(files / "a.png", photograph(40, 32))
    np.save(tmp_path / "kernel.npy", np.ones(shape))
    arguments = write_configs(tmp_path, "gaussian_blur")
    kernel = tmp_path / "kernel.npy"
    assert run(*arguments, "--measurements", files, "--kernel", kernel) == 2
    assert "kernel.npy: a kernel must be" in capsys.readouterr().err


def holes(height, width):
    mask = np.full((height, width), 255, np.uint8)
    mask[4:12, 6:20] = 0
    return mask


@pytest.mark.parametrize("fit", ["crop", "tile"])
def test_a_mask_that_is_to_be_drawn_must_be_described(tmp_path, capsys, fit):
    arguments = write_configs(tmp_path, "inpainting")
    save(tmp_path / "images" / "a.png", photograph(32, 32))
    more = ["--data_root", tmp_path / "images", "--fit", fit]
    assert run(*arguments, *more, "--set", "task.measurement.mask_opt=null") == 2
    assert "needs measurement.mask_opt" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("source", ["folder", "file", "alpha"])
def test_missing_parts_are_filled(tmp_path, files, source):
    pixels, mask = photograph(40, 36), holes(40, 36)
    given = ["--set", "task.measurement.mask_opt=null"]  # nothing is drawn
    if source == "alpha":
        save(files / "sub" / "a.png", np.dstack([pixels, mask]))
    else:
        save(files / "sub" / "a.png", pixels)
        path = tmp_path / "masks" / "sub" / "a.png"
        save(path, mask)
        given = ["--masks", tmp_path / "masks" if source == "folder" else path]
    arguments = write_configs(tmp_path, "inpainting")
    assert run(*arguments, "--measurements", files, *given) == 0
    folder = tmp_path / "results" / "inpainting"
    saved = np.asarray(Image.open(folder / "mask" / "sub" / "a.png"))
    np.testing.assert_array_equal(saved, mask)
    assert (np.asarray(Image.open(folder / "input" / "sub" / "a.png"))[4:12, 6:20] == 0).all()
    known = 3 * (mask > 0).sum()
    metrics = read_metrics(folder)["sub/a"]
    assert metrics["expected_residual"] == pytest.approx(0.05 * known**0.5, rel=1e-3)


def test_images_in_a_batch_keep_their_own_masks(tmp_path, files):
    for i, name in enumerate("ab"):
        mask = np.roll(holes(32, 40), 9 * i, axis=0)
        save(files / f"{name}.png", np.dstack([photograph(32, 40, seed=i), mask]))
    arguments = write_configs(tmp_path, "inpainting")
    runs = []
    for size in (1, 2):
        more = ("--batch_size", size, "--overwrite")
        assert run(*arguments, "--measurements", files, *more) == 0
        runs.append([restored(tmp_path, "inpainting", name).astype(int) for name in "ab"])
    assert np.abs(np.subtract(*runs)).max() <= 1


def test_border_and_mask_together_leave_the_known_pixels_inside(tmp_path, files):
    mask = holes(40, 36)
    save(files / "a.png", np.dstack([photograph(40, 36), mask]))
    arguments = write_configs(tmp_path, "inpainting")
    assert run(*arguments, "--measurements", files, "--border", 5) == 0
    known = 3 * (mask[5:-5, 5:-5] > 0).sum()
    metrics = read_metrics(tmp_path / "results" / "inpainting")["a"]
    assert metrics["expected_residual"] == pytest.approx(0.05 * known**0.5, rel=1e-3)


def test_images_with_unfit_masks_fail_alone(tmp_path, files, capsys):
    for name in ("fits", "small", "none"):
        save(files / f"{name}.png", photograph(32, 40))
    save(tmp_path / "masks" / "fits.png", holes(32, 40))
    save(tmp_path / "masks" / "small.png", holes(32, 32))
    arguments = write_configs(tmp_path, "inpainting")
    assert run(*arguments, "--measurements", files, "--masks", tmp_path / "masks") == 1
    told = capsys.readouterr()
    text = told.out + told.err
    assert "the mask is 32x32, the image 40x32" in text
    assert "no mask for none.png" in text
    assert restored(tmp_path, "inpainting", "fits").shape == (32, 40, 3)


def test_transparent_parts_are_white_where_nothing_is_to_be_filled(tmp_path, files):
    pixels, mask = photograph(32, 40), holes(32, 40)
    save(files / "a.png", np.dstack([pixels, mask]))
    assert run(*write_configs(tmp_path, "gaussian_blur"), "--measurements", files) == 0
    seen = np.asarray(Image.open(tmp_path / "results" / "gaussian_blur" / "input" / "a.png"))
    assert (seen[mask == 0] == 255).all()
    np.testing.assert_array_equal(seen[mask > 0], pixels[mask > 0])


def test_no_alpha_and_no_masks(tmp_path, files, capsys):
    save(files / "a.png", photograph(32, 40))
    assert run(*write_configs(tmp_path, "inpainting"), "--measurements", files) == 1
    told = capsys.readouterr()
    assert "no alpha channel says which pixels are missing; give --masks" in told.out + told.err


def test_masks_for_another_operator_are_refused(tmp_path, files, capsys):
    save(files / "a.png", photograph(32, 40))
    arguments = write_configs(tmp_path, "super_resolution")
    assert run(*arguments, "--measurements", files, "--masks", files) == 2
    assert "only inpainting has masks" in capsys.readouterr().err


def test_a_border_wider_than_the_image_fails_that_image(tmp_path, files):
    save(files / "a.png", photograph(32, 40))
    arguments = write_configs(tmp_path, "gaussian_blur")
    assert run(*arguments, "--measurements", files, "--border", 16) == 1


def test_a_misfit_is_told(tmp_path, files, capsys):
    save(files / "a.png", photograph(32, 32))
    arguments = write_configs(tmp_path, "super_resolution")
    quiet = "--set=task.measurement.noise.sigma=0.0001"
    assert run(*arguments, "--measurements", files, quiet) == 0
    told = capsys.readouterr()
    assert "a.png: residual" in told.out + told.err
    assert "does not explain the measurement" in told.out + told.err


@pytest.mark.parametrize("fit", ["pad", "tile"])
@pytest.mark.parametrize("operator", ["super_resolution", "gaussian_blur", "inpainting"])
def test_images_of_any_size_are_measured_and_restored(tmp_path, files, operator, fit):
    save(files / "a.png", photograph(37, 70))
    save(files / "b.png", photograph(20, 21))
    arguments = write_configs(tmp_path, operator)
    assert run(*arguments, "--data_root", files, "--fit", fit, "--batch_size", 2) == 0
    assert restored(tmp_path, operator).shape == (37, 70, 3)
    assert restored(tmp_path, operator, "b").shape == (20, 21, 3)
    assert "psnr" in read_metrics(tmp_path / "results" / operator)["a"]


def test_an_image_of_the_models_size_is_the_same_by_every_fit(tmp_path, files):
    save(files / "a.png", photograph(32, 32))
    arguments = write_configs(tmp_path, "gaussian_blur")
    images = []
    for fit in ("crop", "pad", "tile"):
        assert run(*arguments, "--data_root", files, "--fit", fit, "--overwrite") == 0
        images.append(restored(tmp_path, "gaussian_blur").astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1
    assert np.abs(images[0] - images[2]).max() <= 1


def test_grey_in_grey_out_on_request(tmp_path, files):
    save(files / "a.png", photograph(8, 8)[..., 0])
    save(files / "b.png", photograph(8, 8))
    arguments = write_configs(tmp_path, "super_resolution")
    run(*arguments, "--measurements", files, "--grey")
    assert restored(tmp_path, "super_resolution").shape == (32, 32)
    assert restored(tmp_path, "super_resolution", "b").shape == (32, 32, 3)
    run(*arguments, "--measurements", files, "--overwrite")
    assert restored(tmp_path, "super_resolution").shape == (32, 32, 3)


def test_measurements_in_the_task_config(tmp_path, files):
    save(files / "a.png", photograph(8, 8))
    data = {"name": "measurements", "root": str(files), "fit": "pad"}
    assert run(*write_configs(tmp_path, "super_resolution", data)) == 0
    assert restored(tmp_path, "super_resolution").shape == (32, 32, 3)


def test_measurements_are_not_cropped(tmp_path, files, capsys):
    save(files / "a.png", photograph(8, 8))
    arguments = write_configs(tmp_path, "super_resolution")
    assert run(*arguments, "--measurements", files, "--fit", "crop") == 2
    assert 'unknown value "crop"' in capsys.readouterr().err


def test_magnitudes_are_no_files_to_restore(tmp_path, files, capsys):
    save(files / "a.png", photograph(8, 8))
    arguments = write_configs(tmp_path, "super_resolution")
    phase = "--set=task.measurement.operator={name: phase_retrieval}"
    assert run(*arguments, "--measurements", files, phase) == 2
    assert "phase_retrieval: works on images of the model's size" in capsys.readouterr().err


@pytest.mark.parametrize("evaluations", [1, 5])
def test_a_signal_ends_a_step_between_windows(tmp_path, files, monkeypatch, evaluations):
    """Also while the gradient is taken: a step of a large photograph has hundreds of windows."""
    save(files / "a.png", photograph(48, 48))
    arguments = write_configs(tmp_path, "gaussian_blur")
    seen = []

    def check(self):
        seen.append(self)
        if len(seen) > evaluations:
            self.signal = 15
            raise Interrupted

    stop_at = restoration.Counting.forward

    def forward(self, x, t):
        monkeypatch.setattr(StopRequest, "check", check)
        return stop_at(self, x, t)

    monkeypatch.setattr(restoration.Counting, "forward", forward)
    status = run(*arguments, "--measurements", files, "--fit", "tile")
    assert status == 143
    assert len(seen) == evaluations + 1
    assert not (tmp_path / "results" / "gaussian_blur" / "recon").exists()
