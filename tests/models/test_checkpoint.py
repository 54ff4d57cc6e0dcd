import pickle

import pytest
import torch

from guided_diffusion.unet import UNetConfig, UNetModel
from models.checkpoint import load_model, model_config, save_weights
from tests import golden_data
from util.errors import UserError

CONFIG = UNetConfig(32, 32, 1, channel_mult="1,2", num_head_channels=32)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return UNetModel(CONFIG).state_dict()


def test_round_trip(state, tmp_path):
    path = tmp_path / "w.pt"
    save_weights(state, path, torch.float16)
    model = load_model(CONFIG, path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name].half().float())
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


def test_safetensors(state, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(state, tmp_path / "w.safetensors")
    model = load_model(CONFIG, tmp_path / "w.safetensors")
    assert torch.equal(model.out[0].weight, state["out.0.weight"])
    (tmp_path / "short.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match="truncated or no safetensors"):
        load_model(CONFIG, tmp_path / "short.safetensors")


def test_missing_file_names_the_download(tmp_path):
    with pytest.raises(UserError, match="python -m models.download ffhq"):
        load_model(CONFIG, tmp_path / "ffhq_10m.pt")
    with pytest.raises(UserError, match="no such checkpoint"):
        load_model(CONFIG, "models/nowhere.pt")


def test_truncated_file(state, tmp_path):
    save_weights(state, tmp_path / "w.pt", torch.float32)
    whole = (tmp_path / "w.pt").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(UserError, match="truncated or no checkpoint"):
            load_model(CONFIG, tmp_path / "cut.pt")


class Malicious:
    def __reduce__(self):
        return (open, ("was_run", "w"))


def test_malicious_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Malicious()}, "zip.pt")
    with open("plain.pt", "wb") as file:
        pickle.dump({"a": Malicious()}, file)
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(UserError, match="nothing in it was run"):
            load_model(CONFIG, name)
    assert not (tmp_path / "was_run").exists()


def test_foreign_files(state, tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(UserError, match="expected a state dict"):
        load_model(CONFIG, tmp_path / "tensor.pt")
    other = {k: v for k, v in state.items() if k != "out.0.bias"}
    other["extra"] = torch.zeros(1)
    other["out.0.weight"] = torch.zeros(7)
    save_weights(other, tmp_path / "other.pt", torch.float32)
    with pytest.raises(UserError) as caught:
        load_model(CONFIG, tmp_path / "other.pt")
    message = str(caught.value)
    assert "1 missing (out.0.bias)" in message
    assert "1 unexpected (extra)" in message
    assert "out.0.weight: (7,) in the file, (32,) in the config" in message


def test_not_finite(state, tmp_path):
    state["out.0.bias"][0] = torch.nan
    save_weights(state, tmp_path / "w.pt", torch.float32)
    with pytest.raises(UserError, match="not finite"):
        load_model(CONFIG, tmp_path / "w.pt")


def test_the_other_published_network_is_recognised(tmp_path):
    """FFHQ weights (as empty float16 tensors of the published shapes) with ImageNet's config."""
    weights = {
        name: torch.zeros(1, dtype=torch.float16).expand(shape)
        for name, shape in golden_data.shapes("ffhq_10m").items()
    }
    torch.save(weights, tmp_path / "ffhq.pt")
    with pytest.raises(UserError, match=r"fits --model_config=configs/model_config\.yaml"):
        load_model(model_config("configs/imagenet_model_config.yaml"), tmp_path / "ffhq.pt")
