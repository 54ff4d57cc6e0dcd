"""A guidance rule of your own: the published step, its scale divided by the distance that is left,
so that the step is along the gradient of half the squared distance.

    python3 sample_condition.py --plugin examples/plugin_rule.py --task super_resolution \\
        --data_root PHOTOGRAPHS --set task.conditioning.params.guidance_rule=squared
"""

from guided_diffusion.guidance import GUIDANCE_RULES, Guidance, GuidanceRule, gradient_of


@GUIDANCE_RULES.register("squared")
class Squared(GuidanceRule):
    """A step of `scale` along the gradient of || y - A x0_hat ||^2 / 2."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, prior, move, x_t, t, problem):
        distances = problem.distances(prior.x0_hat)
        g = gradient_of(distances.square() / 2, x_t)
        return Guidance(-self.scale * g, prior.x0_hat.detach(), distances.detach())
