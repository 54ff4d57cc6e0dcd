"""Whole runs of the command line: interrupted, resumed, divided, and on damaged input."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample_condition
from tests.tiny import NAMES, ROOT, records, result_files
from util.runs.interrupt import StopRequest
from util.runs.results import Results

pytestmark = pytest.mark.usefixtures("one_thread")


def _child(arguments: list[str], environment: dict[str, str], log: str) -> None:
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have ignored it
    torch.set_num_threads(1)
    sys.exit(sample_condition.main(arguments))


def start(arguments: list[str], log: Path, **environment: str) -> multiprocessing.Process:
    """The program in a process of its own; forked from a server, so that torch is imported
    once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["util.runs.loading"])
    process = context.Process(target=_child, args=(arguments, environment, str(log)))
    process.start()
    return process


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.01)


def test_killed_runs_resume_to_the_same_files(tiny, images, whole, tmp_path):
    folder, rng = tmp_path / "results", random.Random(0)
    arguments = tiny.arguments(images, folder)
    for kill in range(5):
        process = start(arguments, tmp_path / "log")
        goal = min(len(records(folder)) + 1, len(NAMES) - 1) if kill else 0
        manifest = folder / "inpainting/manifest.0.jsonl"
        wait_until(lambda: manifest.exists() and len(records(folder)) >= goal)  # noqa: B023
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.join()
    assert 0 < len(records(folder)) <= len(NAMES)
    assert sample_condition.main(arguments) == 0
    assert sorted({r["file"] for r in records(folder)}) == NAMES
    # What a kill can leave behind is a temporary file, hidden by its name.
    ours = {
        name: data
        for name, data in result_files(folder / "inpainting").items()
        if not (name.endswith(".part") and Path(name).name.startswith("."))
    }
    assert ours == result_files(whole / "inpainting")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_finish_and_report(tiny, images, tmp_path, number, status):
    arguments = tiny.arguments(images, tmp_path, "--set", "diffusion.timestep_respacing=30")
    process = start(arguments, tmp_path / "log")
    wait_until(lambda: len(records(tmp_path)) >= 1)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == status
    done = records(tmp_path)
    assert 1 <= len(done) < len(NAMES)
    root = tmp_path / "inpainting"
    assert len((root / "metrics.csv").read_text().splitlines()) == len(done) + 2
    assert (root / "report.html").exists()
    assert not list(root.rglob("*.part"))
    assert "stopped by signal" in (tmp_path / "log").read_text()


def test_a_run_that_nohup_began_outlives_its_terminal(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_of_other_settings_stays_out_of_a_folder_in_use(tiny, images, tmp_path, capsys):
    """Also before anything is recorded."""
    arguments = tiny.arguments(images, tmp_path, "--set", "diffusion.timestep_respacing=30")
    process = start(arguments, tmp_path / "log")
    config = tmp_path / "inpainting" / "config.yaml"
    wait_until(config.exists)
    before = config.read_bytes()
    for more in (["--seed", "1"], ["--seed", "1", "--overwrite"], ["--overwrite"]):
        assert sample_condition.main([*arguments, *more]) == 2
        assert "at work in this folder" in capsys.readouterr().err
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert config.read_bytes() == before
    for _ in range(2):  # nobody is left in it
        assert (
            sample_condition.main([*arguments, "--limit", "1", "--seed", "1", "--overwrite"]) == 0
        )


def test_torchrun_equals_one_process(tiny, images, whole, tmp_path):
    process = tiny.start(tiny.arguments(images, tmp_path), processes=2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert result_files(tmp_path / "inpainting") == result_files(whole / "inpainting")
    assert {p.name for p in (tmp_path / "inpainting").glob("manifest.*")} == {
        "manifest.0.jsonl",
        "manifest.1.jsonl",
    }
    assert output.count("6 finished, 0 failed") == 1  # rank 0 alone reports


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def test_two_machines_of_which_one_comes_late_equal_one(tiny, images, whole, tmp_path):
    """Two groups of torchrun, each as on a machine of its own, with one results folder."""
    common = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
    common += [f"--master_port={free_port()}"]
    groups = []
    for node in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", *common, f"--node_rank={node}"]
        command += [str(ROOT / "sample_condition.py"), *tiny.arguments(images, tmp_path / "out")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        folder = tmp_path / f"machine{node}"
        folder.mkdir()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
        groups.append(subprocess.Popen(command, cwd=folder, env=environment, **pipes))
        time.sleep(3 if node == 0 else 0)
    outputs = [group.communicate(timeout=120)[0] for group in groups]
    assert [group.returncode for group in groups] == [0, 0], outputs
    results = tmp_path / "out" / "inpainting"
    assert result_files(results) == result_files(whole / "inpainting")
    assert len(list(results.glob("manifest.*"))) == 2
    assert "6 finished, 0 failed" in outputs[0]
    assert "6 finished" not in outputs[1]


@pytest.mark.parametrize("script", ["seeds.sh", "nodes.sh"])
def test_slurm_scripts_run_by_hand(tiny, images, tmp_path, script):
    path = ROOT / "examples" / "slurm" / script
    subprocess.run(["bash", "-n", str(path)], check=True)
    arguments = tiny.arguments(images, tmp_path / "out", "--limit", "2")
    if script == "seeds.sh":
        arguments = [a for a in arguments if not a.startswith("--save_dir")]
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": binaries, "PORT": free_port()}
    environment |= {"SLURM_ARRAY_TASK_ID": "3", "RESULTS": str(tmp_path / "out")}
    subprocess.run(["bash", str(path), *arguments], cwd=ROOT, env=environment, check=True)
    folder = tmp_path / "out" / ("seed_3" if script == "seeds.sh" else ".")
    assert len(list((folder / "inpainting" / "recon").glob("*.png"))) == 2


def ranks(arguments: list[str], log: Path) -> list[multiprocessing.Process]:
    """Two processes with the environment that torchrun gives."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    return [start(arguments, log, RANK=r, LOCAL_RANK=r, **common) for r in "01"]


def test_job_whose_rank_died_is_completed(tiny, images, whole, tmp_path):
    arguments = tiny.arguments(images, tmp_path)
    first, second = ranks(arguments, tmp_path / "log")
    theirs = tmp_path / "inpainting/manifest.1.jsonl"
    wait_until(theirs.exists)
    second.kill()
    second.join()
    wait_until(lambda: sum(r["file"] in NAMES[::2] for r in records(tmp_path)) == 3)
    os.kill(first.pid, signal.SIGTERM)  # as torchrun does when a process has died
    first.join(30)
    assert first.exitcode == 143
    before = len(records(tmp_path))
    assert before < len(NAMES)
    for _ in range(2):  # the second time nothing is left to do
        for process in ranks(arguments, tmp_path / "log"):
            process.join(60)
            assert process.exitcode == 0
    assert sorted(r["file"] for r in records(tmp_path)) == NAMES  # none was done twice
    ours, expected = result_files(tmp_path / "inpainting"), result_files(whole / "inpainting")
    assert {n: ours.get(n) for n in expected} == expected


def test_finished_images_are_skipped_and_missing_files_made_again(tiny, images, whole, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(whole, folder)
    expected = result_files(folder / "inpainting")
    untouched = (folder / "inpainting/recon/p0.png").stat().st_mtime_ns
    (folder / "inpainting/recon/p1.png").unlink()
    assert sample_condition.main(tiny.arguments(images, folder)) == 0
    assert len(records(folder)) == len(NAMES) + 1
    assert (folder / "inpainting/recon/p0.png").stat().st_mtime_ns == untouched
    assert result_files(folder / "inpainting") == expected


def test_changed_source_is_restored_again(tiny, images, tmp_path):
    source = tmp_path / "images"
    shutil.copytree(images, source)
    arguments = tiny.arguments(source, tmp_path / "results", "--limit=2")
    assert sample_condition.main(arguments) == 0
    os.utime(source / "p0.png", (1, 1))  # another time, the same pixels
    Image.new("RGB", (64, 64), "red").save(source / "p1.png")
    assert sample_condition.main(arguments) == 0
    assert [r["file"] for r in records(tmp_path / "results")] == ["p0.png", "p1.png", "p1.png"]


def test_other_settings_are_refused(tiny, images, whole, tmp_path, capsys):
    folder = tmp_path / "results"
    shutil.copytree(whole, folder)
    expected = result_files(folder)
    other = ["--seed=1", "--set", "task.conditioning.params.scale=0.25"]
    assert sample_condition.main(tiny.arguments(images, folder, *other)) == 2
    message = capsys.readouterr().err
    assert "seed: 0 there, 1 now" in message
    assert "task.conditioning.params.scale: 0.5 there, 0.25 now" in message
    assert "--overwrite" in message
    assert "--save_dir" in message
    assert result_files(folder) == expected
    free = ["--batch_size=3", "--limit=4", "--record=none", "--quiet"]
    assert sample_condition.main(tiny.arguments(images, folder, *free)) == 0
    assert len(records(folder)) == len(NAMES)
    assert sample_condition.main(tiny.arguments(images, folder, *other, "--overwrite")) == 0
    assert len(records(folder)) == len(NAMES)
    assert result_files(folder) != expected


def test_stated_defaults_are_not_other_settings(tiny, images, whole, tmp_path, capsys):
    folder = tmp_path / "results"
    shutil.copytree(whole, folder)
    defaults = ["diffusion.eta=0", "task.conditioning.params.init=aligned"]
    stated = ["--fit=crop", *(f"--set={d}" for d in defaults)]
    assert sample_condition.main(tiny.arguments(images, folder, *stated)) == 0
    assert len(records(folder)) == len(NAMES)  # nothing was done again
    other = tiny.arguments(images, folder, "--fit=resize")
    assert sample_condition.main(other) == 2
    assert "task.data.fit: crop there, resize now" in capsys.readouterr().err


def test_other_weights_are_refused(tiny, images, whole, tmp_path, capsys):
    folder = tmp_path / "results"
    shutil.copytree(whole, folder)
    state = {k: 2 * v for k, v in torch.load(tiny.checkpoint).items()}
    torch.save(state, tmp_path / "other.pt")
    weights = ["--set", f"model.model_path={tmp_path / 'other.pt'}"]
    assert sample_condition.main(tiny.arguments(images, folder, *weights)) == 2
    assert "model.checkpoint: sha256" in capsys.readouterr().err
    shutil.copy(tiny.checkpoint, tmp_path / "other.pt")  # the same weights in another place
    assert sample_condition.main(tiny.arguments(images, folder, *weights)) == 0


def test_torn_line_is_ignored(tiny, images, whole, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(whole, folder)
    manifest = folder / "inpainting/manifest.0.jsonl"
    data = manifest.read_bytes()
    manifest.write_bytes(data[:-40])  # a crash in the middle of the last line
    assert sample_condition.main(tiny.arguments(images, folder)) == 0
    lines = manifest.read_bytes().splitlines()
    assert json.loads(lines[-1])["file"] == NAMES[-1]
    assert lines[:-2] == data.splitlines()[:-1]


def test_batches_agree_up_to_rounding(tiny, images, whole, tmp_path):
    assert sample_condition.main(tiny.arguments(images, tmp_path, "--batch_size=4")) == 0
    for name in NAMES:
        files = [f / "inpainting/recon" / name for f in (whole, tmp_path)]
        one, four = (np.asarray(Image.open(f), dtype=int) for f in files)
        assert abs(one - four).max() <= 1
        files = [f / "inpainting/input" / name.replace("png", "npy") for f in (whole, tmp_path)]
        np.testing.assert_array_equal(np.load(files[0]), np.load(files[1]))


def test_films_and_progress_images(tiny, images, tmp_path):
    arguments = tiny.arguments(images, tmp_path, "--limit=1", "--record", "every=2,gif")
    assert sample_condition.main(arguments) == 0
    folder = Results(tmp_path / "inpainting").progress_path("p0", "x_t", 0).parent
    names = sorted(p.name for p in folder.iterdir())
    frames = [f"{q}_{t:04d}.png" for q in ("x0_hat", "x_t") for t in (0, 2)]
    assert names == ["film.gif", *frames]
    last = (tmp_path / "inpainting/recon/p0.png", folder / "x_t_0000.png")
    np.testing.assert_array_equal(*(np.asarray(Image.open(p)) for p in last))
    with Image.open(folder / "film.gif") as film:
        assert film.size == (128, 64)
        assert film.n_frames >= 2


def test_film_as_mp4(tiny, images, tmp_path, monkeypatch, capsys):
    arguments = tiny.arguments(images, tmp_path, "--limit=1", "--record", "every=2,mp4")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "imageio_ffmpeg", None)
        assert sample_condition.main(arguments) == 2
    assert "pip install imageio-ffmpeg" in capsys.readouterr().err
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    assert sample_condition.main(arguments) == 0
    film = tmp_path / "inpainting/progress/p0/film.mp4"
    assert next(ffmpeg.read_frames(str(film)))["size"] == (128, 64)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--record=5", "every=N"),
        ("--record=every=0", "every=N"),
        ("--record=every=2,avi", "known: gif, mp4"),
        ("--batch_size=many", '"auto"'),
    ],
)
def test_wrong_options(tiny, images, tmp_path, capsys, option, message):
    assert sample_condition.main(tiny.arguments(images, tmp_path / "r", option)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_quiet_says_nothing_and_verbose_tells_steps(tiny, images, tmp_path, capsys):
    arguments = tiny.arguments(images, tmp_path, "--limit=1", "--overwrite")
    assert sample_condition.main([*arguments, "--quiet"]) == 0
    # A network of random weights restores nothing, which is a warning.
    (warning,) = capsys.readouterr().err.splitlines()
    assert "does not explain the measurement" in warning
    assert sample_condition.main([*arguments, "--verbose"]) == 0
    said = capsys.readouterr().err
    assert "step 4/4, distance" in said
    assert "1/1 p0.png: PSNR" in said
    assert "1 finished, 0 failed" in said


def test_wrong_checkpoint_or_method_leaves_nothing_behind(tiny, images, tmp_path, capsys):
    (tmp_path / "cut.pt").write_bytes(tiny.checkpoint.read_bytes()[:5000])
    for setting, message in (
        (f"model.model_path={tmp_path / 'none.pt'}", "no such checkpoint"),
        (f"model.model_path={tmp_path / 'cut.pt'}", "truncated"),
        ("diffusion.sampler=ddim", "eta"),
    ):
        arguments = tiny.arguments(images, tmp_path / "results", "--set", setting)
        assert sample_condition.main(arguments) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "results").exists()
