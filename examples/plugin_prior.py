"""A prior of your own, here one that needs no weights: photographs as Gaussian cosine coefficients,
whose power falls with frequency. A network would be loaded in `denoiser` in the same way.

    echo "{prior: wiener, image_size: 256}" > my_model.yaml
    python3 sample_condition.py --plugin examples/plugin_prior.py --model_config my_model.yaml \\
        --task gaussian_deblur --data_root PHOTOGRAPHS
"""

from torch import Tensor

from guided_diffusion.natural_images import NaturalImages
from guided_diffusion.pretrained import PRIORS
from models.priors.adapters import Denoiser, DenoiserPrior


@PRIORS.register("wiener")
class WienerPrior(DenoiserPrior):
    """Keys of the model config are the arguments.

    grey: images of one channel
    """

    def __init__(self, image_size: int, grey: bool = False) -> None:
        self.image_size, self.channels = image_size, 1 if grey else 3

    def denoiser(self) -> Denoiser:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            images = NaturalImages(tuple(x.shape[1:]), x)
            kept = images.variances / (images.variances + sigma.view(-1, 1, 1, 1) ** 2)
            return images.image(kept * images.coefficients(x))

        return denoise
