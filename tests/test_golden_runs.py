"""Whole runs of the published sampler, replayed with its recorded noise."""

import json

import numpy as np
import pytest
import torch

from guided_diffusion.condition_methods import Problem, ProximalSampling
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.measurements import (
    GaussianBlur,
    GaussianNoise,
    Inpainting,
    KernelBlur,
    Operator,
    OperatorContext,
    SuperResolution,
)
from guided_diffusion.sampling import Prior, sample
from tests import golden_data

GOLDEN = golden_data.load("dpps")


class Recording(ProximalSampling):
    """Scores candidates at t = 0 as well, where the program keeps mu and need not."""

    last_best = None

    def step(self, reverse, x_t, t, problem, noise):
        result = super().step(reverse, x_t, t, problem, noise)
        if t == 0:
            prior, _ = reverse(x_t, t)
            n = self.num_candidates(problem.diffusion, t)
            std = (0.5 * prior.log_variance).exp()
            self.last_best, _ = self.choose(result.x, std, prior.eps, x_t, t, n, problem, noise)
        return result


def build_operator(case: str, spec: dict) -> Operator:
    context = OperatorContext(64, 64)
    if spec["task"] == "super_resolution":
        return SuperResolution(4, context=context)
    if spec["task"] == "gaussian_blur":
        return GaussianBlur(61, 3.0, context=context)
    if spec["task"] == "motion_blur":
        return KernelBlur(context, GOLDEN[f"{case}/kernel"])
    masks = torch.from_numpy(GOLDEN[f"{case}/operator_mask"]).float()
    return Inpainting(context=context, masks=masks)


@pytest.mark.parametrize("case", ["sr4", "gaussian", "motion", "inpaint"])
def test_run_equals_the_published_one(case):
    spec = json.loads(str(GOLDEN[f"{case}/spec"]))
    diffusion = GaussianDiffusion.create(timestep_respacing=spec["respacing"])
    prior = Prior(golden_data.network(spec["model"], spec["seed"]), diffusion)
    y = torch.from_numpy(GOLDEN[f"{case}/measurement"])
    problem = Problem(y, build_operator(case, spec), GaussianNoise(), diffusion, (3, 64, 64))
    method = Recording(scale=spec["scale"])
    steps = []

    def watch(t, result):
        steps.append((result.distance.item(), result.num_candidates, result.best))

    x = sample(prior, method, problem, golden_data.RecordedNoise(spec["seed"]), watch)

    distance = np.array([d for d, _, _ in steps])
    np.testing.assert_allclose(distance, GOLDEN[f"{case}/distance"], rtol=1e-3)
    numbers = [n for _, n, _ in steps[:-1]]
    assert numbers == GOLDEN[f"{case}/num_candidates"][:-1].tolist()
    best = np.array([b.item() for _, _, b in steps[:-1]] + [method.last_best.item()])
    decided = GOLDEN[f"{case}/gap"] > 1e-4
    assert decided.sum() >= 15
    np.testing.assert_array_equal(best[decided], GOLDEN[f"{case}/best"][decided])
    np.testing.assert_allclose(x.numpy(), GOLDEN[f"{case}/sample"], rtol=0, atol=2e-3)
