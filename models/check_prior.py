"""Look at a prior: validation loss by noise level, denoising, unconditional samples.

    python -m models.check_prior --photographs PHOTOGRAPHS --save_dir results/prior
    python -m models.check_prior --model_config faces64 --sizes 64 --count 64 \\
        --training FACES --holdout 40

Writes denoising_K.png (a photograph, then pairs of noisy image and x0_hat at rising timesteps) and
samples_SIZE.png, and prints the mean squared noise error by timestep. PHOTOGRAPHS should not have
been trained on. With --training, neighbours.png shows samples beside the photographs that they are
nearest to, and the distances tell whether these were learned by heart.
"""

import sys
from collections.abc import Sequence

from util.cli import add_device, command_parser, report_errors
from util.config.shipped import readable_config


@report_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--model_config", default="configs/demo_model_config.yaml", help="network")
    add("--diffusion_config", default="configs/diffusion_config.yaml", help="process and sampler")
    add("--photographs", help="folder; without it: samples alone")
    add("--limit", type=int, help="the first N photographs")
    add("--shown", type=int, default=3, help="photographs denoised")
    add("--respacing", default="100", help="steps of the samples")
    add("--sizes", type=int, nargs="+", default=[128, 256], help="of samples")
    add("--count", type=int, default=4, help="samples of each size")
    add("--training", help="folder of the photographs that it was trained on")
    add("--holdout", type=int, default=0, help="how many of them the training held out")
    add("--save_dir", default="results/prior", help="where the pictures go")
    add_device(parser)
    args = parser.parse_args(argv)
    args.model_config = readable_config(args.model_config, "model")
    args.diffusion_config = readable_config(args.diffusion_config, "diffusion")
    from models.validation import check  # torch, which takes seconds

    check(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
