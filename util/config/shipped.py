"""The configs that ship with the project: found by name, and whose relative paths are whose."""

import os
from pathlib import Path
from typing import Any

from util.errors import UserError
from util.files import PROJECT
from util.registry import did_you_mean

_FOLDER = PROJECT / "configs"
_KINDS = {"model": "_model_config", "diffusion": "_diffusion_config", "task": "_config"}


def find_config(name: str, kind: str) -> str:
    """The file that `name` means: a path as it is, or a config that ships, by its file name or the
    part of it that is its own ("inpainting" for configs/inpainting_config.yaml).

    kind: "model", "diffusion" or "task"

    Raises UserError, naming those that ship, for a word that is neither.
    """
    if os.path.exists(name) or os.path.dirname(name) not in ("", "configs"):
        return name
    word = os.path.basename(name).removesuffix(".yaml")
    for stem in (word, f"{word}{_KINDS[kind]}", f"{word}_config"):
        if (_FOLDER / f"{stem}.yaml").is_file():
            return _shown_from_here(_FOLDER / f"{stem}.yaml")
    if name != word:  # a file name, of a file that is not there
        return name
    raise UserError(f'unknown {kind} config "{name}"{did_you_mean(name, shipped(kind))}')


def shipped(kind: str) -> list[str]:
    """Names of the configs of this kind."""
    stems = {path.stem for path in _FOLDER.glob(f"*{_KINDS[kind]}.yaml")}
    if kind == "task":  # whose ending the others have, too
        stems = {s for s in stems if not s.endswith(("model_config", "diffusion_config"))}
    return sorted(s.removesuffix(_KINDS[kind]) for s in stems)


def _shown_from_here(path: Path) -> str:
    """From the project's own folder as people write it, configs/NAME; else absolute."""
    return str(path.relative_to(PROJECT)) if Path.cwd() == PROJECT else str(path)


def config_path(path: Any, where: str | Path) -> Any:
    """A path that stands in the config file `where`: relative ones are the user's, from the
    working folder, but those in the configs that ship belong to the project."""
    ships = _FOLDER in Path(os.path.abspath(where)).parents and Path.cwd() != PROJECT
    relative = isinstance(path, str) and path and not os.path.isabs(path)
    return str(PROJECT / path) if ships and relative else path
