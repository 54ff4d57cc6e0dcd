"""Operators made of others: A = A_n ... A_2 A_1."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from torch import Tensor

from guided_diffusion.operator_base import OPERATORS, LinearOperator, Operator, OperatorContext
from util.errors import UserError
from util.randomness import ImageKey


class Chain(Operator):
    """The parts one after the other, each on what the one before it measures."""

    def __init__(self, parts: Sequence[Any], context: OperatorContext) -> None:
        super().__init__(context)
        self.parts = parts

    @property
    def title(self) -> str:
        return " + ".join(part.title for part in self.parts)

    @property
    def differs_by_image(self) -> bool:
        return any(part.differs_by_image for part in self.parts)

    @property
    def scale_factor(self) -> int:
        """Pixels of the image along one pixel of the measurement."""
        factors = [getattr(part, "scale_factor", 1) for part in self.parts]
        return int(np.prod(factors))

    def __call__(self, x: Tensor) -> Tensor:
        return reduce(lambda z, part: part(z), self.parts, x)

    def bind(self, keys: Sequence[ImageKey]) -> Operator:
        bound = [part.bind(keys) for part in self.parts]
        same = all(a is b for a, b in zip(bound, self.parts, strict=True))
        return self if same else _chained(bound, self.context)

    def join(self, others: Sequence[Any]) -> Operator:
        if all(other is self for other in others):
            return self
        rest = zip(*(other.parts for other in others), strict=True)
        joined = [part.join(list(o)) for part, o in zip(self.parts, rest, strict=True)]
        return _chained(joined, self.context)

    def take(self, images: Sequence[int]) -> Operator:
        return _chained([part.take(images) for part in self.parts], self.context)

    def initial(self, y: Tensor) -> Tensor | None:
        for part in reversed(self.parts):
            enlarged = part.initial(y)
            if enlarged is None:
                return None
            y = enlarged
        return y

    def from_picture(self, picture: Tensor) -> Tensor:
        return self.parts[-1].from_picture(picture)

    def view(self, y: Tensor) -> Tensor:
        return self.parts[-1].view(y)

    def saved(self) -> dict[str, np.ndarray]:
        return {
            f"{stem}_{i}": array
            for i, part in enumerate(self.parts, 1)
            for stem, array in part.saved().items()
        }

    def saved_per_image(self) -> list[dict[str, np.ndarray]]:
        found = [part.saved_per_image() for part in self.parts]
        return next((arrays for arrays in found if arrays), [])


class LinearChain(Chain, LinearOperator):
    """Linear parts."""

    def adjoint(self, y: Tensor) -> Tensor:
        return reduce(lambda z, part: part.adjoint(z), reversed(self.parts), y)


def _chained(parts: Sequence[Any], context: OperatorContext) -> Operator:
    return (LinearChain if all(part.linear for part in parts) else Chain)(parts, context)


@OPERATORS.register("chain")
def chain(parts: list[dict[str, Any]], *, context: OperatorContext) -> Operator:
    """Several operators, the first one nearest to the image.

    parts: sections like `operator` itself, each with a name and its keys
    """
    if len(parts) < 2:
        raise UserError("chain: parts: at least two operators are needed")
    if context.build_part is None:
        raise UserError("chain: needs the operators of its parts (OperatorContext.build_part)")
    built: list[Operator] = []
    size = (context.height, context.width)
    for number, part in enumerate(parts, 1):
        own = replace(context, height=size[0], width=size[1], part=number)
        built.append(context.build_part(part, own))
        if len(built) == len(parts):
            break
        if built[-1].differs_by_image:
            raise UserError(
                f"chain: {built[-1].title} differs from image to image; it must be the last part"
            )
        shape = built[-1](built[-1].context.empty()).shape
        if len(shape) != 4 or shape[1] != context.channels:
            kind = "colour" if context.channels == 3 else "grey"
            raise UserError(
                f"chain: {built[-1].title} does not measure {kind} images; it must be the last part"
            )
        size = (shape[2], shape[3])
    return _chained(built, context)
