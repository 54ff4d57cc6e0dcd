"""Marks and hashes: equal for equal content, wherever it lies."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from util.hashing import array_mark, file_hash, path_mark, settings_hash


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 1])  # the last is read in two blocks
def test_file_hash_is_the_sha256_of_the_bytes(tmp_path, size):
    data = bytes(i % 251 for i in range(size))
    (tmp_path / "file").write_bytes(data)
    assert file_hash(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_folders_are_known_by_names_and_contents(tmp_path):
    (tmp_path / "a" / "below").mkdir(parents=True)
    (tmp_path / "a" / "below" / "mask.png").write_bytes(b"mask")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    mark = path_mark(tmp_path / "a")
    assert path_mark(tmp_path / "b") == mark
    (tmp_path / "b" / "below" / "mask.png").write_bytes(b"other")
    assert path_mark(tmp_path / "b") != mark
    (tmp_path / "a" / "below" / "mask.png").rename(tmp_path / "a" / "mask.png")
    assert path_mark(tmp_path / "a") != mark


def test_arrays_are_known_by_their_values():
    array = np.arange(6.0).reshape(2, 3)
    assert array_mark(np.asfortranarray(array)) == array_mark(array)
    assert array_mark(array + 1) != array_mark(array)


def test_tuples_and_lists_and_any_order_are_the_same_settings():
    settings = {"a": (1, 2), "b": {"c": None}}
    assert settings_hash(settings) == settings_hash(json.loads(json.dumps(settings)))
    assert settings_hash(settings) == settings_hash({"b": {"c": None}, "a": [1, 2]})
    assert settings_hash(settings) != settings_hash({**settings, "a": [2, 1]})
