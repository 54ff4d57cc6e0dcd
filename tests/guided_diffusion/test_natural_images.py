import numpy as np
import pytest
import torch

from data.masks import MaskConfig
from guided_diffusion.condition_methods import ProximalSampling
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.measurements import (
    Denoising,
    GaussianBlur,
    Inpainting,
    OperatorContext,
    SuperResolution,
)
from guided_diffusion.natural_images import NaturalImages, expected_error, wiener
from guided_diffusion.noise_models import GaussianNoise
from guided_diffusion.sampling import Prior
from util.randomness import ImageKey

HEIGHT, WIDTH = 12, 9
CONTEXT = OperatorContext(HEIGHT, WIDTH, dtype=torch.float64)
SHAPE = (3, HEIGHT, WIDTH)
LIKE = torch.empty(0, dtype=torch.float64)


def test_images_and_coefficients():
    images = NaturalImages(SHAPE, LIKE)
    x = torch.randn(2, 3, HEIGHT, WIDTH, dtype=torch.float64)
    c = images.coefficients(x)
    torch.testing.assert_close(images.image(c), x)
    torch.testing.assert_close(c.square().sum(), x.square().sum())
    drawn = images.draw(2000, torch.Generator().manual_seed(1))
    found = images.coefficients(drawn).var(0)
    assert (found / images.variances).log().abs().max() < 0.2


@pytest.mark.parametrize("sigma", [0.05, 0.5])
@pytest.mark.parametrize(
    "operator",
    [
        Denoising(context=CONTEXT),
        SuperResolution(3, context=CONTEXT),
        GaussianBlur(5, 1.0, context=CONTEXT),
    ],
)
def test_the_estimate_is_the_posterior_mean(operator, sigma):
    """Against the solution of the dense system."""
    images = NaturalImages(SHAPE, LIKE)
    n = 3 * HEIGHT * WIDTH
    unit = torch.eye(n, dtype=torch.float64).reshape(n, 3, HEIGHT, WIDTH)
    V = images.image(images.variances * images.coefficients(unit)).reshape(n, n)
    A = operator(unit).reshape(n, -1).T
    y = operator(images.draw(1, torch.Generator().manual_seed(2)))
    gram = A @ V @ A.T + sigma**2 * torch.eye(len(A), dtype=torch.float64)
    expected = V @ A.T @ torch.linalg.solve(gram, y.reshape(-1))
    found = wiener(operator, y, SHAPE, sigma)
    torch.testing.assert_close(found.reshape(-1), expected, rtol=0, atol=0.02)


def test_every_image_of_a_batch_is_solved_on_its_own():
    y = torch.randn(3, 3, HEIGHT, WIDTH, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64).view(3, 1, 1, 1)
    operator = GaussianBlur(5, 1.0, context=CONTEXT)
    batch = wiener(operator, y, SHAPE, sigma)
    singles = [wiener(operator, y[i : i + 1], SHAPE, sigma[i].item()) for i in range(3)]
    torch.testing.assert_close(batch, torch.cat(singles))


def test_the_expected_error_is_that_of_the_estimate():
    side, sigma = 32, 0.2
    operator = Denoising(context=OperatorContext(side, side, dtype=torch.float64))

    def start(images, first):
        noisy = [
            GaussianNoise(sigma)(image, np.random.RandomState(seed))
            for seed, image in enumerate(images, first)
        ]
        return wiener(operator, torch.stack(noisy), (3, side, side), sigma)

    v = NaturalImages((3, side, side), LIKE).variances
    posterior = (v * sigma**2 / (v + sigma**2)).mean().item()
    found = expected_error(start, (3, side, side), LIKE)
    assert found == pytest.approx(posterior, rel=0.15)
    for at_a_time in (1, 15):  # 15 does not divide the 64 images
        again = expected_error(start, (3, side, side), LIKE, at_a_time)
        assert again == pytest.approx(found, rel=1e-6)


def test_an_error_counts_where_it_is():
    def start(image, seed):
        wrong = image.clone()
        wrong[..., :8, :8] += 0.5
        return wrong

    assert expected_error(start, (3, 32, 32), LIKE) == pytest.approx(0.25)


def test_of_tiny_images_not_ever_more_are_drawn():
    drawn = []

    def start(images, first):
        drawn.append(len(images))
        return images + 0.5

    assert expected_error(start, (3, 2, 3), LIKE, 1) == pytest.approx(0.25)
    assert drawn == [1] * 64


@pytest.fixture
def prior():
    return Prior(lambda x, t: x, GaussianDiffusion.create(), num_steps=20)


def test_more_noise_and_larger_holes_start_earlier(prior):
    """In the order of the process: at a higher timestep."""
    context = OperatorContext(32, 32)
    method = ProximalSampling(init="inverse")
    starts = [
        prior.start_timestep(method, Denoising(context=context), GaussianNoise(sigma))
        for sigma in (0.01, 0.05, 0.2, 0.8)
    ]
    assert starts == sorted(set(starts))
    assert starts[0] < 60
    assert starts[-1] > 250
    boxes = []
    for side in (4, 20):
        mask = MaskConfig(mask_type="box", mask_len_range=(side, side + 1), margin=(4, 4))
        operator = Inpainting(context=OperatorContext(32, 32, mask=mask)).bind([ImageKey(0, "a")])
        boxes.append(prior.start_timestep(method, operator, GaussianNoise(0.01)))
    assert boxes[0] < boxes[1]


def test_without_a_first_guess_all_timesteps_are_used(prior):
    method = ProximalSampling(init="noise")
    operator = Denoising(context=OperatorContext(32, 32))
    assert prior.start_timestep(method, operator, GaussianNoise()) is None
    timesteps = prior.scheduled(None).diffusion.timesteps
    assert (timesteps[0], timesteps[-1], len(timesteps)) == (0, 999, 20)


@pytest.mark.parametrize(("count", "start"), [(1, 300), (20, 19), (20, 25), (20, 999), (1000, 3)])
def test_steps_are_as_many_as_asked_for(count, start):
    prior = Prior(lambda x, t: x, GaussianDiffusion.create(), num_steps=count)
    diffusion = prior.scheduled(start).diffusion
    assert diffusion.num_timesteps == count
    assert (np.diff(diffusion.timesteps) > 0).all()
    assert diffusion.timesteps[-1] == max(start, count - 1)
    whole = prior.diffusion.alphas_cumprod[diffusion.timesteps]
    np.testing.assert_allclose(diffusion.alphas_cumprod, whole)
