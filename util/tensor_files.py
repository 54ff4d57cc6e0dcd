"""Tensors and arrays that somebody else wrote: never unpickled, never larger than their files.

What is no such file is named as what it is: a web page saved in place of a download, a pointer of
Git LFS, an archive.
"""

import io
import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from util.errors import UserError, first_line
from util.files import open_regular

_LARGEST_ARRAY = 1 << 28  # values of an array that is no checkpoint
_LARGEST_HEADER = 1 << 16  # bytes of the header of an .npy file
_BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch it with: "
    "git lfs pull",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"\xfd7zXZ": "an xz archive; unpack it",
    b"BZh": "a bzip2 archive; unpack it",
    b"%PDF": "a PDF document",
}
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def load_tensors(path: str | Path, advice: str = "") -> Any:
    """What torch.save or safetensors wrote, on the CPU; nothing in it is executed.

    advice: how to get the right file, for messages

    Raises UserError for a file that is missing, damaged or of another kind, for a pickle that
    would run code, and for one that unpacks to more than it holds.
    """
    path = Path(path)
    with open_regular(path) as file:
        if path.suffix == ".safetensors":
            return _load_safetensors(path)
        _refuse_others(path, file, advice)
        file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about kinds of tensors that is_plain refuses
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise UserError(
                f"{path}: not a file of plain tensors (refused, nothing in it was run){advice}"
            ) from None
        except MemoryError:
            raise
        except Exception as error:  # damaged files make the reader raise whatever it likes
            raise UserError(
                f"{path}: truncated or no checkpoint ({first_line(error)}){advice}"
            ) from None


def _refuse_others(path: Path, file: BinaryIO, advice: str) -> None:
    beginning = file.read(512)
    if beginning[257:262] == b"ustar":
        raise UserError(f"{path}: is a tar archive; unpack it{advice}")
    for start, kind in _BEGINNINGS.items():
        if beginning.startswith(start):
            raise UserError(f"{path}: is {kind}{advice}")
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise UserError(f"{path}: is a web page, no checkpoint{advice}")
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, struct.error) as error:
        raise UserError(f"{path}: truncated or no checkpoint ({error}){advice}") from None
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise UserError(f"{path}: is a zip archive, no checkpoint; unpack it{advice}")
    size = file.seek(0, io.SEEK_END)
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > size:  # torch.save does not compress
        raise UserError(
            f"{path}: unpacks to {unpacked:,} bytes from {size:,}, which torch.save never "
            f"does{advice}"
        )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path}: needs a package: pip install safetensors") from None
    try:
        return load_file(path)
    except (SafetensorError, json.JSONDecodeError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: truncated or no safetensors file ({error})") from None


def is_plain(tensor: Any) -> bool:
    """Whether this is an ordinary tensor of numbers: dense, in memory, not quantised, complex or
    of eight bits."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
        and tensor.device.type == "cpu"
        and tensor.dtype in _FLOATS | _INTEGERS
    )


def load_tensor_array(path: str | Path, what: str) -> np.ndarray:
    """The one tensor in a .pt file as an array; UserError where it holds something else."""
    value = load_tensors(path)
    if not is_plain(value) or value.numel() > _LARGEST_ARRAY:
        raise UserError(f"{path}: not a readable {what} (expected one plain tensor of numbers)")
    return value.detach().to(torch.float64).numpy()


def load_numpy_array(path: str | Path, what: str) -> np.ndarray:
    """The array in an .npy file, or the only one in an .npz file.

    Raises UserError for anything that is no array of numbers, and for one whose header promises
    more than the file holds.
    """
    with open_regular(path) as file:
        try:
            if file.read(4) == b"PK\x03\x04":
                return _checked(_only_member(file), path, what)
            file.seek(0)
            return _checked(_read_npy(file, file.seek(0, io.SEEK_END)), path, what)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # readers raise many kinds; all mean the same to the user
            raise UserError(f"{path}: not a readable {what} ({first_line(error)})") from None


def _read_npy(file: Any, size: int) -> np.ndarray:
    """The array in an open .npy file of `size` bytes."""
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file, max_header_size=_LARGEST_HEADER)
    if any(n < 0 for n in shape):
        raise ValueError(f"shape {shape}")
    needed = dtype.itemsize * int(np.prod([int(n) for n in shape], dtype=object))
    if needed > size - file.tell():
        raise ValueError(f"its header promises {needed:,} bytes, more than the file holds")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _only_member(file: Any) -> np.ndarray:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        if len(names) != 1:
            raise ValueError(f"holds {len(names)} arrays, expected one")
        entry = archive.getinfo(names[0])
        if entry.file_size > 8 * _LARGEST_ARRAY:
            raise ValueError(f"unpacks to {entry.file_size:,} bytes")
        return _read_npy(io.BytesIO(archive.read(entry)), entry.file_size)


def _checked(array: np.ndarray, path: str | Path, what: str) -> np.ndarray:
    if array.dtype.kind not in "biuf" or array.size > _LARGEST_ARRAY:
        raise UserError(f"{path}: not a readable {what} (values of type {array.dtype})")
    return array
