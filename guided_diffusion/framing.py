"""Images inside a larger frame: sizes the network cannot take, and borders left out of y."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from guided_diffusion.measurements import LinearOperator, Operator
from guided_diffusion.noise_models import at_least
from util.errors import UserError
from util.resizer import fold_reflect

# As a sigma of the measurement. A photograph blurred by the camera's motion, its kernel read off
# the spectrum, rings at 0.01 and does not from 0.05 to 0.2.
_KERNEL_ERROR = 0.05


@dataclass(frozen=True)
class Frame:
    """An image of height x width centred in a frame of full_height x full_width."""

    height: int
    width: int
    full_height: int
    full_width: int

    @classmethod
    def fitting(cls, height: int, width: int, least: int, multiple: int) -> "Frame":
        """The smallest frame with sides of at least `least` that are multiples of `multiple`."""
        full = [-(-max(side, least) // multiple) * multiple for side in (height, width)]
        return cls(height, width, *full)

    @property
    def top(self) -> int:
        return (self.full_height - self.height) // 2

    @property
    def left(self) -> int:
        return (self.full_width - self.width) // 2

    @property
    def is_trivial(self) -> bool:
        return (self.height, self.width) == (self.full_height, self.full_width)

    def cut(self, x: Tensor) -> Tensor:
        """The image [..., height, width] in x [..., full_height, full_width]."""
        rows = slice(self.top, self.top + self.height)
        return x[..., rows, self.left : self.left + self.width]

    def fill(self, image: Tensor) -> Tensor:
        """The image with its reflection around it, as often as the frame asks for."""
        rows, columns = (
            torch.as_tensor(fold_reflect(np.arange(full) - first, side), device=image.device)
            for full, first, side in (
                (self.full_height, self.top, self.height),
                (self.full_width, self.left, self.width),
            )
        )
        return image[..., rows, :][..., columns]


def cut_border(y: Tensor, border: int) -> Tensor:
    """y [..., h, w] without its `border` outermost pixels; UserError where nothing is left."""
    height, width = y.shape[-2:]
    if 2 * border >= min(height, width):
        raise UserError(f"a border of {border} leaves nothing of a measurement {width}x{height}")
    return y[..., border : height - border, border : width - border]


class FramedOperator(LinearOperator):
    """A linear `inner` on the image inside a frame, the `border` outermost pixels of y left out.

    Two cuts around A: what lies in the frame outside the image is not measured and does not
    count, and the operator stays linear. The border is for real blurs, whose
    outermost pixels hold light from outside the picture that no reflection tells of.
    """

    def __init__(self, inner: Operator, frame: Frame, border: int = 0) -> None:
        if not inner.linear:
            raise UserError(f"{inner.title}: is not linear, so its images cannot be framed")
        context = replace(inner.context, height=frame.full_height, width=frame.full_width)
        super().__init__(context)
        self.inner, self.frame, self.border = inner, frame, border

    @property
    def title(self) -> str:
        return f"{self.inner.title} of images that do not fill the network's input"

    def __call__(self, x: Tensor) -> Tensor:
        return cut_border(self.inner(self.frame.cut(x)), self.border)

    def initial(self, y: Tensor) -> Tensor | None:
        b = self.border
        image = self.inner.initial(F.pad(y, (b, b, b, b), mode="replicate"))
        return None if image is None else self.frame.fill(image)

    def inverse(self, y: Tensor, sigma: float | Tensor) -> Tensor:
        """A border is left out of real blurs, whose kernels are known roughly: what they miss acts
        like noise."""
        return super().inverse(y, at_least(sigma, _KERNEL_ERROR) if self.border else sigma)

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The inner projection inside the frame; with a border, a step along the adjoint."""
        if self.border:
            return super().project(x, y)
        moved = self.inner.project(self.frame.cut(x), y)
        down = (self.frame.top, self.frame.full_height - self.frame.top - self.frame.height)
        across = (self.frame.left, self.frame.full_width - self.frame.left - self.frame.width)
        return x + F.pad(moved - self.frame.cut(x), (*across, *down))
