"""Methods of other papers on the command line: what they cost, and photographs of any size."""

import json

import pytest

from tests.tiny_run import photograph, run, save, write_configs

METHODS = ["daps", "ddrm", "mmps", "red-diff", "dps-adam"]
STEPS = 3  # of the tiny configs


@pytest.fixture
def images(tmp_path):
    for i in range(2):
        save(tmp_path / "images" / f"{i}.png", photograph(32, 32, seed=i))
    return tmp_path / "images"


def records(results):
    (path,) = results.glob("manifest*")
    return [json.loads(line) for line in path.read_text().splitlines() if "evaluations" in line]


@pytest.mark.parametrize(
    ("method", "evaluations", "gradients"),
    [("daps", 5, 0), ("ddrm", 1, 0), ("mmps", 1, 2), ("red-diff", 1, 0), ("dps-adam", 1, 1)],
)
def test_what_a_method_costs(tmp_path, images, method, evaluations, gradients):
    arguments = [*write_configs(tmp_path, "super_resolution"), "--data_root", images]
    chosen = ["--set", f"task.conditioning={{method: {method}}}", "--batch_size", 2]
    assert run(*arguments, *chosen) == 0
    found = records(tmp_path / "results" / "super_resolution")
    assert len(found) == 2
    for record in found:
        assert record["evaluations"] == STEPS * evaluations
        assert record["gradients"] == STEPS * gradients


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fit", ["pad", "tile"])
def test_photographs_of_any_size(tmp_path, method, fit, capsys):
    save(tmp_path / "images" / "a.png", photograph(37, 47) if fit == "tile" else photograph(30, 31))
    arguments = [*write_configs(tmp_path, "inpainting"), "--data_root", tmp_path / "images"]
    status = run(*arguments, "--set", f"task.conditioning={{method: {method}}}", "--fit", fit)
    if method == "ddrm":
        assert status != 0
        assert "singular values are known" in capsys.readouterr().err
    else:
        assert status == 0
