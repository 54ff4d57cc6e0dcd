from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from data.masks import MaskConfig
from guided_diffusion.condition_methods import CONDITIONING, ProximalSampling
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.measurements import (
    OPERATORS,
    Denoising,
    Inpainting,
    OperatorContext,
    SuperResolution,
)
from guided_diffusion.noise_models import GaussianNoise, PoissonNoise
from guided_diffusion.problem import Problem
from guided_diffusion.sampling import Prior, sample
from models.prior import load_prior, restore
from tests import golden_data
from tests.tiny import TinyRun
from util.errors import UserError
from util.randomness import ImageKey, PerImageNoise

SIZE = 16
NETWORK = {
    "image_size": SIZE,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "8",
    "num_head_channels": 32,
}
TASKS = ["super_resolution", "gaussian_blur", "motion_blur", "inpainting"]
KEYS = [ImageKey(0, name) for name in ("a.png", "b.png", "sub/c.png", "d.png")]


def float64_prior(steps: int) -> Prior:
    model = golden_data.network(NETWORK, 7).double()
    return Prior(model, GaussianDiffusion.create(timestep_respacing=steps), size_multiple=2)


def operator_for(task: str, dtype: torch.dtype = torch.float64, size: int = SIZE):
    context = OperatorContext(size, size, dtype=dtype, mask=MaskConfig())
    params = {"kernel_size": 9, "intensity": 0.5} if "blur" in task else {}
    return OPERATORS.get(task)(**params, context=context)


class Float64Noise(PerImageNoise):
    def _stack(self, draw, shape, dim=0):
        return super()._stack(draw, shape, dim).double()


def run(prior, method, task, images, keys) -> torch.Tensor:
    operator = operator_for(task).bind(keys)
    problem = Problem(operator(images), operator, GaussianNoise(), prior.diffusion, (3, SIZE, SIZE))
    return sample(prior, method, problem, Float64Noise(keys, torch.device("cpu")))


@pytest.mark.parametrize("limit_scale", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_batch_of_four_equals_four_single_runs(task, limit_scale):
    prior, method = float64_prior(20), ProximalSampling(scale=2.0, limit_scale=limit_scale)
    images = golden_data.normal((4, 3, SIZE, SIZE), 1).double().clamp(-1, 1)
    together = run(prior, method, task, images, KEYS)
    for i, key in enumerate(KEYS):
        alone = run(prior, method, task, images[i : i + 1], [key])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("selection", ["predicted_noise", "interpolated"])
@pytest.mark.parametrize("linear", [True, False])
def test_choice_is_the_least_score_of_all_candidates(selection, linear):
    """Against the definition, candidate by candidate; 19 candidates are three blocks."""
    diffusion, t, n = GaussianDiffusion.create(timestep_respacing=20), 6, 19
    A = operator_for("super_resolution")
    A.linear = linear
    draw = [golden_data.normal((2, 3, SIZE, SIZE), 3, k).double() for k in range(4)]
    mu, eps, x_t, image = draw
    std = 0.1 + 0.1 * golden_data.normal((2, 3, SIZE, SIZE), 9).double().abs()
    problem = Problem(A(image), A, GaussianNoise(), diffusion, (3, SIZE, SIZE))
    z_all = torch.cat(
        list(Float64Noise(KEYS[:2], torch.device("cpu")).candidates(t, n, (3, SIZE, SIZE)))
    )
    assert len(z_all) == n
    method = ProximalSampling(selection=selection)
    noise = Float64Noise(KEYS[:2], torch.device("cpu"))
    best, z = method.choose(mu, std, eps, x_t, t, n, problem, noise)
    prev, acp = diffusion.alphas_cumprod_prev[t], diffusion.alphas_cumprod[t]
    for b in range(2):
        scores = []
        for i in range(n):
            x_i = (mu + std * z_all[i])[b : b + 1]
            y = problem.y[b : b + 1]
            if selection == "predicted_noise":
                residual = prev**0.5 * y - A(x_i - (1 - prev) ** 0.5 * eps[b : b + 1])
            else:
                c1 = ((1 - prev) / (1 - acp)) ** 0.5
                c2 = prev**0.5 - acp**0.5 * c1
                residual = c2 * y + c1 * A(x_t[b : b + 1]) - A(x_i)
            scores.append(residual.norm().item())
        assert best[b].item() == int(np.argmin(scores))
        torch.testing.assert_close(z[b], z_all[best[b], b])


@pytest.mark.parametrize("name", CONDITIONING.names())
def test_every_method_runs_and_depends_on_its_inputs_alone(name):
    prior = float64_prior(4)
    method = CONDITIONING.get(name)()
    image = golden_data.normal((1, 3, SIZE, SIZE), 2).double().clamp(-1, 1)
    first = run(prior, method, "inpainting", image, KEYS[:1])
    assert torch.isfinite(first).all()
    assert torch.equal(first, run(prior, method, "inpainting", image, KEYS[:1]))
    assert not torch.equal(first, run(prior, method, "inpainting", image, [ImageKey(1, "a.png")]))
    if name != "vanilla":
        assert not torch.allclose(first, run(prior, method, "inpainting", -image, KEYS[:1]))


def test_projection_enforces_the_known_pixels():
    prior = float64_prior(4)
    image = golden_data.normal((1, 3, SIZE, SIZE), 2).double().clamp(-1, 1)
    x = run(prior, CONDITIONING.get("projection")(), "inpainting", image, KEYS[:1])
    mask = operator_for("inpainting").bind(KEYS[:1]).masks
    acp = prior.diffusion.alphas_cumprod[0]
    difference = (x - acp**0.5 * image) * mask
    # at t = 0 the known pixels are q_sample(y, 0): y plus a little noise
    assert difference.std().item() == pytest.approx(
        ((1 - acp) * mask.mean().item()) ** 0.5, rel=0.2
    )


def test_one_candidate_from_noise_is_dps():
    prior = float64_prior(5)
    image = golden_data.normal((1, 3, SIZE, SIZE), 2).double().clamp(-1, 1)
    dps = run(prior, CONDITIONING.get("ps")(scale=0.5), "gaussian_blur", image, KEYS[:1])
    method = ProximalSampling(scale=0.5, candidates=1, init="noise")
    torch.testing.assert_close(run(prior, method, "gaussian_blur", image, KEYS[:1]), dps)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_limited_guidance_step_ends_at_the_noise(scale):
    """Where the network predicts no noise and all is measured, a step of Polyak's length takes
    the distance to sigma sqrt(m); a shorter one is left alone."""
    diffusion, t, sigma = GaussianDiffusion.create(timestep_respacing=20), 4, 0.02
    prior = Prior(lambda x, _: torch.cat([x * 0, x * 0], 1), diffusion)
    operator = Denoising(context=OperatorContext(SIZE, SIZE, dtype=torch.float64))
    x_t = 0.5 * golden_data.normal((2, 3, SIZE, SIZE), 2).double().clamp(-1, 1)
    y = x_t + torch.tensor([0.1, 0.3], dtype=torch.float64).view(2, 1, 1, 1)
    problem = Problem(y, operator, GaussianNoise(sigma), diffusion, (3, SIZE, SIZE))

    def step(scale: float, limit_scale: bool) -> torch.Tensor:
        method = ProximalSampling(scale=scale, candidates=1, limit_scale=limit_scale)
        noise = Float64Noise(KEYS[:2], torch.device("cpu"))
        return method.step(prior.reverse, x_t, t, problem, noise).x

    moved = step(scale, True) - step(0.0, False)
    if scale < 1:
        torch.testing.assert_close(moved, step(scale, False) - step(0.0, False))
        return
    x0_hat = (x_t + moved) / diffusion.alphas_cumprod[t] ** 0.5
    expected = torch.full((2,), sigma * (3 * SIZE * SIZE) ** 0.5, dtype=torch.float64)
    torch.testing.assert_close(problem.distance(x0_hat), expected)
    problem = replace(problem, noiser=GaussianNoise(10.0))  # explains y: nothing is to be done
    torch.testing.assert_close(step(scale, True), step(0.0, False))


def test_what_is_not_measured_adds_nothing_to_the_noise():
    y = torch.zeros(1, 3, SIZE, SIZE)
    known = torch.zeros_like(y)
    known[..., :4, :4] = 1
    operator = Denoising(context=OperatorContext(SIZE, SIZE))
    problem = Problem(y, operator, GaussianNoise(0.1), GaussianDiffusion.create(), y.shape[1:])
    assert problem.expected_distances().item() == pytest.approx(0.1 * (3 * SIZE * SIZE) ** 0.5)
    partly = replace(problem, known=known)
    assert partly.expected_distances().item() == pytest.approx(0.1 * 48**0.5)
    assert replace(problem, noiser=PoissonNoise()).expected_distances().item() == 0


def test_sampling_can_begin_below_a_timestep():
    prior = float64_prior(20)
    method = ProximalSampling(max_timestep=400)
    first = method.first_step(prior.diffusion)
    assert prior.diffusion.timesteps[first] < 400 <= prior.diffusion.timesteps[first + 1]
    operator = operator_for("gaussian_blur")
    image = golden_data.normal((1, 3, SIZE, SIZE), 2).double().clamp(-1, 1)
    problem = Problem(operator(image), operator, GaussianNoise(), prior.diffusion, (3, SIZE, SIZE))
    z = Float64Noise(KEYS[:1], torch.device("cpu")).normal("start", 20, (3, SIZE, SIZE))
    acp = prior.diffusion.alphas_cumprod[first]
    expected = acp**0.5 * problem.y + (1 - acp) ** 0.5 * z
    noise = Float64Noise(KEYS[:1], torch.device("cpu"))
    torch.testing.assert_close(method.start(problem, noise), expected)
    visited = []
    sample(prior, method, problem, noise, lambda t, result: visited.append(t))
    assert visited == list(range(first, -1, -1))
    with pytest.raises(UserError, match="init: aligned"):
        ProximalSampling(max_timestep=400, init="noise")


@pytest.mark.parametrize("task", TASKS)
def test_the_start_may_be_the_inverse(task):
    method = ProximalSampling(init="inverse", max_timestep=300)
    prior, operator = float64_prior(20), operator_for(task).bind(KEYS[:2])
    y = operator(golden_data.normal((2, 3, SIZE, SIZE), 2).double().clamp(-1, 1))
    problem = Problem(y, operator, GaussianNoise(), prior.diffusion, (3, SIZE, SIZE))
    start = method.start(problem, Float64Noise(KEYS[:2], torch.device("cpu")))
    z = Float64Noise(KEYS[:2], torch.device("cpu")).normal("start", 20, (3, SIZE, SIZE))
    acp = prior.diffusion.alphas_cumprod[method.first_step(prior.diffusion)]
    guess = (start - (1 - acp) ** 0.5 * z) / acp**0.5
    torch.testing.assert_close(guess, operator.inverse(y, 0.0).clamp(-1, 1))
    alone = operator_for(task).bind(KEYS[1:2])
    torch.testing.assert_close(guess[1:], alone.inverse(y[1:], 0.0).clamp(-1, 1))


def test_a_measurement_that_is_no_image_starts_from_noise():
    operator = OPERATORS.get("phase_retrieval")(context=OperatorContext(SIZE, SIZE))
    y = operator(torch.zeros(1, 3, SIZE, SIZE))
    assert ProximalSampling(init="inverse").first_guess(operator, y, 0.1) is None


def uniform_prior(diffusion, spread=0.5, grain=0.1):
    """Optimal noise prediction for channels of one value N(0, spread^2), plus grain."""
    lookup = torch.zeros(1000)
    lookup[torch.from_numpy(diffusion.timesteps)] = torch.from_numpy(
        diffusion.alphas_cumprod
    ).float()

    def model(x, t):
        acp = lookup[t].view(-1, 1, 1, 1)
        mean = x.mean((2, 3), keepdim=True)
        pixels = x[0, 0].numel()
        level = spread**2 + grain**2 / pixels  # variance of a channel's mean
        noise = 1 - acp
        return noise.sqrt() * (
            mean / (acp * level + noise / pixels) / pixels + (x - mean) / (acp * grain**2 + noise)
        )

    return model


@pytest.mark.parametrize("method", ["dpps", "ps"])
def test_gaussian_prior_with_the_known_posterior(method):
    """Inpainting where the exact prior says that a channel has one value: the missing half takes
    it from the other half. The measurement has 0 there."""
    diffusion = GaussianDiffusion.create(timestep_respacing=200, model_var_type="fixed_small")
    levels = torch.tensor([-0.6, 0.1, 0.5]).view(1, 3, 1, 1)
    x = levels + 0.1 * golden_data.normal((1, 3, SIZE, SIZE), 5)
    masks = (torch.arange(SIZE * SIZE) % 2).view(1, 1, SIZE, SIZE).float()
    operator = Inpainting(context=OperatorContext(SIZE, SIZE), masks=masks)
    y = operator(x)
    prior = Prior(uniform_prior(diffusion), diffusion)
    restored = restore(y, operator, prior, method=method, params={"scale": 1.0})
    missing = restored[..., masks[0, 0] == 0]
    known = x[..., masks[0, 0] == 1]
    assert (missing.mean(-1) - known.mean(-1)).abs().max() < 0.05
    assert missing.std(-1).mean().item() == pytest.approx(0.1, rel=0.3)


def test_restore_refuses_what_it_cannot_do():
    prior = float64_prior(3)
    operator = operator_for("gaussian_blur", size=SIZE + 1)
    y = torch.zeros(1, 3, SIZE + 1, SIZE + 1, dtype=torch.float64)
    with pytest.raises(UserError, match="multiples of 2"):
        restore(y, operator, prior)
    with pytest.raises(UserError, match='unknown conditioning method "dps"'):
        restore(y, operator, prior, method="dps")
    with pytest.raises(UserError, match='unknown key "sclae" .did you mean "scale"'):
        restore(y, operator, prior, params={"sclae": 1})
    with pytest.raises(UserError, match="params belong to a method's name"):
        restore(y, operator, prior, method=ProximalSampling(), params={"scale": 1.0})


def test_poisson_distance_guides_too():
    diffusion = GaussianDiffusion.create(timestep_respacing=50, model_var_type="fixed_small")
    prior = Prior(uniform_prior(diffusion), diffusion)
    operator = Denoising(context=OperatorContext(SIZE, SIZE))
    y = torch.tensor([-0.6, 0.2, 0.5]).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)
    problem = Problem(y, operator, PoissonNoise(), diffusion, (3, SIZE, SIZE))
    distances = []
    for scale in (0.0, 0.3):
        noise = PerImageNoise(KEYS[:1], torch.device("cpu"))
        method = ProximalSampling(scale=scale, init="noise", candidates=1)
        distances.append(problem.distance(sample(prior, method, problem, noise)).item())
    assert distances[1] < 0.5 * distances[0]


def test_a_prior_loaded_for_an_operator_brings_steps_and_params(tmp_path):
    TinyRun(tmp_path)
    diffusion = {
        "timestep_respacing": 9,
        "guidance": {"super_resolution": {"scale": 3.0, "timestep_respacing": 4}},
    }
    (tmp_path / "guided.yaml").write_text(yaml.safe_dump(diffusion))
    files = (str(tmp_path / "model.yaml"), str(tmp_path / "guided.yaml"))
    prior = load_prior(*files, operator="super_resolution")
    assert prior.diffusion.num_timesteps == 4
    operator = SuperResolution(4, context=OperatorContext(64, 64))
    y = torch.zeros(1, 3, 16, 16)
    restored = restore(y, operator, prior)
    assert torch.equal(restored, restore(y, operator, prior, params={"scale": 3.0}))
    assert not torch.equal(restored, restore(y, operator, prior, params={"scale": 1.0}))
    assert torch.equal(restored, restore(y, operator, prior, method=ProximalSampling(scale=3.0)))
    assert load_prior(*files).diffusion.num_timesteps == 9
    assert load_prior(*files, operator="gaussian_blur").params == {}
    with pytest.raises(UserError, match='unknown operator "blur"'):
        load_prior(*files, operator="blur")
