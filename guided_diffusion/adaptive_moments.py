"""Adam's adaptive moments (Kingma & Ba 2015, algorithm 1), for methods that remember gradients."""

from typing import Any

import torch
from torch import Tensor

_DELTA = 1e-8


def adapted(gradient: Tensor, memory: dict[str, Any], beta1: float, beta2: float) -> Tensor:
    """m / (sqrt(v) + 1e-8) for the moments m and v of the gradients [B, ...] so far, both corrected
    for their start at zero: like `gradient`, of size about 1 in each of its values.

    memory: of the problem; the moments and the number of gradients stay in it
    """
    zero = torch.zeros_like(gradient)
    m, v, count = memory.get("moments", (zero, zero, 0))
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient.square()
    count += 1
    memory["moments"] = m, v, count
    return m / (1 - beta1**count) / ((v / (1 - beta2**count)).sqrt() + _DELTA)
