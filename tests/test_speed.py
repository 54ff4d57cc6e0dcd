"""The program against the plain loop: the same samples, from the same noise."""

import json

import numpy as np
import pytest
import torch

from guided_diffusion.condition_methods import ProximalSampling
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.measurements import (
    GaussianBlur,
    Inpainting,
    KernelBlur,
    OperatorContext,
    SuperResolution,
)
from guided_diffusion.noise_models import GaussianNoise
from guided_diffusion.problem import Problem
from guided_diffusion.sampling import Prior, sample
from tests import golden_data
from tests.plain_loop import DenseBlur, GatherBicubic, PlainLoop, plain_network

SIZE, STEPS, N_MAX = 64, 8, 6
GOLDEN = golden_data.load("dpps")


def operators(task):
    """The program's operator and the plain one."""
    context = OperatorContext(SIZE, SIZE)
    if task == "super_resolution":
        return SuperResolution(4, context=context), GatherBicubic(SIZE, 4)
    if task == "gaussian_blur":
        blur = GaussianBlur(61, 3.0, context=context)
        return blur, DenseBlur(blur.saved()["kernel"])
    if task == "motion_blur":
        kernel = GOLDEN["motion/kernel"]
        return KernelBlur(context, kernel), DenseBlur(kernel)
    mask = torch.from_numpy(GOLDEN["inpaint/operator_mask"]).float()
    return Inpainting(context=context, masks=mask), lambda x: x * mask


class Exact(torch.nn.Module):
    """A network computed in float64: a random one amplifies what rounding makes different, until
    another candidate is chosen."""

    def __init__(self, network):
        super().__init__()
        self.network = network.double()

    def forward(self, x, timesteps):
        return self.network(x.double(), timesteps).to(x.dtype)


# One thread: the order of sums differs with their number.
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("task", ["super_resolution", "gaussian_blur", "motion_blur", "inpainting"])
def test_samples_are_those_of_the_plain_loop(task):
    spec = json.loads(str(GOLDEN["gaussian/spec"]))
    network = golden_data.network(spec["model"], spec["seed"])
    diffusion = GaussianDiffusion.create(timestep_respacing=STEPS)
    fast, dense = operators(task)
    image = golden_data.normal((1, 3, SIZE, SIZE), 5).clamp(-1, 1)
    y = dense(image) + 0.01 * golden_data.normal(tuple(dense(image).shape), 6)
    noise = golden_data.RecordedNoise(7)
    plain = PlainLoop(
        Exact(plain_network(network)), diffusion.timesteps, diffusion.betas, dense, y, 2.0, N_MAX
    )
    expected = plain.run(noise, (3, SIZE, SIZE))

    steps = []
    problem = Problem(y, fast, GaussianNoise(), diffusion, (3, SIZE, SIZE))
    x = sample(
        Prior(Exact(network), diffusion),
        ProximalSampling(scale=2.0, n_max=N_MAX),
        problem,
        noise,
        lambda t, result: steps.append(result),
    )
    assert [int(s.best) for s in steps[:-1]] == plain.best
    assert len(set(plain.best)) > 1
    distances = [s.distance.item() for s in steps]
    np.testing.assert_allclose(distances, plain.distances, rtol=1e-4)
    np.testing.assert_allclose(x.numpy(), expected.numpy(), rtol=0, atol=1e-3)
