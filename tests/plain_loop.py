"""DPPS as the published program runs it: the oracle for equality and the benchmark's opponent.

One image at a time, every coefficient copied from the host at every step, blurs as dense
depthwise convolutions on every candidate image, attention recomputed in the backward pass
(which there differentiates its weights as well), candidates scored with the autograd graph
recorded, and a wait for the distance at every step. It shares no code with the program but the
network's convolutions, norms and linear layers.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guided_diffusion.unet import AttentionBlock, UNetModel
from util.randomness import NoiseSource

Operator = Callable[[Tensor], Tensor]  # [n, 3, H, W] -> [n, 3, h, w]


class _Recompute(torch.autograd.Function):
    """Forward without a graph; backward computes it again and differentiates inputs and weights."""

    @staticmethod
    def forward(ctx, function, count, *args):
        ctx.function, ctx.inputs, ctx.weights = function, args[:count], args[count:]
        with torch.no_grad():
            return function(*ctx.inputs)

    @staticmethod
    def backward(ctx, gradient):
        inputs = [x.detach().requires_grad_() for x in ctx.inputs]
        with torch.enable_grad():
            output = ctx.function(*[x.view_as(x) for x in inputs])
        gradients = torch.autograd.grad(output, (*inputs, *ctx.weights), gradient)
        return (None, None, *gradients)


class PlainAttention(nn.Module):
    """Attention by explicit products, recomputed in the backward pass."""

    def __init__(self, block: AttentionBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return _Recompute.apply(self._forward, 1, x, *self.block.parameters())

    def _forward(self, x: Tensor) -> Tensor:
        block = self.block
        batch, channels, height, width = x.shape
        flat = x.reshape(batch, channels, -1)
        qkv = block.qkv(block.norm(flat))
        if block.new_order:
            q, k, v = (p.reshape(batch * block.num_heads, -1, p.shape[-1]) for p in qkv.chunk(3, 1))
        else:
            q, k, v = qkv.reshape(batch * block.num_heads, -1, qkv.shape[-1]).chunk(3, dim=1)
        scale = q.shape[1] ** -0.25
        weights = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        weights = torch.softmax(weights.float(), dim=-1).type(weights.dtype)
        attended = torch.einsum("bts,bcs->bct", weights, v).reshape(batch, channels, -1)
        return (flat + block.proj_out(attended)).reshape(batch, channels, height, width)


def plain_network(network: UNetModel) -> UNetModel:
    """A copy whose attention is the plain one and whose weights record gradients."""
    plain = copy.deepcopy(network)
    for sequence in [*plain.input_blocks, plain.middle_block, *plain.output_blocks]:
        for i, layer in enumerate(sequence):
            if isinstance(layer, AttentionBlock):
                sequence[i] = PlainAttention(layer)
    return plain.requires_grad_(True)


class DenseBlur(nn.Module):
    """Depthwise cross-correlation with a whole [k, k] kernel after reflection padding."""

    def __init__(self, kernel: np.ndarray, device: torch.device | str = "cpu") -> None:
        super().__init__()
        weight = torch.as_tensor(kernel, dtype=torch.float32, device=device)
        self.weight = nn.Parameter(weight.expand(3, 1, -1, -1).contiguous(), requires_grad=False)
        self.pad = nn.ReflectionPad2d(kernel.shape[0] // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.pad(x), self.weight, groups=3)


class GatherBicubic(nn.Module):
    """Antialiased bicubic downsampling by an integer: gather the taps of each axis, sum them."""

    def __init__(self, size: int, factor: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        centres = (np.arange(-(-size // factor)) + 0.5) * factor - 0.5
        taps = np.floor(centres - 2 * factor)[:, None] + np.arange(4 * factor + 2)
        distance = np.abs(centres[:, None] - taps) / factor
        inner = 1.5 * distance**3 - 2.5 * distance**2 + 1
        outer = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weights = np.where(distance <= 1, inner, np.where(distance < 2, outer, 0))
        weights /= weights.sum(1, keepdims=True)
        mirrored = np.concatenate([np.arange(size), np.arange(size)[::-1]])
        self.index = torch.as_tensor(mirrored[taps.astype(int) % (2 * size)], device=device)
        self.weights = torch.as_tensor(weights, dtype=torch.float32, device=device)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):  # the last axis, then (transposed) the other one
            x = ((x[..., self.index] * self.weights).sum(-1)).transpose(-1, -2)
        return x


@dataclass
class PlainLoop:
    """One image [1, 3, H, W] restored from y = A(x) + noise.

    network: epsilon prediction with learned variance range
    timesteps, betas: the original steps that are kept and the betas of that process
    distances, best: per step visited, as the progress display and the choice had them
    """

    network: nn.Module
    timesteps: np.ndarray
    betas: np.ndarray
    operator: Operator
    y: Tensor
    scale: float
    n_max: int = 50
    distances: list[float] = field(default_factory=list)
    best: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.acp = np.cumprod(1 - self.betas)
        self.prev = np.append(1.0, self.acp[:-1])
        variance = self.betas * (1 - self.prev) / (1 - self.acp)
        self.low = np.log(np.append(variance[1], variance[1:]))

    def coefficient(self, table: np.ndarray, t: int) -> Tensor:
        """table[t], copied from the host, as published."""
        return torch.from_numpy(table).to(self.y.device)[t].float()

    def start(self, noise: NoiseSource, shape: tuple[int, int, int]) -> Tensor:
        u = F.interpolate(self.y, size=shape[1:], mode="nearest")
        a = self.coefficient(np.sqrt(self.acp), -1)
        b = self.coefficient(np.sqrt(1 - self.acp), -1)
        return a * u + b * noise.normal("start", len(self.betas), shape)

    def num_candidates(self, t: int) -> int:
        snr = self.acp[t] / (1 - self.acp[t])
        return int(max(self.n_max * (1 - np.exp(-snr)), 2))

    def step(self, x: Tensor, t: int, noise: NoiseSource) -> Tensor:
        """x_{t-1} from x_t."""
        x = x.detach().requires_grad_()
        c, acp, prev, beta = self.coefficient, self.acp, self.prev, self.betas
        time = torch.tensor([int(self.timesteps[t])], device=x.device)
        eps, v = self.network(x, time).chunk(2, dim=1)
        x0_hat = c(np.sqrt(1 / acp), t) * x - c(np.sqrt(1 / acp - 1), t) * eps
        x0_hat = x0_hat.clamp(-1, 1)
        mean = c(beta * np.sqrt(prev) / (1 - acp), t) * x0_hat
        mean = mean + c((1 - prev) * np.sqrt(1 - beta) / (1 - acp), t) * x
        weight = (v + 1) / 2
        log_variance = weight * c(np.log(beta), t) + (1 - weight) * c(self.low, t)
        distance = torch.linalg.norm(self.y - self.operator(x0_hat))
        gradient = torch.autograd.grad(distance, x, retain_graph=True)[0]
        mu = mean - self.scale * gradient
        self.distances.append(distance.item())
        if t == 0:
            return mu.detach()
        draws = torch.cat(list(noise.candidates(t, self.num_candidates(t), x.shape[1:])))[:, 0]
        candidates = mu + torch.exp(0.5 * log_variance) * draws
        clean = candidates - c(np.sqrt(1 - prev), t) * eps
        difference = c(np.sqrt(prev), t) * self.y - self.operator(clean)
        best = torch.linalg.norm(difference.flatten(1), dim=1).argmin().item()
        self.best.append(best)
        return candidates[best][None].detach()

    def run(self, noise: NoiseSource, shape: tuple[int, int, int]) -> Tensor:
        """The restored image [1, 3, H, W], not clamped."""
        x = self.start(noise, shape)
        for t in reversed(range(len(self.betas))):
            x = self.step(x, t, noise)
        return x
