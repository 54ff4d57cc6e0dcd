"""Reading and writing network weights: never unpickled, never half loaded, never half written."""

import io
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guided_diffusion.unet import UNetConfig, UNetModel
from util.atomic import write
from util.config.schema import parse_dataclass, read_yaml
from util.errors import UserError
from util.files import INSTALLED, PROJECT, shown
from util.logger import get_logger
from util.tensor_files import is_plain, load_tensors

# Published checkpoints: file name -> name for models.download.
PUBLISHED = {"ffhq_10m.pt": "ffhq", "imagenet256.pt": "imagenet"}
_DOWNLOAD = "dpps-download" if INSTALLED else "python -m models.download"
_SHOWN_DIFFERENCES = 3


def model_config(path: str | Path) -> UNetConfig:
    """The architecture in a model config file."""
    raw = read_yaml(path)
    for key in ("prior", "model_path", "class_label"):  # not of the architecture
        raw.pop(key, None)
    return parse_dataclass(UNetConfig, raw, str(path))


def save_weights(state: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype) -> None:
    """Write network weights in `dtype`."""
    weights = {k: v.detach().cpu().contiguous().to(dtype) for k, v in state.items()}
    save_torch(weights, path)


def save_torch(value: Any, path: str | Path) -> None:
    """Write what torch.save makes of `value`; UserError where that cannot be done, what was there
    stays."""
    buffer = io.BytesIO()  # torch.save turns the errors of a file into others
    torch.save(value, buffer)
    write(Path(path), buffer.getbuffer(), "; what was there stays")


def load_state(path: str | Path) -> dict[str, Any]:
    """The mapping in a .pt/.pth or .safetensors file, on the CPU; nothing is executed.

    Raises UserError for a missing, truncated or foreign file, and for pickles that would run
    code.
    """
    if not os.path.exists(path):
        raise UserError(f"{shown(path)}: no such checkpoint{_how_to_get(Path(path))}")
    state = load_tensors(path, _how_to_get(Path(path)))
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: expected a state dict, found {type(state).__name__}")
    return dict(state)


# Where trainers keep the weights, the averaged ones before those of the last step.
_WEIGHT_KEYS = (
    *("ema", "ema_params", "params_ema", "ema_state_dict", "model_ema", "state_dict", "model"),
    *("model_state_dict", "params", "net", "network", "weights"),
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "unet.")  # of wrappers around the network


def unwrapped(state: Mapping[str, Any], expected: Collection[str], path: str | Path) -> Any:
    """The weights in `state`, which may lie deeper and under longer names, as trainers save them;
    what was taken is logged.

    expected: the names that the network has
    """
    taken = []
    best = state.get("best")  # of this project's own training
    if isinstance(best, Mapping) and isinstance(best.get("weights"), Mapping):
        state, taken = best["weights"], ["best", "weights"]
    while not state.keys() & set(expected):
        key = next((k for k in _WEIGHT_KEYS if isinstance(state.get(k), Mapping)), None)
        if key is None:
            break
        state, taken = state[key], [*taken, key]
    removed = ""
    while state and not state.keys() & set(expected):
        prefix = next((p for p in _PREFIXES if all(str(k).startswith(p) for k in state)), None)
        if prefix is None:
            break
        state, removed = {k.removeprefix(prefix): v for k, v in state.items()}, removed + prefix
    if taken or removed:
        where = f'"{" / ".join(taken)}"' * bool(taken)
        without = f'names without "{removed}"' * bool(removed)
        get_logger().info("%s: taken from it: %s", path, ", ".join(filter(None, (where, without))))
    return state


def _how_to_get(path: Path) -> str:
    if path.name in PUBLISHED:
        return f"; fetch it with: {_DOWNLOAD} {PUBLISHED[path.name]}"
    return f"; set model.model_path to the file, or fetch one: {_DOWNLOAD} --help"


def load_model(config: UNetConfig, path: str | Path) -> UNetModel:
    """The network of `config` with the weights in `path`, float32, in evaluation mode.

    Every name and shape must agree; otherwise UserError says which differ and, for the other
    published network, which config fits.
    """
    with torch.device("meta"):
        model = UNetModel(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    state = unwrapped(load_state(path), expected, path)
    odd = [n for n, v in state.items() if isinstance(v, Tensor) and not is_plain(v)]
    if odd:
        raise UserError(
            f"{path}: {len(odd)} tensor(s) are sparse, quantised, complex, of 8 bits or without "
            f"values ({_some(odd)}); save the plain weights"
        )
    found = {k: tuple(v.shape) if isinstance(v, Tensor) else None for k, v in state.items()}
    if expected != found:
        raise UserError(_mismatch(path, expected, found))
    if any(not torch.isfinite(v).all() for v in state.values()):
        raise UserError(f"{path}: holds weights that are not finite; the file is damaged")
    model.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    model.set_precision(torch.float32)
    return freeze(model)


def freeze(model: nn.Module) -> Any:
    """`model` in evaluation mode, weights without gradients."""
    return model.eval().requires_grad_(False)


def _mismatch(path: str | Path, expected: dict[str, Any], found: dict[str, Any]) -> str:
    parts = []
    for label, names in (
        ("missing", [n for n in expected if n not in found]),
        ("unexpected", [n for n in found if n not in expected]),
    ):
        if names:
            parts.append(f"{len(names)} {label} ({_some(names)})")
    shapes = [
        f"{n}: {found[n]} in the file, {shape} in the config"
        for n, shape in expected.items()
        if n in found and found[n] != shape
    ]
    if shapes:
        parts.append(f"{len(shapes)} of another shape ({_some(shapes)})")
    return f"{path}: does not fit the model config: {'; '.join(parts)}{_fitting(found)}"


def _some(names: Iterable[str]) -> str:
    names = list(map(str, names))
    more = f", ... {len(names) - _SHOWN_DIFFERENCES} more" * (len(names) > _SHOWN_DIFFERENCES)
    return ", ".join(names[:_SHOWN_DIFFERENCES]) + more


def _fitting(found: dict[str, Any]) -> str:
    """Advice where the file holds another network that this project has a config for."""
    for file in sorted((PROJECT / "configs").glob("*model_config.yaml")):
        with torch.device("meta"):
            candidate = UNetModel(model_config(file)).state_dict()
        if {k: tuple(v.shape) for k, v in candidate.items()} == found:
            return f". This file fits --model_config=configs/{file.name}"
    return ""
