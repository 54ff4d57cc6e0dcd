"""--set KEY=VALUE: changes of configs from the command line."""

from collections.abc import Sequence
from typing import Any

from util.config.schema import parse_yaml
from util.errors import UserError
from util.files import shown


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `A.B.C=VALUE` in nested mapping `raw`; VALUE is YAML. Whether the key is known is
    checked when the config is."""
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise UserError(
                f'--set {shown(override)}: expected KEY=VALUE, for example "data.limit=3"'
            )
        section = raw
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise UserError(f'--set {override}: "{key}" is a single value, not a section')
        section[keys[-1]] = parse_yaml(text, f"--set {shown(override)}")
