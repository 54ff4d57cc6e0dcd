"""Priors of diffusers: the same values as diffusers itself computes."""

import json

import numpy as np
import pytest
import torch

from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.sampling import Prior
from models.priors.hub import diffusers_prior
from models.priors.schedulers import SchedulerConfig
from tests.tiny import diffusers_unet
from util.errors import UserError

diffusers = pytest.importorskip("diffusers")
SIZE = 16
OPTIONS = {"timestep_respacing": "", "model_var_type": "learned_range"}


def unet(out=None):
    return diffusers_unet(SIZE, out=out, down=("DownBlock2D", "AttnDownBlock2D"))


def saved(folder, network=None, scheduler=None):
    """A folder as `save_pretrained` writes it."""
    scheduler = scheduler or diffusers.DDPMScheduler()
    diffusers.DDPMPipeline(network or unet(), scheduler).save_pretrained(folder)
    return str(folder)


def load(folder, **options):
    return diffusers_prior(str(folder), **options)


class SameNoise:
    """Draws from one generator, in the order that diffusers draws in."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, purpose, step, shape):
        return torch.randn(2, *shape, generator=self.generator, dtype=torch.float64)


def taken_over(pretrained, scheduler, respacing):
    """Our process with diffusers' own table, which it computes in float32."""
    acp = scheduler.alphas_cumprod.double()
    scheduler.alphas_cumprod, scheduler.one = acp, torch.tensor(1.0, dtype=torch.float64)
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = scheduler.one
    betas = 1 - acp.numpy() / np.concatenate([[1.0], acp.numpy()[:-1]])
    ours = pretrained.process({**OPTIONS, "timestep_respacing": respacing})
    whole = GaussianDiffusion.from_betas(
        betas,
        ours.timesteps,
        model_mean_type=ours.model_mean_type,
        model_var_type=ours.model_var_type,
        x0_limit=ours.x0_limit,
    )
    assert list(whole.timesteps) == list(ours.timesteps)
    np.testing.assert_allclose(ours.alphas_cumprod, whole.alphas_cumprod, rtol=1e-5)
    return whole


def ours_and_theirs(folder, scheduler, steps, sampler="ddpm", **step_options):
    """x after every step of unconditional sampling, by this program and by diffusers, float64."""
    pretrained = load(folder)
    network = pretrained.load().double()
    prior = Prior(network, taken_over(pretrained, scheduler, steps), sampler)
    noise, ours = SameNoise(), []
    with torch.no_grad():
        x = noise.normal("start", steps, (3, SIZE, SIZE))
        for t in reversed(range(prior.diffusion.num_timesteps)):
            _, move = prior.reverse(x, t)
            x = move.mean
            if t and sampler == "ddpm":
                x = x + move.std * noise.normal("step", t, x.shape[1:])
            ours.append(x)
        generator, theirs = torch.Generator().manual_seed(0), []
        scheduler.set_timesteps(steps)
        x = torch.randn(2, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
        for t in scheduler.timesteps:
            output = network.network(x, t).sample
            more = {"generator": generator} if sampler == "ddpm" else step_options
            x = scheduler.step(output, t, x, **more).prev_sample
            theirs.append(x)
    return ours, theirs


SCHEDULERS = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.001, "variance_type": "fixed_large"},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    {"prediction_type": "sample", "clip_sample": False, "timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing", "beta_end": 0.01},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    {"num_train_timesteps": 400, "clip_sample_range": 2.0, "variance_type": "fixed_small_log"},
    {"trained_betas": list(np.linspace(1e-3, 0.05, 300)), "num_train_timesteps": 300},
]


@pytest.mark.parametrize("options", SCHEDULERS)
def test_ddpm_sampling_is_that_of_diffusers_step_for_step(tmp_path, options):
    scheduler = diffusers.DDPMScheduler(**options)
    folder = saved(tmp_path, scheduler=scheduler)
    ours, theirs = ours_and_theirs(folder, scheduler, 20)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)


def test_learned_variances_are_those_of_diffusers(tmp_path):
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    folder = saved(tmp_path, unet(out=6), scheduler)
    ours, theirs = ours_and_theirs(folder, scheduler, 20)
    torch.testing.assert_close(ours[-1], theirs[-1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"prediction_type": "v_prediction"}])
def test_ddim_sampling_is_that_of_diffusers_step_for_step(tmp_path, options):
    """Both take the noise that belongs to the limited x0_hat."""
    scheduler = diffusers.DDIMScheduler(**options)
    folder = saved(tmp_path, scheduler=scheduler)
    ours, theirs = ours_and_theirs(folder, scheduler, 20, "ddim", use_clipped_model_output=True)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)


def test_the_pipeline_itself_samples_the_same_pictures(tmp_path):
    """In float32, with betas of our own: rounding apart."""
    from models.validation import draw

    scheduler = diffusers.DDPMScheduler()
    folder = saved(tmp_path, scheduler=scheduler)
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    pictures = pipeline(2, generator, num_inference_steps=10, output_type="np").images
    pretrained = load(folder)
    prior = Prior(pretrained.load(), pretrained.process({**OPTIONS, "timestep_respacing": 10}))

    class Noise:
        generator = torch.Generator().manual_seed(3)

        def normal(self, purpose, step, shape):
            return torch.randn(2, *shape, generator=self.generator)

    ours = draw(prior, 2, SIZE, torch.device("cpu"), noise=Noise())
    mine = (ours.clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(mine, pictures, atol=2e-4)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_eps_is_that_of_diffusers(tmp_path, kind):
    scheduler = diffusers.DDPMScheduler(prediction_type=kind, clip_sample=False)
    pretrained = load(saved(tmp_path, scheduler=scheduler))
    network, diffusion = pretrained.load().double(), pretrained.process(OPTIONS)
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double()
    for t in (0, 300, 999):
        with torch.no_grad():
            step = diffusion.predict(network, x, torch.full((2,), t))
            output = network.network(x, t).sample
        a = scheduler.alphas_cumprod[t].double() ** 0.5
        b = (1 - a**2) ** 0.5
        x0 = {
            "epsilon": (x - b * output) / a,
            "sample": output,
            "v_prediction": a * x - b * output,
        }[kind]
        eps = output if kind == "epsilon" else (x - a * x0) / b
        # diffusers' table is float32, so at the first timestep b has four digits
        torch.testing.assert_close(step.eps, eps, rtol=1e-6 if t else 1e-3, atol=1e-6)


def test_a_flat_folder_is_read_as_well(tmp_path):
    """As the first models on the hub have it."""
    unet().save_pretrained(tmp_path)
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    assert load(tmp_path).load()(torch.zeros(1, 3, 16, 16), torch.zeros(1)).shape == (1, 3, 16, 16)


def edit(path, **keys):
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        (UNET, {"_class_name": "UNet2DConditionModel"}, "a UNet2DConditionModel; this program"),
        (UNET, {"num_class_embeds": 10}, "told classes"),
        (UNET, {"sample_size": None}, "sample_size None"),
        (UNET, {"sample_size": [16, 32]}, "square images"),
        (UNET, {"sample_size": 17}, "no multiple of 2"),
        (UNET, {"in_channels": 4, "out_channels": 4}, "4 channels in"),
        (UNET, {"out_channels": 6}, "6 out; expected 1 or 3, and 3"),
        (SCHEDULER, {"_class_name": "ScoreSdeVeScheduler"}, "scheduler ScoreSdeVeScheduler"),
        (SCHEDULER, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        (SCHEDULER, {"prediction_type": "flow"}, 'unknown value "flow"'),
        (SCHEDULER, {"beta_end": 1.5}, "between 0 and 1"),
        ("model_index.json", {"vqvae": ["diffusers", "VQModel"]}, "a pipeline with vqvae"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path, file, keys, message):
    folder = saved(tmp_path)
    edit(tmp_path / file, **keys)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_weights_are_plain_tensors_and_all_of_them(tmp_path):
    saved(tmp_path)
    weights = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    weights.with_suffix(".fp16.safetensors").write_bytes(b"another variant")
    assert load(tmp_path).files[-1] == weights
    edit(tmp_path / UNET, layers_per_block=2)
    with pytest.raises(UserError, match="size mismatch"):
        load(tmp_path).load()
    edit(tmp_path / UNET, layers_per_block=1)
    state = unet().state_dict()
    torch.save(state, weights.with_suffix(".bin"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load(tmp_path).load()
    weights.unlink()
    with pytest.raises(UserError, match="use_safetensors to False"):
        load(tmp_path).load()
    loaded = load(tmp_path, use_safetensors=False).load().network.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("count", [1, 3, 7, 1000])
def test_timesteps_rise(spacing, count):
    config = SchedulerConfig(timestep_spacing=spacing, steps_offset=1)
    steps = config.timesteps(count)
    assert (np.diff(steps) > 0).all()
    assert 0 <= steps[0] <= steps[-1] <= 999
    assert len(steps) >= count - 1


def test_a_fixed_variance_of_the_diffusion_config_stands():
    scheduler = SchedulerConfig(variance_type="learned_range")
    for asked, used in (("fixed_small", "fixed_small"), ("learned_range", "learned_range")):
        process = scheduler.process({"timestep_respacing": 5, "model_var_type": asked})
        assert process.model_var_type == used


@pytest.mark.parametrize("name", ["nothing here", "a/b/c", ""])
def test_neither_a_folder_nor_an_id(name):
    with pytest.raises(UserError, match="neither a folder nor a hub id"):
        load(name)
