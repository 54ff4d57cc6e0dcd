"""Random numbers of images: what they may depend on."""

import pytest
import torch

from util import randomness
from util.randomness import ImageKey, PerImageNoise

CPU = torch.device("cpu")


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 40, 52), (1, 4, 4)])
def test_candidates_one_by_one_are_those_of_blocks(monkeypatch, images, shape):
    drawn = []
    for least in (0, 2**40):  # values of an image from which they are drawn alone
        monkeypatch.setattr(randomness, "_LARGE", least)
        noise = PerImageNoise([ImageKey(0, str(i)) for i in range(images)], CPU)
        blocks = list(noise.candidates(1, 19, shape))
        assert len(blocks[0]) == (8 if least else 1)
        drawn.append((torch.cat(blocks), noise.normal("step", 1, shape)))
    for alone, together in zip(*drawn, strict=True):
        assert torch.equal(alone, together)


def test_sizes_that_torch_fills_otherwise_stay_in_blocks(monkeypatch):
    monkeypatch.setattr(randomness, "_LARGE", 0)
    (block,) = PerImageNoise([ImageKey(0, "a")], CPU).candidates(1, 5, (3, 5, 7))
    assert block.shape == (5, 1, 3, 5, 7)
