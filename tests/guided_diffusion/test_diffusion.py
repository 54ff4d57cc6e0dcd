import json

import numpy as np
import pytest
import torch

from guided_diffusion.condition_methods import ProximalSampling, Vanilla
from guided_diffusion.gaussian_diffusion import GaussianDiffusion, linear_betas
from guided_diffusion.measurements import Denoising, OperatorContext
from guided_diffusion.noise_models import GaussianNoise
from guided_diffusion.problem import Problem
from guided_diffusion.sampling import Prior, sample
from tests import golden_data
from util.errors import UserError
from util.randomness import ImageKey, PerImageNoise

SCHEDULES = golden_data.load("diffusion")
STEPS = golden_data.load("mean_variance")


@pytest.mark.parametrize("case", range(5))
def test_schedule_equals_the_published_one(case):
    golden = {k.split("/")[1]: v for k, v in SCHEDULES.items() if k.startswith(f"{case}/")}
    steps, schedule, respacing = json.loads(str(golden.pop("spec")))
    diffusion = GaussianDiffusion.create(steps, schedule, respacing)
    candidates = golden.pop("num_candidates")
    for name, value in golden.items():
        np.testing.assert_allclose(getattr(diffusion, name), value, rtol=0, atol=1e-12)
    method = ProximalSampling()
    found = [method.num_candidates(diffusion, t) for t in range(diffusion.num_timesteps)]
    np.testing.assert_array_equal(found, candidates)


@pytest.mark.parametrize("case", range(4))
def test_mean_and_variance_equal_the_published_ones(case):
    golden = {k.split("/")[1]: v for k, v in STEPS.items() if k.startswith(f"{case}/")}
    mean_type, var_type, clip, threshold, respacing, schedule = json.loads(str(golden["spec"]))
    diffusion = GaussianDiffusion.create(
        1000,
        schedule,
        respacing,
        model_mean_type=mean_type,
        model_var_type=var_type,
        clip_denoised=clip,
        dynamic_threshold=threshold,
    )
    channels = 6 if var_type.startswith("learned") else 3
    x = golden_data.normal((2, 3, 16, 16), 40 + case, 1)
    output = 0.5 * golden_data.normal((2, channels, 16, 16), 40 + case, 2)
    step = diffusion.interpret(output, x, torch.from_numpy(golden["t"]))
    for ours, theirs in (
        ("mean", "mean"),
        ("variance", "variance"),
        ("log_variance", "log_variance"),
        ("x0_hat", "pred_xstart"),
    ):
        value = getattr(step, ours).expand(x.shape).numpy()
        np.testing.assert_allclose(value, golden[theirs], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("respacing", "message"),
    [("0", "positive count"), ("ddimx", "positive count"), ("ddim999", "no integer stride"),
     ("2000", "cannot keep"), ("ten", "positive count")],
)  # fmt: skip
def test_impossible_respacings(respacing, message):
    with pytest.raises(UserError, match=message):
        GaussianDiffusion.create(timestep_respacing=respacing)


def test_remainder_goes_to_the_first_sections():
    kept = GaussianDiffusion.create(10, "linear", "4,3,3").timesteps
    np.testing.assert_array_equal(kept, np.arange(10))


MEAN, STD = 0.3, 0.2


def exact_gaussian_prior(diffusion: GaussianDiffusion):
    """The optimal noise prediction for images with independent pixels N(MEAN, STD^2)."""
    lookup = torch.zeros(1000, dtype=torch.float64)
    lookup[torch.from_numpy(diffusion.timesteps)] = torch.from_numpy(diffusion.alphas_cumprod)

    def model(x, t):
        acp = lookup[t].view(-1, 1, 1, 1).to(x.dtype)
        variance = acp * STD**2 + 1 - acp
        return (1 - acp).sqrt() * (x - acp.sqrt() * MEAN) / variance

    return model


@pytest.mark.parametrize(
    ("sampler", "eta", "respacing", "var_type"),
    [
        ("ddpm", 0.0, "", "fixed_small"),
        ("ddpm", 0.0, "", "fixed_large"),
        ("ddim", 0.0, "", "fixed_small"),
        ("ddim", 1.0, "", "fixed_small"),
    ],
)
def test_vanilla_sampling_reproduces_an_exact_prior(sampler, eta, respacing, var_type):
    diffusion = GaussianDiffusion.create(
        timestep_respacing=respacing, model_var_type=var_type, clip_denoised=False
    )
    prior = Prior(exact_gaussian_prior(diffusion), diffusion, sampler, eta)
    operator = Denoising(context=OperatorContext(16, 16))
    count = 64
    problem = Problem(
        torch.zeros(count, 3, 16, 16), operator, GaussianNoise(), diffusion, (3, 16, 16)
    )
    noise = PerImageNoise([ImageKey(0, str(i)) for i in range(count)], torch.device("cpu"))
    x = sample(prior, Vanilla(), problem, noise)
    n = x.numel()  # 49152 independent pixels
    assert abs(x.mean().item() - MEAN) < 5 * STD / n**0.5 + 2e-3
    assert abs(x.std().item() / STD - 1) < 0.03
    pixels = x.flatten(1)[:, ::97]  # distinct pixels are uncorrelated
    correlation = np.corrcoef(pixels.T.numpy())
    off_diagonal = correlation[~np.eye(len(correlation), dtype=bool)]
    assert abs(off_diagonal.mean()) < 0.05


def test_ddim_with_eta_0_is_deterministic_after_the_start():
    diffusion = GaussianDiffusion.create(timestep_respacing=20, model_var_type="fixed_small")
    prior = Prior(exact_gaussian_prior(diffusion), diffusion, "ddim", 0.0)

    class StartOnly(PerImageNoise):
        def normal(self, purpose, step, shape):
            value = super().normal(purpose, step, shape)
            return value if purpose == "start" else torch.full_like(value, 7.0)

    keys = [ImageKey(0, "a")]
    problem = Problem(
        torch.zeros(1, 3, 8, 8),
        Denoising(context=OperatorContext(8, 8)),
        GaussianNoise(),
        diffusion,
        (3, 8, 8),
    )
    runs = [
        sample(prior, Vanilla(), problem, source(keys, torch.device("cpu")))
        for source in (PerImageNoise, StartOnly)
    ]
    torch.testing.assert_close(runs[0], runs[1])


def test_dpps_refuses_a_sampler_without_noise():
    prior = Prior(lambda x, t: x, GaussianDiffusion.create(timestep_respacing=5), "ddim", 0.0)
    with pytest.raises(UserError, match="eta"):
        prior.check_method(ProximalSampling())
    prior.check_method(ProximalSampling(candidates=1))


@pytest.mark.parametrize("mean_type", ["epsilon", "start_x", "velocity"])
def test_a_prior_denoises_at_any_level(mean_type):
    """x_0 ~ N(0, 1): its mean given x_0 + sigma z is 1 / (1 + sigma^2) of that."""
    levels = np.log(1 / np.cumprod(1 - linear_betas(1000)) - 1)

    def model(x, t):
        level = torch.from_numpy(np.interp(t.double().numpy(), np.arange(1000), levels))
        a = torch.sigmoid(-level).sqrt().view(-1, 1, 1, 1)
        b = (1 - a**2).sqrt()
        return {"epsilon": b * x, "start_x": a * x, "velocity": 0 * x}[mean_type]

    diffusion = GaussianDiffusion.create(
        timestep_respacing=10, model_mean_type=mean_type, clip_denoised=False
    )
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 4, 4)))
    for sigma in (0.05, 0.3, 1.7, 20.0):
        expected = x / (1 + sigma**2)
        torch.testing.assert_close(diffusion.denoise(model, x, sigma), expected, rtol=1e-4, atol=0)


def test_between_two_steps_and_on_them_denoising_agrees_with_the_prediction():
    diffusion = GaussianDiffusion.create(timestep_respacing=20, model_var_type="fixed_small")
    seen = []

    def model(x, t):
        seen.append(t.double())
        return 0.1 * x

    x_t = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 4, 4)))
    t = torch.full((2,), 7)
    step = diffusion.predict(model, x_t, t)
    acp = diffusion.alphas_cumprod[7]
    x0_hat = diffusion.denoise(model, x_t / acp**0.5, (1 / acp - 1) ** 0.5)
    torch.testing.assert_close(x0_hat, step.x0_hat)
    assert torch.equal(seen[0], seen[1])


def test_a_network_that_predicts_the_previous_step_knows_no_other_level():
    diffusion = GaussianDiffusion.create(model_mean_type="previous_x")
    with pytest.raises(UserError, match="at others"):
        diffusion.denoise(lambda x, t: x, torch.zeros(1, 3, 4, 4), 0.5)
