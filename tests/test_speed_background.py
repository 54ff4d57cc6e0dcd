"""Images read ahead and files written behind the sampler."""

import threading

import pytest

from util.runs.background import Background


def test_results_come_in_order_and_one_failure_does_not_end_the_others():
    def load(n):
        if n == 2:
            raise ValueError("unreadable")
        return 10 * n

    with Background() as background:
        seen = []
        for item, result in background.ahead(load, range(5), keep=2):
            if item == 2:
                with pytest.raises(ValueError, match="unreadable"):
                    result()
            else:
                seen.append(result())
    assert seen == [0, 10, 30, 40]


def test_reading_goes_ahead_but_not_further_than_asked():
    started = []
    with Background(threads=1) as background:
        items = background.ahead(started.append, range(10), keep=3)
        item, result = next(items)
        result()
        assert item == 0
        items.close()
    assert len(started) <= 4


def test_writes_happen_beside_the_caller_and_in_order():
    gate, written = threading.Event(), []

    def write(n):
        assert gate.wait(10)
        written.append(n)

    with Background() as background:
        for n in range(5):
            background.submit(write, n)
        assert written == []  # the caller was not held up
        gate.set()
    assert written == [0, 1, 2, 3, 4]


def test_a_failed_write_is_reported():
    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Background() as background:
        background.submit(fail)


def test_what_was_queued_is_written_after_an_interruption():
    written = []

    def work():
        with Background() as background:
            for n in range(5):
                background.submit(written.append, n)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert written == list(range(5))
