"""Singular values and vectors of operators that have them in closed form."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Relative to the largest singular value: smaller ones count as zero. Below it the pseudo-inverse
# would multiply measurement noise by more than a thousand.
CUTOFF = 1e-3


@dataclass(frozen=True)
class Spectrum:
    """A = U diag(s) V^T with V square and orthogonal.

    values: s >= 0, zero where A loses the component; broadcasts to [..., 3, H, W]
    coefficients: x [..., 3, H, W] -> V^T x
    image: the way back, c [..., 3, H, W] -> V c
    measured: y [..., 3, h, w] -> U^T y [..., 3, H, W], zero where A has no such component
    measurement: the way back, c [..., 3, H, W] -> U c
    """

    values: Tensor
    coefficients: Callable[[Tensor], Tensor]
    image: Callable[[Tensor], Tensor]
    measured: Callable[[Tensor], Tensor]
    measurement: Callable[[Tensor], Tensor]

    def inverse_values(self) -> Tensor:
        """1/s, and 0 where s is 0: A^+ y is image(measured(y) times these)."""
        known = self.values > 0
        return torch.where(known, 1 / self.values.where(known, 1.0), 0.0)


def diagonal_spectrum(values: Tensor) -> Spectrum:
    """The spectrum of a pointwise multiplication by `values` >= 0."""
    return Spectrum(values, _same, _same, _same, _same)


def _same(x: Tensor) -> Tensor:
    return x


class SeparableFactors:
    """Singular value decompositions of the two matrices of A x = R x C^T."""

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns

    @cached_property
    def _factors(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return _decompose(self.rows), _decompose(self.columns)

    def spectrum(self, cutoff: float) -> Spectrum:
        """Singular values are the products of those of R and C."""
        (u_r, s_r, v_r), (u_c, s_c, v_c) = self._factors
        products = torch.outer(s_r, s_c)
        values = torch.where(products > cutoff * products.max(), products, 0.0)
        pad = (0, len(s_c) - u_c.shape[1], 0, len(s_r) - u_r.shape[1])
        return Spectrum(
            values,
            lambda x: v_r.T @ x @ v_c,
            lambda c: v_r @ c @ v_c.T,
            lambda y: F.pad(u_r.T @ y @ u_c, pad),
            lambda c: u_r @ c[..., : u_r.shape[1], : u_c.shape[1]] @ u_c.T,
        )


def _decompose(matrix: Tensor) -> tuple[Tensor, ...]:
    """U [h, k], s [H] (zeros appended), V [H, H] of matrix [h, H], k = min(h, H)."""
    u, s, v_t = np.linalg.svd(matrix.cpu().double().numpy(), full_matrices=True)
    s_all = np.zeros(len(v_t))
    s_all[: len(s)] = s
    return tuple(torch.as_tensor(a.copy()).to(matrix) for a in (u[:, : len(s)], s_all, v_t.T))
