"""Solving with linear operators: by their singular values where these are known, by conjugate
gradients else."""

from torch import Tensor

from guided_diffusion.conjugate_gradients import conjugate_gradients
from guided_diffusion.operator_base import LinearOperator


def tikhonov(
    operator: LinearOperator, y: Tensor, x0: Tensor, weight: float | Tensor, iterations: int
) -> Tensor:
    """argmin over x of || y - A x ||^2 + weight || x - x0 ||^2, images [B, 3, H, W].

    In closed form where the operator's spectrum is known (all singular values, no cut-off);
    otherwise `iterations` of conjugate gradients on the normal equations, from x0.
    """
    spectrum = operator.spectrum(cutoff=0.0)
    if spectrum is not None:
        s = spectrum.values
        c0 = spectrum.coefficients(x0)
        return spectrum.image((s * spectrum.measured(y) + weight * c0) / (s**2 + weight))

    def normal(x: Tensor) -> Tensor:
        return operator.adjoint(operator(x)) + weight * x

    return conjugate_gradients(normal, operator.adjoint(y) + weight * x0, x0, iterations)
