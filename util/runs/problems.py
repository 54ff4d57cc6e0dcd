"""From the files of a data set to problems for the sampler: measured here, or measured already.

Images of the same size are put into batches; everything that depends on the size of an image
(operator, frame, windows) is built here, once per size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from data.dataloader import Dataset, Photograph, output_name
from data.masks import MaskConfig
from guided_diffusion.check_operator import check_operator
from guided_diffusion.framing import Frame, FramedOperator, cut_border
from guided_diffusion.measurements import OPERATORS, Inpainting, Operator, OperatorContext
from guided_diffusion.noise_models import NOISES, NoiseModel
from guided_diffusion.problem import Problem, WholeImage
from guided_diffusion.sampling import Prior
from guided_diffusion.tiling import TiledModel, Tiling, WindowExtent, distance_factor
from models.kernel_wizard import load_kernel_wizard
from util.config.run_config import RunConfig, build_part
from util.errors import UserError
from util.img_utils import to_colour, to_grey
from util.logger import get_logger
from util.randomness import ImageKey

# A restored image whose residual is this many times the noise's does not explain the measurement,
# one with less than the inverse explains part of the noise.
MISFIT_FACTOR = 2.0
# Where images have any size, the operator is tried at this side at least: a kernel may be larger
# than the model.
_PROBED_SIDE = 1024


@dataclass(frozen=True)
class Case:
    """One image of a run, read and ready to be put into a batch."""

    key: ImageKey
    y: Tensor  # the whole measurement, [C, h, w]
    operator: Operator  # of the whole image, bound to this one
    label: Tensor | None  # [C, H, W] on the CPU; None: there is none
    grey: bool  # the source has no colour channels
    known: Tensor | None  # 1 where y holds a measurement, [C, h, w]; None: everywhere
    dpi: tuple[float, float] | None = None  # of the source
    kept: Tensor | None = None  # where the result is y itself, bool [1, H, W]
    source: Mapping[str, Any] = field(default_factory=dict)  # see Sources.mark
    start: int | None = None  # timestep that sampling begins at, see Prior.start_timestep

    @property
    def output(self) -> str:
        """Path of its result files below their folder, without ending."""
        return output_name(self.key.name)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.operator.context.height, self.operator.context.width


@dataclass(frozen=True)
class Batch:
    """Images of the same size and the problem that they pose together."""

    cases: list[Case]
    frame: Frame
    operator: Operator  # of the whole images, bound to the batch: for views and masks
    problem: Problem
    prior: Prior

    @property
    def y(self) -> Tensor:
        """The whole measurements [B, ...], as they are kept beside the results."""
        return torch.stack([case.y for case in self.cases])

    def finish(self, x: Tensor) -> Tensor:
        """The images [B, 3, H, W] in the sampler's x [B, C, H', W']."""
        return to_colour(self.frame.cut(x))

    def results(self, x: Tensor) -> Tensor:
        """The same, with the known pixels of the measurement where they are to be kept."""
        return torch.stack(
            [
                image if case.kept is None else torch.where(case.kept, case.y, image)
                for image, case in zip(self.finish(x), self.cases, strict=True)
            ]
        )

    def residuals(self, x: Tensor) -> list["Residual"]:
        """How well the sampler's x [B, 3, H', W'], clamped as it is saved, fits what each y tells
        of its image."""
        problem, known = self.problem, self.problem.known
        with torch.no_grad():
            if known is None:
                known = problem.operator.measured_values(problem.y)
            difference = (problem.y - problem.operator(x.clamp(-1, 1))) * known
        norms = difference.flatten(1).norm(dim=1).tolist()
        expected = problem.noiser.expected_norm(known, y=problem.y).tolist()
        return [Residual(norm, noise or None) for norm, noise in zip(norms, expected, strict=True)]


@dataclass(frozen=True)
class Residual:
    """|| y - A(x) || of a restored image, and what noise of the stated level would leave."""

    norm: float
    expected: float | None  # sigma * sqrt(m), m the number of measured values; None: not stated

    @property
    def misfit(self) -> str:
        """What is wrong, and what to do; "" where nothing is or no noise level is stated."""
        if not self.expected:
            return ""
        ratio = self.norm / self.expected
        told = f"residual {self.norm:.4g}, {ratio:.2g} times the stated noise's {self.expected:.4g}"
        if ratio > MISFIT_FACTOR:
            return (
                f"{told}: the restored image does not explain the measurement; take more --steps, "
                "check the operator (kernel, scale_factor, mask, border), raise noise.sigma to the "
                "true level, or raise a guidance scale"
            )
        if ratio < 1 / MISFIT_FACTOR:
            return (
                f"{told}: the restored image explains part of the noise; lower noise.sigma to the "
                "true level, or lower a guidance scale"
            )
        return ""


def _is_constant(values: Tensor) -> bool:
    """Whether all pixels of values [C, n] are the same."""
    return bool((values == values[:, :1]).all()) if values.numel() else True


class ProblemBuilder:
    """Measures the images of `dataset` and poses them as problems.

    seed: of the measurement (kernel, masks, noise)

    `probe` is the operator for images of the model's size, or larger where images may be.

    Raises UserError for a task that cannot be done in measurement mode or by windows.
    """

    def __init__(
        self, config: RunConfig, dataset: Dataset, seed: int, device: torch.device
    ) -> None:
        self.config, self.dataset = config, dataset
        self.seed, self.device = seed, device
        self.size, self.channels = config.model.image_size, config.model.channels
        self.noiser: NoiseModel = config.task.noise.build(NOISES)
        self.operator = lru_cache(maxsize=4)(self._operator)
        self._mask_told = self._grey_told = False
        self._in_use: WeakValueDictionary[tuple[int, int], Operator] = WeakValueDictionary()
        side = max(self.size, _PROBED_SIDE) if dataset.any_size else self.size
        self.probe = self.operator(side, side)
        self._check()

    def _operator(self, height: int, width: int) -> Operator:
        """The operator for whole images of height x width: the one that others of that size have,
        as long as there are any, so that they can be joined."""
        if (height, width) in self._in_use:
            return self._in_use[height, width]
        context = OperatorContext(
            height,
            width,
            self.device,
            seed=self.seed,
            channels=self.channels,
            mask=self.config.task.mask_opt,
            load_network=load_kernel_wizard,
            build_part=build_part,
        )
        operator = self.config.task.operator.build(OPERATORS, context=context)
        self._in_use[height, width] = operator
        return operator

    def _check(self) -> None:
        task, any_size, operator = self.config.task, self.dataset.any_size, self.probe
        masks = task.mask_opt.folder if task.mask_opt else None
        unstated = task.mask_opt is None and not self.dataset.measured
        bound = operator
        if unstated or (not any_size and masks is None):
            # No mask_opt, or one that fits no image of the model's size, is found here.
            bound = operator.bind([ImageKey(self.seed, "")])
        if bound is not operator or not operator.differs_by_image:
            check_operator(bound, task.operator.name)
            if not self.dataset.measured:  # what the noise cannot take is said now
                white = bound.context.empty() + 1
                self.noiser(bound(white)[0], np.random.RandomState(0))
        if any_size and not self._lies_beside(operator):
            raise UserError(
                f"{task.operator.name}: its measurements are no pictures that could be laid beside "
                "windows or cut; use data.fit crop or resize"
            )
        if not operator.linear and (any_size or self.dataset.measured):
            raise UserError(
                f"{task.operator.name}: works on images of the model's size that are measured "
                "here (data.fit crop or resize); its measurements are no images that could be "
                "laid beside windows or read from files"
            )
        if not self.dataset.measured:
            return
        sections = [
            {"name": task.operator.name, **task.operator.params},
            *task.operator.params.get("parts", ()),
        ]
        if any(s["name"] == "motion_blur" and s.get("kernel") is None for s in sections):
            raise UserError("motion_blur: measurements need their kernel; give --kernel FILE")
        if operator.differs_by_image and not isinstance(operator, Inpainting):
            raise UserError(
                f"{operator.title}: differs from image to image in a way that no file of a "
                "measurement tells; only inpainting itself reads its masks from files"
            )
        get_logger().info(
            "the files are measurements; noise.sigma %s (on the range [-1, 1]) is taken as stated",
            getattr(self.noiser, "sigma", "not given"),
        )

    @staticmethod
    def _lies_beside(operator: Operator) -> bool:
        """Whether its measurements are pictures [B, C, h, w]; those by masks are."""
        if isinstance(operator, Inpainting):
            return True
        if operator.differs_by_image:
            operator = operator.bind([ImageKey(0, "")])
        return operator(operator.context.empty()).ndim == 4

    def measure(self, name: str, photograph: Photograph) -> Case:
        """The image called `name` as the data set gave it, measured unless it is a measurement;
        UserError where its mask or its size is not fit."""
        key = ImageKey(self.seed, name)
        if self.dataset.measured:
            return self._measured(key, photograph)
        photograph = self._as_the_prior_has(photograph)
        image = photograph.image.to(self.device)
        operator = self.operator(*image.shape[-2:]).bind([key])
        clean = operator(image[None])[0]
        y, kept = self.noiser(clean, key.numpy("noise")), self._kept(operator)
        return Case(key, y, operator, photograph.image, photograph.grey, None, photograph.dpi, kept)

    def _as_the_prior_has(self, photograph: Photograph) -> Photograph:
        """The photograph, grey where the prior's images are."""
        if self.channels == 3:
            return photograph
        if not photograph.grey and not self._grey_told:
            self._grey_told = True
            get_logger().info("the prior knows grey images; colours are left out")
        stored = None if photograph.stored is None else to_grey(photograph.stored)
        return replace(photograph, image=to_grey(photograph.image), grey=True, stored=stored)

    def _kept(self, operator: Operator) -> Tensor | None:
        """Where known pixels are copied into the result, bool [1, H, W]; None: nowhere."""
        if not isinstance(operator, Inpainting) or not self.config.task.keeps_known:
            return None
        return operator.masks[0] > 0

    def _measured(self, key: ImageKey, photograph: Photograph) -> Case:
        photograph = self._as_the_prior_has(photograph)
        y = self.probe.from_picture(photograph.image.to(self.device))
        factor = getattr(self.probe, "scale_factor", 1)
        operator = self.operator(*(side * factor for side in y.shape[-2:]))
        known = None
        if not operator.differs_by_image:
            c = operator.context
            expected = tuple(operator(c.empty()).shape[1:])
            if expected != tuple(y.shape):
                raise UserError(
                    f"{key.name}: a file of {tuple(y.shape)} values, but {operator.title} measures "
                    f"{expected} of an image of {c.width}x{c.height}; it cannot be its measurement"
                )
        if isinstance(operator, Inpainting):
            if photograph.stored is not None:
                y = photograph.stored.to(self.device)
            operator = self._with_mask(operator, key, photograph)
            self._tell_mask(key.name, y, operator.masks[0])
            # What the file holds at missing pixels means nothing.
            y, known = operator(y[None])[0], operator(torch.ones_like(y)[None])[0]
        inside = cut_border(y if known is None else known, self.dataset.border)
        if known is not None and not inside.any():
            raise UserError(f"{key.name}: the mask leaves no pixel; nothing is known of it")
        kept = self._kept(operator)
        return Case(key, y, operator, None, photograph.grey, known, photograph.dpi, kept)

    def _with_mask(self, operator: Inpainting, key: ImageKey, photograph: Photograph) -> Inpainting:
        """The operator with this image's mask: from mask_opt.mask, or the alpha channel."""
        mask_opt = operator.context.mask
        if mask_opt is not None and mask_opt.mask is not None:
            return operator.bind([key])
        if photograph.opaque is None:
            raise UserError(
                f"{key.name}: no alpha channel says which pixels are missing; give --masks, or "
                "save it with the missing parts transparent"
            )
        masks = operator.context.tensor(photograph.opaque[None, None])
        return Inpainting(context=operator.context, masks=masks)

    def _tell_mask(self, name: str, y: Tensor, mask: Tensor) -> None:
        """Say, once a run, how the mask was read; warn where the photograph speaks against it.

        y [C, H, W], mask [1, H, W], 1 where kept
        """
        kept = mask[0] > 0
        mask_opt = self.config.task.mask_opt or MaskConfig()
        given = mask_opt.mask is not None
        if not self._mask_told:
            self._mask_told = True
            how = f"white is {mask_opt.mask_is} (--mask_is)" if given else "opaque is kept"
            share = 100 * kept.float().mean()
            get_logger().info("masks: %s; of %s %.1f %% are kept", how, name, share)
        inside, outside = y[:, kept], y[:, ~kept]
        if given and _is_constant(inside) and outside.numel() and not _is_constant(outside):
            other = "damage" if mask_opt.mask_is == "kept" else "kept"
            get_logger().warning(
                "%s: all pixels that the mask keeps have one colour, and those that it drops have "
                "not; if white means the opposite, use --mask_is %s",
                *(name, other),
            )

    def pose(self, cases: list[Case], prior: Prior) -> Batch:
        """The problem of `cases`, all of one size and start, for `prior`."""
        prior, border = prior.scheduled(cases[0].start), self.dataset.border
        y, known = torch.stack([case.y for case in cases]), None
        masks = [case.known for case in cases if case.known is not None]
        if masks:  # of all, or of none
            known = cut_border(torch.stack(masks), border)
        first, *others = [case.operator for case in cases]
        operator = first.join(others)
        height, width = cases[0].size
        frame = Frame(height, width, height, width)
        if self.dataset.any_size:
            frame = Frame.fitting(height, width, self.size, prior.size_multiple)
        framed = operator
        if border or not frame.is_trivial:
            framed = FramedOperator(operator, frame, border)
        problem = Problem(
            cut_border(y, border) if border else y,
            framed,
            self.noiser,
            prior.diffusion,
            framed.context.shape,
            WholeImage(distance_factor(height, width, self.size)),
            known,
        )
        if self.dataset.fit == "tile":
            tiling = Tiling(frame.full_height, frame.full_width, self.size, self.dataset.overlap)
            prior = replace(prior, model=TiledModel(prior.model, tiling))
            problem = replace(problem, extent=WindowExtent(tiling, frame, problem.y, border))
        return Batch(cases, frame, operator, problem, prior)
