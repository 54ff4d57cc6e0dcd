"""The commands of the README and the notebook do what they say."""

import argparse
import importlib
import re
import shlex

import pytest

from tests.tiny import ROOT
from util import compute_metric, make_table
from util.config.shipped import find_config
from util.runs.arguments import parse_args
from util.runs.loading import load_config
from util.tables.spec import load_spec

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])


def commands(program: str) -> list[list[str]]:
    """The words after `program` of every command of the README."""
    joined = README.replace("\\\n", " ")
    found = re.findall(rf"{re.escape(program)} ([^`|\n]+)", joined)
    return [shlex.split(text, comments=True) for text in found if "..." not in text]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The project's folder, with what the README's commands name."""
    import numpy as np
    from PIL import Image

    for name in ("FOLDER", "MASKS"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(tmp_path / name / "a.png")
    Image.fromarray(np.eye(5, dtype=np.uint8) * 50).save(tmp_path / "kernel.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_restoring(folders):
    found = commands("dpps") + commands("python3 sample_condition.py")
    assert len(found) >= 5
    for words in found:
        args = parse_args(words, "A program.\n\n")
        config = load_config(args)
        assert config.task.data.params["root"] == "FOLDER"


def test_measuring_and_tables(folders):
    for words in commands("dpps-metrics"):
        assert compute_metric.parse_args(words).label == "LABELS"
    (words,) = commands("dpps-table")
    assert words[0].startswith("configs/")
    load_spec(ROOT / words[0])
    assert make_table.parse_args(words).limit == 2


def test_names_of_configs():
    table = README[README.index("| `--model_config`") : README.index("| `--set KEY=VALUE`")]
    for line, kind in zip(table.strip().splitlines(), ("model", "diffusion", "task")):
        names = re.findall(r"`([a-z_0-9]+)`", line.split("|")[2])
        assert names
        for name in names:
            assert find_config(name, kind).endswith(".yaml"), name


def test_python_example(monkeypatch):
    import models.prior

    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    seen = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(models.prior, "restore", lambda *args: seen.append(args))
    exec(compile(block, "README.md", "exec"), {})
    ((y, _, prior),) = seen
    assert y.shape == (1, 3, 256, 256)
    assert prior.num_steps == 25


class Parsed(Exception):
    """The arguments were understood."""


@pytest.mark.parametrize("page", [*PAGES, ROOT / "models" / "README.md"], ids=lambda p: str(p.name))
def test_options_of_commands_exist(page, monkeypatch, capsys):
    """Every command of every page, up to where it would begin its work."""
    understood = argparse.ArgumentParser.parse_args

    def parse(self, *given):
        understood(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    for line in (line for line in lines if line.startswith("    ")):
        for part in re.split(r" (?:&&|\|) ", line):
            found = re.search(
                r"(?:python3? -m |torchrun .*?-m )([a-z_.]+)|(sample_condition)\.py", part
            )
            if found is None or not (found[2] or found[1].startswith(("util.", "models."))):
                continue
            words = shlex.split(part[found.end() :], comments=True)
            module = importlib.import_module(found[1] or found[2])
            if not hasattr(module, "main"):  # a package
                module = importlib.import_module(f"{found[1]}.__main__")
            with pytest.raises(Parsed):
                module.main(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_notebook():
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    path = ROOT / "examples" / "restore.ipynb"
    assert path.stat().st_size < 200_000
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=resources
    )
    client.execute()
    texts = [o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", [])]
    (told,) = [text for text in texts if text.startswith("PSNR")]
    assert float(told.split()[1]) > 18
