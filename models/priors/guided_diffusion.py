"""Networks of the guided-diffusion kind ("ADM"), from checkpoints of their weights."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guided_diffusion.pretrained import PRIORS, Pretrained
from guided_diffusion.unet import NUM_CLASSES, UNetConfig, UNetModel
from models.checkpoint import load_model
from util.errors import UserError
from util.randomness import ImageKey

_MEMORY_KEYS = {"use_checkpoint"}  # that trade memory for time
_LATER_KEYS = {"patch_size": 1}  # results from before there were these keys stay valid


@PRIORS.register("guided_diffusion")
@dataclass(frozen=True)
class GuidedDiffusionPrior(UNetConfig, Pretrained):
    """The keys of a published model config, and one more.

    model_path: the checkpoint, .pt, .pth or .safetensors
    class_label: the class that a class-conditional network is told, from 0; None: one drawn for
      each image, as its authors do
    """

    model_path: str = field(kw_only=True)
    class_label: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.check()
        if not self.model_path:
            raise UserError("model config: model_path is empty; name a checkpoint file")
        if self.class_label is None:
            return
        if not self.class_cond:
            raise UserError("model config: class_label belongs to class_cond: True")
        if not 0 <= self.class_label < NUM_CLASSES:
            raise UserError(
                f"model config: class_label {self.class_label}: expected 0 to {NUM_CLASSES - 1}"
            )

    @property
    def unet(self) -> UNetConfig:
        """The architecture alone."""
        return UNetConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(UNetConfig)})

    @property
    def learns_variance(self) -> bool:
        return self.learn_sigma

    def load(self) -> UNetModel:
        return load_model(self.unet, self.model_path)

    def labels(self, keys: Sequence[ImageKey]) -> list[int] | None:
        if not self.class_cond:
            return None
        if self.class_label is not None:
            return [self.class_label] * len(keys)
        return [int(key.numpy("class").randint(NUM_CLASSES)) for key in keys]

    @property
    def files(self) -> Sequence[Path]:
        return [Path(self.model_path)]

    def settings(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self.unet)
        settings |= {"class_label": self.class_label} if self.class_cond else {}
        settings["channel_mult"] = [float(m) for m in self.level_multipliers()]
        settings["attention_resolutions"] = str(self.attention_resolutions)
        if self.num_heads_upsample == -1:
            settings["num_heads_upsample"] = self.num_heads
        return {
            key: value
            for key, value in settings.items()
            if key not in _MEMORY_KEYS and _LATER_KEYS.get(key) != value
        }
