"""Group normalisation with scale, shift and activation, in as few passes over memory as may be.

Most of a processor's time on a step goes into reading and writing features, not into arithmetic.
Kept for the backward pass is the input alone; what comes after is worked out again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from guided_diffusion.native import kernel

_TILE = 32  # kTile of the kernel: channels that it takes together in channels_last
_NATIVE_TYPES = (torch.float32, torch.bfloat16)


def normalised(
    x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float, silu: bool, native: bool
) -> Tensor:
    """Group normalisation of x [B, C, ...], times gain, plus offset, both [B, C] of the type that
    statistics are taken in; SiLU of it where `silu`. Can be differentiated once.

    native: by the kernel of native.py, where there is one for the type and device of x
    """
    usable = native and x.device.type == "cpu" and x.dtype in _NATIVE_TYPES
    if usable and gain.dtype == torch.float32 and kernel() is not None:
        return _NativeNorm.apply(x, gain, offset, groups, eps, silu)
    return _PlainNorm.apply(x, gain, offset, groups, eps, silu)


class _PlainNorm(torch.autograd.Function):
    """By torch's own operations. The images of a batch become the groups of one image, whose
    weights are the gains of all, so that scale and shift cost no pass of their own."""

    @staticmethod
    def forward(ctx: Any, x, gain, offset, groups, eps, silu):
        x = x.contiguous()
        flat, groups = _one_image(x), groups * len(x)
        y, mean, rstd = torch.native_group_norm(
            flat, gain.flatten(), offset.flatten(), *_sizes(flat), groups, eps
        )
        ctx.save_for_backward(x, gain, offset, mean.flatten(), rstd.flatten())
        ctx.silu = silu
        return (F.silu(y, inplace=True) if silu else y).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy):
        x, gain, offset, mean, rstd = ctx.saved_tensors
        flat, du = _one_image(x), _one_image(dy.contiguous())
        weight, groups = gain.flatten(), len(mean)
        if ctx.silu:
            width = len(weight) // groups
            a = weight * rstd.repeat_interleave(width)
            b = offset.flatten() - a * mean.repeat_interleave(width)
            zero, one = torch.zeros_like(a), torch.ones_like(a)
            u = F.batch_norm(flat, zero, one, a, b, eps=0.0)  # a flat + b, in one pass
            du = torch.ops.aten.silu_backward(du, u)
        needed = (True, ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        dx, dgain, doffset = torch.ops.aten.native_group_norm_backward(
            du, flat, mean.view(1, -1), rstd.view(1, -1), weight, *_sizes(flat), groups, needed
        )
        dgain, doffset = (None if d is None else d.view(gain.shape) for d in (dgain, doffset))
        return dx.view(x.shape), dgain, doffset, None, None, None


def _one_image(x: Tensor) -> Tensor:
    return x.view(1, -1, *x.shape[2:])


def _sizes(flat: Tensor) -> tuple[int, int, int]:
    return 1, flat.shape[1], flat[0, 0].numel()


class _NativeNorm(torch.autograd.Function):
    """By the kernel; contiguous or channels_last, as x is."""

    @staticmethod
    def forward(ctx: Any, x, gain, offset, groups, eps, silu):
        x, gain, offset = _dense(x), gain.contiguous(), offset.contiguous()
        y, mean = torch.empty_like(x, dtype=_wanted(x)), gain.new_empty(len(x), groups)
        rstd = torch.empty_like(mean)
        ctx.shape = _shape(x, y, groups, silu)
        _call("norm_forward", *ctx.shape, x, gain, offset, eps, y, mean, rstd)
        ctx.save_for_backward(x, gain, offset, mean, rstd)
        ctx.type = y.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy):
        x, gain, offset, mean, rstd = ctx.saved_tensors
        layout = torch.channels_last if ctx.shape[4] else torch.contiguous_format
        dy = dy.to(ctx.type).contiguous(memory_format=layout)
        dx, dgain, doffset = (torch.empty_like(a) for a in (x, gain, offset))
        outputs = (dx, dgain, doffset)
        _call("norm_backward", *ctx.shape, x, dy, gain, offset, mean, rstd, *outputs)
        return dx, dgain, doffset, None, None, None


def _dense(x: Tensor) -> Tensor:
    """x without gaps, in the layout that it has where the kernel can have it."""
    return x if is_channels_last(x) and x.shape[1] % _TILE == 0 else x.contiguous()


def is_channels_last(x: Tensor) -> bool:
    """Whether x lies in memory as channels_last, and not as contiguous at the same time."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return last and not x.is_contiguous()


def _wanted(x: Tensor) -> torch.dtype:
    """Type of what is computed from x: bf16 under autocast, whose convolutions would copy x."""
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
        return torch.bfloat16
    return x.dtype


def _shape(x: Tensor, y: Tensor, groups: int, silu: bool) -> tuple[int, ...]:
    """The arguments that both functions of the kernel begin with."""
    batch, channels, pixels = *x.shape[:2], x[0, 0].numel()
    types = (a.dtype == torch.bfloat16 for a in (x, y))
    return batch, channels, pixels, groups, is_channels_last(x), *types, silu


def _call(name: str, *arguments: Any) -> None:
    """A function of the kernel, with the addresses of tensors."""
    plain = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    getattr(kernel(), name)(*plain)
