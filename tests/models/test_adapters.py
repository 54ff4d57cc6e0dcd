"""One prior that is known in closed form, through every adapter: the same restorations."""

import numpy as np
import pytest
import torch

from guided_diffusion.gaussian_diffusion import GaussianDiffusion, linear_betas
from guided_diffusion.measurements import GaussianBlur, OperatorContext, SuperResolution
from guided_diffusion.noise_models import GaussianNoise
from guided_diffusion.sampling import Prior
from models.prior import restore
from models.priors.adapters import denoiser_prior, from_flow, from_timesteps, from_unit_range
from util.errors import UserError

SIZE, VARIANCE = 16, 0.3
ACP = np.cumprod(1 - linear_betas(1000))


def d(x, sigma):
    """x_0 ~ N(0, VARIANCE): its mean given x."""
    return VARIANCE / (VARIANCE + sigma.view(-1, 1, 1, 1) ** 2) * x


def unit(x, sigma):
    """The same for images in [0, 1]."""
    return (d(2 * x - 1, 2 * sigma) + 1) / 2


def flow(x_s, s):
    share = s.view(-1, 1, 1, 1)
    x0 = d(x_s / (1 - share), s / (1 - s))
    return (x_s - x0) / share  # = (x_s - (1 - s) x_0) / s - x_0


def predicting(what):
    levels = torch.from_numpy(0.5 * np.log(1 / ACP - 1))

    def network(x_t, t):
        t = t.double().clamp(0, 999)
        below = t.floor().long().clamp(max=998)
        sigma = torch.lerp(levels[below], levels[below + 1], t - below).exp()
        b = (sigma / (1 + sigma**2).sqrt()).view(-1, 1, 1, 1)
        a = (1 - b**2).sqrt()
        x0 = d(x_t / a, sigma)
        eps = (x_t - a * x0) / b
        return {"epsilon": eps, "start_x": x0, "velocity": a * eps - b * x0}[what]

    return network


ADAPTED = {
    "unit": from_unit_range(unit),
    "flow": from_flow(flow),
    **{w: from_timesteps(w, predicting(w), ACP) for w in ("epsilon", "start_x", "velocity")},
}


def restored(prior, **options):
    context = OperatorContext(SIZE, SIZE, dtype=torch.float64, channels=prior.channels)
    operator = GaussianBlur(9, 1.0, context=context)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, *context.shape))) * 0.5
    y = operator(x)

    class Noise:
        rng = np.random.default_rng(1)

        def normal(self, purpose, step, shape):
            return torch.from_numpy(self.rng.standard_normal((2, *shape)))

        def candidates(self, step, count, shape):
            yield torch.from_numpy(self.rng.standard_normal((count, 2, *shape)))

    return restore(y, operator, prior, noiser=GaussianNoise(0.05), noise=Noise(), **options)


@pytest.mark.parametrize("adapter", list(ADAPTED))
def test_every_adapter_gives_the_same_restorations(adapter):
    expected = restored(denoiser_prior(d, SIZE, clip=False))
    found = restored(denoiser_prior(ADAPTED[adapter], SIZE, clip=False))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("what", ["epsilon", "start_x", "velocity"])
def test_an_adapted_denoiser_is_the_network_of_the_process(what):
    diffusion = GaussianDiffusion.create(
        model_mean_type=what, model_var_type="fixed_small", clip_denoised=False
    )
    native = Prior(predicting(what), diffusion, image_size=SIZE, num_steps=25)
    expected = restored(denoiser_prior(d, SIZE, clip=False))
    torch.testing.assert_close(restored(native), expected, rtol=0, atol=1e-6)


def test_levels_between_the_timesteps():
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 4, 4)))
    prior = denoiser_prior(d, SIZE, clip=False)
    for sigma in (0.03, 0.7, 30.0):
        expected = d(x, torch.tensor([sigma]))
        for adapted in (d, *ADAPTED.values()):
            found = denoiser_prior(adapted, SIZE, clip=False).reverse.denoise(x, sigma)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert prior.reverse.denoise(x, 1e-9).isfinite().all()


def test_grey_images():
    found = restored(denoiser_prior(d, SIZE, channels=1, clip=False))
    assert found.shape == (2, 1, SIZE, SIZE)
    operator = SuperResolution(4, context=OperatorContext(SIZE, SIZE))
    with pytest.raises(UserError, match="3 channel"):
        restore(torch.zeros(1, 3, 4, 4), operator, denoiser_prior(d, SIZE, channels=1))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda network: network,
        from_unit_range,
        from_flow,
        lambda network: from_timesteps("epsilon", network, ACP),
    ],
)
def test_a_module_is_moved_and_put_into_evaluation_mode(wrap):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, sigma):
            assert sigma.device == x.device == self.weight.device
            return self.weight * x

    network = Network().train()
    prior = denoiser_prior(wrap(network), SIZE, device="meta")
    assert network.weight.device.type == "meta"
    assert not network.training
    assert not network.weight.requires_grad
    x = torch.zeros(2, 3, SIZE, SIZE, device="meta")
    assert prior.model(x, torch.tensor([3, 700], device="meta")).device.type == "meta"


def test_what_cannot_be():
    with pytest.raises(UserError, match="expected 3"):
        denoiser_prior(d, SIZE, channels=2)
    with pytest.raises(UserError, match="must fall"):
        from_timesteps("epsilon", d, [0.1, 0.5])
    with pytest.raises(UserError, match="predicts is"):
        from_timesteps("score", d, ACP)
