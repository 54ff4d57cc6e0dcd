"""Two operators of compressed sensing: some Fourier coefficients, as of magnetic resonance, and
random projections.

    python3 sample_condition.py --plugin examples/plugin_compressed.py --data_root PHOTOGRAPHS \\
        --task denoising --set "task.measurement.operator={name: fourier, share: 0.25}"
"""

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.cosines import dct2, inverse_dct2
from guided_diffusion.measurements import OPERATORS, LinearOperator, OperatorContext
from util.errors import UserError
from util.randomness import numpy_stream


def _check(name: str, share: float) -> None:
    if not 0 < share <= 1:
        raise UserError(f"{name}: share must be above 0 and at most 1, got {share}")


@OPERATORS.register("fourier")
class Fourier(LinearOperator):
    """A random share of the Fourier coefficients, the low ones among them, as real pairs."""

    _LOW = 0.06  # cycles per pixel: all below are measured

    def __init__(self, share: float = 0.25, *, context: OperatorContext) -> None:
        super().__init__(context)
        _check("fourier", share)
        down, across = np.fft.fftfreq(context.height), np.fft.rfftfreq(context.width)
        low = np.hypot(down[:, None], across) < self._LOW
        chance = max(0.0, (share - low.mean()) / (1 - low.mean()))
        drawn = numpy_stream(context.seed, "fourier").random_sample(low.shape) < chance
        self.kept = torch.from_numpy(low | drawn).to(context.device)

    def __call__(self, x: Tensor) -> Tensor:
        coefficients = torch.fft.rfft2(x, norm="ortho")[..., self.kept]
        return torch.view_as_real(coefficients).flatten(-2)


@OPERATORS.register("projections")
class Projections(LinearOperator):
    """Inner products with orthogonal random patterns: signs, a cosine transform, a choice."""

    def __init__(self, share: float = 0.25, *, context: OperatorContext) -> None:
        super().__init__(context)
        _check("projections", share)
        rng = numpy_stream(context.seed, "projections")
        shape = (context.height, context.width)
        self.signs = context.tensor(rng.choice([-1.0, 1.0], shape))
        pixels = shape[0] * shape[1]
        chosen = rng.choice(pixels, max(1, int(share * pixels)), replace=False)
        self.chosen = torch.from_numpy(chosen).to(context.device)

    def __call__(self, x: Tensor) -> Tensor:
        return dct2(self.signs * x).flatten(-2)[..., self.chosen]

    def adjoint(self, y: Tensor) -> Tensor:
        c = torch.zeros(*y.shape[:-1], self.signs.numel(), dtype=y.dtype, device=y.device)
        c[..., self.chosen] = y
        c = c.unflatten(-1, self.signs.shape)
        return self.signs * inverse_dct2(c)
