"""The project as an installed package, and its short commands."""

import os
import subprocess
import sys
import zipfile

import pytest

import dpps
from tests.tiny import ROOT, write_images
from tests.tiny_run import run, write_configs
from util.cli import command_parser
from util.config.run_config import load_model_config
from util.config.shipped import find_config, shipped
from util.errors import UserError
from util.tables.spec import load_spec


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that the wheel was unpacked into, as pip does."""
    pytest.importorskip("setuptools")
    pytest.importorskip("wheel")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    source = folder / "source"  # a build leaves its folders in the source
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a clone")
    for name in listed.stdout.splitlines():
        if not name.startswith(("tests/", "docs/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*pip, "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_everything_lies_below_one_name(site):
    assert sorted(p.name for p in site.iterdir() if p.suffix != ".dist-info") == ["dpps"]
    shipped_files = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("configs/**/*.yaml")}
    packed = {p.relative_to(site / "dpps").as_posix() for p in site.glob("dpps/configs/**/*.yaml")}
    assert packed == shipped_files
    modules = {
        p.relative_to(ROOT).as_posix()
        for top in ("util", "models", "guided_diffusion", "data", "motionblur")
        for p in (ROOT / top).rglob("*.py")
    }
    packed = {p.relative_to(site / "dpps").as_posix() for p in site.glob("dpps/**/*.py")}
    assert packed == modules | {"__init__.py", "commands.py", "sample_condition.py"}


def test_the_installed_command_restores_from_any_folder(site, tmp_path):
    write_images(tmp_path / "photos", ["a.png"])
    code = "import sys; from dpps.commands import restore; sys.exit(restore())"
    few = ["--set", "diffusion.timestep_respacing=1", "--set", "task.conditioning.method=vanilla"]
    command = ["--task", "inpainting", "--data_root", "photos", "--fit", "resize", *few]
    done = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-c", code, *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "inpainting" / "recon" / "a.png").exists()
    assert (tmp_path / "results" / "inpainting" / "report.html").exists()


def test_the_package_finds_the_project():
    assert dpps.ROOT == ROOT
    assert str(ROOT) in sys.path


def test_configs_have_short_names(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert find_config("inpainting", "task") == "configs/inpainting_config.yaml"
    assert find_config("demo", "model") == "configs/demo_model_config.yaml"
    assert find_config("demo", "diffusion").endswith("demo_diffusion_config.yaml")
    assert find_config("model_config.yaml", "model") == "configs/model_config.yaml"
    assert find_config("anywhere/x.yaml", "task") == "anywhere/x.yaml"
    assert "inpainting" in shipped("task")
    assert not {"model", "diffusion", "demo_model"} & set(shipped("task"))
    with pytest.raises(UserError, match=r'did you mean "inpainting"'):
        find_config("inpaintin", "task")
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/model_config.yaml", "model") == f"{ROOT}/configs/model_config.yaml"
    (tmp_path / "inpainting").mkdir()  # a results folder, say
    assert find_config("inpainting", "task") == f"{ROOT}/configs/inpainting_config.yaml"
    (tmp_path / "inpainting").rmdir()
    assert find_config("demo", "table") == f"{ROOT}/configs/tables/demo.yaml"
    assert load_spec("demo").model_config == f"{ROOT}/configs/demo_model_config.yaml"
    assert load_model_config("configs/demo_model_config.yaml").model_path.startswith(str(ROOT))
    assert find_config("train_demo_prior", "training").startswith(str(ROOT))
    (tmp_path / "inpainting").write_text("")
    assert find_config("inpainting", "task") == "inpainting"  # the user's own file comes first


def test_left_out_configs_are_those_of_the_prior_that_ships(tmp_path, capsys):
    save = ["--save_dir", tmp_path, "--data_root", tmp_path / "nowhere"]
    assert run("--task", "inpainting", *save) == 2
    assert "no such folder of images" in capsys.readouterr().err
    arguments = write_configs(tmp_path, "inpainting")
    images = write_images(tmp_path / "images", ["a.png"])
    own = [a for a in arguments if not a.startswith("--diffusion_config")]
    more = ["--set", "diffusion.timestep_respacing=1", "--data_root", images]
    assert run(*own, *more) == 0
    text = (tmp_path / "results" / "inpainting" / "config.yaml").read_text()
    assert "num_steps" not in text.split("task:")[0]  # the published diffusion config


def test_examples_name_the_command_that_was_called(monkeypatch):
    text = "Does this.\n\n  python3 sample_condition.py --task x\n  torchrun sample_condition.py"
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/dpps"])
    assert "  dpps --task x\n  torchrun sample" in command_parser(text).format_help()
    monkeypatch.setattr(sys, "argv", ["sample_condition.py"])
    assert "python3 sample_condition.py --task x" in command_parser(text).format_help()
