"""Whether the files that an image was restored from are still the same."""

import json
import os

import numpy as np
from PIL import Image

from data.dataloader import ImageFolder
from data.masks import MaskConfig
from util.files import file_mark, same_file
from util.runs.sources import Sources


def test_a_file_is_known_by_its_content(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"pixels")
    mark = json.loads(json.dumps(file_mark(path)))
    assert same_file(path, mark)
    os.utime(path, (1, 1))
    assert same_file(path, mark)
    path.write_bytes(b"PIXELS")  # the same length
    os.utime(path, (2, 2))
    assert not same_file(path, mark)
    path.unlink()
    assert same_file(path, mark)  # what was restored from it still stands


def test_a_mask_of_its_own_is_a_source_of_an_image(tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(masks / f"{name}.png")
    dataset = ImageFolder(str(tmp_path / "images"), image_size=8)
    sources = Sources(dataset, MaskConfig(mask=str(masks)))
    marks = {name: sources.mark(name) for name in dataset.names}
    assert set(marks["a.png"]) == {"image", "mask"}
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(masks / "a.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(masks / "c.png")
    assert not sources.unchanged("a.png", marks["a.png"])
    assert sources.unchanged("b.png", marks["b.png"])
    assert set(Sources(dataset, MaskConfig(mask=str(masks / "a.png"))).mark("a.png")) == {"image"}
