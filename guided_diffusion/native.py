"""Build and load the kernel in norm_kernel.cpp, for the processor that this runs on.

It has a plain C interface, so any C++ compiler will do and no header of torch is needed: building
takes seconds. The library is kept in the user's cache folder, under a name that changes with
whatever it depends on, and is never required.
"""

import contextlib
import ctypes
import functools
import glob
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from util.errors import first_line
from util.logger import get_logger

_SOURCE = Path(__file__).with_name("norm_kernel.cpp")
# Contraction and the like keep every result a rounding away; -ffast-math would lose what is no
# number.
_FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp"]
_FLAGS += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
_TUNING: tuple[list[str], ...] = (  # the first that the compiler takes
    ["-march=native", "-mprefer-vector-width=512"],
    ["-march=native"],
    ["-mcpu=native"],
    [],
)
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 120  # that a compiler may take

_I64, _INT, _FLOAT, _POINTER = ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_void_p
_SHAPE = [_I64] * 4 + [_INT] * 4


def cache_folder() -> Path:
    """Where built kernels are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "dpps"


@functools.lru_cache(maxsize=1)
def kernel() -> ctypes.CDLL | None:
    """The kernel, built first where that was never done; None where that cannot be, which is
    logged. Asked for again, the same."""
    try:
        return _load(_built())
    except (OSError, RuntimeError, subprocess.SubprocessError, AttributeError) as error:
        get_logger().info("the fused kernel is not used: %s", first_line(error))
        return None


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointers = [_POINTER] * 3
    library.norm_forward.argtypes = [*_SHAPE, *pointers, _FLOAT, *pointers]
    library.norm_backward.argtypes = [*_SHAPE, *[_POINTER] * 9]
    library.norm_forward.restype = library.norm_backward.restype = None
    return library


def _built() -> Path:
    """The library's file; compiled now unless it is there."""
    compiler, cache = _compiler(), cache_folder()
    stem = f"norm_kernel_{_fingerprint(compiler)}"
    for path in cache.glob(f"{stem}_*.so"):
        if path.name == _name(stem, path):  # loading a damaged one can kill the program
            return path
        path.unlink()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        draft = Path(folder) / f"{stem}.so"
        _compile(compiler, draft)
        _load(draft)  # what cannot be loaded is not kept
        path = cache / _name(stem, draft)
        os.replace(draft, path)  # two runs may build at once
    get_logger().info("fused kernel built: %s", path)
    return path


def _name(stem: str, library: Path) -> str:
    """The name under which a library is kept: it tells the contents."""
    return f"{stem}_{hashlib.sha256(library.read_bytes()).hexdigest()[:16]}.so"


def _compiler() -> str:
    for name in (os.environ.get("CXX"), *_COMPILERS):
        found = shutil.which(name) if name else None
        if found is not None:
            return found
    raise OSError(f"no C++ compiler was found ({', '.join(_COMPILERS)}; CXX names another)")


def _compile(compiler: str, target: Path) -> None:
    failure = ""
    for tuning in _TUNING:
        command = [compiler, *_FLAGS, *tuning, str(_SOURCE), "-o", str(target), *_openmp()]
        done = subprocess.run(  # noqa: S603 - a compiler, no shell
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
        if done.returncode == 0:
            return
        failure = failure or done.stderr
    lines = [line for line in failure.splitlines() if "error" in line] or ["it failed"]
    raise OSError(f"{compiler}: {lines[0].strip()}")


def _openmp() -> list[str]:
    """The OpenMP runtime that torch has loaded, so that there is one pool of threads."""
    found = glob.glob(str(Path(torch.__file__).parent / "lib" / "libgomp*.so*"))
    return found if sys.platform == "linux" else []


def _fingerprint(compiler: str) -> str:
    """Changes with the source, the flags, the compiler, torch and the processor."""
    parts = [
        *platform.libc_ver(),
        *_openmp(),
        _SOURCE.read_text(),
        *_FLAGS,
        str(_TUNING),
        torch.__version__,
        platform.machine(),
    ]
    parts.append(str(Path(compiler).resolve()))
    with contextlib.suppress(OSError):
        parts.append(str(Path(compiler).resolve().stat().st_mtime_ns))
    parts.append(processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def processor() -> str:
    """What the processor can do, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    kinds = ("flags", "Features", "model name", "CPU part")
    return "".join(sorted({line for line in lines if line.startswith(kinds)}))
