"""How the network runs: in which number format, compiled or not.

The sampler's arithmetic is float32 whatever the network's format. `accelerate` wraps a network
so that it takes and returns float32, and so that the gradient through it stays in the range of
the format.
"""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from guided_diffusion.native import kernel, processor
from guided_diffusion.pretrained import Pretrained
from guided_diffusion.probe import LARGEST_SIDE, fastest_format
from guided_diffusion.pullback import pullback
from guided_diffusion.unet import UNetConfig, UNetModel
from util.cli import PRECISION_NAMES
from util.errors import UserError, first_line
from util.logger import get_logger

_TYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,  # float32 tensors, products of 10-bit mantissas on tensor cores
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
PRECISIONS = {name: _TYPES[name] for name in PRECISION_NAMES}
# Up to this many pixels a GPU waits for the launches of kernels, which CUDA graphs replay.
_CUDA_GRAPH_PIXELS = 2 * 256 * 256
# torch.compile gives up on a function after eight shapes, and each takes a minute or more.
_MOST_COMPILED = 8
_WARM_UPS = {"default": 1, "reduce-overhead": 3}  # calls until a mode runs at full speed


@dataclass(frozen=True)
class Execution:
    """How to run the network.

    precision: "fp32", "tf32", "bf16", "fp16", or None for what the model config says
    compile: run it through torch.compile, with static shapes
    fast: the format that this device is fastest in; a given precision stays. On CUDA also
      compiled, on a processor with the kernel of native.py where a compiler is found
    """

    precision: str | None = None
    compile: bool = False
    fast: bool = False

    def resolve(self, use_fp16: bool, device: torch.device) -> "Execution":
        """The same with precision filled in for `device`; `use_fp16` is the config's key.

        Raises UserError for a precision that was asked for and that the device lacks. One that
        only the config or `fast` asks for falls back, and the log says so.
        """
        precision = self.precision
        if precision is not None:
            reason = lacks(precision, device)
            if reason:
                raise UserError(f"--precision {precision}: {reason}; use --precision fp32")
        elif self.fast:
            precision = fastest_precision(device)
        elif use_fp16:
            precision = "fp16"
            reason = lacks(precision, device)
            if reason:
                get_logger().warning("use_fp16: %s; the network runs in float32", reason)
                precision = "fp32"
        compiled = self.compile or (self.fast and device.type == "cuda")
        return Execution(precision or "fp32", compiled, self.fast)


def fastest_precision(device: torch.device) -> str:
    """bf16 where the hardware multiplies it, else fp16 on a GPU, else fp32."""
    order = ("bf16", "fp16", "fp32") if device.type != "cpu" else ("bf16", "fp32")
    return next(p for p in order if not lacks(p, device))


def lacks(precision: str, device: torch.device) -> str:
    """Why `device` cannot run the network in `precision`; "" if it can."""
    if precision == "fp32":
        return ""
    if device.type == "cuda":
        generation = torch.cuda.get_device_capability(device)[0]
        name = torch.cuda.get_device_name(device)
        if precision in ("tf32", "bf16") and generation < 8:
            return f"{name} has no {precision} units (needs compute capability 8.0 or higher)"
        return ""
    if precision == "tf32":
        return "tf32 is a format of NVIDIA GPUs"
    if device.type == "cpu":
        if precision == "fp16":
            return "processors run float16 convolutions slowly or not at all (bf16 may do)"
        return "" if _cpu_has_bf16() else "this processor has no bf16 instructions"
    return _fails(PRECISIONS[precision], device)


def _cpu_has_bf16() -> bool:
    # AVX-512 alone is enough for oneDNN to take bf16, by emulation that is slower than float32.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if "avx512_bf16" in capabilities or "bf16" in capabilities:
        return any(capabilities.get(k) for k in ("avx512_bf16", "amx_tile", "bf16"))
    flags = processor()
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def _fails(dtype: torch.dtype, device: torch.device) -> str:
    """What a small convolution in `dtype` raises on `device`; "" if it works."""
    try:
        image = torch.ones(1, 8, 8, 8, dtype=dtype, device=device)
        torch.nn.functional.conv2d(image, image[:, :, :3, :3]).float().cpu()
    except (RuntimeError, TypeError) as error:
        return f"{device} cannot run it ({first_line(error)})"
    return ""


@contextlib.contextmanager
def _matmul_format(tf32: bool, device: torch.device) -> Iterator[None]:
    """Allow or forbid TF32 for what runs inside, and only there; of GPUs alone.

    The switches are global, and the operators must not see them: a blur in TF32 is wrong in
    the fourth digit.
    """
    if device.type != "cuda":
        yield
        return
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    switches: list[tuple[Any, str]] = [(matmul, "allow_tf32"), (cudnn, "allow_tf32")]
    wanted: bool | str = tf32
    try:
        before = [getattr(*switch) for switch in switches]
    except RuntimeError:  # the older switches may not be asked where the newer ones are in use
        switches = [(matmul, "fp32_precision"), (cudnn.conv, "fp32_precision")]
        wanted = "tf32" if tf32 else "ieee"
        before = [getattr(*switch) for switch in switches]
    for switch in switches:
        setattr(*switch, wanted)
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(*switch, value)


def gradient_scale(gradient: Tensor) -> Tensor:
    """The power of two that brings the largest entry of each image into [1, 2): [B, 1, 1, 1].

    The gradient of a distance has norm about 1 over some 10^5 pixels and is multiplied by
    sqrt(1 / acp - 1), which is 0.01 in the last steps: entries of 1e-5 and less, where float16
    has few bits left. Scaling by a power of two is exact; an image whose gradient is zero or
    not finite keeps 1.
    """
    largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
    usable = torch.isfinite(largest) & (largest > 0)
    # Scale and its inverse both stay normal float32 numbers.
    exponent = torch.where(usable, largest, 1.0).log2().floor().clamp(-120, 120)
    return torch.exp2(-exponent)


class _ThroughNetwork(torch.autograd.Function):
    """The network's output, with a backward pass that runs under the same settings.

    The part of the graph inside the network is kept apart, so that its gradient can be scaled
    on the way in and scaled back on the way out without touching the rest of the graph. It is
    given back with the first pass; a further pass, which few methods make, computes it again.
    """

    @staticmethod
    def forward(ctx, x: Tensor, runner: "AcceleratedNetwork", *told: Tensor) -> Tensor:
        ctx.save_for_backward(x, *told)
        ctx.runner, ctx.graph = runner, _network_graph(runner, x, *told)
        return ctx.graph[1].detach()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inner, output = ctx.graph or _network_graph(ctx.runner, *ctx.saved_tensors)
        ctx.graph = None
        unused = (None,) * (len(ctx.needs_input_grad) - 1)
        with _matmul_format(ctx.runner.tf32, gradient.device), torch.enable_grad():
            if not ctx.runner.scaled:
                return pullback(output, inner, gradient), *unused
            scale = gradient_scale(gradient)
            return pullback(output, inner, gradient * scale) / scale, *unused


def _network_graph(runner: "AcceleratedNetwork", x: Tensor, *told: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of the network, between which its graph lies."""
    with torch.enable_grad():
        inner = x.detach().requires_grad_()
        return inner, runner.evaluate(inner, *told)


class AcceleratedNetwork:
    """A network run as an `Execution` says: (x_t [B, C, H, W], what it is told of the images: the
    timesteps [B], and labels [B] where it takes them) -> float32.

    Differentiable with respect to x_t, not twice. The weights are converted in place where the
    network has `set_precision`; others run under torch.autocast. `compile_seconds` is what
    compiling has taken so far.
    """

    def __init__(self, network: nn.Module, execution: Execution, device: torch.device) -> None:
        self.network = network
        self.execution = execution
        self.tf32 = execution.precision == "tf32"
        self.scaled = execution.precision == "fp16"
        self.channels_last = _lay_out(network, execution, device)
        dtype = PRECISIONS[execution.precision or "fp32"]
        self._autocast = None
        set_precision: Any = getattr(network, "set_precision", None)
        if set_precision is not None:
            set_precision(dtype)
        elif dtype != torch.float32:
            self._autocast = torch.autocast(device.type, dtype)
        self.compile = execution.compile
        self.compile_seconds = 0.0
        self._compiled: dict[tuple, Callable] = {}

    def __call__(self, x: Tensor, *told: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return _ThroughNetwork.apply(x, self, *told)
        return self.evaluate(x, *told)

    def evaluate(self, x: Tensor, *told: Tensor) -> Tensor:
        """The network's output, within the autograd graph of x if that is recorded."""
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        function = self._function(x, *told)
        with _matmul_format(self.tf32, x.device), self._autocast or contextlib.nullcontext():
            if function is self.network or x.device.type != "cuda":
                return function(x, *told).to(x.dtype)
            torch.compiler.cudagraph_mark_step_begin()
            # The next replay of a CUDA graph would write over its output.
            return function(x, *told).to(x.dtype).clone()

    def _function(self, x: Tensor, *told: Tensor) -> Callable:
        """What computes inputs of this shape: compiled for it, or the network itself."""
        if not self.compile:
            return self.network
        key = (*x.shape, torch.is_grad_enabled() and x.requires_grad)
        if key not in self._compiled and len(self._compiled) >= _MOST_COMPILED:
            get_logger().info("%d shapes are compiled; others run without", _MOST_COMPILED)
            self._compiled[key] = self.network
        if key not in self._compiled:
            started = time.perf_counter()
            with _matmul_format(self.tf32, x.device), self._autocast or contextlib.nullcontext():
                self._compiled[key] = _compile(self.network, x, *told)
            self.compile_seconds += time.perf_counter() - started
        return self._compiled[key]


def uncompiled(model: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same network, run without torch.compile; for a few calls that are not worth its time."""
    if not isinstance(model, AcceleratedNetwork) or not model.compile:
        return model
    twin = copy.copy(model)
    twin.compile = False
    return twin


def _compile(network: nn.Module, x: Tensor, *told: Tensor) -> Callable:
    """The network compiled for the shape of `x`; itself where that fails, which is logged."""
    modes = ["default"]
    if x.device.type == "cuda" and x.shape[0] * x.shape[2] * x.shape[3] <= _CUDA_GRAPH_PIXELS:
        modes.insert(0, "reduce-overhead")
    shape = "x".join(map(str, x.shape))
    for mode in modes:
        started = time.perf_counter()
        try:
            function = torch.compile(network, dynamic=False, mode=mode)
            for _ in range(_WARM_UPS[mode]):
                _warm_up(function, x, *told)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways; none is worth losing the run
            get_logger().warning("--compile (%s) failed for %s: %s", mode, shape, first_line(error))
            torch.compiler.reset()
            continue
        seconds = time.perf_counter() - started
        get_logger().info("network compiled for %s in %.0f s (mode %s)", shape, seconds, mode)
        return function
    get_logger().warning("the network runs without --compile")
    return network


def _warm_up(function: Callable, x: Tensor, *told: Tensor) -> None:
    """One call, with its gradient where the run will need it."""
    if x.device.type == "cuda":
        torch.compiler.cudagraph_mark_step_begin()
    inner = x.detach().requires_grad_(x.requires_grad)
    output = function(inner, *told)
    if output.requires_grad:
        torch.autograd.grad(output, inner, torch.ones_like(output))
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def accelerate(
    network: nn.Module,
    execution: Execution,
    device: torch.device | str,
    description: Pretrained | None = None,
    told: Sequence[Tensor] = (),
) -> AcceleratedNetwork:
    """`network`, on `device`, ready to run as `execution` says (see `Execution.resolve`).

    description: of a network that is no UNetModel
    told: what it takes of an image beside x_t and the timestep, each [1]
    """
    device = torch.device(device)
    described = network.config if isinstance(network, UNetModel) else description
    assert described is not None
    resolved = execution.resolve(described.use_fp16, device)
    network.to(device)
    chosen = resolved.fast and execution.precision is None
    if chosen and device.type == "cpu" and resolved.precision == "bf16":
        precision = _fastest_format(network, resolved, described, told)
        resolved = replace(resolved, precision=precision)
    return AcceleratedNetwork(network, resolved, device)


def _fastest_format(
    network: nn.Module,
    execution: Execution,
    described: UNetConfig | Pretrained,
    told: Sequence[Tensor],
) -> str:
    def run_in(precision: str) -> AcceleratedNetwork:
        chosen = replace(execution, precision=precision)
        return AcceleratedNetwork(copy.deepcopy(network), chosen, torch.device("cpu"))

    multiple = described.size_multiple()
    side = max(multiple, min(described.image_size, LARGEST_SIDE) // multiple * multiple)
    x = torch.zeros(1, getattr(described, "channels", 3), side, side)
    count = sum(p.numel() for p in network.parameters())
    name = repr(described) if isinstance(network, UNetModel) else type(network).__qualname__
    inputs = (x, torch.zeros(1, dtype=torch.int64), *told)
    return fastest_format(run_in, inputs, f"{name}, {count} weights")


def _lay_out(network: nn.Module, execution: Execution, device: torch.device) -> bool:
    """Bring the weights into the layout that is fastest; whether that is channels_last."""
    native = execution.fast and device.type == "cpu" and isinstance(network, UNetModel)
    native = native and kernel() is not None
    if isinstance(network, UNetModel):
        network.use_native(native)
    # Without the kernel, a processor's group normalisation of that layout costs more than the
    # convolutions gain.
    last = native or (device.type == "cuda" and execution.precision != "fp32")
    if last:
        network.to(memory_format=torch.channels_last)
    return last
