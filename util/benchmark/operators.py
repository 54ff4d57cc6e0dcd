"""The operators alone, on all candidates of a step, against their dense forms."""

from typing import Any

import torch

from util.benchmark.case import Clock, build_operator, medians, plain_loop
from util.errors import UserError
from util.randomness import CANDIDATE_BLOCK


def compare_operators(args, size: int, device: torch.device, count: int = 50) -> dict[str, Any]:
    """Print and return milliseconds for A on `count` candidates, in blocks as the sampler has
    them, and for the dense form on all at once; no gradients."""
    plain = plain_loop()
    if plain is None:
        raise UserError("--operators: the dense forms live in tests/ of the repository")
    clock, figures = Clock(device), {}
    x = torch.randn(count, 3, size, size, device=device)
    for task in args.tasks:
        if task == "inpainting":
            continue  # a product with the mask in both
        operator = build_operator(task, size, device)
        if task == "super_resolution":
            dense: Any = plain.GatherBicubic(size, 4, device)
        else:
            dense = plain.DenseBlur(operator.saved()["kernel"], device)

        def blocks(operator=operator) -> list[torch.Tensor]:
            return [operator(block) for block in x.split(CANDIDATE_BLOCK)]

        with torch.no_grad():
            error = (torch.cat(blocks()) - dense(x)).abs().max().item()
            functions: dict[str, Any] = {"ours": blocks, "dense": lambda dense=dense: dense(x)}
            times = medians(clock, functions, args.repeats)
        ratio = times["dense"] / times["ours"]
        figures[task] = {**times, "ratio": ratio, "max_difference": error}
        print(
            f"{task:18s} {times['ours']:9.1f} ms, dense {times['dense']:9.1f} ms: {ratio:.1f} "
            f"times as fast, largest difference {error:.1e}",
            flush=True,
        )
    return figures
