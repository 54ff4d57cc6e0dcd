"""Where a prior comes from: what a model config says, before any weights are read.

To add a kind, register a class whose keyword arguments are the keys of its model config, those of
`prior` aside. The kinds that ship are in models/priors/.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from util.hashing import path_mark, settings_hash
from util.randomness import ImageKey
from util.registry import Registry


class Pretrained:
    """A network that somebody trained, and the process that it was trained with.

    Making one checks its settings and reads no weights; UserError says what is wrong with them.
    """

    image_size: int  # side of the images that it was trained on, pixels
    channels: int = 3  # of its images: 3, or 1 for grey ones
    use_fp16: bool = False  # the model config asks for float16

    def size_multiple(self) -> int:
        """Sides of images must be multiples of this."""
        return 1

    @property
    def learns_variance(self) -> bool:
        """Whether twice as many channels come out: also the weights of the variance."""
        return False

    def load(self) -> nn.Module:
        """The network with its weights, float32, on the CPU, in evaluation mode.

        It takes (x_t [B, channels, H, W], timesteps [B]), the timesteps on the scale that it was
        trained with, fractions included, and gives [B, channels, H, W], with learned variances
        [B, 2 channels, H, W]. Where it has `set_precision(dtype)`, that makes it compute in another
        format; inputs and outputs stay float32.
        """
        raise NotImplementedError

    def process(self, options: Mapping[str, Any]) -> GaussianDiffusion:
        """The process, respaced.

        options: of the diffusion config, keyword arguments of GaussianDiffusion.create; a kind
          that knows its process takes only what is not a matter of training from them
        """
        return GaussianDiffusion.create(**options)

    def labels(self, keys: Sequence[ImageKey]) -> list[int] | None:
        """What the network is told of each image, a third argument [B], int64; None: nothing."""
        return None

    @property
    def files(self) -> Sequence[Path]:
        """What decides the network, together with `settings`."""
        return ()

    def settings(self) -> dict[str, Any]:
        """Everything else that decides its values, defaults filled in. A kind that does not define
        it is told by the keys of its model config, files that they name by what these hold."""
        return {}

    def mark(self) -> str:
        """Mark of what the files hold, for the records of a run; OSError where one is missing."""
        marks = [path_mark(path) for path in self.files]
        return marks[0] if len(marks) == 1 else f"files {settings_hash({'files': marks})}"


PRIORS: Registry[Pretrained] = Registry("prior")
