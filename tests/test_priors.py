"""Priors of every kind, as the command line uses them."""

import json
import os
import subprocess
import sys
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from guided_diffusion.precision import AcceleratedNetwork, Execution
from guided_diffusion.pretrained import PRIORS
from tests.tiny import ROOT, diffusers_unet
from tests.tiny_run import MODEL, OPERATORS, photograph, run, save, write_configs
from util import plugins

SIZE = 32
CLASSES = {**MODEL, "class_cond": True}


@pytest.fixture
def images(tmp_path):
    for i in range(3):
        save(tmp_path / "images" / f"{i}.png", photograph(SIZE, SIZE, i))
    return tmp_path / "images"


@pytest.fixture
def plugged(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(PRIORS, "_entries", dict(PRIORS._entries))
    monkeypatch.setattr(plugins, "_loaded", {})


def folder_of_diffusers(path, channels=3, **scheduler):
    """What `save_pretrained` writes."""
    diffusers = pytest.importorskip("diffusers")
    network = diffusers_unet(SIZE, channels)
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(**scheduler)).save_pretrained(path)
    return {"prior": "diffusers", "model_path": str(path)}


def restored(folder):
    return {p.stem: np.asarray(Image.open(p)) for p in sorted(folder.glob("*/recon/*.png"))}


@pytest.mark.parametrize("operator", list(OPERATORS))
def test_a_folder_of_diffusers_restores(tmp_path, images, operator):
    model = folder_of_diffusers(tmp_path / "unet", prediction_type="v_prediction")
    arguments = write_configs(tmp_path, operator, model=model)
    assert run(*arguments, "--data_root", images) == 0
    assert set(restored(tmp_path / "results")) == {"0", "1", "2"}
    (manifest,) = (tmp_path / "results").glob("*/manifest.0.jsonl")
    assert '"prior": "diffusers"' in manifest.read_text()
    weights = next((tmp_path / "unet").rglob("*.safetensors"))
    state = weights.read_bytes()
    weights.write_bytes(state[:-4] + b"\0\0\0\0")
    assert run(*arguments, "--data_root", images) == 2  # other weights, other results


@pytest.mark.parametrize("operator", ["inpainting", "gaussian_blur", "motion_blur", "noise"])
def test_tasks_of_grey_images(tmp_path, images, plugged, operator):
    name = operator if operator in OPERATORS else "inpainting"
    arguments = write_configs(
        tmp_path, name, model={"prior": "wiener", "image_size": 32, "grey": True}
    )
    arguments += ["--plugin", ROOT / "examples" / "plugin_prior.py", "--data_root", images]
    if operator == "noise":
        arguments += ["--set", "task.measurement.operator={name: noise}"]
    assert run(*arguments, "--steps", 3, "--limit", 1) == 0
    assert restored(tmp_path / "results")["0"].shape == (SIZE, SIZE)


def test_a_plugin_is_its_arguments(tmp_path, images, plugged):
    """Results of one value are not taken for those of another."""
    (tmp_path / "mine.py").write_text(PLUGIN)
    arguments = [*write_configs(tmp_path, "gaussian_blur"), "--data_root", images, "--limit", 1]
    arguments += ["--plugin", tmp_path / "mine.py", "--steps", 2]
    assert run(*arguments, "--set", "model={prior: mine, share: 0.5}") == 0
    assert run(*arguments, "--set", "model={prior: mine}") == 0  # the default
    assert run(*arguments, "--set", "model={prior: mine, share: 0.2}") == 2


def test_other_networks_run_in_bf16():
    """Under autocast, with gradients; on any processor."""
    network = torch.nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)
    told = type("Told", (torch.nn.Module,), {"forward": lambda self, x, t: network(x)})()
    exact, rounded = (
        AcceleratedNetwork(told, Execution(p), torch.device("cpu")) for p in ("fp32", "bf16")
    )
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(2)
    gradients = []
    for run_network in (exact, rounded):
        leaf = x.clone().requires_grad_()
        output = run_network(leaf, t)
        assert output.dtype == torch.float32
        gradients.append((output, torch.autograd.grad(output.square().sum(), leaf)[0]))
    for mine, other in zip(*gradients, strict=True):
        assert 0 < (mine - other).abs().max() < 0.1


def test_grey_images_in_and_out(tmp_path, images, capsys):
    model = folder_of_diffusers(tmp_path / "unet", channels=1)
    arguments = [*write_configs(tmp_path, "super_resolution", model=model), "--data_root", images]
    assert run(*arguments, "--steps", 3) == 0
    assert "grey images; colours are left out" in capsys.readouterr().err
    pictures = restored(tmp_path / "results")
    assert {p.shape for p in pictures.values()} == {(SIZE, SIZE)}
    grey = [*arguments, "--set", "task.measurement.operator={name: colorization}"]
    assert run(*grey) == 2
    assert "needs a prior of colour images" in capsys.readouterr().err
    save(tmp_path / "images" / "0.png", photograph(40, 56))
    more = ["--fit", "tile", "--save_dir", tmp_path / "tile", "--steps", 2, "--limit", 1]
    assert run(*arguments, *more) == 0
    assert restored(tmp_path / "tile")["0"].shape == (40, 56)
    grey_files = tmp_path / "small"
    save(grey_files / "0.png", photograph(8, 8))
    more = ["--measurements", grey_files, "--save_dir", tmp_path / "measured"]
    assert run(*[a for a in arguments if a not in ("--data_root", images)], *more) == 0


@pytest.mark.parametrize("label", [None, 7])
def test_class_conditional_networks(tmp_path, images, label):
    model = CLASSES if label is None else {**CLASSES, "class_label": label}
    arguments = [*write_configs(tmp_path, "gaussian_blur", model=model), "--data_root", images]
    assert run(*arguments) == 0
    one_by_one = restored(tmp_path / "results")
    assert run(*arguments, "--save_dir", tmp_path / "batch", "--batch_size", 3) == 0
    for name, image in restored(tmp_path / "batch").items():
        assert np.abs(image.astype(int) - one_by_one[name]).max() <= 1
    other = [*arguments, "--save_dir", tmp_path / "other", "--set", "model.class_label=8"]
    assert run(*other) == 0
    assert any(
        (image != one_by_one[name]).any() for name, image in restored(tmp_path / "other").items()
    )
    assert run(*arguments, "--set", "model.class_label=8") == 2  # other results in this folder


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.prior=diffuser", 'unknown prior "diffuser" (did you mean "diffusers"?)'),
        ("model.class_label=3", "class_label belongs to class_cond: True"),
        ("model={prior: diffusers}", "missing key model_path"),
        ("model={prior: diffusers, model_path: nobody/nothing, eta: 1}", 'unknown key "eta"'),
        ("model={prior: diffusers, model_path: a b}", "neither a folder nor a hub id"),
    ],
)
def test_bad_models(tmp_path, images, capsys, override, message):
    arguments = [*write_configs(tmp_path, "gaussian_blur"), "--data_root", images]
    assert run(*arguments, "--set", override) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_class_that_there_is_not(tmp_path, images, capsys):
    arguments = write_configs(tmp_path, "gaussian_blur", model={**CLASSES, "class_label": 1000})
    assert run(*arguments, "--data_root", images) == 2
    assert "expected 0 to 999" in capsys.readouterr().err


PLUGIN = """
from guided_diffusion.pretrained import PRIORS
from models.priors.adapters import DenoiserPrior

@PRIORS.register("mine")
class Mine(DenoiserPrior):
    def __init__(self, fail: str = "", share: float = 0.5) -> None:
        self.fail, self.share = fail, share
        if fail != "size":
            self.image_size = 32
        if fail == "made":
            raise RuntimeError("not made")

    def denoiser(self):
        if self.fail == "loaded":
            raise RuntimeError("not loaded")
        return self._denoise

    def _denoise(self, x, sigma):
        if self.fail == "asked":
            raise RuntimeError("not answered")
        return x[:, :2] if self.fail == "shape" else self.share * x
"""


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        ("made", "RuntimeError: not made"),
        ("loaded", "RuntimeError: not loaded"),
        ("asked", "RuntimeError: not answered"),
        ("size", "image_size is None"),
        ("shape", "the network makes (1, 2, 32, 32); expected (1, 3, 32, 32)"),
    ],
)
def test_a_plugin_that_fails(tmp_path, images, capsys, plugged, fail, message):
    (tmp_path / "mine.py").write_text(PLUGIN)
    arguments = [*write_configs(tmp_path, "gaussian_blur"), "--data_root", images]
    arguments += ["--plugin", tmp_path / "mine.py"]
    assert run(*arguments, "--set", f"model={{prior: mine, fail: {fail}}}") == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "results").exists()
    assert run(*arguments, "--set", "model={prior: mine}", "--steps", 3) == 0


class Hub(BaseHTTPRequestHandler):
    """What a hub answers for one repository, owner/name, whose files lie in `folder`."""

    folder = None
    commit = "0" * 39 + "1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/owner/name"):
            files = [p for p in self.folder.rglob("*") if p.is_file()]
            names = [p.relative_to(self.folder).as_posix() for p in files]
            told = {"id": "owner/name", "sha": self.commit}
            told["siblings"] = [{"rfilename": name} for name in names]
            if "/tree/" in path:
                told = [
                    {"type": "file", "path": n, "oid": n, "size": p.stat().st_size}
                    for n, p in zip(names, files, strict=True)
                ]
            return self._send(json.dumps(told).encode(), body)
        prefix = f"/owner/name/resolve/{self.commit}/"
        file = self.folder / path.removeprefix(prefix)
        if path.startswith(prefix) and file.is_file():
            return self._send(file.read_bytes(), body)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, data, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if body:
            self.wfile.write(data)


FETCH = """
import sys
from models.priors.hub import diffusers_prior
from util.errors import UserError

for name in sys.argv[1:]:
    try:
        print(*[path.name for path in diffusers_prior(name).files], sep=", ")
    except UserError as error:
        print(error)
"""


def test_a_model_on_a_hub(tmp_path):
    """Fetched from a server of this machine, then taken from the cache without one."""
    pytest.importorskip("huggingface_hub")
    folder_of_diffusers(tmp_path / "served")
    (tmp_path / "served" / "unet" / "pickled.bin").write_bytes(b"never fetched")
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Served", (Hub,), {"folder": tmp_path / "served"})
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def fetch(*names, **more):
        command = [sys.executable, "-c", FETCH, *names]
        done = subprocess.run(
            command, cwd=ROOT, env={**environment, **more}, capture_output=True, text=True
        )
        return done.stdout.splitlines()

    files = "config.json, scheduler_config.json, diffusion_pytorch_model.safetensors"
    found, missing = fetch("owner/name", "owner/other")
    assert found == files
    assert "no such folder, and the hub has no such model" in missing
    assert not list((tmp_path / "cache").rglob("pickled.bin"))
    server.shutdown()
    server.server_close()
    found, missing = fetch("owner/name", "owner/other", HF_HUB_OFFLINE="1")
    assert found == files
    assert "cannot be fetched" in missing
