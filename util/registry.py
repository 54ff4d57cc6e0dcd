"""Named choices of a config: one registry per kind of component, one way to look names up.

The keyword arguments of a registered class or function are its config keys: their annotations
give the types, their defaults the values of keys that a config leaves out. Arguments named in
`provided` come from the program instead.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints

from util.errors import UserError

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`(did you mean "x"?) known: a, b, x`, for error messages."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f' (did you mean "{near[0]}"?)' if near else ""
    return f"{hint}; known: {', '.join(known) if known else 'none'}"


@dataclass(frozen=True)
class ConfigKey:
    """One config key of a component: its name, annotated type and default."""

    name: str
    type: Any
    required: bool
    default: Any


def config_keys(entry: Callable[..., Any]) -> dict[str, ConfigKey]:
    """The arguments of a class or function as config keys."""
    described: Any = entry
    hints = get_type_hints(described.__init__ if isinstance(entry, type) else entry)
    return {
        key: ConfigKey(key, hints.get(key, Any), p.default is Parameter.empty, p.default)
        for key, p in signature(entry).parameters.items()
    }


@dataclass
class Registry(Generic[T]):
    """Components of one `kind` ("operator", "noise", ...) by the name used in configs."""

    entries: ClassVar[int] = 0  # of all registries together

    kind: str
    provided: frozenset[str] = frozenset()
    meant: Mapping[str, str] = field(default_factory=dict)  # other names -> those that are meant
    _entries: dict[str, Callable[..., T]] = field(default_factory=dict)

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Class or function decorator that files its object under `name`."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")

        def decorate(entry: Callable[..., T]) -> Callable[..., T]:
            self._entries[name] = entry
            Registry.entries += 1
            return entry

        return decorate

    def names(self) -> list[str]:
        return sorted(self._entries)

    def get(self, name: str, where: str = "") -> Callable[..., T]:
        """The entry called `name`; UserError naming the known ones if there is none."""
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            prefix, meant = f"{where}: " if where else "", self.meant.get(str(name))
            hint = f' (did you mean "{meant}"?)' if meant else did_you_mean(name, self._entries)
            raise UserError(f'{prefix}unknown {self.kind} "{name}"{hint}') from None

    def keys(self, name: str) -> Mapping[str, ConfigKey]:
        """Config keys of the entry called `name`."""
        keys = config_keys(self.get(name))
        return {key: value for key, value in keys.items() if key not in self.provided}
