"""The ways of running a network that are compared: "fp32", "bf16+fast", "bf16+compile" ..."""

import torch

from guided_diffusion.precision import Execution, fastest_precision


def execution_of(mode: str) -> Execution:
    """What "bf16", "bf16+fast" or "bf16+compile" means."""
    precision, _, rest = mode.partition("+")
    return Execution(precision, rest == "compile", rest == "fast")


def default_modes(device: torch.device) -> list[str]:
    fastest = fastest_precision(device)
    if device.type != "cpu":
        return list(dict.fromkeys(["fp32", fastest]))
    return list(dict.fromkeys(["fp32", "fp32+fast", f"{fastest}+fast"]))
