#!/usr/bin/env python3
"""Check whether methods draw from the posterior at all, with priors whose posterior is known.

Examples:

  # The check that ships; eight minutes of one core
  python -m util.check_posterior

  # One method alone, in 25 steps, without the others' rows; half a minute of one core
  python -m util.check_posterior --set 'rows=[{name: DPPS, method: dpps}]' --set 'steps=[25]'

  # One of your own, larger images, more measurements
  python -m util.check_posterior MY_CHECK.yaml --set size=32 --set runs=8

  # With a method of yours as a row
  python -m util.check_posterior MY_CHECK.yaml --plugin my_method.py

The prior is a Gaussian with the spectrum of photographs, or a mixture of such. Its exact denoiser
takes the place of the network; sampler, methods and operators run unchanged. Nothing is kept from
one call to the next; after an interruption, what was measured is written.
"""

if __package__ in (None, ""):  # run by its path: modules are found from the project's folder
    import os
    import sys

    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from util.cli import add_plugin, command_parser, report_errors
from util.config.shipped import readable_config
from util.logger import get_logger
from util.plugins import load_plugins

_NAME = "posterior"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("check", nargs="?", default="posterior", metavar="CHECK", help="the config of a check")
    add(
        "--out",
        default="results/posterior",
        metavar="FOLDER",
        help=f"where {_NAME}.md, {_NAME}.json and {_NAME}.png are written",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key of the check; repeatable",
    )
    add_plugin(parser)
    args = parser.parse_args(argv)
    args.check = readable_config(args.check, "posterior check")
    return args


@report_errors
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    return run(args, shlex.join(["python", "-m", "util.check_posterior", *words]))


def run(args: argparse.Namespace, command: str) -> int:
    """Check, and write what comes out; the exit status of the program."""
    from util.posterior.measure import CheckResult, run_check  # torch, which takes seconds
    from util.posterior.spec import load_spec
    from util.posterior.writing import check_writable, write_files

    load_plugins(args.plugins)
    result = CheckResult(load_spec(args.check, args.overrides))
    folder = Path(args.out)
    check_writable(folder)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        run_check(result)
    except KeyboardInterrupt:
        get_logger().error("interrupted; %s holds what was measured", folder)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
        if result.cases:
            write_files(folder, result, command)
    get_logger().info("wrote %s/%s.md, .json, .png", folder, _NAME)
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
