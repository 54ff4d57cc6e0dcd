"""Images inside a frame, and borders left out."""

import pytest
import torch

from guided_diffusion.framing import Frame, FramedOperator
from guided_diffusion.measurements import GaussianBlur, Operator, OperatorContext, SuperResolution
from util.errors import UserError

DOUBLE = torch.float64


def random(*shape, seed=0):
    return torch.rand(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("height", "width", "full"), [(20, 50, (32, 56)), (32, 64, (32, 64)), (3, 33, (32, 40))]
)
def test_frames_fit_the_network_and_are_cut_back(height, width, full):
    frame = Frame.fitting(height, width, 32, 8)
    assert (frame.full_height, frame.full_width) == full
    image = random(2, 3, height, width)
    filled = frame.fill(image)
    assert filled.shape == (2, 3, *full)
    assert torch.equal(frame.cut(filled), image)
    assert filled.min() >= image.min()
    assert filled.max() <= image.max()


def framed(kind, border):
    context = OperatorContext(20, 28, dtype=DOUBLE)
    blur = kind == "blur"
    inner = GaussianBlur(9, 1.0, context=context) if blur else SuperResolution(4, context=context)
    return FramedOperator(inner, Frame.fitting(20, 28, 32, 8), border)


@pytest.mark.parametrize("kind", ["blur", "super_resolution"])
@pytest.mark.parametrize("border", [0, 1])
def test_adjoint_and_what_lies_outside(kind, border):
    A = framed(kind, border)
    x = random(2, 3, 32, 32)
    y = random(*A(x).shape, seed=1)
    torch.testing.assert_close((A(x) * y).sum(), (x * A.adjoint(y)).sum())
    moved = x.clone()
    moved[..., : A.frame.top, :] += 1
    assert torch.equal(A(moved), A(x))
    assert torch.equal(A.adjoint(y)[..., : A.frame.top, :], torch.zeros(2, 3, 6, 32, dtype=DOUBLE))
    assert A.initial(y).shape == x.shape


@pytest.mark.parametrize("kind", ["blur", "super_resolution"])
def test_projection_moves_towards_the_measurement(kind):
    for border in (0, 1):
        A = framed(kind, border)
        truth, x = random(1, 3, 32, 32), random(1, 3, 32, 32, seed=1)
        y = A(truth)
        assert (y - A(A.project(x, y))).norm() < (y - A(x)).norm()


def test_a_border_that_leaves_nothing_is_refused():
    with pytest.raises(UserError, match="border of 10 leaves nothing"):
        framed("blur", 10)(random(1, 3, 32, 32))


def test_what_is_not_linear_is_not_framed():
    class Squared(Operator):
        def __call__(self, x):
            return x**2

    with pytest.raises(UserError, match="is not linear"):
        FramedOperator(Squared(OperatorContext(32, 32)), Frame(32, 32, 32, 32))
