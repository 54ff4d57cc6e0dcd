"""The guided-diffusion UNet ("ADM", Dhariwal & Nichol 2021, arXiv 2105.05233).

State-dict names and shapes are those of the published checkpoints, so that they load strictly.
Images and features are [B, C, H, W]; attention works on [B, H * W, C].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from guided_diffusion.layers import Conv2d, Downsample, GroupNorm32, Upsample
from util.errors import UserError

_DEFAULT_CHANNEL_MULT = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}
_NORM_GROUPS = 32
NUM_CLASSES = 1000  # of a class-conditional network: those of ImageNet, as published
_MAX_PERIOD = 10000


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of the network; the keys and defaults of a published model config."""

    image_size: int  # training size in pixels; attention_resolutions refer to it
    num_channels: int  # width of the first level, a multiple of 32
    num_res_blocks: int  # residual blocks per level
    channel_mult: str = ""  # width of each level / num_channels, "1,2,2"; "": by image_size
    learn_sigma: bool = True  # 6 output channels: noise and variance weights
    class_cond: bool = False  # the network is told one of NUM_CLASSES classes
    use_checkpoint: bool = False  # recompute activations in the backward pass: less memory
    attention_resolutions: int | str = 16  # feature-map sizes with attention, "32,16,8"
    num_heads: int = 4  # attention heads, when num_head_channels is -1
    num_head_channels: int = 64  # width of a head; cannot be seen in a checkpoint
    num_heads_upsample: int = -1  # heads in the decoder; -1: num_heads
    use_scale_shift_norm: bool = True  # the embedding scales and shifts the second norm
    dropout: float = 0.0
    resblock_updown: bool = True  # resample inside residual blocks, not by strided convs
    use_fp16: bool = False  # convolutions in float16
    use_new_attention_order: bool = False  # split q, k, v before the heads
    patch_size: int = 1  # side of the pixel patches that are the network's pixels; 1: as published

    def level_multipliers(self) -> tuple[float, ...]:
        """Width multiplier of every level, first (full size) to last.

        Raises UserError where channel_mult is empty and image_size has no default.
        """
        if self.channel_mult:
            return tuple(float(m) for m in _numbers(self.channel_mult, "channel_mult"))
        if self.image_size not in _DEFAULT_CHANNEL_MULT:
            known = ", ".join(map(str, sorted(_DEFAULT_CHANNEL_MULT)))
            raise UserError(
                f"model config: channel_mult is empty and image_size {self.image_size} has no "
                f'default (sizes with one: {known}); give channel_mult, for example "1,2,2,2"'
            )
        return _DEFAULT_CHANNEL_MULT[self.image_size]

    def attention_factors(self) -> set[int]:
        """Downsampling factors, patches included, with attention blocks ("" or 0: none)."""
        sizes = _numbers(str(self.attention_resolutions), "attention_resolutions")
        if any(size != int(size) or size < 0 for size in sizes):
            raise UserError(f"model config: attention_resolutions: whole numbers, got {sizes}")
        return {self.image_size // int(size) for size in sizes if size}

    def size_multiple(self) -> int:
        """Image sides must be multiples of this."""
        return self.patch_size * 2 ** (len(self.level_multipliers()) - 1)

    def check(self) -> None:
        """Raise UserError for a combination of values that no network can have."""
        if self.num_res_blocks < 1 or self.num_heads < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                "model config: num_res_blocks and num_heads must be at least 1, dropout in [0, 1)"
            )
        if self.num_head_channels < 1 and self.num_head_channels != -1:
            raise UserError("model config: num_head_channels must be positive, or -1 for none")
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise UserError(
                f"model config: patch_size {self.patch_size} must be at least 1 and divide "
                f"image_size {self.image_size}"
            )
        widths = [self.num_channels * m for m in self.level_multipliers()]
        if any(w < 1 or w % _NORM_GROUPS for w in widths):
            raise UserError(
                f"model config: level widths {widths} (num_channels x channel_mult) must be "
                f"multiples of {_NORM_GROUPS}"
            )
        if self.image_size % self.size_multiple():
            raise UserError(
                f"model config: image_size {self.image_size} must be a multiple of "
                f"{self.size_multiple()} for {len(widths)} levels and patch_size {self.patch_size}"
            )
        self.attention_factors()


def _numbers(text: str, key: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
        if not all(map(math.isfinite, numbers)):
            raise ValueError
        return numbers
    except ValueError:
        raise UserError(
            f'model config: {key}: expected numbers separated by commas, got "{text}"'
        ) from None


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding, cosines first: float32 [B, width] for timesteps [B]."""
    half = width // 2
    k = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(_MAX_PERIOD) * k / half)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, width % 2))


def _norm(channels: int) -> GroupNorm32:
    return GroupNorm32(_NORM_GROUPS, channels)


def _zeroed(module: nn.Module) -> nn.Module:
    """`module` with zero weights: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResBlock(nn.Module):
    """Residual block with the timestep embedding; optionally resamples by 2 ("up", "down")."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embed_width: int,
        config: UNetConfig,
        resample: str = "",
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = config.use_scale_shift_norm
        self.use_checkpoint = config.use_checkpoint
        self.in_layers = nn.Sequential(
            _norm(channels), nn.SiLU(), Conv2d(channels, out_channels, 3, padding=1)
        )
        embed_out = out_channels * (2 if config.use_scale_shift_norm else 1)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed_width, embed_out))
        self.out_layers = nn.Sequential(
            _norm(out_channels),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            _zeroed(Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else Conv2d(channels, out_channels, 1)
        )
        resamplers = {"up": Upsample, "down": Downsample}
        self.resample = resamplers[resample](channels, False) if resample else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._forward, x, emb, use_reentrant=False)
        return self._forward(x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        # The activations (_) are computed with the norms.
        norm_in, _, conv_in = self.in_layers
        h = conv_in(self.resample(norm_in(x, silu=True)))
        emb_out = self.emb_layers(emb)
        norm_out, _, dropout, conv_out = self.out_layers
        if self.use_scale_shift_norm:
            h = norm_out(h, *emb_out.chunk(2, dim=1), silu=True)
        else:
            h = norm_out(h + emb_out.to(h.dtype)[:, :, None, None], silu=True)
        h = conv_out(dropout(h))
        return self.skip_connection(self.resample(x)) + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels.

    The channels of `qkv` are ordered head, then q k v (published checkpoints), or q k v, then
    head (`new_order`). Scaling q and k by head_width^(-1/4) each, as published, is the usual
    1 / sqrt(head_width).
    """

    def __init__(self, channels: int, num_heads: int, config: UNetConfig) -> None:
        super().__init__()
        if config.num_head_channels != -1:
            num_heads = channels // config.num_head_channels
        if (
            num_heads < 1
            or channels % num_heads
            or (config.num_head_channels != -1 and channels % config.num_head_channels)
        ):
            raise UserError(
                f"model config: {channels} channels cannot be split into attention heads of "
                f"num_head_channels {config.num_head_channels} / num_heads {config.num_heads}"
            )
        self.num_heads = num_heads
        self.new_order = config.use_new_attention_order
        self.use_checkpoint = config.use_checkpoint
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        _zeroed(self.proj_out)

    def forward(self, x: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        # Tokens [B, H W, C]: in channels_last a view of the image.
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = F.linear(tokens, self.qkv.weight[:, :, 0], self.qkv.bias)
        if self.new_order:
            q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).unbind(2)
        else:
            q, k, v = qkv.unflatten(2, (self.num_heads, 3, -1)).unbind(3)
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))  # [B, heads, H W, C / heads]
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        moved = F.linear(attended, self.proj_out.weight[:, :, 0], self.proj_out.bias)
        return x + moved.transpose(1, 2).unflatten(2, x.shape[2:])


class TimestepSequential(nn.Sequential):
    """Sequence that hands the timestep embedding to its residual blocks."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class UNetModel(nn.Module):
    """Noise prediction network: x_t [B, 3, H, W], timesteps [B] -> [B, 3 or 6, H, W] float32.

    H and W must be multiples of `config.size_multiple()`. Timesteps are on the original scale
    (0..999 for the published checkpoints), not respaced ones.

    With a patch_size p above 1 every p x p pixels become one pixel of 3 p^2 channels before the
    first convolution, and come apart again after the last (pixel unshuffle and shuffle, Shi et
    al. 2016, arXiv 1609.05158): the costly first level then has a p-th of the side.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        embed_width = 4 * config.num_channels
        self.time_embed = nn.Sequential(
            nn.Linear(config.num_channels, embed_width),
            nn.SiLU(),
            nn.Linear(embed_width, embed_width),
        )
        if config.class_cond:
            self.label_emb = nn.Embedding(NUM_CLASSES, embed_width)
        widths = [int(config.num_channels * m) for m in config.level_multipliers()]
        self.input_blocks, skip_widths = self._build_encoder(widths, embed_width)
        channels = skip_widths[-1]
        self.middle_block = TimestepSequential(
            ResBlock(channels, channels, embed_width, config),
            AttentionBlock(channels, config.num_heads, config),
            ResBlock(channels, channels, embed_width, config),
        )
        self.output_blocks = self._build_decoder(widths, skip_widths, embed_width)
        out_channels = (6 if config.learn_sigma else 3) * config.patch_size**2
        self.out = nn.Sequential(
            _norm(widths[0]), nn.SiLU(), _zeroed(Conv2d(widths[0], out_channels, 3, padding=1))
        )

    def _build_encoder(
        self, widths: Sequence[int], embed_width: int
    ) -> tuple[nn.ModuleList, list[int]]:
        """Encoder blocks and the width of each block's output (the skip connections)."""
        config, factors = self.config, self.config.attention_factors()
        channels, patch = widths[0], config.patch_size
        blocks = [TimestepSequential(Conv2d(3 * patch**2, channels, 3, padding=1))]
        skips = [channels]
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [ResBlock(channels, width, embed_width, config)]
                channels = width
                if config.patch_size * 2**level in factors:
                    layers.append(AttentionBlock(channels, config.num_heads, config))
                blocks.append(TimestepSequential(*layers))
                skips.append(channels)
            if level < len(widths) - 1:
                blocks.append(TimestepSequential(self._resampler(channels, embed_width, "down")))
                skips.append(channels)
        return nn.ModuleList(blocks), skips

    def _build_decoder(
        self, widths: Sequence[int], skip_widths: Sequence[int], embed_width: int
    ) -> nn.ModuleList:
        config, factors = self.config, self.config.attention_factors()
        num_heads = config.num_heads_upsample
        if num_heads == -1:
            num_heads = config.num_heads
        skips = list(skip_widths)
        channels = skips[-1]
        blocks = []
        for level in reversed(range(len(widths))):
            for i in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [
                    ResBlock(channels + skips.pop(), widths[level], embed_width, config)
                ]
                channels = widths[level]
                if config.patch_size * 2**level in factors:
                    layers.append(AttentionBlock(channels, num_heads, config))
                if level and i == config.num_res_blocks:
                    layers.append(self._resampler(channels, embed_width, "up"))
                blocks.append(TimestepSequential(*layers))
        return nn.ModuleList(blocks)

    def _resampler(self, channels: int, embed_width: int, direction: str) -> nn.Module:
        if self.config.resblock_updown:
            return ResBlock(channels, channels, embed_width, self.config, resample=direction)
        return (Upsample if direction == "up" else Downsample)(channels, use_conv=True)

    @property
    def dtype(self) -> torch.dtype:
        """Type that the convolutions between the first and the last one run in."""
        return next(self.middle_block[0].get_submodule("in_layers.2").parameters()).dtype

    def use_native(self, native: bool) -> None:
        """Normalise by the kernel of native.py, on processors."""
        for module in self.modules():
            if isinstance(module, GroupNorm32):
                module.native = native

    def set_precision(self, dtype: torch.dtype) -> None:
        """Run the convolutions in `dtype`; norms, embeddings, the first and the last convolution
        stay in float32 (x_t rounded to bfloat16 would be most of the error)."""
        for blocks in (self.input_blocks[1:], self.middle_block, self.output_blocks):
            for module in blocks.modules():
                if isinstance(module, nn.Conv1d | nn.Conv2d):
                    module.to(dtype)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        labels: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """
        labels: classes [B], int64, of a class-conditional network
        condition: what else it is told, [B, 4 num_channels], added to the embedding of the timestep
        """
        embedding = timestep_embedding(timesteps, self.config.num_channels)
        emb = self.time_embed(embedding.to(next(self.time_embed.parameters()).dtype))
        if self.config.class_cond:
            if labels is None:
                raise ValueError("a class-conditional network needs labels")
            emb = emb + self.label_emb(labels)
        emb = emb if condition is None else emb + condition
        first, *blocks = self.input_blocks
        h = first(F.pixel_unshuffle(x, self.config.patch_size), emb).to(self.dtype)
        skips = [h]
        for block in blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        norm, _, last = self.out
        h = last(norm(h.to(x.dtype), silu=True))
        return F.pixel_shuffle(h, self.config.patch_size)
