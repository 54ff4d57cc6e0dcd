"""What a prior has to beat: the measurement itself, and the classical method of each task.

Measurements are y [B, ...] of images in [-1, 1]; baselines return [B, 3, H, W].
"""

from torch import Tensor

from guided_diffusion.measurements import Operator
from util.errors import UnsupportedError
from util.registry import Registry

BASELINES: Registry[Tensor] = Registry("baseline", frozenset({"y", "operator"}))


@BASELINES.register("measurement")
def measurement(y: Tensor, operator: Operator) -> Tensor:
    """y as an image; smaller ones are enlarged by nearest neighbour."""
    image = operator.initial(y)
    if image is None:
        raise UnsupportedError(f"{operator.title}: the measurement is not an image")
    return image


@BASELINES.register("classical")
def classical(y: Tensor, operator: Operator) -> Tensor:
    """The usual method without a learned prior for this operator."""
    image = operator.classical(y)
    if image is None:
        raise UnsupportedError(f"{operator.title}: no classical method")
    return image
