"""The configs that ship with the project: found by name, and whose relative paths are whose."""

import os
from pathlib import Path
from typing import Any

from util.config.schema import read_yaml
from util.errors import UserError
from util.files import PROJECT
from util.registry import did_you_mean

_FOLDER = PROJECT / "configs"
# By kind: the folder that they lie in, and their file names; * is what they are called.
_KINDS = {
    "model": (_FOLDER, "*_model_config"),
    "diffusion": (_FOLDER, "*_diffusion_config"),
    "task": (_FOLDER, "*_config"),
    "training": (_FOLDER, "train_*"),
    "table": (_FOLDER / "tables", "*"),
    "posterior check": (_FOLDER, "posterior*"),
}


def find_config(name: str | Path, kind: str) -> str:
    """The file that `name` means: a path as it is, or a config that ships, by its file name or the
    part of it that is its own ("inpainting" for configs/inpainting_config.yaml).

    kind: "model", "diffusion", "task", "training", "table" or "posterior check"

    Raises UserError, naming those that ship, for a word that is neither.
    """
    name = str(name)
    folder, pattern = _KINDS[kind]
    if os.path.isfile(name) or os.path.dirname(name) not in ("", "configs", "configs/tables"):
        return name
    word = os.path.basename(name).removesuffix(".yaml")
    for stem in (word, word + pattern.partition("*")[2], f"{word}_config"):
        if (folder / f"{stem}.yaml").is_file():
            return _shown_from_here(folder / f"{stem}.yaml")
    if name != word:  # a file name, of a file that is not there
        return name
    raise UserError(f'unknown {kind} config "{name}"{did_you_mean(name, shipped(kind))}')


def readable_config(name: str | Path, kind: str) -> str:
    """find_config, of a file that can be read as YAML: command lines ask before they load torch."""
    path = find_config(name, kind)
    read_yaml(path)
    return path


def shipped(kind: str) -> list[str]:
    """Names of the configs of this kind."""
    folder, pattern = _KINDS[kind]
    stems = {path.stem for path in folder.glob(f"{pattern}.yaml")}
    if kind == "task":  # whose ending the others have, too
        stems = {s for s in stems if not s.endswith(("model_config", "diffusion_config"))}
    return sorted(s.removesuffix(pattern.partition("*")[2]) for s in stems)


def _shown_from_here(path: Path) -> str:
    """From the project's own folder as people write it, configs/NAME; else absolute."""
    return str(path.relative_to(PROJECT)) if Path.cwd() == PROJECT else str(path)


def config_path(path: Any, where: str | Path) -> Any:
    """A path that stands in the config file `where`: relative ones are the user's, from the
    working folder, but those in the configs that ship belong to the project."""
    ships = _FOLDER in Path(os.path.realpath(where)).parents and Path.cwd() != PROJECT
    relative = isinstance(path, str) and path and not os.path.isabs(path)
    return str(PROJECT / path) if ships and relative else path
