"""Write a prior as a folder of its own, to keep, to send or to put on a hub.

    python -m models.export faces64 --out my_prior
    python -m models.export my_model.yaml --diffusion_config my_diffusion.yaml --out my_prior \\
        --card CARD.md

The folder holds config.json, the weights as safetensors in the number format that they had,
scheduler_config.json and README.md, the model card. A model config takes it by

    prior: diffusers
    model_path: my_prior
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from util.cli import command_parser, report_errors
from util.config.shipped import readable_config
from util.errors import UserError
from util.files import read_bytes, shown

_LARGEST_CARD = 1 << 20


@report_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument("model_config", help="model config, or the name of one that ships")
    parser.add_argument("--diffusion_config", default="diffusion", help="the process it knows")
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    parser.add_argument("--card", help="text of the model card; default: what the configs tell")
    args = parser.parse_args(argv)
    model = readable_config(args.model_config, "model")
    diffusion = readable_config(args.diffusion_config, "diffusion")
    try:
        card = read_bytes(args.card, _LARGEST_CARD).decode("utf-8-sig") if args.card else None
    except UnicodeDecodeError as error:
        raise UserError(f"--card {shown(args.card)}: cannot be read as text: {error}") from None
    from models.prior_folder import export_prior  # torch, which takes seconds

    export_prior(model, diffusion, args.out, card)
    print(f"{args.out}: written; in a model config: prior: diffusers, model_path: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
