"""Random streams that depend on names only.

Every stream is keyed by (seed, names...), so what an image draws does not depend on the batch
size, on the order of the images, or on what else is in the folder.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

# Candidates are drawn in blocks of this many, which bounds memory. Part of the stream's
# definition: another value draws other numbers, on a GPU and for odd sizes.
CANDIDATE_BLOCK = 8
_LARGE = 2**17  # values of an image; below it a block is faster than its images one by one


def stream_key(seed: int, *names: str) -> bytes:
    """SHA-256 digest that names a stream; file names need not be valid UTF-8."""
    text = "\0".join([str(seed), *names])
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()


def numpy_stream(seed: int, *names: str) -> np.random.RandomState:
    """NumPy's legacy generator (its draws are pinned by golden values) for a named stream."""
    return np.random.RandomState(np.frombuffer(stream_key(seed, *names), dtype=np.uint32))


def torch_stream(device: torch.device, seed: int, *names: str) -> torch.Generator:
    """Generator on `device` for a named stream. CPU and GPU generators draw other numbers."""
    value = int.from_bytes(stream_key(seed, *names)[:8], "little") >> 1
    return torch.Generator(device=device).manual_seed(value)


@dataclass(frozen=True)
class ImageKey:
    """Identity of one image in a run: the seed and its path below the data root."""

    seed: int
    name: str

    def numpy(self, purpose: str) -> np.random.RandomState:
        """Stream for what belongs to the measurement: masks, measurement noise."""
        return numpy_stream(self.seed, self.name, purpose)


class NoiseSource(Protocol):
    """All random numbers of one sampler run over a batch of B images.

    `shape` is that of one image, [3, H, W], or of one measurement. `step` is the step that the
    numbers belong to; the start belongs to step T.
    """

    def normal(self, purpose: str, step: int, shape: Sequence[int]) -> Tensor:
        """Standard normal [B, *shape]; purpose is "start", "step", "measurement" or, for the steps
        of a chain within a step, "chain". Every call draws anew."""

    def uniform(self, purpose: str, step: int, shape: Sequence[int]) -> Tensor:
        """Uniform on [0, 1), [B, *shape]."""

    def candidates(self, step: int, count: int, shape: Sequence[int]) -> Iterator[Tensor]:
        """Standard normal [m, B, *shape], in blocks whose m add up to `count`."""


class PerImageNoise:
    """The default source: one generator per image, on the images' device."""

    def __init__(self, keys: Sequence[ImageKey], device: torch.device) -> None:
        self.device = device
        self.generators = [torch_stream(device, k.seed, k.name, "sampler") for k in keys]

    def normal(self, purpose: str, step: int, shape: Sequence[int]) -> Tensor:
        return self._stack(torch.randn, shape)

    def uniform(self, purpose: str, step: int, shape: Sequence[int]) -> Tensor:
        return self._stack(torch.rand, shape)

    def candidates(self, step: int, count: int, shape: Sequence[int]) -> Iterator[Tensor]:
        together = 1 if self._one_by_one(shape) else CANDIDATE_BLOCK
        for start in range(0, count, together):
            block = min(together, count - start)
            yield self._stack(torch.randn, (block, *shape), dim=1)

    def _one_by_one(self, shape: Sequence[int]) -> bool:
        """Whether candidates are drawn alone: large ones need less memory so and stay in the cache.
        They are the same, since torch fills a tensor on a processor 16 numbers at a time."""
        values = math.prod(shape)
        return self.device.type == "cpu" and values >= _LARGE and values % 16 == 0

    def _stack(self, draw, shape: Sequence[int], dim: int = 0) -> Tensor:
        draws = [draw(*shape, generator=g, device=self.device) for g in self.generators]
        return torch.stack(draws, dim=dim) if len(draws) > 1 else draws[0].unsqueeze(dim)
