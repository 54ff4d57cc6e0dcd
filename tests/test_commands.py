"""Every command answers --help and wrong arguments at once: before torch, which takes seconds."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from dpps import commands

ROOT = Path(__file__).parent.parent
RUN = """
import sys
from importlib import import_module
try:
    status = import_module(sys.argv[1]).main(sys.argv[2:])
except SystemExit as stop:
    status = stop.code
print(status, "torch" in sys.modules)
"""
CALLS = {
    "sample_condition": [
        "--task inpaintin",
        "--task inpainting --seed x",
        "--task inpainting --gpu 0 --device cpu",
        "--task inpainting --diffusion_config BROKEN",
    ],
    "util.compute_metric": ["--label there", "--label a --recon b --metrics psnrr"],
    "util.make_table": ["BROKEN", "demoo", "demo --limit x", "demo --metrics psnrr"],
    "util.check_posterior": ["BROKEN", "posteriorr"],
    "models.train_prior": [
        "BROKEN",
        "train_demo_prior --set iterationz=3",
        "train_demo_prior --set iterations=0",
    ],
    "models.download": ["ffh"],
    "models.export": ["demo", "demoo --out x", "demo --out x --card there.md"],
    "models.check_prior": ["--model_config demoo", "--count x"],
    "util.benchmark.__main__": ["--tasks deblurring", "--modes bf17", "gpu --minutes 0"],
    "util.benchmark.compare_tile": ["", "photograph.png --seeds 0"],
}


@pytest.mark.parametrize(
    ("command", "arguments", "status"),
    [(command, "--help", 0) for command in CALLS]
    + [(command, arguments, 2) for command, several in CALLS.items() for arguments in several],
)
def test_help_and_wrong_arguments_need_no_torch(tmp_path, command, arguments, status):
    broken = tmp_path / "broken.yaml"
    broken.write_text("steps: [")
    words = arguments.replace("BROKEN", str(broken)).split()
    call = [sys.executable, "-c", RUN, command, *words]
    done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == f"{status} False", done.stderr


def test_every_installed_command_is_among_them(monkeypatch):
    called = []
    for command in CALLS:
        monkeypatch.setattr(import_module(command), "main", lambda c=command: called.append(c))
    own = [f for name, f in vars(commands).items() if not name.startswith("_")]
    installed = [f for f in own if callable(f) and f.__module__ == commands.__name__]
    for function in installed:
        function()
    assert len(installed) == len(called) == 7
