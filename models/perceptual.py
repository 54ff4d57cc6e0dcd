"""The networks that LPIPS and FID look through, by the packages of requirements-metrics.txt.

FID is torch-fidelity's: its Inception and its resizing are TensorFlow's of the original FID
program, kept equal by its tests; clean-fid resizes in another way by default, and torchmetrics
uses torch-fidelity underneath.
"""

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.checkpoint import load_state
from util.errors import UserError
from util.logger import get_logger

REQUIREMENTS = "pip install -r requirements-metrics.txt"
_INCEPTION_BATCH = 16
_FEATURES = "2048"
_FIRST_LAYER = "Conv2d_1a_3x3.conv.weight"  # of torch-fidelity's checkpoint


def require(package: str, metric: str) -> ModuleType:
    """The optional package; UserError saying how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{metric} needs a package: {REQUIREMENTS} ({error})") from None


@contextlib.contextmanager
def _quiet():
    """No deprecation warnings of the packages, and what they print goes to stderr."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def _download(what: str, name: str, build: Callable[[], Any]) -> Any:
    """build(), which may download; a failure becomes advice."""
    get_logger().info(
        "%s: on first use the weights are downloaded to %s", what, torch.hub.get_dir()
    )
    try:
        return build()
    except OSError as error:  # URLError is one
        raise UserError(
            f"{what}: the weights could not be downloaded ({error}); give a local file with "
            f"--weights {name}=FILE"
        ) from None


class Lpips:
    """Learned perceptual distance (Zhang et al. 2018), version 0.1; smaller is nearer.

    net: "vgg" (the paper's choice) or "alex"
    weights: file with the backbone's ImageNet convolutions (torchvision's names features.N.*, a
      whole torchvision checkpoint will do); None: torchvision downloads it
    """

    def __init__(
        self, net: str = "vgg", weights: Path | None = None, device: torch.device | str = "cpu"
    ) -> None:
        package = require("lpips", "LPIPS")
        self.device = torch.device(device)

        def build(random: bool) -> nn.Module:
            with _quiet():
                return package.LPIPS(net=net, version="0.1", pnet_rand=random, verbose=False)

        if weights is None:
            self.model = _download(f"LPIPS ({net})", net, lambda: build(random=False))
        else:
            self.model = build(random=True)
            _load_backbone(self.model.net, weights, net)
        self.model.to(self.device).eval()

    def __call__(self, label: np.ndarray, image: np.ndarray) -> float:
        """Distance of two uint8 [H, W, 3] images."""
        with torch.no_grad():
            return float(self.model(self._tensor(label), self._tensor(image)).item())

    def _tensor(self, pixels: np.ndarray) -> Tensor:
        x = torch.tensor(pixels, device=self.device).permute(2, 0, 1)[None]
        return x.float() / 127.5 - 1


def _load_backbone(backbone: nn.Module, path: Path, net: str) -> None:
    """Fill lpips' backbone, whose layers are called sliceK.N, from features.N."""
    state = load_state(path)
    wanted = {key: f"features.{key.split('.', 1)[1]}" for key in backbone.state_dict()}
    own = backbone.state_dict()
    for key, name in wanted.items():
        if name not in state or state[name].shape != own[key].shape:
            raise UserError(
                f"{path}: these are not the ImageNet weights of the {net} backbone ({name} is "
                "missing or of another shape)"
            )
    backbone.load_state_dict({key: state[name] for key, name in wanted.items()})


class Fid:
    """Frechet Inception distance (Heusel et al. 2017) between two sets of images.

    weights: torch-fidelity's Inception checkpoint, or a TorchScript Inception that maps
      [B, 3, 299, 299] in [-1, 1] to features [B, 2048]; None: torch-fidelity downloads its own
    """

    def __init__(self, weights: Path | None = None, device: torch.device | str = "cpu") -> None:
        require("torch_fidelity", "FID")
        self.device = torch.device(device)
        if weights is None:
            self.features = _download("FID (Inception)", "inception", lambda: _inception(None))
        else:
            self.features = _scripted(weights) or _checked_inception(weights)
        self.features.to(self.device)

    def __call__(self, labels: Sequence[np.ndarray], images: Sequence[np.ndarray]) -> float:
        """Distance of two sets of uint8 [H, W, 3] images, at least two in each."""
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

        a, b = self._extract(labels), self._extract(images)
        if len(a) + len(b) < a.shape[1]:
            # Small sets span few dimensions; a basis of these changes nothing but the time.
            basis = torch.linalg.qr(torch.cat([a, b]).T).Q
            a, b = a @ basis, b @ basis
        statistics = fid_features_to_statistics(a), fid_features_to_statistics(b)
        (value,) = fid_statistics_to_metric(*statistics, False).values()
        return max(float(value), 0.0)  # rounding can make it slightly negative

    def _extract(self, images: Sequence[np.ndarray]) -> Tensor:
        """Features [N, 2048], float64, on the CPU."""
        found = []
        # Images of one batch must have one size; those of a folder need not.
        for start in range(0, len(images), _INCEPTION_BATCH):
            batch = images[start : start + _INCEPTION_BATCH]
            same = len({image.shape for image in batch}) == 1
            for part in [batch] if same else [[image] for image in batch]:
                x = torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2).to(self.device)
                with torch.no_grad():
                    found.append(self.features(x)[0].cpu().double())
        return torch.cat(found)


def _inception(weights: Path | None) -> nn.Module:
    from torch_fidelity import FeatureExtractorInceptionV3

    path = None if weights is None else str(weights)
    with _quiet():
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", [_FEATURES], feature_extractor_weights_path=path, verbose=False
        )


def _checked_inception(weights: Path) -> nn.Module:
    """torch-fidelity's network from a file; it unpickles, so the file is checked first."""
    state = load_state(weights)
    try:
        if _FIRST_LAYER not in state:
            raise RuntimeError(_FIRST_LAYER)
        return _inception(weights)
    except RuntimeError:
        raise UserError(
            f"{weights}: these are not the weights of torch-fidelity's Inception, nor a "
            "TorchScript Inception"
        ) from None


class _Scripted(nn.Module):
    """A TorchScript Inception behind TensorFlow's resizing and range, as torch-fidelity's."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.module = module.eval()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        from torch_fidelity.interpolate_compat_tensorflow import (
            interpolate_bilinear_2d_like_tensorflow1x as resize,
        )

        x = resize(x.float(), size=(299, 299), align_corners=False)
        return (self.module((x - 128) / 128),)


def _scripted(path: Path) -> nn.Module | None:
    """The TorchScript module in `path`; None where there is another kind of file."""
    try:
        with _quiet():
            module = torch.jit.load(os.fspath(path), map_location="cpu")
    except RuntimeError:
        return None
    scripted = _Scripted(module)
    try:
        with torch.no_grad():
            (features,) = scripted(torch.zeros(1, 3, 299, 299, dtype=torch.uint8))
    except (RuntimeError, TypeError, ValueError):
        features = None
    if not isinstance(features, Tensor) or features.shape != (1, int(_FEATURES)):
        raise UserError(f"{path}: a TorchScript file, but not an Inception with 2048 features")
    return scripted
