"""Group normalisation with scale, shift and activation, and the kernel that it may be done by."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from guided_diffusion import native
from guided_diffusion.fused_norm import normalised
from guided_diffusion.layers import GroupNorm32
from guided_diffusion.precision import Execution, accelerate
from tests import golden_data

ROOT = Path(__file__).parents[2]
CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last

needs_kernel = pytest.mark.skipif(native.kernel() is None, reason="no C++ compiler here")
by_kernel = pytest.param(True, marks=needs_kernel)


def in_parts(norm, x, scale, shift, silu):
    y = F.group_norm(x, norm.num_groups, norm.weight.to(x), norm.bias.to(x), norm.eps)
    y = y * (1 + scale.to(x))[..., None, None] + shift.to(x)[..., None, None]
    return F.silu(y) if silu else y


def case(use_native, shape):
    norm = GroupNorm32(32, shape[1])
    norm.native = use_native
    norm.weight.data, norm.bias.data = golden_data.normal((2, shape[1]), 1)
    scale, shift = golden_data.normal((2, *shape[:2]), 2).requires_grad_().unbind()
    # A mean far above the spread: sums of squares alone would lose it, as torch's own do in
    # channels_last.
    x = 0.5 * golden_data.normal(shape, 3) + (20 if use_native else 1)
    return norm, x, scale, shift


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("layout", [CONTIGUOUS, LAST])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("use_native", [False, by_kernel])
@pytest.mark.parametrize("shape", [(3, 64, 19, 23), (1, 96, 5, 1)])
def test_one_operation_is_the_parts(shape, use_native, dtype, tolerance, layout, silu):
    norm, x, scale, shift = case(use_native, shape)
    x = x.to(dtype, memory_format=layout).requires_grad_()
    wide = x.detach().double().requires_grad_()
    found, expected = (
        norm(x, scale, shift, silu),
        in_parts(norm, wide, scale, shift, silu),
    )
    assert found.dtype == dtype
    pull = golden_data.normal(shape, 4)
    leaves = (norm.weight, norm.bias, scale, shift)
    found_all = [found, *torch.autograd.grad(found, (x, *leaves), pull.to(dtype))]
    expected_all = [expected, *torch.autograd.grad(expected, (wide, *leaves), pull.double())]
    for a, b in zip(found_all, expected_all, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm()


def test_gradcheck_in_float64():
    norm, x, scale, shift = case(False, (2, 32, 3, 2))
    norm.double()
    inputs = tuple(a.detach().double().requires_grad_() for a in (x, scale, shift))
    assert torch.autograd.gradcheck(lambda *a: norm(*a, silu=True), inputs)


@needs_kernel
def test_the_kernel_takes_any_number_of_channels():
    x = golden_data.normal((2, 12, 5, 7), 1).to(memory_format=LAST)
    gain, offset = golden_data.normal((2, 2, 12), 2).unbind()
    found = normalised(x, gain, offset, 4, 1e-5, False, native=True)
    expected = F.group_norm(x, 4) * gain[..., None, None] + offset[..., None, None]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@needs_kernel
def test_threads_do_not_change_the_kernels_results():
    norm, x, scale, shift = case(True, (2, 64, 40, 41))
    x = x.to(memory_format=LAST)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            y = norm(leaf, scale, shift, silu=True)
            results.append((y, torch.autograd.grad(y.square().sum(), leaf)[0]))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@needs_kernel
def test_the_kernel_keeps_what_is_no_number():
    norm, x, scale, shift = case(True, (1, 32, 4, 4))
    x[0, 5, 1, 2] = torch.nan
    for dtype in (torch.float32, torch.bfloat16):
        y = norm(x.to(dtype), scale, shift, silu=True)
        assert y[0, 5].isnan().all()
        assert y[0, 6].isfinite().all()


@needs_kernel
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-2)])
def test_a_fast_network_is_the_network(precision, tolerance):
    config = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2"}
    config |= {"attention_resolutions": "16", "num_head_channels": 32}
    x, t = golden_data.normal((2, 3, 32, 32), 5), torch.tensor([10, 700])
    results = []
    for execution in (Execution("fp32"), Execution(precision, fast=True)):
        network = accelerate(golden_data.network(config, 3), execution, "cpu")
        leaf = x.clone().requires_grad_()
        y = network(leaf, t)
        results.append((y, torch.autograd.grad(y.square().sum(), leaf)[0]))
    assert network.channels_last
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


LOOK = """
import sys
from guided_diffusion import native
from guided_diffusion.fused_norm import normalised
from util.logger import get_logger
found = native.kernel()
print("kernel" if found else "none")
"""


def look(cache, **variables):
    """What a program of its own finds, with this cache and these variables."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()[-1], done.stderr


def test_no_compiler_is_no_error(tmp_path):
    assert look(tmp_path, PATH="", CXX="")[0] == "none"
    assert not list(tmp_path.rglob("*.so"))


def test_a_compiler_that_fails_is_no_error(tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'error: out of order' >&2\nexit 1\n")
    compiler.chmod(0o755)
    assert look(tmp_path / "cache", CXX=str(compiler))[0] == "none"
    assert not list((tmp_path / "cache").rglob("*.so"))


@needs_kernel
def test_a_kernel_is_built_once_and_a_broken_one_again(tmp_path):
    assert look(tmp_path)[0] == "kernel"
    (path,) = tmp_path.rglob("*.so")
    built = path.stat().st_mtime_ns
    assert look(tmp_path)[0] == "kernel"
    assert path.stat().st_mtime_ns == built
    for length in (20, path.stat().st_size // 2):  # not a library, half a library
        (path,) = tmp_path.rglob("*.so")
        path.write_bytes(path.read_bytes()[:length])
        assert look(tmp_path)[0] == "kernel"
    assert len(list(tmp_path.rglob("*.so"))) == 1


@needs_kernel
def test_two_runs_may_build_at_once(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    runs = [
        subprocess.Popen([sys.executable, "-c", LOOK], env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [run.communicate()[0].split()[-1] for run in runs] == [b"kernel"] * 2
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".so"]
