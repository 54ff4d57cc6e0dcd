"""The files that an image of a run is made from, and whether they are still what they were."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.dataloader import Dataset
from data.masks import MaskConfig, find_mask
from util.errors import UserError
from util.files import file_mark, same_file


@dataclass(frozen=True)
class Sources:
    """Of one image: its own file and, where masks lie in a folder, its mask's."""

    dataset: Dataset
    mask_opt: MaskConfig | None = None

    def mark(self, name: str) -> dict[str, Any]:
        """What tells them from other files of the same names: size, time and SHA-256 of each."""
        return {kind: file_mark(path) for kind, path in self._files(name)}

    def unchanged(self, name: str, mark: Mapping[str, Any]) -> bool:
        """Whether they are the marked ones. A file that is missing now is not compared: what was
        restored from it still stands."""
        try:
            files = list(self._files(name))
        except UserError:
            return True
        return all(same_file(path, mark.get(kind, {})) for kind, path in files)

    def _files(self, name: str) -> Iterator[tuple[str, Path]]:
        image = self.dataset.path(name)
        if image is not None:
            yield "image", image
        masks = self.mask_opt.folder if self.mask_opt is not None else None
        if masks is not None:
            yield "mask", find_mask(masks, name)
