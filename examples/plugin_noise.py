"""A noise of your own: a share of the values is lost to black or white, as in old films.

    python3 sample_condition.py --plugin examples/plugin_noise.py --data_root PHOTOGRAPHS \\
        --task denoising --set "task.measurement.noise={name: salt_and_pepper, share: 0.1}"
"""

import torch

from guided_diffusion.noise_models import NOISES, NoiseModel


@NOISES.register("salt_and_pepper")
class SaltAndPepper(NoiseModel):
    """Each value becomes -1 or 1 with probability `share`."""

    def __init__(self, share: float = 0.1) -> None:
        self.share = share

    def __call__(self, clean, rng):
        hit = torch.as_tensor(rng.random_sample(clean.shape) < self.share).to(clean.device)
        extreme = torch.as_tensor(rng.choice([-1.0, 1.0], clean.shape)).to(clean)
        return torch.where(hit, extreme, clean)

    def equivalent_sigma(self, y, known=None):
        """Of Gaussian noise of the same variance about a grey image."""
        return self.share**0.5
