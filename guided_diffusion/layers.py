"""Layers of the network as torch has them, but faster where it is slow: on processors, and where
weights have no gradient.

Images and features are [B, C, H, W].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guided_diffusion.fused_norm import normalised


class GroupNorm32(nn.GroupNorm):
    """Group normalisation computed in float32 whatever the type of its input.

    native: by the kernel of native.py, on processors
    """

    native = False

    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        silu: bool = False,
    ) -> Tensor:
        """norm(x) (1 + scale) + shift, and SiLU of that where `silu`, for x [B, C, ...] and float32
        scale, shift [B, C]."""
        if not self._fusible(x):
            return self._in_parts(x, scale, shift, silu)
        gain, offset = (a.expand(len(x), -1) for a in (self.weight, self.bias))
        if scale is not None and shift is not None:
            gain, offset = gain * (1 + scale), offset * (1 + scale) + shift
        return normalised(x, gain, offset, self.num_groups, self.eps, silu, self.native)

    def _fusible(self, x: Tensor) -> bool:
        """Whether one operation does all. GPUs want the parts, which torch.compile fuses."""
        if x.device.type != "cpu" or x.dtype == torch.float16 or torch.compiler.is_compiling():
            return False
        return self.native or x.is_contiguous()

    def _in_parts(
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None, silu: bool
    ) -> Tensor:
        y = super().forward(x.to(self.weight.dtype)).to(x.dtype)
        if scale is not None and shift is not None:
            scale, shift = (a.to(x.dtype)[:, :, None, None] for a in (scale, shift))
            y = y * (1 + scale) + shift
        return F.silu(y) if silu else y


class _Doubled(torch.autograd.Function):
    """Nearest-neighbour enlargement by 2. Its transpose is a mean times four, which processors
    compute several times as fast as the backward pass of `interpolate` in channels_last."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return F.avg_pool2d(dy, 2, divisor_override=1)


class Conv2d(nn.Conv2d):
    """A convolution that keeps nothing for the backward pass where its weights have no gradient.
    torch's own keeps its input, which that pass does not read.
    """

    def forward(self, x: Tensor) -> Tensor:
        frozen = not any(p.requires_grad for p in self.parameters()) and x.requires_grad
        # Measured on processors alone, and where torch.compile does not decide what is kept.
        if (
            frozen
            and torch.is_grad_enabled()
            and x.device.type == "cpu"
            and not torch.compiler.is_compiling()
        ):
            return _FrozenConvolution.apply(x, self)
        return super().forward(x)

    def evaluate(self, x: Tensor) -> Tensor:
        if self.kernel_size != (1, 1) or x.device.type != "cpu":
            return super().forward(x)
        y = _mixed(x, self.weight[:, :, 0, 0])
        return y if self.bias is None else y.add_(self.bias[:, None, None])


def _mixed(x: Tensor, matrix: Tensor) -> Tensor:
    """matrix [O, C] on the channels of x [B, C, H, W], in the layout of x: what torch's own
    convolution of 1x1 is slow at on processors."""
    if x.stride(1) == 1 and x.shape[1] > 1:  # channels_last, or a slice of such a tensor
        return F.linear(x.permute(0, 2, 3, 1), matrix).permute(0, 3, 1, 2)
    return (matrix @ x.flatten(2)).unflatten(2, x.shape[2:])


class _FrozenConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, conv: Conv2d) -> Tensor:
        ctx.conv, ctx.shape = conv, x.shape
        return conv.evaluate(x)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, None]:
        conv = ctx.conv
        dy = dy.to(conv.weight.dtype)
        if conv.kernel_size == (1, 1):
            return _mixed(dy, conv.weight[:, :, 0, 0].T), None
        # The transpose of a convolution, which unlike its backward pass needs no input.
        spare = [
            (side + 2 * p - k) % stride
            for side, p, k, stride in zip(
                ctx.shape[2:], conv.padding, conv.kernel_size, conv.stride, strict=True
            )
        ]
        return F.conv_transpose2d(dy, conv.weight, None, conv.stride, conv.padding, spare), None


class Upsample(nn.Module):
    """Nearest-neighbour enlargement by 2, then a 3x3 convolution if `use_conv`."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        x = _Doubled.apply(x)
        return x if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """Reduction by 2: a strided 3x3 convolution if `use_conv`, else average pooling."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        strided = Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else None
        self.op: nn.Module = nn.AvgPool2d(2) if strided is None else strided

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)
