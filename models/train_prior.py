"""Train a diffusion prior on a folder of photographs.

    python -m models.train_prior configs/train_demo_prior.yaml --data_root PHOTOGRAPHS
    python -m models.train_prior configs/train_demo_prior.yaml --set iterations=200000 --device cuda

Started again, a run continues from the checkpoint in its run_dir. models/training.py says what is
computed.
"""

import sys

from models.train_config import TrainConfig
from util.cli import add_device, command_parser, report_errors, resolve_device
from util.config.overrides import apply_overrides
from util.config.schema import parse_dataclass, read_yaml
from util.config.shipped import config_path, find_config


@report_errors
def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument("config", help="YAML file, for example configs/train_demo_prior.yaml")
    parser.add_argument("--data_root", help="folder of photographs (overrides the config)")
    add_device(parser)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a config key"
    )
    args = parser.parse_args(argv)
    args.config = find_config(args.config, "training")
    raw = read_yaml(args.config)
    if "model_config" in raw:
        raw["model_config"] = config_path(raw["model_config"], args.config)
    apply_overrides(raw, args.set)
    if args.data_root:
        raw["data_root"] = args.data_root
    config = parse_dataclass(TrainConfig, raw, args.config)
    config.check()
    from models.training import train  # torch, which takes seconds

    train(config, resolve_device(args.device))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
