"""--set KEY=VALUE: changes of configs from the command line."""

import json
import re
from collections.abc import Sequence
from typing import Any

from util.config.schema import parse_yaml
from util.errors import UserError
from util.files import shown

# What YAML does not take as it is; outside of it is nothing beyond the first 65536 characters.
_ESCAPED = re.compile("[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def override_of(key: str, value: Any) -> str:
    """KEY=VALUE for apply_overrides, whatever characters `value` has."""
    text = json.dumps(value, ensure_ascii=False)  # JSON is YAML that quotes every path in it
    return f"{key}={_ESCAPED.sub(_escape, text)}"


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `A.B.C=VALUE` in nested mapping `raw`; VALUE is YAML. Whether the key is known is
    checked when the config is."""
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise UserError(
                f'--set {shown(override)}: expected KEY=VALUE, for example "diffusion.num_steps=50"'
            )
        section = raw
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise UserError(f'--set {override}: "{key}" is a single value, not a section')
        section[keys[-1]] = parse_yaml(text, f"--set {shown(override)}")
