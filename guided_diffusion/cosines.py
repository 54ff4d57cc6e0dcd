"""The orthonormal cosine transform (DCT-II) of images, and its inverse; both can be differentiated.

On a processor scipy computes it, two to six times as fast as torch's Fourier transform allows,
which serves other devices (Makhoul 1980).
"""

import math
from typing import Any

import torch
from scipy import fft
from torch import Tensor


def dct2(x: Tensor) -> Tensor:
    """Images [..., H, W] -> coefficients [..., H, W]."""
    if x.device.type == "cpu":
        return _OnProcessor.apply(x, False)
    return _dct(_dct(x).mT).mT


def inverse_dct2(c: Tensor) -> Tensor:
    """The inverse of `dct2`, which is its transpose."""
    if c.device.type == "cpu":
        return _OnProcessor.apply(c, True)
    return _inverse_dct(_inverse_dct(c).mT).mT


class _OnProcessor(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, inverse: bool) -> Tensor:
        transform = fft.idctn if inverse else fft.dctn
        values = x.detach().numpy()
        workers = torch.get_num_threads()
        return torch.from_numpy(transform(values, axes=(-2, -1), norm="ortho", workers=workers))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
        ctx.inverse = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _OnProcessor.apply(gradient, not ctx.inverse), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _OnProcessor.apply(tangent, ctx.inverse)


def _dct(x: Tensor) -> Tensor:
    """Of the last dimension."""
    n = x.shape[-1]
    folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
    return (torch.fft.fft(folded) * _turns(n, x)).real * _norms(n, x)


def _inverse_dct(c: Tensor) -> Tensor:
    n = c.shape[-1]
    c = c / _norms(n, c)
    mirrored = torch.cat([torch.zeros_like(c[..., :1]), c[..., 1:].flip(-1)], dim=-1)
    folded = torch.fft.ifft(torch.complex(c, -mirrored) * _turns(n, c).conj()).real
    half = (n + 1) // 2
    x = torch.empty_like(c)
    x[..., ::2], x[..., 1::2] = folded[..., :half], folded[..., half:].flip(-1)
    return x


def _turns(n: int, like: Tensor) -> Tensor:
    angles = torch.arange(n, device=like.device, dtype=like.dtype) * (-math.pi / (2 * n))
    return torch.polar(torch.ones_like(angles), angles)


def _norms(n: int, like: Tensor) -> Tensor:
    norms = torch.full((n,), math.sqrt(2 / n), device=like.device, dtype=like.dtype)
    norms[0] = math.sqrt(1 / n)
    return norms
