"""From the name of an image to what is to be solved for it: read, measure, find the start."""

import dataclasses
from collections.abc import Callable
from typing import Any

from data.dataloader import Dataset, Photograph
from guided_diffusion.condition_methods import ConditioningMethod
from guided_diffusion.framing import Frame, FramedOperator
from guided_diffusion.measurements import Operator
from guided_diffusion.sampling import Prior
from util.errors import UserError
from util.logger import get_logger
from util.runs.problems import Case, ProblemBuilder
from util.runs.sources import Sources

_READINGS = 3  # of an image whose files change meanwhile

# An image, and what marks the files that it is made from; the mark is taken before, so that one
# can tell whether they changed meanwhile.
Read = Callable[[], tuple[Photograph, dict[str, Any]]]


class Measuring:
    """Makes Cases of a data set's images; `method` says from what guess their sampling begins."""

    def __init__(
        self,
        dataset: Dataset,
        sources: Sources,
        builder: ProblemBuilder,
        prior: Prior,
        method: ConditioningMethod,
    ) -> None:
        self.dataset, self.sources, self.builder = dataset, sources, builder
        self.prior, self.method = prior, method
        self._starts: dict[tuple[int, int], int | None] = {}  # by size

    def read(self, name: str) -> tuple[Photograph, dict[str, Any]]:
        """The image called `name` and its mark, see Read."""
        mark = self.sources.mark(name)
        return self.dataset.read(name), mark

    def case(self, name: str, read: Read | None = None) -> Case:
        """The image called `name`, measured; UserError where it cannot be.

        read: gives it, if it is read already
        """
        for _ in range(_READINGS):
            photograph, mark = read() if read is not None else self.read(name)
            read = None
            case = self.builder.measure(name, photograph)
            case = dataclasses.replace(case, source=mark, start=self._start(case.operator))
            if self.sources.unchanged(name, mark):
                return case
        raise UserError(f"{name}: changes while it is read")

    def _start(self, operator: Operator) -> int | None:
        """Where sampling begins for images of this operator; worked out once for a size, unless
        the operator differs from image to image."""
        size = (operator.context.height, operator.context.width)
        if size in self._starts and not operator.differs_by_image:
            return self._starts[size]
        if not self._starts and self.prior.num_steps is not None:
            get_logger().info(
                "finding where sampling can begin: seconds, for large photographs minutes"
            )
        border = self.dataset.border
        tried = FramedOperator(operator, Frame(*size, *size), border) if border else operator
        start = self.prior.start_timestep(self.method, tried, self.builder.noiser)
        self._starts[size] = start
        return start
