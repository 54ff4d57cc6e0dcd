"""Muon: momentum whose update of every weight matrix is orthogonalised.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), with the update scaled as in Liu et
al. 2025 (arXiv 2502.16982) so that it takes the learning rates of AdamW. torch.optim.Muon takes
matrices alone; the weights of a UNet are convolutions, which count as [out, in * height * width].
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, Jordan et al. 2024
_RMS = 0.2  # root mean square of an update at learning rate 1, about that of AdamW


@torch.no_grad()
def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """`matrix` [m, n] with its singular values brought near 1 (into about 0.7 to 1.2), float32.

    The Newton-Schulz iteration X <- p(X X^T) X, carried out on the Gram matrix G = X X^T of the
    shorter side: its factors p(G) are multiplied up and X is touched at the beginning and the end
    alone, a third of the work where a matrix is long, as those of convolutions are.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    gram, identity = x @ x.T, torch.eye(len(x), device=x.device)
    product = identity
    for _ in range(steps):
        factor = a * identity + b * gram + c * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor  # all are polynomials of one G, so they commute
    x = product @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; for weights of two or more dimensions."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            momentum = group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["average"] = torch.zeros_like(p)
                average = state["average"].lerp_(p.grad, 1 - momentum)
                update = orthogonalised(p.grad.lerp(average, momentum).flatten(1))
                scale = _RMS * max(update.shape) ** 0.5
                p.add_(update.view_as(p), alpha=-group["lr"] * scale)
        return loss


def split_for_muon(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters that Muon suits, and the others: vectors, and the first and last layers and
    embeddings, whose rows and columns are no hidden features."""
    hidden: list[Tensor] = []
    others: list[Tensor] = []
    for name, p in model.named_parameters():
        outer = name.startswith(("input_blocks.0.", "out.")) or "emb" in name
        (others if p.ndim < 2 or outer else hidden).append(p)
    return hidden, others
