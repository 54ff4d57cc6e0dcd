"""Which number format a processor runs a network fastest in, measured once.

That a processor has bf16 instructions does not tell: what torch makes of them depends on its
version and on the machine. The answer is kept in the user's cache folder, for the processor, torch,
network and image size. The processes of one job have to agree without asking each other, so there
what the hardware has decides.
"""

import contextlib
import copy
import hashlib
import json
import os
import time

import torch

from guided_diffusion.native import cache_folder, processor
from guided_diffusion.unet import UNetModel
from util.atomic import save_atomically
from util.logger import get_logger

_LARGEST_SIDE = 128  # pixels: a few steps then take seconds, also of a large network
_REPEATS = 2
_MARGIN = 1.1  # that fp32 has to win by: a measurement on a busy machine is none
_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def fastest_format(network: UNetModel, channels_last: bool) -> str:
    """ "fp32" or "bf16", for a network that is ready to run but for that; it stays as it is."""
    multiple = network.config.size_multiple()
    side = max(multiple, min(network.config.image_size, _LARGEST_SIDE) // multiple * multiple)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return "bf16"
    what = (processor(), torch.__version__, network.config, side, channels_last)
    path = cache_folder() / f"fast_{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text())
        if known.get("fastest") in _FORMATS:
            return known["fastest"]
    seconds = {}
    for name, dtype in _FORMATS.items():
        twin = copy.deepcopy(network)
        twin.set_precision(dtype)
        seconds[name] = _seconds(twin, side, channels_last)
    fastest = "fp32" if _MARGIN * seconds["fp32"] < seconds["bf16"] else "bf16"
    get_logger().info(
        "--fast: a step at %dx%d takes %.2f s in fp32, %.2f s in bf16: %s from now on",
        *(side, side, seconds["fp32"], seconds["bf16"], fastest),
    )
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"fastest": fastest, "seconds": seconds})
        save_atomically(path, lambda file: file.write(text.encode()))
    return fastest


def _seconds(network: UNetModel, side: int, channels_last: bool) -> float:
    """Of a forward and a backward pass."""
    x = torch.zeros(1, 3, side, side)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    t = torch.zeros(1, dtype=torch.int64)
    times = []
    for _ in range(1 + _REPEATS):
        started = time.perf_counter()
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.grad(network(leaf, t).sum(), leaf)
        times.append(time.perf_counter() - started)
    return min(times[1:])
