"""What whole runs of the command line have in common: configs, images, a finished run."""

from pathlib import Path

import pytest
import torch

import sample_condition
from tests.tiny import NAMES, TinyRun, write_images


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> TinyRun:
    return TinyRun(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def images(tiny) -> Path:
    return write_images(tiny.folder / "images", NAMES)


@pytest.fixture(scope="module")
def whole(tiny, images, one_thread, tmp_path_factory) -> Path:
    """An uninterrupted run at batch size 1."""
    folder = tmp_path_factory.mktemp("whole")
    assert sample_condition.main(tiny.arguments(images, folder)) == 0
    return folder
