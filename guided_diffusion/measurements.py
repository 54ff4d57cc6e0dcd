"""Measurement operators A: y = noise(A(x)).

Images are float tensors in [-1, 1]. An operator takes x [..., 3, H, W]; one that holds something
per image (masks) takes [..., B, 3, H, W]. All are differentiable. To add one, register a class
whose keyword arguments are its config keys.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from data.arrays import is_array, read_array
from data.masks import check_kept, random_mask, read_mask
from guided_diffusion.classical import bicubic, deconvolution, interpolation
from guided_diffusion.operator_base import (
    OPERATORS,
    LinearOperator,
    Operator,
    OperatorContext,
    SeparableOperator,
)
from guided_diffusion.spectra import CUTOFF, Spectrum, diagonal_spectrum
from motionblur.motionblur import motion_kernel
from util.errors import UserError
from util.img_utils import LUMINANCE, to_colour
from util.logger import get_logger
from util.randomness import ImageKey, numpy_stream
from util.resizer import bicubic_matrix, filter_matrix

_KERNEL_SUM_TOLERANCE = 1e-3
KernelIs = Literal["psf", "correlation"]


@OPERATORS.register("noise")
class Denoising(LinearOperator):
    """A = identity: the image is only noisy."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def spectrum(self, cutoff: float = CUTOFF) -> Spectrum:
        return diagonal_spectrum(self.context.tensor(np.ones((1, 1))))

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        return y


@OPERATORS.register("super_resolution")
class SuperResolution(SeparableOperator):
    """Antialiased bicubic downsampling (a = -0.5).

    `in_shape` is a published key; the operator follows the size of the images.
    """

    def __init__(
        self,
        scale_factor: int = 4,
        in_shape: tuple[int, ...] | None = None,
        *,
        context: OperatorContext,
    ) -> None:
        if scale_factor < 1:
            raise UserError(f"super_resolution: scale_factor must be at least 1: {scale_factor}")
        rows = bicubic_matrix(context.height, 1 / scale_factor)
        columns = bicubic_matrix(context.width, 1 / scale_factor)
        super().__init__(context, rows, columns)
        self.scale_factor = scale_factor

    def initial(self, y: Tensor) -> Tensor:
        """y enlarged by nearest neighbour: by the factor itself and cut, so that nothing is
        stretched where the sides are no multiples of it."""
        enlarged = y.repeat_interleave(self.scale_factor, -2).repeat_interleave(
            self.scale_factor, -1
        )
        return enlarged[..., : self.context.height, : self.context.width]

    def classical(self, y: Tensor) -> Tensor:
        """Bicubic enlargement by the factor itself, cut."""
        return bicubic(y, self.scale_factor, self.context.height, self.context.width)

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        return x - self.initial(self(x)) + self.initial(y)


class GaussianBlur(SeparableOperator):
    """Gaussian blur of standard deviation `intensity` pixels, reflected border.

    The kernel is an impulse of kernel_size pixels filtered by scipy.ndimage.gaussian_filter,
    the outer product of its one-dimensional form.
    """

    def __init__(
        self, kernel_size: int = 61, intensity: float = 3.0, *, context: OperatorContext
    ) -> None:
        _check_kernel_size("gaussian_blur", kernel_size)
        if intensity <= 0:
            raise UserError(f"gaussian_blur: intensity must be positive, got {intensity}")
        impulse = np.zeros(kernel_size)
        impulse[kernel_size // 2] = 1
        self.profile = gaussian_filter1d(impulse, intensity)
        support = np.flatnonzero(self.profile)
        used = self.profile[support[0] : support[-1] + 1]
        super().__init__(
            context, filter_matrix(used, context.height), filter_matrix(used, context.width)
        )

    def classical(self, y: Tensor) -> Tensor:
        return deconvolution(self, y)

    def saved(self) -> dict[str, np.ndarray]:
        return {"kernel": np.outer(self.profile, self.profile).astype(np.float32)}


class KernelBlur(LinearOperator):
    """Cross-correlation with a kernel [k, l] (k and l odd), reflected border, by FFT."""

    def __init__(self, context: OperatorContext, kernel: np.ndarray) -> None:
        super().__init__(context)
        self.kernel = np.ascontiguousarray(kernel, dtype=np.float32)
        self.radius, cut = _cut_kernel(self.kernel)
        down, across = self.radius
        if down >= context.height or across >= context.width:
            raise UserError(
                f"a kernel reaching {down} pixels down and {across} across is too large for an "
                f"image of {context.height}x{context.width}; use a smaller kernel or a larger image"
            )
        # Wrapped-around values stay outside the part that is kept, so no zero padding.
        self._size = tuple(
            next_fast_len(side + 2 * r, real=True)
            for side, r in zip((context.height, context.width), self.radius, strict=True)
        )
        # In float64 and on the CPU: not every device has float64.
        flipped = torch.fft.rfft2(torch.as_tensor(cut).double(), s=self._size).conj()
        complex_type = torch.complex128 if context.dtype == torch.float64 else torch.complex64
        self._spectrum = flipped.to(complex_type).to(context.device)

    def __call__(self, x: Tensor) -> Tensor:
        ry, rx = self.radius
        flat = x.reshape(-1, *x.shape[-3:])
        padded = F.pad(flat, (rx, rx, ry, ry), mode="reflect")
        spectrum = torch.fft.rfft2(padded, s=self._size) * self._spectrum
        blurred = torch.fft.irfft2(spectrum, s=self._size)
        return blurred[..., : x.shape[-2], : x.shape[-1]].reshape(x.shape)

    def classical(self, y: Tensor) -> Tensor:
        return deconvolution(self, y)

    def saved(self) -> dict[str, np.ndarray]:
        return {"kernel": self.kernel}


@OPERATORS.register("gaussian_blur")
def gaussian_blur(
    kernel_size: int = 61,
    intensity: float = 3.0,
    kernel: str | None = None,
    kernel_is: KernelIs | None = None,
    *,
    context: OperatorContext,
) -> LinearOperator:
    """Gaussian blur, or, for photographs that are blurred already, the kernel in a file.

    kernel, kernel_is: see `read_kernel`
    """
    array = _given_kernel("gaussian_blur", kernel, kernel_is)
    if array is not None:
        return KernelBlur(context, array)
    return GaussianBlur(kernel_size, intensity, context=context)


def _cut_kernel(kernel: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
    """Half-widths of the smallest centred part that holds all of `kernel`, and that part."""
    centre_y, centre_x = kernel.shape[0] // 2, kernel.shape[1] // 2
    ys, xs = np.nonzero(kernel)
    ry, rx = int(np.abs(ys - centre_y).max()), int(np.abs(xs - centre_x).max())
    return (ry, rx), kernel[centre_y - ry : centre_y + ry + 1, centre_x - rx : centre_x + rx + 1]


@OPERATORS.register("motion_blur")
class MotionBlur(KernelBlur):
    """Blur by a random camera path drawn once per run, or by the kernel in a file.

    kernel, kernel_is: see `read_kernel`
    """

    def __init__(
        self,
        kernel_size: int = 61,
        intensity: float = 0.5,
        kernel: str | None = None,
        kernel_is: KernelIs | None = None,
        *,
        context: OperatorContext,
    ) -> None:
        array = _given_kernel("motion_blur", kernel, kernel_is)
        if array is None:
            _check_kernel_size("motion_blur", kernel_size)
            if not 0 <= intensity <= 1:
                raise UserError(f"motion_blur: intensity must be in [0, 1], got {intensity}")
            part = f" {context.part}" if context.part > 1 else ""
            rng = numpy_stream(context.seed, f"motion_blur kernel{part}")
            array = motion_kernel(kernel_size, intensity, rng)
        super().__init__(context, array)


def read_kernel(path: str, kernel_is: KernelIs | None = None) -> np.ndarray:
    """A blur kernel from a file, for cross-correlation: float32 [k, l], k and l odd, sum 1.

    kernel_is: "psf", the picture that the blur makes of a point, which is the correlation kernel
      turned by 180 degrees, or "correlation", the kernel as it is; left out: a picture is a psf,
      as people have it, and an array a correlation kernel, so that a run's own kernel.npy comes
      back unchanged

    Even sides get a row or column of zeros at the end: the centre of n values is number n // 2,
    counted from 0. Negative values are kept, they are part of estimated kernels. Raises UserError
    for a kernel without a positive sum.
    """
    kernel = read_array(path, "kernel")
    height, width = kernel.shape
    if height % 2 == 0 or width % 2 == 0:
        kernel = np.pad(kernel, ((0, 1 - height % 2), (0, 1 - width % 2)))
        get_logger().info("%s: %dx%d, padded with zeros to odd sides", path, height, width)
    total = kernel.sum()
    if total <= 0 or -kernel.min() >= kernel.max():
        raise UserError(
            f"{path}: a kernel must not be all zero, must have a positive sum, and no value as far "
            "below zero as its largest is above"
        )
    if is_array(path) and abs(total - 1) > _KERNEL_SUM_TOLERANCE:
        get_logger().warning("%s: the kernel sums to %.6g; it is normalised to 1", path, total)
    taken = kernel_is or ("correlation" if is_array(path) else "psf")
    if not np.allclose(kernel, kernel[::-1, ::-1], atol=1e-3 * kernel.max()):
        get_logger().info(
            "%s: read as a %s (--kernel_is %s turns it round)",
            path,
            "point's picture (psf)" if taken == "psf" else "correlation kernel",
            "correlation" if taken == "psf" else "psf",
        )
    kernel = kernel[::-1, ::-1] if taken == "psf" else kernel
    return (kernel / total).astype(np.float32)


def _given_kernel(name: str, path: str | None, kernel_is: KernelIs | None) -> np.ndarray | None:
    if kernel_is is not None and path is None:
        raise UserError(f"{name}: kernel_is says how to read a kernel's file; give kernel as well")
    return None if path is None else read_kernel(path, kernel_is)


def _check_kernel_size(name: str, size: int) -> None:
    if size < 3 or size % 2 == 0:
        raise UserError(f"{name}: kernel_size must be an odd number from 3 up, got {size}")


@OPERATORS.register("inpainting")
class Inpainting(LinearOperator):
    """Pixels dropped by a mask of each image: drawn as mask_opt says, or read from files."""

    def __init__(self, *, context: OperatorContext, masks: Tensor | None = None) -> None:
        super().__init__(context)
        self._masks = masks

    @property
    def masks(self) -> Tensor:
        """[B, 1, H, W], 1 where kept; ValueError before `bind`."""
        if self._masks is None:
            raise ValueError("inpainting: bind() the operator to a batch of images first")
        return self._masks

    def bind(self, keys: Sequence[ImageKey]) -> "Inpainting":
        c = self.context
        masks = [self._mask(key) for key in keys]
        return Inpainting(context=c, masks=c.tensor(np.stack(masks)[:, None]))

    def join(self, others: Sequence["Inpainting"]) -> "Inpainting":  # type: ignore[override]
        masks = torch.cat([operator.masks for operator in (self, *others)])
        return Inpainting(context=self.context, masks=masks)

    def take(self, images: Sequence[int]) -> "Inpainting":
        return Inpainting(context=self.context, masks=self.masks[list(images)])

    def _mask(self, key: ImageKey) -> np.ndarray:
        c = self.context
        if c.mask is None:
            raise UserError("inpainting: the task config needs measurement.mask_opt")
        if c.mask.mask is not None:
            mask = read_mask(c.mask.mask, key.name, c.height, c.width, c.mask.mask_is)
            check_kept(mask, c.mask)
            return mask
        return random_mask(c.mask, c.height, c.width, key.numpy("mask"))

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.masks

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self.masks

    def spectrum(self, cutoff: float = CUTOFF) -> Spectrum:
        return diagonal_spectrum(self.masks)

    def classical(self, y: Tensor) -> Tensor:
        """Linear interpolation between the kept pixels."""
        return interpolation(y, self.masks)

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        return x * (1 - self.masks) + y * self.masks

    def view(self, y: Tensor) -> Tensor:
        """Dropped pixels are black."""
        return to_colour(torch.where(self.masks > 0, y, -1.0))

    def saved_per_image(self) -> list[dict[str, np.ndarray]]:
        return [{"mask": m[0].cpu().numpy().astype(np.uint8)} for m in self.masks]


@OPERATORS.register("colorization")
class Colorization(LinearOperator):
    """The luminance, one channel: what a black-and-white photograph holds (ITU-R BT.601)."""

    def __init__(self, *, context: OperatorContext) -> None:
        super().__init__(context)
        if context.channels != 3:
            raise UserError("colorization: needs a prior of colour images; this one has grey ones")
        self._weights = context.tensor(np.array(LUMINANCE)[:, None, None])

    def __call__(self, x: Tensor) -> Tensor:
        return (self._weights * x).sum(-3, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._weights * y

    def initial(self, y: Tensor) -> Tensor:
        return to_colour(y)

    def classical(self, y: Tensor) -> Tensor:
        """Grey."""
        return self.initial(y)

    def from_picture(self, picture: Tensor) -> Tensor:
        return self(picture)


@OPERATORS.register("phase_retrieval")
class PhaseRetrieval(Operator):
    """Magnitude of the centred orthonormal FFT of the image in a frame of zeros.

    The frame on each side is oversample / 8 of the image's side.
    """

    def __init__(self, oversample: float = 2.0, *, context: OperatorContext) -> None:
        super().__init__(context)
        if oversample < 0:
            raise UserError(f"phase_retrieval: oversample must not be negative: {oversample}")
        self.pads = [int(oversample / 8 * side) for side in (context.height, context.width)]

    def __call__(self, x: Tensor) -> Tensor:
        py, px = self.pads
        padded = torch.fft.ifftshift(F.pad(x, (px, px, py, py)), dim=(-2, -1))
        spectrum = torch.fft.fft2(padded, norm="ortho")
        return torch.fft.fftshift(spectrum, dim=(-2, -1)).abs()

    def initial(self, y: Tensor) -> None:
        """Magnitudes are no image to start from."""
        return None

    def view(self, y: Tensor) -> Tensor:
        """Magnitudes span decades: their logarithm, stretched to [-1, 1] per image."""
        logs = y.clamp(min=0).log1p()
        low, high = logs.amin((1, 2, 3), keepdim=True), logs.amax((1, 2, 3), keepdim=True)
        return to_colour(2 * (logs - low) / (high - low).clamp(min=1e-12) - 1)


@OPERATORS.register("nonlinear_blur")
class NonlinearBlur(Operator):
    """Blur by the external network of Tran et al. 2021 ("bkse"), kernel drawn once per run.

    Needs that project's code in a folder `bkse` beside this program and its checkpoint, named
    by KernelWizard.pretrained in `opt_yml_path`.
    """

    def __init__(
        self,
        opt_yml_path: str = "./bkse/options/generate_blur/default.yml",
        *,
        context: OperatorContext,
    ) -> None:
        super().__init__(context)
        if context.channels != 3:
            raise UserError("nonlinear_blur: its network takes colour images; the prior has grey")
        if context.load_network is None:
            raise UserError("nonlinear_blur: needs its network (OperatorContext.load_network)")
        self.model: Any = context.load_network(opt_yml_path).to(context.device)
        rng = numpy_stream(context.seed, "nonlinear_blur kernel")
        self.kernel = context.tensor(1.2 * rng.standard_normal((1, 512, 2, 2)))

    def __call__(self, x: Tensor) -> Tensor:
        flat = (x.reshape(-1, *x.shape[-3:]) + 1) / 2
        blurred = self.model.adaptKernel(flat, kernel=self.kernel.expand(len(flat), -1, -1, -1))
        return (blurred * 2 - 1).clamp(-1, 1).reshape(x.shape)

    def saved(self) -> dict[str, np.ndarray]:
        return {"kernel_code": self.kernel.cpu().numpy()}
