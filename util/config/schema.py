"""YAML files to typed objects, checked once: unknown keys, missing keys and wrong types are
reported with the place they stand at and what is allowed there."""

import dataclasses
import math
import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from util.errors import UserError
from util.files import read_bytes, shown
from util.registry import ConfigKey, Registry, config_keys, did_you_mean

T = TypeVar("T")


_DEEPEST = 50  # sections inside sections
_MOST_VALUES = 100_000  # of a config, those that an alias repeats counted again
_LARGEST = 1 << 20  # bytes of a config


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads `!!python/tuple`, which the published configs use, and that
    refuses a key which stands twice in a section, and sections without end."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _DEEPEST:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="nested too deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                line = seen[key.value]
                raise yaml.MarkedYAMLError(
                    problem=f'key "{key.value}" stands here and in line {line}; keep one of them',
                    problem_mark=key.start_mark,
                )
            if isinstance(key, yaml.ScalarNode):
                seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as error:
            problem = f'"{str(node.value)[:50]}" cannot be read ({type(error).__name__})'
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def _construct_tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _construct_tuple)


def parse_yaml(text: str, where: str) -> Any:
    """The value that YAML `text` stands for; plain data and tuples only.

    Raises UserError for broken YAML, for tags that would build other objects, and for a key that
    stands twice in a section.
    """
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.constructor.ConstructorError as error:
        raise UserError(
            f"{where}: {_at(error.problem_mark)}{error.problem}; only plain values, lists and "
            "!!python/tuple are read"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "unreadable characters"
        syntax = type(error) is not yaml.MarkedYAMLError
        raise UserError(f"{where}: {_at(mark)}{'not valid YAML: ' * syntax}{problem}") from None
    _check_count(value, where)
    return value


def _check_count(value: Any, where: str) -> None:
    """UserError where aliases make a value that is larger than any config, or without end."""
    waiting, count = [value], 0
    while waiting:
        part = waiting.pop()
        count += 1
        if isinstance(part, dict | list | tuple):
            waiting += part.values() if isinstance(part, dict) else part
        if count + len(waiting) > _MOST_VALUES:
            raise UserError(f"{where}: more than {_MOST_VALUES:,} values, aliases counted in")


def _at(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError if it is missing, broken or no mapping."""
    if not os.path.lexists(path):
        raise UserError(f"{shown(path)}: no such config file")
    try:
        text = read_bytes(path, _LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys and values, got {_describe(raw)}")
    return raw


def parse_dataclass(cls: type[T], raw: Any, where: str) -> T:
    """Build dataclass `cls` from the mapping `raw`, checking names and types."""
    return cls(**parse_keys(config_keys(cls), raw, where))


def parse_keys(keys: Mapping[str, ConfigKey], raw: Any, where: str) -> dict[str, Any]:
    """Values of `raw` checked against `keys`; keys that are left out keep their defaults."""
    if raw is None:
        raw = {}
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: expected keys and values, got {_describe(raw)}")
    for name in raw:
        if name not in keys:
            raise UserError(f'{where}: unknown key "{name}"{did_you_mean(str(name), keys)}')
    missing = [key.name for key in keys.values() if key.required and key.name not in raw]
    if missing:
        raise UserError(f"{where}: missing key {', '.join(missing)}")
    return {n: convert(value, keys[n].type, f"{where}: {n}") for n, value in raw.items()}


@dataclasses.dataclass(frozen=True)
class Component:
    """A named choice with its checked settings, still to be built."""

    name: str
    params: dict[str, Any] = dataclasses.field(default_factory=dict)

    def build(self, registry: Registry[T], **provided: Any) -> T:
        """The object, with what the program (not the config) hands to it."""
        return registry.get(self.name)(**self.params, **provided)

    def settings(self, registry: Registry[Any]) -> dict[str, Any]:
        """All settings; those that are left out have their defaults."""
        keys = registry.keys(self.name)
        return {name: self.params.get(name, key.default) for name, key in keys.items()}


def check_names(items: Sequence[Any], where: str) -> None:
    """UserError unless there are `items`, and each has a `name` of its own."""
    names = [item.name for item in items]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{where}: at least one is needed, and names must differ")


def check_least(config: Any, where: str, **least: float) -> None:
    """UserError where an attribute of `config` is below its least value; None is not."""
    for name, value in least.items():
        given = getattr(config, name)
        if given is not None and given < value:
            raise UserError(f"{where}: {name} must be at least {value}, got {given}")


def parse_component(registry: Registry[Any], name: Any, raw: Any, where: str) -> Component:
    """`name` from `registry` with the settings in `raw`."""
    registry.get(name, where)
    return Component(name, parse_keys(registry.keys(name), raw, f"{where} ({name})"))


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type `hint`; UserError saying what is allowed."""
    if hint is Any:
        return value
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, get_args(hint), where)
    if origin is Literal:
        if value not in get_args(hint):
            known = did_you_mean(value, get_args(hint))
            raise UserError(f'{where}: unknown value "{value}"{known}')
        return value
    if origin in (tuple, list, dict):
        return _convert_collection(value, hint, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return parse_dataclass(hint, value, where)
    return _convert_scalar(value, hint, where)


def _convert_union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(o for o in options if o is not type(None))
    # An exact type first: 16 stays an int for int | str, "16" a string.
    for option in sorted(options, key=lambda o: type(value) is not o):
        try:
            return convert(value, option, where)
        except UserError as error:
            failure = error
    if len(options) == 1:
        raise failure
    allowed = " or ".join(_type_name(o) for o in options)
    raise UserError(f"{where}: expected {allowed}, got {_describe(value)}")


def _convert_collection(value: Any, hint: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: expected keys and values, got {_describe(value)}")
        return {k: convert(v, args[1], f"{where}: {k}") for k, v in value.items()}
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: expected {_type_name(hint)}, got {_describe(value)}")
    if origin is tuple and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise UserError(f"{where}: expected {len(args)} values, got {len(value)}")
        return tuple(convert(v, a, where) for v, a in zip(value, args, strict=True))
    return origin(convert(v, args[0], where) for v in value)


def _convert_scalar(value: Any, hint: type, where: str) -> Any:
    if hint is float and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-4 (no dot) as a string
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif type(value) is hint:
        return value
    raise UserError(f"{where}: expected {_type_name(hint)}, got {_describe(value)}")


_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
}


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (tuple, list):
        args = [a for a in get_args(hint) if a is not Ellipsis]
        return f"a list of {_type_name(args[0]).removeprefix('a ')}s"
    return _TYPE_NAMES.get(hint, getattr(hint, "__name__", str(hint)))


_SHOWN = 200  # characters of a value in a message


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "keys and values"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
