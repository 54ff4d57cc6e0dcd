"""--plan of tables: what is left, counted exactly, and nothing done."""

import re
import shutil

import torch

from tests.util.tables.tiny_table import run
from util import make_table
from util.runs import forecast
from util.runs.forecast import StandIn


def plan(capsys, table, *options):
    """Exit status, and what a plan says: by row, and in all."""
    status = run(table, *options, "--plan")
    lines = capsys.readouterr().out.splitlines()
    return status, dict(line.strip().partition(": ")[::2] for line in lines), lines


def figures(text):
    """Images, evaluations and gradients in a line."""
    found = re.search(r"(\d+) image\(s\): (\d+) network evaluations and (\d+) passes", text)
    return tuple(map(int, found.groups()))


def test_a_plan_counts_and_writes_nothing(table, capsys):
    before = set(table.parent.rglob("*"))
    status, rows, lines = plan(capsys, table, "--seeds", "0", "1")
    assert status == 0
    assert lines[0] == "small: 10 cells, 0 finished, 9 left, 1 without values"
    # Two steps; three photographs, two seeds, two tasks.
    assert figures(rows["DPPS"]) == (12, 24, 24)
    assert figures(rows["DPS"]) == (12, 24, 24)
    assert figures(rows["DDNM+"]) == (6, 12, 0)
    assert figures(rows["measurement"]) == figures(rows["classical"]) == (12, 0, 0)
    assert rows["DDNM+, blur"].startswith("no values: DDNM+ needs an operator")
    assert figures(lines[-1]) == (54, 60, 48)
    assert set(table.parent.rglob("*")) == before


def test_a_plan_counts_what_is_left(table, capsys):
    run(table, "--limit", "2")
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in table.parent.rglob("*")}
    _, rows, lines = plan(capsys, table)
    assert lines[0] == "small: 10 cells, 0 finished, 9 left, 1 without values"
    assert figures(rows["DPPS"]) == (2, 4, 4)
    assert "(18 more are finished)" in lines[-1]
    _, rows, lines = plan(capsys, table, "--limit", "2")
    assert lines[0] == "small: 10 cells, 9 finished, 0 left, 1 without values"
    assert lines[-1].strip() == "nothing to restore"
    assert {path: path.stat().st_mtime_ns for path in table.parent.rglob("*")} == before


def test_what_tables_share_counts_once(table, capsys):
    other = table.parent / "other.yaml"
    shutil.copy(table, other)
    cache = f"--cache={table.parent / 'cache'}"
    assert make_table.main([str(table), str(other), cache, "--device=cpu", "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("small: 10 cells, 0 finished, 9 left")
    assert "other: 10 cells, 9 finished, 0 left, 1 without values" in lines


def test_a_cell_that_would_fail_is_named(table, capsys):
    (table.parent / "net.pt").unlink()
    status, rows, _ = plan(capsys, table)
    assert status == 1
    assert "net.pt" in rows["DPPS, sr"]
    assert figures(rows["classical"]) == (6, 0, 0)


def test_the_time_is_that_of_the_network(monkeypatch, table, capsys):
    """A pass takes two seconds forward and three back by this clock, and all else nothing."""
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: 0.0)

    def time(self, x, t, labels, differentiated):
        return 2.0, 3.0, 6

    monkeypatch.setattr(forecast.StandIn, "_time", time)
    _, rows, _ = plan(capsys, table)
    assert "about 60 s," in rows["DPPS"]  # 12 evaluations of 5 s
    assert "about 12 s," in rows["DDNM+"]  # 6, in one task, of 2 s


def test_a_stand_in_asks_the_network_for_a_new_shape_alone():
    seen = []

    def network(x, t):
        seen.append(tuple(x.shape))
        return torch.cat([x.sin(), x], 1)

    stand_in, t, counts = StandIn(network), torch.zeros(1), []
    for leaf in (torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8, requires_grad=True)):
        for _ in range(3):
            output = stand_in(leaf, t)
            assert output.shape == (1, 6, 8, 8)
            if leaf.requires_grad:
                assert torch.autograd.grad(output.sum(), leaf)[0].shape == leaf.shape
            counts.append(len(seen))
    assert 0 < counts[0] == counts[1] == counts[2] < counts[3] == counts[4] == counts[5]
    assert set(seen) == {(1, 3, 8, 8)}
