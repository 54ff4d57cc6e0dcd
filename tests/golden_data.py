"""Reference values of the published method, and small networks and noise made from seeds.

What each file holds is told in golden/README.md.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.unet import UNetConfig, UNetModel
from models.checkpoint import freeze
from tests.golden import streams

FOLDER = Path(__file__).parent / "golden"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def shapes(name: str) -> dict[str, list[int]]:
    return json.loads((FOLDER / f"state_dict_{name}.json").read_text())


def normal(shape: Sequence[int], *key: int) -> Tensor:
    return torch.from_numpy(streams.normal(tuple(shape), *key))


def network(config: dict[str, Any], seed: int) -> UNetModel:
    """The network of `config` with the weights that `seed` stands for."""
    model = UNetModel(UNetConfig(**config))
    expected = {name: list(value.shape) for name, value in model.state_dict().items()}
    weights = streams.weights(expected, seed)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return freeze(model)


class RecordedNoise:
    """The noise that the reference runs consumed: streams of seed `seed`, batch of one.

    shift: is added to the start
    """

    def __init__(self, seed: int, shift: float = 0.0) -> None:
        self.seed = seed
        self.shift = shift

    def normal(self, purpose: str, step: int, shape: Sequence[int]) -> Tensor:
        assert purpose == "start"
        return normal((1, *shape), self.seed, 20) + self.shift

    def candidates(self, step: int, count: int, shape: Sequence[int]) -> Iterator[Tensor]:
        draws = normal((count, *shape), self.seed, 30, step)[:, None]
        yield from draws.split(8)
