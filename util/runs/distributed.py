"""The processes of one torchrun job: who they are, how they agree, and how rank 0 waits.

The ranks work alone. They speak to each other once at the start, where rank 0 says what is to be
done (gloo, on GPUs nccl); afterwards each only leaves its counts in torchrun's key-value store,
so no rank can hang another one.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from util.errors import UserError
from util.logger import get_logger
from util.runs.interrupt import StopRequest

T = TypeVar("T")

_START_TIMEOUT = timedelta(minutes=30)  # until all ranks have come up
_SILENCE_SECONDS = 30 * 60  # a rank that says nothing for so long is given up
_BEAT_SECONDS = 5.0
_POLL_SECONDS = 0.2
_COMPANIONS = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # of WORLD_SIZE


@dataclass(frozen=True)
class Counts:
    """Images of a run that are finished and that failed."""

    done: int = 0
    failed: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.done + other.done, self.failed + other.failed)


class World:
    """All processes of the job; a single process is a world of one."""

    def __init__(self, store: Any = None, rank: int = 0, size: int = 1) -> None:
        self._store = store
        self.rank = rank
        self.size = size
        self._beaten = -_BEAT_SECONDS

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share_of(self, names: Sequence[str]) -> Sequence[str]:
        """The names that this rank works on."""
        return names[self.rank :: self.size]

    def agree(self, decide: Callable[[], T], device: torch.device) -> T:
        """What decide() returned on rank 0, on every rank; its UserError is raised on every rank.

        Called once: the process group lives during this call only.
        """
        if self.size == 1:
            return decide()
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=self._store, rank=self.rank, world_size=self.size, timeout=_START_TIMEOUT
        )
        message: list[Any] = [None, None]
        if self.is_first:
            try:
                message[0] = decide()
            except UserError as error:
                message[1] = str(error)
        dist.broadcast_object_list(message, src=0, device=device)
        dist.destroy_process_group()
        if message[1] is not None:
            raise UserError(message[1])
        return message[0]

    def beat(self, counts: Counts, last: bool = False) -> None:
        """Leave this rank's counts for rank 0, now and then; `last`: it has finished."""
        now = time.monotonic()
        if self._store is None or (now - self._beaten < _BEAT_SECONDS and not last):
            return
        self._beaten = now
        try:
            self._store.set(f"counts/{self.rank}", f"{counts.done} {counts.failed} {now}")
            if last:
                self._store.set(f"end/{self.rank}", "1")
        except RuntimeError:  # rank 0's machine is gone; the images of this rank still count
            get_logger().debug("rank %d: the job's key-value store cannot be reached", self.rank)

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Rank 0 hears meanwhile that this rank works, and afterwards that it has finished."""
        ended = threading.Event()

        def keep_beating() -> None:
            while not ended.wait(_BEAT_SECONDS):
                self.beat(Counts())

        thread = threading.Thread(target=keep_beating, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.beat(Counts(), last=True)

    def others(self) -> Counts:
        """Counts of the other ranks, as far as they have said."""
        total = Counts()
        for rank in range(self.size):
            if rank != self.rank:
                done, failed, *_ = self._last_words(rank).split() or ("0", "0")
                total += Counts(int(done), int(failed))
        return total

    def wait_for_others(self, stop: StopRequest) -> bool:
        """On rank 0, until every rank has ended; False if one fell silent or a signal came."""
        heard: dict[int, tuple[str, float]] = {}
        while not stop.signal:
            missing = [r for r in range(1, self.size) if not self._has(f"end/{r}")]
            if not missing:
                return True
            now = time.monotonic()
            for rank in missing:
                words = self._last_words(rank)
                if rank not in heard or heard[rank][0] != words:
                    heard[rank] = (words, now)
            silent = [r for r in missing if now - heard[r][1] > _SILENCE_SECONDS]
            if silent:
                get_logger().error("gave up waiting for rank(s) %s", ", ".join(map(str, silent)))
                return False
            time.sleep(_POLL_SECONDS)
        return False

    def _has(self, key: str) -> bool:
        try:
            return self._store.check([key])
        except RuntimeError:
            return False

    def _last_words(self, rank: int) -> str:
        key = f"counts/{rank}"
        return self._store.get(key).decode() if self._store and self._has(key) else ""


def was_restarted() -> bool:
    """Whether torchrun (--max_restarts) or SLURM (--requeue) has started this job again."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(os.environ.get(name, "0") not in ("", "0") for name in counts)


def _world_size() -> int:
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f'WORLD_SIZE is "{text}", expected a whole number from 1 up')
    return int(text)


def join_world() -> World:
    """The world that torchrun's environment variables describe; of one without them."""
    if _world_size() == 1:
        return World()
    missing = [name for name in _COMPANIONS if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {_world_size()}, but not set are {', '.join(missing)}; start the job "
            "by torchrun, or unset WORLD_SIZE for a single process"
        )
    store, rank, size = next(dist.rendezvous("env://", timeout=_START_TIMEOUT))
    return World(store, rank, size)


def local_device(name: str) -> str:
    """The device name for this process: torchrun's processes take one GPU each.

    Raises UserError where a device is named that all of them would share.
    """
    if _world_size() == 1 or name == "cpu":
        return name
    if name.startswith("cuda:"):
        raise UserError(
            f"--device {name}: under torchrun each process takes a GPU of its own; leave the "
            "device out, and choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    local_rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"process {local_rank} of this machine has no GPU ({count} here): use torchrun "
            f"--nproc_per_node={max(count, 1)}, or --device cpu"
        )
    torch.cuda.set_device(local_rank)
    return f"cuda:{local_rank}"
