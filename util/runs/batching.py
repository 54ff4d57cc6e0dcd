"""How many images are restored at a time, when it is left to the program, and out of memory."""

import gc
from collections.abc import Callable

import torch

from util.logger import get_logger

AUTO_LIMIT = 256  # beyond it a GPU gains nothing
_USED_SHARE = 0.9  # of the free memory; the rest is for fragmentation


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on any device."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        any(part in text for part in ("out of memory", "allocate memory", "enough memory"))
    )


def release_memory(device: torch.device) -> None:
    """Give cached memory back after a failure, so that a smaller batch finds it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def largest_batch(peak: Callable[[int], float], free: float, limit: int) -> int:
    """The largest batch up to `limit` whose peak memory is within `free` bytes.

    peak(B): bytes that a batch of B takes; may raise an out-of-memory error. It grows by the
    same amount with every image, so two measurements tell it, and a third one checks it.
    """
    if limit < 2:
        return max(limit, 1)
    try:
        one, two = peak(1), peak(2)
    except Exception as error:
        if is_out_of_memory(error):
            return 1
        raise
    per_image = max(two - one, 1.0)
    size = max(1, min(limit, 1 + int((_USED_SHARE * free - one) / per_image)))
    while size > 2:
        try:
            if peak(size) <= free:
                break
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        size = size * 3 // 4
    return size


def fitting_batch(run: Callable[[int], None], device: torch.device, limit: int) -> int:
    """The largest batch up to `limit` for which run(B) fits into the memory of `device`.

    Only CUDA tells its memory. Elsewhere it is 1: a batch of 4 of the demo prior at 128x128 was
    4 % faster on a CPU than 4 single images, which is not worth the memory.
    """
    if device.type != "cuda":
        return 1

    def peak(size: int) -> float:
        release_memory(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run(size)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before

    release_memory(device)
    free, _ = torch.cuda.mem_get_info(device)
    size = largest_batch(peak, free, min(limit, AUTO_LIMIT))
    release_memory(device)
    get_logger().info("batch size %d fits into %.1f GiB of free memory", size, free / 2**30)
    return size
