"""Work beside the sampler: images read ahead, files written behind it.

    with Background() as background:
        for name, load in background.ahead(dataset.load, names, keep=2 * batch_size):
            image = load()
            ...
            background.submit(results.save_image, "recon", name, tensor.cpu())

Threads do: decoding, PNG compression and disk access release Python's lock.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Background:
    """A small pool of threads; leaving its context waits for all that was submitted.

    waiting: this many tasks may queue up before `submit` waits, which bounds memory
    """

    def __init__(self, threads: int = 2, waiting: int = 64) -> None:
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="read")
        # One writer keeps the order of files, so that a report never precedes its images.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._pending: deque[Future] = deque()
        self._waiting = waiting

    def submit(self, function: Callable[..., Any], *args: Any) -> None:
        """Call `function(*args)` later, after what was submitted before.

        What an earlier call raised is raised here, or on leaving the context. Arguments must
        not change afterwards; tensors should be on the CPU already.
        """
        self._pending.append(self._writer.submit(function, *args))
        while self._pending and (self._pending[0].done() or len(self._pending) > self._waiting):
            self._pending.popleft().result()

    def finish(self) -> None:
        """Wait until everything submitted is done; raises what a call raised."""
        while self._pending:
            self._pending.popleft().result()

    def ahead(
        self, function: Callable[[T], R], items: Iterable[T], keep: int
    ) -> Iterator[tuple[T, Callable[[], R]]]:
        """(item, result) in order, with up to `keep` items computed ahead.

        `result()` returns what `function(item)` did, or raises what it raised, so that one bad
        item does not end the others.
        """
        queue: deque[tuple[T, Future]] = deque()
        for item in items:
            queue.append((item, self._readers.submit(function, item)))
            if len(queue) > keep:
                first, future = queue.popleft()
                yield first, future.result
        while queue:
            first, future = queue.popleft()
            yield first, future.result

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type | None, *rest: Any) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            # After an error or Ctrl-C: what is queued is still written, nothing more is read.
            self._readers.shutdown(wait=False, cancel_futures=True)
            self._writer.shutdown(wait=True)
