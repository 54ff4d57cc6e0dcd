"""Restoring from Python."""

import dataclasses

import pytest
import torch

from guided_diffusion.condition_methods import ProximalSampling
from guided_diffusion.measurements import Denoising, Inpainting, Operator, OperatorContext
from models.prior import load_prior, restore
from models.priors.adapters import denoiser_prior
from tests.models.test_adapters import d
from util.errors import UserError

SIZE = 16
PRIOR = denoiser_prior(d, SIZE, num_steps=4)


def masked(lost):
    """Two images, half of whose pixels are lost, and `lost` of the second one's."""
    context = OperatorContext(SIZE, SIZE, dtype=torch.float64)
    shares = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    masks = shares > torch.tensor([0.5, lost]).view(2, 1, 1, 1)
    return Inpainting(context=context, masks=masks.double())


def measured(operator):
    generator = torch.Generator().manual_seed(1)
    return operator(torch.randn(2, 3, SIZE, SIZE, generator=generator, dtype=torch.float64) / 2)


@pytest.mark.parametrize("lost", [0.5, 0.98])
@pytest.mark.parametrize("init", ["inverse", "aligned"])
def test_a_batch_of_masked_images_is_its_images_one_by_one(lost, init):
    operator, params = masked(lost), {"init": init}
    y = measured(operator)
    batch = restore(y, operator, PRIOR, params=params)
    for i in range(2):
        one = operator.take([i])
        single = restore(y[i : i + 1], one, PRIOR, params=params, names=[str(i)])
        torch.testing.assert_close(batch[i : i + 1], single)


def test_masks_that_begin_apart_are_watched_one_at_a_time():
    operator = masked(0.98)
    with pytest.raises(UserError, match="one at a time"):
        restore(measured(operator), operator, PRIOR, callback=lambda t, result: None)


def test_an_operator_that_cannot_be_parted_is_named():
    class Own(Operator):
        def bind(self, keys):
            return self

    with pytest.raises(UserError, match="has no take"):
        restore(torch.zeros(2, 3, SIZE, SIZE), Own(OperatorContext(SIZE, SIZE)), PRIOR)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["dpps", "pigdm"])
def test_a_caller_without_gradients_gets_the_same(off, method):
    operator = Denoising(context=OperatorContext(SIZE, SIZE))
    y = torch.linspace(-1, 1, SIZE).expand(1, 3, SIZE, SIZE)
    expected = restore(y, operator, PRIOR, method=method)
    with off():
        found = restore(y, operator, PRIOR, method=method)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("params", "message"),
    [({"scale": 1.0}, "has no scale"), ({"max_timestep": 50}, "follows from the measurement")],
)
def test_what_the_number_of_steps_leaves_no_room_for(params, message):
    operator = Denoising(context=OperatorContext(SIZE, SIZE))
    y = torch.zeros(1, 3, SIZE, SIZE)
    with pytest.raises(UserError, match=message):
        restore(y, operator, PRIOR, params=params)
    without = dataclasses.replace(PRIOR, num_steps=None)
    short = without.diffusion.keep(range(0, 1000, 200))
    restore(y, operator, dataclasses.replace(without, diffusion=short), params=params)


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_that_the_process_does_not_have(steps):
    with pytest.raises(UserError, match=f"num_steps {steps}: expected 1 to 1000"):
        denoiser_prior(d, SIZE, num_steps=steps)


def test_guidance_by_operator_has_no_part_with_a_number_of_steps(tmp_path):
    config = tmp_path / "diffusion.yaml"
    tuned = "{inpainting: {scale: 7.0, timestep_respacing: 20}}"
    config.write_text(f"num_steps: 25\nguidance: {tuned}\n")
    prior = load_prior("configs/faces64_model_config.yaml", str(config), operator="inpainting")
    assert (prior.num_steps, dict(prior.params)) == (25, {})


@pytest.mark.parametrize("setting", [{"init": "alligned"}, {"selection": "predicted"}])
def test_a_misspelt_choice_of_a_method(setting):
    operator = Denoising(context=OperatorContext(SIZE, SIZE))
    with pytest.raises(UserError, match="expected one of"):
        restore(torch.zeros(1, 3, SIZE, SIZE), operator, PRIOR, method=ProximalSampling(**setting))
