import io
import sys

import pytest
import torch

from util.logger import get_logger, set_verbosity
from util.runs.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream, monkeypatch) -> str:
    """Two images in one batch of three steps, and one that fails."""
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress(images=3, mine=3, steps=3)
    progress.begin_batch(2)
    for _ in range(3):
        progress.step(2, torch.tensor([1.0, 2.0]))
    progress.fail("c.png", "unreadable")
    progress.finish("a.png", "PSNR 20.00 dB")
    progress.finish("b.png", "PSNR 21.00 dB")
    progress.close()
    assert (progress.counts.done, progress.counts.failed) == (2, 1)
    return stream.getvalue()


def test_lines_where_there_is_no_terminal(monkeypatch):
    said = run(io.StringIO(), monkeypatch)
    assert "\r" not in said
    assert "failed c.png: unreadable" in said
    assert "2/3 a.png: PSNR 20.00 dB" in said
    assert "3/3 b.png: PSNR 21.00 dB" in said
    assert "images/h, 0 s left" in said


def test_bars_on_a_terminal(monkeypatch):
    said = run(Terminal(), monkeypatch)
    assert "| 3/3, 1 failed, " in said
    assert "steps of 2" in said
    assert "a.png" not in said  # the bars tell enough


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_shows_failures_only(stream, monkeypatch):
    set_verbosity(quiet=True)
    try:
        assert run(stream(), monkeypatch) == "failed c.png: unreadable\n"
    finally:
        set_verbosity()
    assert get_logger().isEnabledFor(20)


def test_batch_done_again_does_not_count_twice():
    progress = Progress(images=4, mine=4, steps=2)
    progress.begin_batch(4)
    progress.step(4, torch.ones(4))
    progress.begin_batch(2, anew=False)
    progress.step(2, torch.ones(2))
    progress.forget_steps()
    assert progress._image_steps == 0


def test_durations():
    texts = [duration(s) for s in (45, 12 * 60, 3 * 3600 + 300)]
    assert texts == ["45 s", "12 min", "3 h 5 min"]
