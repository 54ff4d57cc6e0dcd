"""--plan: what a run would cost, and nothing done."""

import re

import pytest

from guided_diffusion.condition_methods import StepResult
from tests.tiny_run import photograph, run, save, write_configs
from util.runs import forecast


@pytest.fixture
def images(tmp_path):
    for i in range(3):
        save(tmp_path / "images" / f"{i}.png", photograph(40, 33, seed=i))
    return tmp_path / "images"


def plan(capsys, *arguments):
    assert run(*arguments, "--plan") == 0
    return capsys.readouterr().out


def test_a_plan_counts_and_writes_nothing(tmp_path, images, capsys):
    command = [*write_configs(tmp_path, "inpainting"), "--data_root", images]
    before = set(tmp_path.rglob("*"))
    said = plan(capsys, *command, "--set", "diffusion.timestep_respacing=7")
    assert re.match(r"3 image\(s\) to restore: 21 network evaluations, about", said)
    assert set(tmp_path.rglob("*")) == before


def test_a_plan_knows_what_is_finished(tmp_path, images, capsys):
    command = [*write_configs(tmp_path, "super_resolution"), "--data_root", images]
    assert run(*command, "--limit", "2") == 0
    said = plan(capsys, *command)
    assert said.startswith("1 image(s) to restore (2 more are finished)")
    assert plan(capsys, *command, "--overwrite").startswith("3 image(s) to restore:")
    assert run(*command) == 0
    assert plan(capsys, *command).startswith("nothing to restore (3 more are finished)")


def test_a_plan_tells_that_the_folder_would_be_refused(tmp_path, images, capsys):
    command = [*write_configs(tmp_path, "inpainting"), "--data_root", images]
    assert run(*command, "--limit", "1") == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    said = plan(capsys, *command, "--seed", "1").splitlines()
    assert said[0].startswith("3 image(s) to restore: 9 network evaluations, about")
    assert said[1].startswith("But the run would be refused: ")
    assert "other settings (seed: 0 there, 1 now" in said[1]
    assert len(plan(capsys, *command, "--seed", "1", "--overwrite").splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_larger_photographs_have_more_windows(tmp_path, capsys):
    for i, side in enumerate((32, 64)):
        save(tmp_path / "images" / f"{i}.png", photograph(side, 32, seed=i))
    more = ["--fit", "tile", "--set", "diffusion.timestep_respacing=4"]
    command = [*write_configs(tmp_path, "super_resolution"), "--data_root", tmp_path / "images"]
    said = plan(capsys, *command, *more)
    assert "2 image(s)" in said
    evaluations = int(re.search(r": (\d+) network", said)[1])
    assert evaluations > 2 * 4  # one window and several


def test_what_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"no picture")
    command = [*write_configs(tmp_path, "inpainting"), "--data_root", tmp_path / "images"]
    assert run(*command, "--plan") == 2
    assert "0.png" in capsys.readouterr().err


def test_the_time_is_that_of_all_steps(monkeypatch, tmp_path, images, capsys):
    """Of 20 steps of a second each, five are timed; all else takes no time by this clock."""
    clock = [0.0]
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: clock[0])

    def waited(result: StepResult) -> StepResult:
        clock[0] += 1.0
        return result

    monkeypatch.setattr(forecast, "_waited", waited)
    command = [*write_configs(tmp_path, "inpainting"), "--data_root", images]
    said = plan(capsys, *command, "--set", "diffusion.timestep_respacing=20")
    assert "about 60 s" in said
