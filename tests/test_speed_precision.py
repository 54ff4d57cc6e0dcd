"""The network in other number formats and compiled: same values, gradients, clear errors."""

import subprocess
import sys

import pytest
import torch

from guided_diffusion import precision, probe
from guided_diffusion.precision import AcceleratedNetwork, Execution, accelerate, gradient_scale
from tests import golden_data
from tests.tiny import ROOT
from util.errors import UserError

CPU = torch.device("cpu")
CONFIG = {
    "image_size": 32,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": 16,
    "num_head_channels": 32,
}
X = golden_data.normal((2, 3, 32, 32), 1)
T = torch.tensor([10, 900])


def value_and_gradient(network, factor=1.0):
    """Output, and gradient of a weighted sum of it, whose weights are `factor` per image."""
    x = X.clone().requires_grad_()
    output = network(x, T)
    weights = golden_data.normal(tuple(output.shape), 2) * factor
    return output.detach(), torch.autograd.grad((output * weights).sum(), x)[0]


def accelerated(execution):
    return AcceleratedNetwork(golden_data.network(CONFIG, 3), execution, CPU)


def relative(a, b):
    return ((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max().item()


def test_float32_is_the_bare_network_bit_for_bit():
    bare = value_and_gradient(golden_data.network(CONFIG, 3))
    wrapped = value_and_gradient(accelerate(golden_data.network(CONFIG, 3), Execution(), CPU))
    assert all(torch.equal(a, b) for a, b in zip(bare, wrapped, strict=True))


def test_bf16_stays_near_float32_and_returns_float32():
    bare = value_and_gradient(golden_data.network(CONFIG, 3))
    half = value_and_gradient(accelerated(Execution("bf16")))
    assert half[0].dtype == half[1].dtype == torch.float32
    for value, expected in zip(half, bare, strict=True):
        assert 0 < relative(value, expected) < 0.05


def test_bf16_does_not_round_what_the_network_sees():
    network, half = golden_data.network(CONFIG, 3), accelerated(Execution("bf16"))
    first = network.input_blocks[0][0](X)
    torch.testing.assert_close(half.network.input_blocks[0][0](X), first, rtol=0, atol=0)


def test_a_gradient_too_small_for_float16_passes_through_it():
    # 1e-9 and 1e4 leave the range of float16 (6e-8 .. 65504) without a scale of their own.
    factor = torch.tensor([1e-9, 1e4]).view(2, 1, 1, 1)
    _, expected = value_and_gradient(golden_data.network(CONFIG, 3), factor)
    network = accelerated(Execution("fp16"))
    _, gradient = value_and_gradient(network, factor)
    assert relative(gradient, expected) < 0.05
    network.scaled = False
    _, unscaled = value_and_gradient(network, factor)
    assert not relative(unscaled, expected) < 0.05


def test_gradient_scale_is_a_power_of_two_per_image():
    gradient = torch.zeros(4, 3, 2, 2)
    gradient[0, 0, 0, 0], gradient[1, 1, 1, 1], gradient[3, 0, 0, 0] = -3e-7, 1000.0, torch.inf
    scale = gradient_scale(gradient).flatten()
    largest = gradient.abs().amax((1, 2, 3)) * scale
    assert ((largest[:2] >= 1) & (largest[:2] < 2)).all()
    assert (torch.frexp(scale).mantissa == 0.5).all()
    assert scale[2] == scale[3] == 1


def test_one_evaluation_can_be_differentiated_several_times():
    x = X.clone().requires_grad_()
    output = accelerated(Execution("fp32"))(x, T)
    weights = golden_data.normal(tuple(output.shape), 2)
    for factor in (1.0, -2.0):
        (found,) = torch.autograd.grad(output, x, factor * weights, retain_graph=True)
        _, expected = value_and_gradient(golden_data.network(CONFIG, 3), factor)
        torch.testing.assert_close(found, expected)


def test_without_a_gradient_no_graph_is_kept():
    with torch.no_grad():
        assert not accelerated(Execution("fp32"))(X, T).requires_grad


@pytest.mark.parametrize("name", ["tf32", "fp16"])
def test_a_precision_that_the_device_lacks_is_refused(name):
    with pytest.raises(UserError, match=f"--precision {name}.*use --precision fp32"):
        Execution(name).resolve(False, CPU)


def test_the_config_and_fast_fall_back(monkeypatch, caplog):
    monkeypatch.setattr(precision.get_logger(), "propagate", True)
    assert Execution().resolve(True, CPU).precision == "fp32"
    assert "use_fp16" in caplog.text
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: False)
    assert Execution(fast=True).resolve(False, CPU) == Execution("fp32", False, True)
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: True)
    assert Execution(fast=True).resolve(False, CPU).precision == "bf16"
    assert Execution("fp32", fast=True).resolve(False, CPU).precision == "fp32"


def test_compiled_functions_are_used_once_per_shape(monkeypatch):
    compiled = []

    def backend(network, **options):
        compiled.append(options)
        return lambda x, t: network(x, t)

    monkeypatch.setattr(torch, "compile", backend)
    network = accelerated(Execution("fp32", compile=True))
    expected = value_and_gradient(golden_data.network(CONFIG, 3))
    for _ in range(2):
        found = value_and_gradient(network)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with torch.no_grad():
        network(X[:1], T[:1])
    assert [o["dynamic"] for o in compiled] == [False, False]


def test_no_more_shapes_are_compiled_than_torch_keeps(monkeypatch, caplog):
    compiled = []
    monkeypatch.setattr(precision.get_logger(), "propagate", True)
    monkeypatch.setattr(torch, "compile", lambda network, **_: compiled.append(1) or network)
    network = accelerated(Execution("fp32", compile=True))
    with torch.no_grad():
        for batch in range(1, 11):
            network(X[:1].expand(batch, -1, -1, -1), T[:1].expand(batch))
    assert len(compiled) == 8
    assert "8 shapes are compiled; others run without" in caplog.text


def test_a_compiler_that_fails_leaves_the_network_as_it_is(monkeypatch, caplog):
    def backend(network, **options):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(precision.get_logger(), "propagate", True)
    monkeypatch.setattr(torch, "compile", backend)
    found = value_and_gradient(accelerated(Execution("fp32", compile=True)))
    expected = value_and_gradient(golden_data.network(CONFIG, 3))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert "no C++ compiler" in caplog.text
    assert "without --compile" in caplog.text


def test_fast_takes_what_was_measured_to_be_fastest(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: True)
    measured = []
    for winner, slow in (("bf16", "fp32"), ("fp32", "bf16")):

        def clock(network, x, *told, slow=slow):
            measured.append(tuple(x.shape))
            return 2.0 if network.execution.precision == slow else 1.0

        monkeypatch.setattr(probe, "_seconds", clock)
        for _ in range(2):  # the second time it is known
            network = accelerate(golden_data.network(CONFIG, 3), Execution(fast=True), CPU)
            assert network.execution.precision == winner
        assert len(measured) == 2
        measured.clear()
        for file in tmp_path.glob("dpps/fast_*.json"):
            file.write_text("{")  # a broken note is measured again


def test_tf32_is_set_for_the_network_alone():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    for wanted in (True, False):
        with precision._matmul_format(wanted, torch.device("cuda")):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (wanted, wanted)
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before
        with precision._matmul_format(wanted, CPU):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == before


NEWER = """
import torch
from guided_diffusion.precision import _matmul_format
parts = torch.backends.cuda.matmul, torch.backends.cudnn.conv
torch.backends.fp32_precision = "tf32"
for wanted, name in ((True, "tf32"), (False, "ieee")):
    with _matmul_format(wanted, torch.device("cuda")):
        assert [part.fp32_precision for part in parts] == [name] * 2
    assert [part.fp32_precision for part in parts] == ["tf32"] * 2
"""


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")
def test_tf32_in_a_program_that_uses_the_newer_switches():
    subprocess.run([sys.executable, "-c", NEWER], cwd=ROOT, check=True)
