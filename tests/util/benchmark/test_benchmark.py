"""The benchmark: what it counts, what it prints, and that a sweep survives a lack of memory."""

import json
import os
import signal

import pytest
import torch

from guided_diffusion.condition_methods import ProximalSampling
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.unet import UNetConfig
from util.benchmark import __main__ as benchmark
from util.benchmark import case, memory, session

TINY = """
image_size: 32
num_channels: 32
num_res_blocks: 1
channel_mult: "1,1"
attention_resolutions: ""
num_head_channels: 32
model_path: none.pt
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(TINY)
    return str(path)


def run(config, *options):
    arguments = ["--model_config", config, "--device", "cpu", "--repeats", "1", *options]
    return benchmark.main(arguments)


@pytest.mark.parametrize(
    ("width", "blocks", "attention", "gflop"),
    [(128, 1, 16, 776), (256, 2, "32,16,8", 4491)],
)
def test_flops_of_the_published_networks(width, blocks, attention, gflop):
    config = UNetConfig(256, width, blocks, attention_resolutions=attention)
    assert case.count_gflop(config, 256) == pytest.approx(gflop, rel=1e-3)


def test_the_mean_step_has_about_the_mean_number_of_candidates():
    step, mean = case.mean_step(GaussianDiffusion.create())
    method = ProximalSampling()
    assert 10 < mean < 25
    assert abs(method.num_candidates(GaussianDiffusion.create(), step) - mean) <= 1


def test_a_sweep_fills_table_and_json(config, tmp_path, capsys):
    path = tmp_path / "report.json"
    options = ("--tasks", "inpainting", "--batch_sizes", "1,2", "--modes", "fp32")
    assert run(config, *options, "--json", str(path)) == 0
    report = json.loads(path.read_text())
    plain, one, two = report["rows"]
    assert (plain["mode"], one["batch"], two["batch"]) == ("plain fp32", 1, 2)
    for row in (one, two):
        assert row["images_per_hour"] == pytest.approx(3600 * row["batch"] / row["step_ms"])
        parts = [row[f"{part}_ms"] for part in ("forward", "operator", "backward", "candidates")]
        assert min(parts) > 0
        assert row["speedup"] == pytest.approx(row["images_per_hour"] / plain["images_per_hour"])
        expected = report["gflop_per_image"] * row["batch"] / row["step_ms"]
        assert row["tflops"] == pytest.approx(expected)
    assert "inpainting" in capsys.readouterr().out


def test_out_of_memory_marks_the_row_and_the_sweep_goes_on(config, tmp_path, monkeypatch):
    whole = case.Case.step

    def step(timed, t):
        if timed.batch == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return whole(timed, t)

    monkeypatch.setattr(case.Case, "step", step)
    path = tmp_path / "report.json"
    options = ("--tasks", "inpainting", "--batch_sizes", "1,2,3", "--modes", "fp32", "--no_plain")
    assert run(config, *options, "--json", str(path)) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [(r["note"], r["step_ms"] is None) for r in rows] == [
        ("", False),
        ("out of memory", True),
        ("", False),
    ]


def test_another_error_is_not_taken_for_a_lack_of_memory(config, monkeypatch):
    def step(timed, t):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(case.Case, "step", step)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(config, "--tasks", "inpainting", "--modes", "fp32", "--no_plain")


def test_operators_agree_with_their_dense_forms(config, tmp_path):
    path = tmp_path / "operators.json"
    options = ("--image_size", "64", "--tasks", "super_resolution,gaussian_blur")
    assert run(config, "--operators", *options, "--json", str(path)) == 0
    figures = json.loads(path.read_text())
    assert max(f["max_difference"] for f in figures.values()) < 1e-5
    assert figures["gaussian_blur"]["ratio"] > 0


def test_memory_grows_with_the_image(config, tmp_path, capsys):
    path = tmp_path / "memory.json"
    sizes = {}
    for size in ("32", "256"):
        options = ("--image_size", size, "--modes", "fp32", "--json", str(path))
        assert run(config, "--memory", *options) == 0
        (sizes[size],) = json.loads(path.read_text()).values()
    assert 256 * 256 * 32 * 4 * 8 / 2**30 < sizes["256"] - sizes["32"] < 2  # eight activations


def test_a_process_that_the_system_kills_ran_out_of_memory(config, monkeypatch, capsys):
    monkeypatch.setattr(memory, "_step", _killed)
    options = ("--image_size", "32", "--modes", "fp32")
    assert run(config, "--memory", *options) == 0
    assert "out of memory" in capsys.readouterr().out


def _killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "options",
    [
        ("--tasks", "gausian_blur"),
        ("--modes", "bf16+compiled"),
        ("--modes", "fp8"),
        ("--modes", "tf32"),
        ("--image_size", "33"),
        ("--batch_sizes", "0"),
        ("--compare_fast",),
        ("--memory", "--image_size", "33"),
    ],
)
def test_bad_options_are_explained(config, options, capsys):
    assert run(config, *options) == 2
    assert capsys.readouterr().err.startswith("error: --")


def test_a_session_with_a_gpu_is_rehearsed(config, tmp_path, capsys):
    """All of it on the processor, with a tiny network."""
    out = tmp_path / "gpu"
    options = ["--model_configs", config, "--image_size", "32", "--repeats", "1"]
    arguments = ["gpu", *options, "--minutes", "2", "--device", "cpu", "--out", str(out)]
    assert benchmark.main(arguments) == 0
    figures = json.loads(out.with_suffix(".json").read_text())
    assert len(figures["checks"]) >= 7
    assert all(check["passed"] for check in figures["checks"])
    modes = {row["mode"] for row in figures["timings"]}
    assert {"plain fp32", "fp32", "fp32+fast"} <= modes
    assert len(figures["profile"]) == 10
    assert not figures["left_out"]
    page = out.with_suffix(".md").read_text()
    assert "| super_resolution" not in page
    assert "operator phase_retrieval" in page


def test_a_session_ends_in_time_and_says_what_it_left_out(config, tmp_path):
    out = tmp_path / "gpu"
    options = ["--model_configs", config, "--image_size", "32", "--minutes", "0.0001"]
    assert benchmark.main(["gpu", *options, "--device", "cpu", "--out", str(out)]) == 0
    figures = json.loads(out.with_suffix(".json").read_text())
    assert not figures["timings"]
    assert any("the time was over" in line for line in figures["left_out"])
    assert "Left out: model, the published loop's way" in out.with_suffix(".md").read_text()


def test_a_check_that_fails_is_seen(config, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "_OPERATOR_TOLERANCE", -1.0)
    out = tmp_path / "gpu"
    options = ["--model_configs", config, "--image_size", "32", "--minutes", "0.0001"]
    assert benchmark.main(["gpu", *options, "--device", "cpu", "--out", str(out)]) == 1
    assert "**failed**" in out.with_suffix(".md").read_text()
