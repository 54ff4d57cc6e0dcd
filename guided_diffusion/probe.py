"""Which number format a processor runs a network fastest in, measured once.

That a processor has bf16 instructions does not tell: what torch makes of them depends on its
version and on the machine. The answer is kept in the user's cache folder, for the processor, torch,
network and image size. The processes of one job have to agree without asking each other, so there
what the hardware has decides.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from guided_diffusion.native import cache_folder, kernel, processor
from util.atomic import write
from util.errors import UserError
from util.logger import get_logger

LARGEST_SIDE = 128  # pixels: a few steps then take seconds, also of a large network
_REPEATS = 2
_MARGIN = 1.1  # that fp32 has to win by: a measurement on a busy machine is none
_FORMATS = ("fp32", "bf16")


def fastest_format(run_in: Callable[[str], Any], inputs: Sequence[Tensor], description: str) -> str:
    """ "fp32" or "bf16".

    run_in: format -> the network in it, differentiable once
    inputs: for one image, x_t [1, C, H, W] and what else the network takes
    description: what tells this network from others
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return "bf16"
    what = (processor(), torch.__version__, description, tuple(inputs[0].shape), kernel() is None)
    path = cache_folder() / f"fast_{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text())
        if known.get("fastest") in _FORMATS:
            return known["fastest"]
    seconds = {name: _seconds(run_in(name), *inputs) for name in _FORMATS}
    fastest = "fp32" if _MARGIN * seconds["fp32"] < seconds["bf16"] else "bf16"
    get_logger().info(
        "--fast: a step at %dx%d takes %.2f s in fp32, %.2f s in bf16: %s from now on",
        *(*inputs[0].shape[-2:], seconds["fp32"], seconds["bf16"], fastest),
    )
    with contextlib.suppress(UserError):
        write(path, json.dumps({"fastest": fastest, "seconds": seconds}))
    return fastest


def _seconds(network: Callable[..., Tensor], x: Tensor, *told: Tensor) -> float:
    """Of a forward and a backward pass."""
    times = []
    for _ in range(1 + _REPEATS):
        started = time.perf_counter()
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.grad(network(leaf, *told).sum(), leaf)
        times.append(time.perf_counter() - started)
    return min(times[1:])
