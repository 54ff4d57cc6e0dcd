"""What the command lines of this project share."""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.errors import UserError
from util.streams import make_patient

if TYPE_CHECKING:
    import torch  # takes seconds, which --help and a wrong argument need not wait for

# Number formats that the network runs in; guided_diffusion/precision.py knows what they are.
PRECISION_NAMES = ("fp32", "tf32", "bf16", "fp16")


def report_errors(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a main(): a UserError becomes one line on stderr and exit status 2, and a lost
    reader of what it prints ends nothing."""

    @functools.wraps(main)
    def wrapper(*args: Any, **kwargs: Any) -> int:
        make_patient()
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return wrapper


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Examples as they are written; defaults where there is one and the help does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default, text = action.default, action.help
        nothing = default is None or default is False or default == []
        return text if nothing or "default" in (text or "") else super()._get_help_string(action)


def command_parser(text: str) -> argparse.ArgumentParser:
    """A parser for a program with the docstring `text`: one paragraph, then examples."""
    description, _, examples = text.partition("\n\n")
    command, installed = re.search(r"python3? (-m )?\S+", examples), Path(sys.argv[0]).name
    if command is not None and installed.startswith("dpps"):
        examples = examples.replace(command.group(), installed)
    return argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=_Formatter
    )


# A parser, or one of its groups.
_Arguments = argparse.ArgumentParser | argparse._ArgumentGroup


def add_set(arguments: _Arguments, where: str = "") -> None:
    """--set SECTION.KEY=VALUE of a run's three configs, as `overrides`."""
    arguments.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help=f"override a config key{where}, SECTION model, diffusion or task; repeatable",
    )


def add_plugin(arguments: _Arguments) -> None:
    """--plugin, as `plugins`, for load_plugins."""
    arguments.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        dest="plugins",
        help="run a Python file that registers an operator, a method, a noise or a metric of your "
        "own; repeatable",
    )


def add_device(arguments: _Arguments, what: str = "") -> None:
    """--device, the text that resolve_device reads."""
    arguments.add_argument(
        "--device", default="auto", help=f"{what}cuda, cuda:N, mps, cpu, or auto: the best there is"
    )


def resolve_device(name: str) -> torch.device:
    """The device called `name` ("auto": the best there is); UserError if it is not there."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "mps", "cpu"):
        raise UserError(f'--device {name}: expected "cuda", "cuda:N", "mps", "cpu" or "auto"')
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or (device.index or 0) >= count:
            raise UserError(
                f"--device {name}: this machine has {count} usable CUDA device(s); use a smaller "
                "number, or --device cpu"
            )
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: no Metal device here; use --device cpu")
    return device
