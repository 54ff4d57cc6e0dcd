"""Peak memory of one sampling step, by network size, image size and number format."""

import argparse
import multiprocessing
import signal
from multiprocessing.connection import Connection
from typing import Any

import torch

from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.precision import accelerate
from guided_diffusion.sampling import Prior
from models.checkpoint import model_config
from util.benchmark.case import Case, Clock, mean_step, random_network
from util.benchmark.modes import execution_of
from util.errors import UserError
from util.runs.batching import is_out_of_memory

SIZES = (64, 128, 256, 512)


def measure_memory(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Print and return, in GiB, the peak of a super-resolution step with its gradient; None where
    it does not fit. Each is measured in a process of its own, torch and the weights included on a
    processor; on a GPU it is what torch has allocated there."""
    multiple = model_config(args.model_config).size_multiple()
    sizes = [args.image_size] if args.image_size else list(SIZES)
    if any(size % multiple for size in sizes):
        raise UserError(f"--image_size {args.image_size}: must be a multiple of {multiple}")
    figures: dict[str, Any] = {}
    for mode in args.modes:
        for batch in args.batch_sizes:
            for size in sizes:
                gib = _in_a_process(args.model_config, mode, batch, size, device)
                figures[f"{mode} batch {batch} size {size}"] = gib
                peak = "out of memory" if gib is None else f"{gib:.2f} GiB"
                print(f"{mode:16s} batch {batch:3d}  {size:4d}x{size:<4d}  {peak}", flush=True)
    return figures


def _in_a_process(
    config: str, mode: str, batch: int, size: int, device: torch.device
) -> float | None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    case = (mode, batch, size, str(device), torch.get_num_threads())
    process = context.Process(target=_step, args=(sender, config, *case))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        process.join()
        if process.exitcode == -signal.SIGKILL:  # by the system, when memory runs out
            return None
        raise RuntimeError(f"{mode}, {size}x{size}: exit status {process.exitcode}") from error
    finally:
        process.join()


def _step(
    sender: Connection,
    config: str,
    mode: str,
    batch: int,
    size: int,
    device_name: str,
    threads: int,
) -> None:
    """Two steps; sends their peak."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    clock, diffusion = Clock(device), GaussianDiffusion.create()
    try:
        network = accelerate(random_network(model_config(config)), execution_of(mode), device)
        case = Case("super_resolution", Prior(network, diffusion), batch, size, device)
        for _ in range(2):
            case.step(mean_step(diffusion)[0])
        sender.send(clock.peak_gib())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        sender.send(None)
