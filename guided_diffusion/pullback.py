"""Vector-Jacobian products."""

import torch
from torch import Tensor


def pullback(
    output: Tensor,
    inner: Tensor,
    vector: Tensor,
    *,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> Tensor:
    """J^T vector, like `inner`, for the derivative J of `output` by `inner`; vector is like output.

    autograd.grad takes the vector itself, too, but to compare two shapes it then imports sympy,
    which takes a second of a program's start.
    """
    with torch.enable_grad():
        total = (output * vector).sum()
    found = torch.autograd.grad(total, inner, retain_graph=retain_graph, create_graph=create_graph)
    return found[0]
