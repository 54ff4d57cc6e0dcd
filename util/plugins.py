"""Components from elsewhere: the modules of a package, and files that a command line names."""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from util.errors import UserError
from util.files import shown
from util.hashing import file_hash
from util.registry import Registry

# Plug-in files: as the command line wrote them, and the hash of what they held.
_loaded: dict[Path, tuple[str, str]] = {}


def import_all(package: str) -> None:
    """Import every module of `package`, so that what they register is known."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def optional(module: str, without: str, kind: type[UserError] = UserError) -> Any:
    """A module of a package that need not be installed; a `kind` of error that says `without`
    where it is not."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise kind(without) from None


def load_plugins(files: Sequence[str]) -> None:
    """Run these Python files, each of which registers operators, methods, noises, guidance rules,
    metrics or the like; UserError for one that cannot be run or registers nothing."""
    for file in files:
        path = Path(file).resolve()
        if path in _loaded:
            continue
        at = f"--plugin {shown(file)}"
        if path.suffix != ".py" or not path.is_file():
            raise UserError(f"{at}: expected a Python file, FILE.py, that is there")
        before = Registry.entries
        name = f"dpps_plugin_{len(_loaded)}_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UserError(f"{at}: cannot be read as a Python file")
        try:
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # dataclasses look their module up
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise UserError(f"{at}: {type(error).__name__}: {error}") from error
        if Registry.entries == before:
            raise UserError(
                f'{at}: registers nothing; put @OPERATORS.register("name") or the like before what '
                "it defines"
            )
        _loaded[path] = (str(file), file_hash(path))


def plugin_marks() -> list[str]:
    """Hashes of the plug-ins that were loaded: results depend on what they do."""
    return sorted(mark for _, mark in _loaded.values())


def plugin_files() -> list[str]:
    """The plug-ins that were loaded, as the command line named them."""
    return [file for file, _ in _loaded.values()]
