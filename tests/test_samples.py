"""--samples: what is saved of several restorations of one measurement, and that they resume."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import sample_condition
from tests.test_priors import folder_of_diffusers
from tests.tiny import NAMES, records, result_files
from tests.tiny_run import photograph, run, save, write_configs
from util.runs import restoration
from util.runs.spread import Spread

pytestmark = pytest.mark.usefixtures("one_thread")
K = 3


@pytest.fixture(scope="module")
def sampled(tiny, images, one_thread, tmp_path_factory):
    """Three images, each sampled three times, in a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("sampled")
    arguments = tiny.arguments(images, folder, f"--samples={K}", "--limit=3")
    assert sample_condition.main(arguments) == 0
    return folder / "inpainting"


def values(path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=np.float64)


def test_the_spread_is_numpys_of_any_number_of_samples():
    samples = 3 * torch.randn(7, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    spread, grey = Spread(), Spread(grey=True)
    for sample in samples:
        spread.add(sample)
        grey.add(sample)
    clamped = samples.clamp(-1, 1).double().numpy()
    np.testing.assert_allclose(spread.mean, clamped.mean(0), atol=1e-6)
    np.testing.assert_allclose(spread.deviation, clamped.std(0, ddof=1), atol=1e-6)
    flat = samples.mean(1).clamp(-1, 1).double().numpy()
    np.testing.assert_allclose(grey.deviation[2], flat.std(0, ddof=1), atol=1e-6)
    spread.add(torch.full((3, 5, 4), torch.inf))
    assert not spread.finite
    assert grey.finite


def test_the_first_sample_is_the_run_without_the_option(sampled, whole):
    ours, expected = result_files(sampled), result_files(whole / "inpainting")
    for name in NAMES[:3]:
        for file in (f"recon/{name}", f"input/{name}", f"input/{name[:-4]}.npy", f"mask/{name}"):
            assert ours[file] == expected[file]


def test_auto_on_a_processor_is_one_image_at_a_time(tiny, images, tmp_path, monkeypatch):
    """A processor does not tell what memory is left, so no batch and no samples share it."""
    seen, forward = [], restoration.Counting.forward

    def watch(self, x, t, *labels):
        seen.append(len(x))
        return forward(self, x, t, *labels)

    monkeypatch.setattr(restoration.Counting, "forward", watch)
    arguments = tiny.arguments(images, tmp_path, "--batch_size=auto", "--samples=3", "--limit=2")
    assert sample_condition.main(arguments) == 0
    assert len(records(tmp_path)) == 2
    assert set(seen) == {1}


def test_sample_k_is_a_run_with_that_seed_on_the_same_measurement(tiny, images, sampled, tmp_path):
    seeds = ["--seed=2", "--measurement_seed=0", "--limit=1"]
    assert sample_condition.main(tiny.arguments(images, tmp_path, *seeds)) == 0
    other = tmp_path / "inpainting"
    assert (other / "recon/p0.png").read_bytes() == (sampled / "samples/seed_2/p0.png").read_bytes()
    assert (other / "input/p0.npy").read_bytes() == (sampled / "input/p0.npy").read_bytes()


def test_mean_and_deviation_are_those_of_the_samples(sampled):
    files = [sampled / "recon/p1.png", *sorted(sampled.glob("samples/seed_*/p1.png"))]
    assert len(files) == K
    samples = np.stack([values(file) for file in files])
    assert not np.array_equal(samples[0], samples[1])
    assert np.abs(values(sampled / "mean/p1.png") - samples.mean(0)).max() <= 1  # of rounding
    deviation = 127.5 * np.load(sampled / "std/p1.npy").transpose(1, 2, 0)
    np.testing.assert_allclose(deviation, samples.std(0, ddof=1), atol=0.6)
    shown = np.clip(4 * deviation.mean(-1), 0, 255)
    np.testing.assert_allclose(values(sampled / "std/p1.png"), shown, atol=0.51)
    record = next(r for r in records(sampled.parent) if r["file"] == "p1.png")
    assert record["spread"]["std_over_samples"] == pytest.approx(deviation.mean(), rel=1e-5)
    assert record["evaluations"] == K * 4
    assert {f for f in record["files"] if "p1" in f} >= {"mean/p1.png", "samples/seed_2/p1.png"}


def test_figures_of_the_mean_stand_beside_those_of_the_first_sample(sampled, whole):
    with (sampled / "metrics.csv").open() as file:
        ours = {row["file"]: row for row in csv.DictReader(file)}
    with (whole / "inpainting/metrics.csv").open() as file:
        reader = csv.DictReader(file)
        expected = {row["file"]: row for row in reader}
    assert list(ours["p0"]) == [
        *(reader.fieldnames or ()),
        *("mean_psnr", "mean_ssim", "std_over_samples"),
    ]
    assert {c: ours["p0"][c] for c in expected["p0"]} == expected["p0"]
    label, mean = (values(sampled / kind / "p0.png") for kind in ("label", "mean"))
    psnr = 10 * np.log10(255**2 / ((label - mean) ** 2).mean())
    assert float(ours["p0"]["mean_psnr"]) == pytest.approx(psnr, abs=1e-3)


def test_mean_and_deviation_are_in_the_report_and_on_the_sheet(sampled, whole):
    page = (sampled / "report.html").read_text()
    for part in ('src="mean/p0.png"', 'src="std/p0.png"', "PSNR of the mean", "std over samples"):
        assert part in page
        assert part not in (whole / "inpainting/report.html").read_text()
    sheets = [Image.open(f / "contact_sheet.png") for f in (sampled, whole / "inpainting")]
    assert [(sheet.width - 8) // (64 + 8) for sheet in sheets] == [5, 3]  # columns


def test_without_the_option_the_record_and_the_settings_are_what_they_were(whole):
    manifest = whole / "inpainting/manifest.0.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert not any("spread" in line for line in lines)
    assert "samples" not in lines[0]["settings"]
    assert not {"samples", "mean", "std"} & {path.name for path in manifest.parent.iterdir()}


def test_interrupted_between_samples_it_resumes_to_the_same_files(
    tiny, images, sampled, tmp_path, monkeypatch
):
    arguments = tiny.arguments(images, tmp_path, f"--samples={K}", "--limit=3")
    original, calls = restoration.sample, []

    def stop_in_the_second_image(*rest):
        calls.append(rest)
        if len(calls) == K + 3:
            raise KeyboardInterrupt
        return original(*rest)

    with monkeypatch.context() as patch:
        patch.setattr(restoration, "sample", stop_in_the_second_image)
        with pytest.raises(KeyboardInterrupt):
            sample_condition.main(arguments)
    assert [r["file"] for r in records(tmp_path)] == ["p0.png"]
    assert (tmp_path / "inpainting/samples/seed_1/p1.png").exists()  # of the unfinished image
    (tmp_path / "inpainting/samples/seed_2/p0.png").unlink()  # makes p0 anew
    assert sample_condition.main(arguments) == 0
    assert [r["file"] for r in records(tmp_path)] == ["p0.png", "p0.png", "p1.png", "p2.png"]
    assert result_files(tmp_path / "inpainting") == result_files(sampled)


def test_another_number_of_samples_is_another_run(tiny, images, tmp_path, capsys):
    def arguments(k, *more):
        return tiny.arguments(images, tmp_path, f"--samples={k}", "--limit=1", *more)

    assert sample_condition.main(arguments(4)) == 0
    assert sample_condition.main(arguments(2)) == 2
    assert "samples: 4 there, 2 now" in capsys.readouterr().err
    assert sample_condition.main(arguments(2, "--overwrite")) == 0
    files = result_files(tmp_path / "inpainting")
    assert [name for name in files if name.startswith("samples")] == ["samples/seed_1/p0.png"]
    assert sample_condition.main(arguments(1, "--overwrite")) == 0
    kinds = {name.split("/")[0] for name in result_files(tmp_path / "inpainting")}
    assert not kinds & {"samples", "mean", "std"}
    assert sample_condition.main(arguments(0)) == 2
    assert "--samples 0: must be at least 1" in capsys.readouterr().err


def test_what_an_unrecorded_run_left_is_no_sample_of_this_one(tiny, images, tmp_path):
    left = tmp_path / "inpainting/samples/seed_9/p0.png"
    save(left, photograph(8, 8))
    assert sample_condition.main(tiny.arguments(images, tmp_path, "--samples=2", "--limit=1")) == 0
    assert not left.exists()


def test_samples_fill_batches_and_equal_single_ones_up_to_rounding(tiny, images, sampled, tmp_path):
    sizes, original = [], restoration.sample

    def watch(prior, method, problem, *rest):
        sizes.append(len(problem.y))
        return original(prior, method, problem, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restoration, "sample", watch)
        more = [f"--samples={K}", "--limit=3", "--batch_size=4"]
        assert sample_condition.main(tiny.arguments(images, tmp_path, *more)) == 0
        assert sizes == [3, 3, 3]
        more = [f"--samples={K}", "--limit=1", "--batch_size=4", "--overwrite"]
        assert sample_condition.main(tiny.arguments(images, tmp_path, *more)) == 0
        assert sizes[3:] == [1, 2]
    for name in NAMES[:3]:
        for kind in ("recon", "samples/seed_2", "mean"):
            paths = [folder / kind / name for folder in (sampled, tmp_path / "inpainting")]
            assert np.abs(values(paths[0]) - values(paths[1])).max() <= 1


def test_where_memory_runs_out_fewer_samples_are_drawn_at_a_time(
    tiny, images, sampled, tmp_path, monkeypatch
):
    original, sizes = restoration.sample, []

    def small_memory(prior, method, problem, *rest):
        sizes.append(len(problem.y))
        if len(problem.y) > 1:
            raise MemoryError
        return original(prior, method, problem, *rest)

    monkeypatch.setattr(restoration, "sample", small_memory)
    more = [f"--samples={K}", "--limit=1", "--batch_size=4"]
    assert sample_condition.main(tiny.arguments(images, tmp_path, *more)) == 0
    assert sizes == [1, 2, 1, 1, 1]
    for kind in ("recon", "samples/seed_1", "samples/seed_2", "mean", "std"):
        ours, theirs = (f / kind / "p0.png" for f in (tmp_path / "inpainting", sampled))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_sample_that_is_not_finite_fails_the_image(tiny, images, tmp_path, monkeypatch, capsys):
    original, calls = restoration.sample, []

    def diverge(*rest):
        calls.append(rest)
        x = original(*rest)
        return x * torch.inf if len(calls) == 3 else x

    monkeypatch.setattr(restoration, "sample", diverge)
    assert sample_condition.main(tiny.arguments(images, tmp_path, "--samples=4", "--limit=1")) == 1
    assert "the sample is not finite" in capsys.readouterr().err
    files = result_files(tmp_path / "inpainting")
    assert not [name for name in files if name.startswith(("recon", "samples", "mean", "std"))]


def test_measurements_of_any_size_as_grey_pictures_of_16_bits(tmp_path):
    picture = photograph(44, 36)[..., 0]
    save(tmp_path / "grey" / "a.png", picture)
    data = {"name": "measurements", "root": str(tmp_path / "grey")}
    command = write_configs(tmp_path, "gaussian_blur", data)
    assert run(*command, "--samples=2", "--grey", "--output_depth=16") == 0
    root = tmp_path / "results/gaussian_blur"
    samples = [values(root / kind / "a.png") for kind in ("recon", "samples/seed_1")]
    assert samples[0].shape == picture.shape
    assert samples[0].max() > 255
    assert np.abs(values(root / "mean/a.png") - np.mean(samples, 0)).max() <= 1
    deviation = 32767.5 * np.load(root / "std/a.npy")
    np.testing.assert_allclose(deviation[1], np.std(samples, 0, ddof=1), atol=1)
    header = (root / "metrics.csv").read_text().splitlines()[0]
    assert header == "file,residual,expected_residual,std_over_samples"


def test_a_plan_counts_the_samples(tmp_path, capsys):
    save(tmp_path / "images" / "0.png", photograph(32, 32))
    command = [*write_configs(tmp_path, "inpainting"), "--data_root", tmp_path / "images"]
    command += ["--set", "diffusion.timestep_respacing=7"]
    said = []
    for more in ((), ("--samples=5",)):
        assert run(*command, "--plan", *more) == 0
        said.append(capsys.readouterr().out)
    evaluations = [int(re.search(r": (\d+) network", text)[1]) for text in said]
    assert evaluations == [7, 35]


def test_samples_of_a_grey_prior(tmp_path, capsys):
    save(tmp_path / "images" / "0.png", photograph(32, 32))
    model = folder_of_diffusers(tmp_path / "unet", channels=1)
    command = write_configs(tmp_path, "super_resolution", model=model)
    command += ["--data_root", tmp_path / "images", "--steps", 3, "--samples", 3]
    assert run(*command, "--plan") == 0
    assert ": 9 network evaluations" in capsys.readouterr().out
    assert run(*command) == 0
    root = tmp_path / "results/super_resolution"
    kinds = ("recon", "samples/seed_1", "samples/seed_2", "mean")
    *samples, mean = (values(root / kind / "0.png") for kind in kinds)
    assert mean.shape == (32, 32)
    assert np.abs(mean - np.mean(samples, 0)).max() <= 1
    assert "mean_psnr" in (root / "metrics.csv").read_text()
