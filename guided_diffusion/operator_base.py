"""What all measurement operators share: their context, their interface and their registry.

The operators themselves are in measurements.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.masks import MaskConfig
from guided_diffusion.natural_images import wiener
from guided_diffusion.pullback import pullback
from guided_diffusion.spectra import CUTOFF, SeparableFactors, Spectrum
from util.errors import UserError
from util.randomness import ImageKey
from util.registry import Registry


@dataclass(frozen=True)
class OperatorContext:
    """What the program tells an operator: the images it will see and where they live."""

    height: int
    width: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    seed: int = 0  # of what is drawn once per run (motion kernel)
    channels: int = 3  # of the images: 3, or 1 for grey ones
    part: int = 1  # of a chain: two alike must not draw the same
    mask: MaskConfig | None = None  # the task's mask_opt
    # Options file -> network, for an operator that is one (nonlinear_blur)
    load_network: Callable[[str], nn.Module] | None = None
    # (a section `operator` of a config, context) -> that operator, for one that has parts (chain)
    build_part: Callable[[Any, "OperatorContext"], "Operator"] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image."""
        return self.channels, self.height, self.width

    def empty(self) -> Tensor:
        """One image without anything in it, [1, channels, height, width]."""
        return torch.zeros(1, *self.shape, dtype=self.dtype, device=self.device)

    def tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array), dtype=self.dtype, device=self.device)


class Operator:
    """A differentiable measurement operator A.

    All that one has to define is `__call__`: for images x [..., 3, H, W], measurements [..., *] of
    any shape, real numbers (complex ones as pairs), each from its own image alone.
    """

    linear = False

    def __init__(self, context: OperatorContext) -> None:
        self.context = context

    @property
    def title(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def __call__(self, x: Tensor) -> Tensor:
        """A(x)."""
        raise NotImplementedError

    @property
    def differs_by_image(self) -> bool:
        """Whether it has to be bound to its images."""
        return type(self).bind is not Operator.bind

    def bind(self, keys: Sequence[ImageKey]) -> "Operator":
        """The operator for these images; most are the same for all. One that is not defines
        `join` and `take` as well."""
        return self

    def join(self, others: Sequence["Operator"]) -> "Operator":
        """One operator for a batch, from those of its images: this one the first's, `others`
        the rest's. UserError where they differ and this kind does not say how to join them."""
        if any(other is not self for other in others):
            raise UserError(
                f"{type(self).__name__}: differs from image to image and has no join(); restore "
                "them one at a time (--batch_size 1)"
            )
        return self

    def take(self, images: Sequence[int]) -> "Operator":
        """The operator for some images, by number, of those that it is bound to."""
        if self.differs_by_image:
            raise UserError(
                f"{type(self).__name__}: differs from image to image and has no take(); restore "
                "them one at a time"
            )
        return self

    def initial(self, y: Tensor) -> Tensor | None:
        """An image [B, 3, H, W] to start the aligned initialisation from; None: there is none."""
        c = self.context
        return y if y.shape[1:] == c.shape else None

    def from_picture(self, picture: Tensor) -> Tensor:
        """The measurement that a picture file [3, h, w] holds."""
        return picture

    def classical(self, y: Tensor) -> Tensor | None:
        """The image [B, 3, H, W] that the usual method without a learned prior restores from y;
        None: there is none for this operator."""
        return None

    def inverse(self, y: Tensor, sigma: float | Tensor) -> Tensor | None:
        """An image [B, 3, H, W] without what A did, as near as can be told without a network;
        None: there is none.

        sigma: of the noise of y, a number or one for each image, [B, 1, 1, 1]
        """
        return self.initial(y)

    def linearised(self, x: Tensor) -> "LinearOperator | Linearised":
        """The derivative of A at x [B, 3, H, W]."""
        return Linearised(self, x.detach())

    def measured_values(self, y: Tensor) -> Tensor:
        """1 where the value of y [B, ...] tells of the image, 0 elsewhere (a dropped pixel)."""
        return torch.ones_like(y)

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """x moved towards the images that measure as y (projection and MCG methods)."""
        raise NotImplementedError

    def view(self, y: Tensor) -> Tensor:
        """Measurements [B, ...] as images [B, 3, h, w] in [-1, 1] to look at. What is no image
        becomes a grey chart of its values, in rows, each measurement stretched to the range."""
        if y.ndim == 4 and y.shape[1] in (1, 3):
            return y.expand(-1, 3, -1, -1)
        flat = y.flatten(1)
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        flat = 2 * (flat - low) / (high - low).clamp(min=1e-12) - 1
        width = y.shape[-1] if y.ndim > 2 else max(1, round(flat.shape[1] ** 0.5))
        rows = -(-flat.shape[1] // width)
        padded = torch.nn.functional.pad(flat, (0, rows * width - flat.shape[1]), value=-1.0)
        return padded.view(-1, 1, rows, width).expand(-1, 3, -1, -1)

    def saved(self) -> dict[str, np.ndarray]:
        """Arrays of the run (kernel) to keep beside the results, by file name stem."""
        return {}

    def saved_per_image(self) -> list[dict[str, np.ndarray]]:
        """Arrays of each image of a bound batch (mask), by file name stem."""
        return []


class Linearised:
    """The derivative J of an operator at x [B, 3, H, W], as a linear operator.

    The operator is run once; every operation that has a second derivative will do.
    """

    def __init__(self, operator: Operator, x: Tensor) -> None:
        with torch.enable_grad():
            self._x = x.detach().requires_grad_()
            self._measured = operator(self._x)
            self._u = torch.zeros_like(self._measured).requires_grad_()
            # J^T u, kept as a function of u: its own derivative by u is J.
            self._pulled = pullback(self._measured, self._x, self._u, create_graph=True)

    def __call__(self, v: Tensor) -> Tensor:
        """J v."""
        return pullback(self._pulled, self._u, v, retain_graph=True)

    def adjoint(self, u: Tensor) -> Tensor:
        """J^T u."""
        return pullback(self._measured, self._x, u, retain_graph=True)


class LinearOperator(Operator):
    """A linear operator; candidates are scored on A(noise) alone."""

    linear = True

    def linearised(self, x: Tensor) -> "LinearOperator":
        return self

    def inverse(self, y: Tensor, sigma: float | Tensor) -> Tensor:
        """The linear estimate of least squared error for natural images."""
        return wiener(self, y, self.context.shape, sigma)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y [B, 3, H, W] for y [B, ...], the exact transpose of the forward computation."""
        shape = (len(y), *self.context.shape)
        x = torch.zeros(shape, dtype=y.dtype, device=y.device, requires_grad=True)
        with torch.enable_grad():
            return pullback(self(x), x, y)

    def measured_values(self, y: Tensor) -> Tensor:
        x = torch.rand(1, *self.context.shape, generator=torch.Generator().manual_seed(0)) + 1
        return (self(x.to(y)) != 0).to(y).expand_as(y)

    @property
    def has_spectrum(self) -> bool:
        """Whether `spectrum` is known; asked before an operator is bound to its images."""
        return type(self).spectrum is not LinearOperator.spectrum

    def spectrum(self, cutoff: float = CUTOFF) -> Spectrum | None:
        """Singular values and bases; None where they are not known in closed form.

        Values up to `cutoff` times the largest count as zero.
        """
        return None

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        return x - self.adjoint(self(x) - y)


class SeparableOperator(LinearOperator):
    """A x = R x C^T: one small matrix for the rows, one for the columns."""

    def __init__(self, context: OperatorContext, rows: np.ndarray, columns: np.ndarray) -> None:
        super().__init__(context)
        self.rows, self.columns = context.tensor(rows), context.tensor(columns)
        self._columns_t = self.columns.T.contiguous()
        self._factors = SeparableFactors(self.rows, self.columns)

    def __call__(self, x: Tensor) -> Tensor:
        return self.rows @ x @ self._columns_t

    def adjoint(self, y: Tensor) -> Tensor:
        return self.rows.T @ y @ self.columns

    def spectrum(self, cutoff: float = CUTOFF) -> Spectrum:
        return self._factors.spectrum(cutoff)


OPERATORS: Registry[Operator] = Registry("operator", frozenset({"context", "masks"}))
