"""What a prior has to beat: the measurement itself, and the classical method of each task.

Measurements are y [B, ...] of images in [-1, 1] with noise of `sigma` (a number, or one for each
image); baselines return [B, 3, H, W].
"""

from torch import Tensor

from guided_diffusion.measurements import Operator
from util.errors import UnsupportedError
from util.registry import Registry

BASELINES: Registry[Tensor] = Registry("baseline", frozenset({"y", "operator", "sigma"}))


@BASELINES.register("measurement")
def measurement(y: Tensor, operator: Operator, sigma: float | Tensor) -> Tensor:
    """y as an image; smaller ones are enlarged by nearest neighbour."""
    image = operator.initial(y)
    if image is None:
        raise UnsupportedError(f"{operator.title}: the measurement is not an image")
    return image


@BASELINES.register("classical")
def classical(y: Tensor, operator: Operator, sigma: float | Tensor) -> Tensor:
    """The usual method without a learned prior for this operator."""
    image = operator.classical(y)
    if image is None:
        raise UnsupportedError(f"{operator.title}: no classical method")
    return image


@BASELINES.register("inverse")
def inverse(y: Tensor, operator: Operator, sigma: float | Tensor) -> Tensor:
    """What methods with init: inverse start from: for linear operators the linear estimate of least
    squared error for natural images."""
    image = operator.inverse(y, sigma)
    if image is None:
        raise UnsupportedError(f"{operator.title}: no inverse")
    return image
