"""Networks in the folders of diffusers, on the disk or on a hub.

Such a folder holds config.json and weights of the network, and scheduler_config.json, beside each
other or in `unet` and `scheduler`. The networks are diffusers' UNet2DModel and those that
`python -m models.export` writes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guided_diffusion.gaussian_diffusion import GaussianDiffusion, respaced_timesteps
from guided_diffusion.pretrained import PRIORS, Pretrained
from guided_diffusion.unet import UNetConfig
from models.checkpoint import freeze, load_model
from models.priors.schedulers import SchedulerConfig
from util.config.schema import parse_dataclass
from util.errors import UserError, first_line
from util.files import read_bytes, shown
from util.plugins import optional

OWN_CLASS = "GuidedDiffusionUNet"  # of this project's networks, in config.json
WEIGHTS = "diffusion_pytorch_model"  # file name of the weights, without ending
_INSTALL = "pip install -r requirements-hub.txt"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LARGEST_JSON = 1 << 20  # bytes
_TOLD = 300  # characters of another program's message
_OTHER_KIND = "is it a model of another kind?"
_SCHEDULER_TOO = "save the scheduler in it, too: DDPMScheduler(...).save_pretrained(FOLDER)"
_OTHER_PARTS = {"vae", "vqvae", "movq", "text_encoder", "image_encoder", "bert"}  # of pipelines


@PRIORS.register("diffusers")
def diffusers_prior(model_path: str, use_safetensors: bool = True) -> Pretrained:
    """
    model_path: a folder that `save_pretrained` wrote, or a hub id such as "google/ddpm-cat-256"
    use_safetensors: False also reads pickled weights, though only plain tensors in them
    """
    folder = _Folder(model_path, use_safetensors)
    own = folder.config.get("_class_name") == OWN_CLASS
    return ExportedPrior(folder) if own else DiffusersPrior(folder)


class _Folder:
    """A folder of a network, wherever it lies; what is on a hub is fetched when it is needed."""

    def __init__(self, name: str, use_safetensors: bool) -> None:
        self.name, self.use_safetensors = name, use_safetensors
        self.on_hub = not name or not Path(name).is_dir()
        if self.on_hub and not _HUB_ID.fullmatch(name):
            raise UserError(
                f"model_path: {shown(name)}: neither a folder nor a hub id (OWNER/NAME)"
            )
        self.root = _fetched(name, ["*.json"]) if self.on_hub else Path(name)
        index = self._json("model_index.json") or {}
        others = sorted(_OTHER_PARTS & index.keys())
        if others:
            raise UserError(
                f"{name}: {index.get('_class_name')} is a pipeline with {', '.join(others)}; this "
                "program restores with networks that see the pixels"
            )
        self.place, self.config = self._find("config.json", "unet/", _OTHER_KIND)
        place, scheduler = self._find("scheduler_config.json", "scheduler/", _SCHEDULER_TOO)
        self.scheduler = SchedulerConfig.read(scheduler, f"{name}: {place}scheduler_config.json")
        self._configs = [
            self.root / self.place / "config.json",
            self.root / place / "scheduler_config.json",
        ]

    def __repr__(self) -> str:
        return f"{self.root}"

    def _json(self, file: str) -> dict[str, Any] | None:
        """What the file holds; None where there is none."""
        path = self.root / file
        if not path.exists():
            return None
        try:
            value = json.loads(read_bytes(path, _LARGEST_JSON))
        except ValueError as error:
            raise UserError(f"{path}: no JSON ({error})") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}: expected keys and values")
        return value

    def _find(self, file: str, subfolder: str, advice: str) -> tuple[str, dict[str, Any]]:
        """Where the file lies, and what it holds."""
        for place in ("", subfolder):
            value = self._json(place + file)
            if value is not None:
                return place, value
        raise UserError(f"{self.name}: holds no {file} or {subfolder}{file}; {advice}")

    @cached_property
    def weights(self) -> list[Path]:
        """The files of weights: one, or its numbered parts."""
        endings = ["safetensors"] if self.use_safetensors else ["safetensors", "bin"]
        names = [
            f"{self.place}{WEIGHTS}{part}.{ending}"
            for ending in endings
            for part in ("", "-*-of-*")
        ]
        if self.on_hub:
            patterns = [*names, f"{self.place}{WEIGHTS}*.index.json"]
            _fetched(self.name, patterns, revision=self.root.name)
        for name in names:
            found = sorted(self.root.glob(name))
            if found:
                return found
        advice = "; where it has pickled ones that you trust, set model.use_safetensors to False"
        raise UserError(f"{self.name}: no weights {names[0]}{advice * self.use_safetensors}")

    @property
    def files(self) -> list[Path]:
        return [*self._configs, *self.weights]


def _fetched(name: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The folder in the hub's cache where these files of a repository lie."""
    without = f"model_path: {name}: no such folder; to fetch it from the hub: {_INSTALL}"
    hub = optional("huggingface_hub", without)
    errors = optional("huggingface_hub.utils", without)
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except errors.GatedRepoError:
        reason = "its owners ask for its terms to be accepted on the hub first"
    except errors.RepositoryNotFoundError:
        reason = "no such folder, and the hub has no such model, or hides it"
    except errors.HfHubHTTPError as error:
        reason = f"the hub answers {first_line(error)}"
    except Exception as error:  # of the network, the disk or the cache
        reason = f"not in the hub's cache, and it cannot be fetched ({first_line(error)})"
    raise UserError(f"model_path: {name}: {reason}")


class _HubPrior(Pretrained):
    """What the networks in folders share."""

    def __init__(self, folder: _Folder) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.folder})"

    @property
    def learns_variance(self) -> bool:
        return self.folder.scheduler.learns_variance

    def process(self, options: Mapping[str, Any]) -> GaussianDiffusion:
        return self.folder.scheduler.process(options)

    @property
    def files(self) -> Sequence[Path]:
        return self.folder.files

    def settings(self) -> dict[str, Any]:
        return {"prior": "diffusers"}


class ExportedPrior(_HubPrior):
    """A network that `python -m models.export` wrote."""

    def __init__(self, folder: _Folder) -> None:
        super().__init__(folder)
        keys = {k: v for k, v in folder.config.items() if not k.startswith("_")}
        self.unet = parse_dataclass(UNetConfig, keys, f"{folder.name}: {folder.place}config.json")
        self.unet.check()
        self.image_size, self.use_fp16 = self.unet.image_size, self.unet.use_fp16
        if self.unet.learn_sigma != folder.scheduler.learns_variance:
            raise UserError(
                f"{folder.name}: learn_sigma and the scheduler's variance_type disagree"
            )

    def size_multiple(self) -> int:
        return self.unet.size_multiple()

    def process(self, options: Mapping[str, Any]) -> GaussianDiffusion:
        """With timesteps spaced as guided-diffusion has them, like before it was exported."""
        scheduler = self.folder.scheduler
        kept = respaced_timesteps(scheduler.num_train_timesteps, options["timestep_respacing"])
        return scheduler.process(options, kept)

    def load(self) -> nn.Module:
        return load_model(self.unet, self.folder.weights[0])


class DiffusersPrior(_HubPrior):
    """diffusers' UNet2DModel."""

    def __init__(self, folder: _Folder) -> None:
        super().__init__(folder)
        config, where = folder.config, f"{folder.name}: {folder.place}config.json"
        kind = config.get("_class_name")
        if kind != "UNet2DModel":
            raise UserError(f"{where}: a {kind}; this program takes UNet2DModel")
        for key in ("class_embed_type", "num_class_embeds"):
            if config.get(key) is not None:
                raise UserError(f"{where}: {key}: a network that is told classes is not taken")
        if config.get("center_input_sample"):
            raise UserError(f"{where}: center_input_sample: images in [0, 1] are not taken")
        sizes = config.get("sample_size")
        sides = set(sizes) if isinstance(sizes, list) else {sizes}
        side = sides.pop()
        if sides or not isinstance(side, int) or side < 1:
            raise UserError(f"{where}: sample_size {sizes}: the side of square images is needed")
        self.image_size, self.channels = side, config.get("in_channels", 3)
        given, expected = config.get("out_channels", 3), self.channels * (1 + self.learns_variance)
        if self.channels not in (1, 3) or given != expected:
            raise UserError(
                f"{where}: {self.channels} channels in and {given} out; expected 1 or 3, and "
                f"{expected} for the scheduler's variance_type {folder.scheduler.variance_type}"
            )
        if side % self.size_multiple():
            raise UserError(f"{where}: sample_size {side} is no multiple of {self.size_multiple()}")

    def size_multiple(self) -> int:
        return 2 ** (len(self.folder.config.get("block_out_channels", ())) - 1)

    def load(self) -> nn.Module:
        weights = self.folder.weights  # fetched, where they are on a hub
        diffusers = optional("diffusers", f"{self.folder.name}: needs diffusers: {_INSTALL}")
        try:
            network, found = diffusers.UNet2DModel.from_pretrained(
                str(weights[0].parent),
                use_safetensors=weights[0].suffix == ".safetensors",
                local_files_only=True,
                output_loading_info=True,
                torch_dtype=torch.float32,
            )
        except Exception as error:  # whatever a damaged file makes it raise
            told = " ".join(str(error).split())[:_TOLD] or type(error).__name__
            raise UserError(f"{weights[0]}: cannot be loaded ({told})") from None
        wrong = [
            f"{len(found[key])} {key.replace('_', ' ')} ({found[key][0]}, ...)"
            for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
            if found.get(key)
        ]
        if wrong:
            raise UserError(f"{weights[0]}: does not fit its config.json: {'; '.join(wrong)}")
        return freeze(_SampleAlone(network))


class _SampleAlone(nn.Module):
    """A UNet2DModel without the wrapping of its output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return self.network(x, timesteps, return_dict=False)[0]
