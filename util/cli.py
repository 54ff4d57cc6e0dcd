"""What the command lines of this project share."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from util.config import parse_yaml
from util.errors import UserError


def report_errors(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a main(): a UserError becomes one line on stderr and exit status 2."""

    @functools.wraps(main)
    def wrapper(*args: Any, **kwargs: Any) -> int:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return wrapper


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `A.B.C=VALUE` in nested mapping `raw`; VALUE is YAML. Whether the key is known is
    checked when the config is."""
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise UserError(f'--set {override}: expected KEY=VALUE, for example "data.limit=3"')
        section = raw
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise UserError(f'--set {override}: "{key}" is a single value, not a section')
        section[keys[-1]] = parse_yaml(text, f"--set {override}")


def resolve_device(name: str) -> torch.device:
    """The device called `name` ("auto": the best there is); UserError if it is not there."""
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
