"""An operator of your own: every second row is measured, as by an interlaced camera.

    python3 sample_condition.py --plugin examples/plugin_operator.py --data_root PHOTOGRAPHS \\
        --task super_resolution --set "task.measurement.operator={name: interlaced, first: 0}"
"""

from torch import Tensor

from guided_diffusion.measurements import OPERATORS, LinearOperator, OperatorContext


@OPERATORS.register("interlaced")
class Interlaced(LinearOperator):
    """Rows `first`, `first` + 2, ..."""

    def __init__(self, first: int = 0, *, context: OperatorContext) -> None:
        super().__init__(context)
        self.first = first

    def __call__(self, x: Tensor) -> Tensor:
        return x[..., self.first :: 2, :]
