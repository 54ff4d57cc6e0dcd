import pytest
import torch

from guided_diffusion import cosines
from guided_diffusion.cosines import dct2, inverse_dct2


def images(height, width):
    return torch.randn(2, 3, height, width, dtype=torch.float64)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (12, 9)])
def test_the_ways_of_processor_and_other_devices_agree(size):
    x = images(*size)
    c = dct2(x)
    torch.testing.assert_close(cosines._dct(cosines._dct(x).mT).mT, c)
    torch.testing.assert_close(cosines._inverse_dct(cosines._inverse_dct(c).mT).mT, x)
    torch.testing.assert_close(inverse_dct2(c), x)
    torch.testing.assert_close(c.square().sum(), x.square().sum())


@pytest.mark.parametrize("transform", [dct2, inverse_dct2])
def test_derivatives(transform):
    x = images(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(transform, x, check_forward_ad=True)


def test_an_image_has_the_same_coefficients_in_a_batch():
    x = images(13, 21).float()
    assert torch.equal(dct2(x)[1], dct2(x[1]))
