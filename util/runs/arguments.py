"""The command line of sample_condition.py."""

import argparse

from util.cli import PRECISION_NAMES, add_plugin, add_set, command_parser
from util.config.shipped import readable_config, shipped
from util.errors import UserError


def parse_args(argv: list[str] | None, text: str) -> argparse.Namespace:
    """Checked arguments; `text` is the program's docstring, one line and then examples."""
    parser = command_parser(text)
    _add_config(parser.add_argument_group("what to do"))
    _add_images(parser.add_argument_group("images and measurements"))
    _add_running(parser.add_argument_group("how to run"))
    _add_output(parser.add_argument_group("output"))
    args = parser.parse_args(argv)
    _find_configs(args)
    if args.gpu is not None and args.device is not None:
        raise UserError("--gpu and --device say the same thing; give one of them")
    if args.batch_size is None:
        args.batch_size = "auto" if args.fast else "1"
    args.batch_size = _batch_size(args.batch_size)
    for name, least in (("limit", 1), ("gpu", 0), ("border", 0), ("samples", 1), ("steps", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")
    return args


def _add_config(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--task_config",
        "--task",
        required=True,
        metavar="NAME|FILE",
        help=f"operator, noise, method, data: {', '.join(shipped('task'))}, or a file",
    )
    add(
        "--model_config",
        metavar="NAME|FILE",
        help="network and checkpoint (left out: the prior that ships)",
    )
    add(
        "--diffusion_config",
        metavar="NAME|FILE",
        help="process and sampler (left out: with the prior that ships its own, else the "
        "published one)",
    )
    add(
        "--steps",
        type=int,
        metavar="N",
        help="network evaluations of an image, 10 to 1000: more time, finer results; start and "
        "guidance follow by themselves (diffusion.num_steps)",
    )
    add_set(group)
    add_plugin(group)
    add("--seed", type=int, default=0, help="seed of all random numbers")
    add(
        "--measurement_seed",
        type=int,
        metavar="SEED",
        help="seed of kernel, mask and noise, to restore one measurement several times "
        "(default: --seed)",
    )
    add(
        "--samples",
        type=int,
        default=1,
        metavar="K",
        help="restore every image K times from one measurement, with the seeds --seed, --seed + 1, "
        "...: saves each, their mean and the standard deviation of every pixel",
    )


def _find_configs(args: argparse.Namespace) -> None:
    """Fill in the configs that are left out, and replace names by the files that they mean."""
    if args.diffusion_config is None:
        args.diffusion_config = "demo" if args.model_config is None else "diffusion_config"
    if args.model_config is None:
        args.model_config = "demo"
    for kind in ("model", "diffusion", "task"):
        name = f"{kind}_config"
        setattr(args, name, readable_config(getattr(args, name), kind))


def _add_images(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--data_root", metavar="DIR", help="folder of images (task.data.root)")
    add("--limit", type=int, metavar="N", help="restore the first N images only")
    add(
        "--fit",
        metavar="HOW",
        help="images of another size: crop, resize, pad or tile (task.data.fit)",
    )
    add(
        "--measurements",
        metavar="DIR",
        help="folder of degraded images to restore; there are no labels",
    )
    add("--kernel", metavar="FILE", help="blur kernel: a picture, .npy, .pt, .mat, .csv or .txt")
    add(
        "--kernel_is",
        choices=("psf", "correlation"),
        help="the blurred picture of a point, or that turned round (left out: a picture is a psf, "
        "an array a correlation kernel)",
    )
    add("--masks", metavar="PATH", help="mask, or folder of masks by image name")
    add("--mask_is", choices=("kept", "damage"), help="what is white in a mask (left out: kept)")
    add(
        "--keep_known",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="copy the pixels that a mask keeps into the result (left out: where their noise is "
        "zero, or at most 0.01 in --measurements)",
    )
    add(
        "--border",
        type=int,
        metavar="N",
        help="outermost pixels of --measurements that are left out of the data term",
    )
    add("--grey", action="store_true", help="save grey images for grey sources")
    add(
        "--output_depth",
        type=int,
        choices=(8, 16),
        default=8,
        help="bits of a value of restored images",
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--plan",
        action="store_true",
        help="say what would be restored, in what time and into how many bytes, and do nothing; a "
        "few steps of the first image are timed",
    )
    add("--gpu", type=int, metavar="N", help="CUDA device; the same as --device cuda:N")
    add("--device", help="cuda, cuda:N, mps, cpu; left out: the best there is")
    add("--batch_size", metavar="B", help="images at a time, or auto: what fits; left out: 1")
    add("--precision", choices=PRECISION_NAMES, help="of the network (default: the model config's)")
    add("--compile", action="store_true", help="run the network through torch.compile (GPUs)")
    add(
        "--fast",
        action="store_true",
        help="fastest precision and --batch_size auto; on CUDA also --compile, on a processor a "
        "kernel that is built in seconds, once, where there is a C++ compiler",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--save_dir", default="./results", metavar="DIR", help="results folder")
    add(
        "--overwrite",
        action="store_true",
        help="restore anew what is finished; results of other settings are removed",
    )
    add(
        "--record",
        metavar="every=N[,gif|mp4]",
        help="save x_t and x0_hat every N steps, and a film; left out, or none: neither",
    )
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="warnings and errors only")
    loudness.add_argument("--verbose", action="store_true", help="lines about the steps as well")


def _batch_size(text: str) -> int | None:
    """Images at a time; None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f'--batch_size {text}: expected a whole number from 1 up, or "auto"')
    return int(text)
