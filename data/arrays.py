"""Numbers from files: kernels and masks, as arrays or as pictures of any depth."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.image_files import IMAGE_SUFFIXES, read_values
from util.errors import UserError
from util.files import read_bytes, shown
from util.tensor_files import load_numpy_array, load_tensor_array

_LARGEST_TEXT = 64 << 20  # bytes of a table of numbers


def _read_text(path: str, what: str) -> np.ndarray:
    """A table of numbers, separated by commas, semicolons, tabs or blanks."""
    text = read_bytes(path, _LARGEST_TEXT).decode("utf-8-sig", errors="replace")
    lines = [line.split("#")[0].replace(",", " ").replace(";", " ") for line in text.splitlines()]
    try:
        rows = [[float(number) for number in line.split()] for line in lines if line.strip()]
        return np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{path}: not a readable {what} ({error})") from None


def _read_matlab(path: str, what: str) -> np.ndarray:
    """The only matrix of numbers in a .mat file."""
    from io import BytesIO

    from scipy.io import loadmat

    try:
        held = loadmat(BytesIO(read_bytes(path)))
    except NotImplementedError:
        raise UserError(
            f"{path}: a .mat file of version 7.3; save it with -v7, or as .npy or .csv"
        ) from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # of damaged files: whatever the reader likes
        raise UserError(f"{path}: not a readable {what} ({error})") from None
    found = {
        name: array
        for name, array in held.items()
        if not name.startswith("__")
        and isinstance(array, np.ndarray)
        and array.dtype.kind in "biuf"
        and array.ndim == 2
        and array.size > 1
    }
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise UserError(f"{path}: expected one matrix in it, found {len(found)} ({names})")
    return next(iter(found.values()))


_READERS: dict[str, Callable[[str, str], np.ndarray]] = {
    ".npy": load_numpy_array,
    ".npz": load_numpy_array,
    ".pt": load_tensor_array,
    ".pth": load_tensor_array,
    ".mat": _read_matlab,
    ".txt": _read_text,
    ".csv": _read_text,
}
ARRAY_SUFFIXES = frozenset(_READERS)


def is_array(path: str | Path) -> bool:
    """Whether the name is that of an array, not of a picture."""
    return Path(path).suffix.lower() in ARRAY_SUFFIXES


def read_array(path: str, what: str) -> np.ndarray:
    """A two-dimensional array of finite numbers, float64 [H, W]: as it is in an array's file, on
    [0, 1] from a picture (transparent parts are 0). UserError where there is none."""
    if not os.path.exists(path):
        raise UserError(f"{shown(path)}: no such {what} file")
    suffix = Path(path).suffix.lower()
    if suffix not in ARRAY_SUFFIXES | IMAGE_SUFFIXES:
        known = ", ".join(sorted(ARRAY_SUFFIXES | IMAGE_SUFFIXES))
        raise UserError(f"{path}: not a readable {what} (known endings: {known})")
    read = _READERS.get(suffix)
    array = read_values(path) if read is None else read(path, what)
    array = np.asarray(array, dtype=np.float64)
    while array.ndim > 2 and 1 in array.shape:  # not of one row or column, which is a kernel, too
        array = array.squeeze(array.shape.index(1))
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise UserError(
            f"{path}: a {what} must be a two-dimensional array of finite numbers, "
            f"got shape {array.shape}"
        )
    return array
