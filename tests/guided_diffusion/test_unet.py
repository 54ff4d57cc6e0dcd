import json

import numpy as np
import pytest
import torch

from guided_diffusion import native
from guided_diffusion.precision import Execution, accelerate
from guided_diffusion.unet import UNetConfig, UNetModel
from tests import golden_data
from util.config.schema import read_yaml
from util.errors import UserError

GOLDEN = golden_data.load("unet")


by_kernel = pytest.mark.skipif(native.kernel() is None, reason="no C++ compiler here")


@pytest.mark.parametrize("fast", [False, pytest.param(True, marks=by_kernel)])
@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_output_equals_the_published_network(case, fast):
    seed = int(GOLDEN[f"{case}/seed"])
    model = golden_data.network(json.loads(str(GOLDEN[f"{case}/config"])), seed)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert list(shapes.items()) == list(golden_data.shapes(f"case_{case}").items())
    x, t = golden_data.normal((2, 3, 64, 64), seed, 1), torch.from_numpy(GOLDEN[f"{case}/t"])
    network = accelerate(model, Execution("fp32", fast=fast), "cpu")
    assert network.channels_last == fast
    np.testing.assert_allclose(network(x, t).numpy(), GOLDEN[f"{case}/out"], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("config", "checkpoint"),
    [("model_config", "ffhq_10m"), ("imagenet_model_config", "imagenet256")],
)
def test_published_configs_give_the_published_state_dicts(config, checkpoint):
    raw = read_yaml(f"configs/{config}.yaml")
    del raw["model_path"]
    with torch.device("meta"):
        state = UNetModel(UNetConfig(**raw)).state_dict()
    found = [(name, list(value.shape)) for name, value in state.items()]
    assert found == list(golden_data.shapes(checkpoint).items())


@pytest.mark.parametrize("new_order", [True, False])
def test_checkpointing_changes_nothing(new_order):
    config = json.loads(str(GOLDEN["a/config"])) | {"use_new_attention_order": new_order}
    x = golden_data.normal((1, 3, 64, 64), 5)
    gradients = []
    for recompute in (False, True):
        model = golden_data.network(config | {"use_checkpoint": recompute}, 3)
        leaf = x.clone().requires_grad_()
        model(leaf, torch.tensor([400])).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_other_image_sizes():
    model = golden_data.network(json.loads(str(GOLDEN["a/config"])), 3)
    assert model(torch.zeros(1, 3, 48, 80), torch.tensor([1])).shape == (1, 6, 48, 80)


def test_patches_are_the_pixels_of_a_smaller_network():
    """The network on 2x2 patches is the plain one between pixel unshuffle and shuffle."""
    config = UNetConfig(32, 32, 1, channel_mult="1,2", attention_resolutions="8", patch_size=2)
    torch.manual_seed(0)
    model = UNetModel(config).eval()
    torch.nn.init.normal_(model.out[2].weight, std=0.1)
    assert {2 * 2**level for level in range(2)} & config.attention_factors() == {4}
    assert [len(block) for block in model.input_blocks] == [1, 1, 1, 2]  # attention at 8 of 32
    x, t = golden_data.normal((2, 3, 24, 40), 1), torch.tensor([3, 700])
    inner = model.input_blocks[0][0]
    inner_in, inner_out = [], []
    inner.register_forward_hook(lambda _, given, found: inner_in.append(given[0]))
    model.out[2].register_forward_hook(lambda _, given, found: inner_out.append(found))
    y = model(x, t)
    assert y.shape == (2, 6, 24, 40)
    assert inner_in[0].shape == (2, 12, 12, 20)
    for row in range(2):
        for column in range(2):
            torch.testing.assert_close(
                inner_in[0][:, 2 * row + column :: 4], x[:, :, row::2, column::2]
            )
            torch.testing.assert_close(
                inner_out[0][:, 2 * row + column :: 4], y[:, :, row::2, column::2]
            )
    assert config.size_multiple() == 4


def test_condition_is_added_to_the_embedding():
    model = golden_data.network(json.loads(str(GOLDEN["a/config"])), 3)
    x, t = golden_data.normal((2, 3, 32, 32), 1), torch.tensor([3, 700])
    zeros = torch.zeros(2, 4 * model.config.num_channels)
    torch.testing.assert_close(model(x, t, condition=zeros), model(x, t))
    assert (model(x, t, condition=zeros + 1) - model(x, t)).abs().max() > 1e-3


def test_a_class_is_a_shift_of_the_embedding():
    """ADM's class-conditional network is the plain one whose last embedding bias is moved."""
    config = json.loads(str(GOLDEN["a/config"]))
    plain = golden_data.network(config, 3)
    model = UNetModel(UNetConfig(**{**config, "class_cond": True})).eval()
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == (["label_emb.weight"], [])
    width = 4 * model.config.num_channels
    assert model.label_emb.weight.shape == (1000, width)
    x, t = golden_data.normal((2, 3, 32, 32), 1), torch.tensor([3, 700])
    found = model(x, t, torch.tensor([7, 999]))
    for i, label in enumerate((7, 999)):
        shifted = golden_data.network(config, 3)
        with torch.no_grad():
            shifted.time_embed[2].bias += model.label_emb.weight[label]
        torch.testing.assert_close(found[i], shifted(x, t)[i])
    with pytest.raises(ValueError, match="needs labels"):
        model(x, t)


ADM = {
    "attention_resolutions": "32,16,8",
    "num_head_channels": 64,
    "resblock_updown": True,
    "class_cond": True,
}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # The published networks of these sizes, in millions (Dhariwal & Nichol 2021, table 12)
        ({"image_size": 64, "num_channels": 192, "num_res_blocks": 3}, 296),
        ({"image_size": 128, "num_channels": 256, "num_res_blocks": 2}, 422),
        ({"image_size": 256, "num_channels": 256, "num_res_blocks": 2}, 554),
        ({"image_size": 512, "num_channels": 256, "num_res_blocks": 2}, 559),
    ],
)
def test_the_class_conditional_networks_that_are_published(config, parameters):
    with torch.device("meta"):
        model = UNetModel(UNetConfig(**{**ADM, **config}))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == parameters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 0}, "patch_size 0 must be at least 1"),
        ({"patch_size": 3}, "patch_size 3 must be at least 1 and divide image_size 64"),
        ({"patch_size": 16}, "multiple of 128 for 4 levels and patch_size 16"),
        ({"image_size": 100}, "image_size 100 has no default"),
        ({"channel_mult": "1,2", "image_size": 63}, "multiple of 2"),
        ({"channel_mult": "1,x"}, "channel_mult"),
        ({"channel_mult": "1,1e400"}, "channel_mult"),
        ({"num_channels": 40}, "multiples of 32"),
        ({"num_head_channels": 48}, "attention heads"),
    ],
)
def test_impossible_architectures(change, message):
    config = json.loads(str(GOLDEN["a/config"])) | change
    with pytest.raises(UserError, match=message):
        UNetModel(UNetConfig(**config))
