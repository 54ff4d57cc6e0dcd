"""From checked arguments to the tables that they describe."""

import argparse
import dataclasses

from util.errors import UserError
from util.tables.spec import TableSpec, check_spec, load_spec


def load_table(path: str, args: argparse.Namespace) -> TableSpec:
    """The table config with the command line's changes; plug-ins were loaded before."""
    spec = load_spec(path)
    changes = {
        name: getattr(args, name)
        for name in ("limit", "seeds", "batch_size", "precision", "metrics")
        if getattr(args, name) is not None
    }
    if args.data_root is not None:
        changes["data"] = {**(spec.data or {}), "name": "folder", "root": args.data_root}
    for override in args.overrides:
        if override.strip().startswith("task.conditioning"):
            raise UserError(
                f"--set {override}: the rows of a table decide methods and parameters; edit {path}"
            )
    steps = [] if args.steps is None else [f"diffusion.num_steps={args.steps}"]
    kept = [o for o in spec.set if not steps or not o.startswith("diffusion.timestep_respacing")]
    changes["set"] = [*kept, *steps, *args.overrides]
    spec = dataclasses.replace(spec, **changes)
    check_spec(spec, path)
    return spec
