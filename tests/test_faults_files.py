"""Configs, checkpoints, arrays and downloads that are not what they should be: named as what they
are, in one line, before anything is done."""

import dataclasses
import io
import os
import threading
import zipfile

import numpy as np
import pytest
import torch

from guided_diffusion.unet import UNetConfig, UNetModel
from models.checkpoint import load_model
from models.download import _alone, _checked_url, main
from models.training import train
from models.validation import validation_images
from tests.models.test_train_prior import CPU, config  # noqa: F401 (a fixture)
from util.atomic import write
from util.config.schema import parse_yaml, read_yaml
from util.errors import UserError
from util.files import open_regular, read_bytes
from util.tensor_files import load_numpy_array, load_tensor_array

UNET = UNetConfig(32, 32, 1, channel_mult="1,2", num_head_channels=32)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return {k: torch.randn_like(v) for k, v in UNetModel(UNET).state_dict().items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {x: 1, x: 2}", 'line 2, column 11: key "x" stands here and in line 2'),
        ("a: 1\nb: 2\na: 3", 'line 3, column 1: key "a" stands here and in line 1'),
        ("- b:\n    c: 1\n    c: 1", 'key "c" stands here and in line 2'),
        ("{" * 2000, "nested too deep"),
        ("- " * 2000, "nested too deep"),
        ("a: " + "1" * 5000, "line 1, column 4"),
        ("a: 2024-02-31", '"2024-02-31" cannot be read'),
        ("a: !!int x", "line 1, column 4"),
        ("a: !!float x", "line 1, column 4"),
        ("a: !!bool x", "line 1, column 4"),
        ("a: &x [1, *x]", "more than 100,000 values"),
        ("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg")
        ), "more than 100,000 values"),
        ("a: !!python/object/apply:os.system [x]", "only plain values"),
        ("? [a]\n: 1", "unhashable"),
    ],
)  # fmt: skip
def test_yaml_that_no_config_is(text, message):
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "f.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("f.yaml: ")
    assert len(str(caught.value)) < 300


def test_yaml_that_looks_odd_and_is_right():
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, b: 2}\n'a b': [1, 1]", "f") == {
        "a": {"b": 1},
        "c": {"b": 2},
        "a b": [1, 1],
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_only_plain_files_of_a_bounded_size_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(bytes(100))
    for name, message in (
        ("pipe", "is no plain file"),
        ("zero", "is no plain file"),
        ("gone", "no such file"),
        ("large/x", "no such file"),
        ("", "is a folder"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "characters.: cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            open_regular(tmp_path / name)
    with pytest.raises(UserError, match="100 bytes are more"):
        read_bytes(tmp_path / "large", 99)
    assert read_bytes(tmp_path / "large", 100) == bytes(100)
    for read in (read_yaml, load_tensor_array, load_numpy_array):
        with pytest.raises(UserError, match="is no plain file"):
            read(tmp_path / "pipe", "kernel") if read is not read_yaml else read(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("beginning", "kind"),
    [
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n  <html>", "a web page"),
        (b"\xef\xbb\xbf<?xml version", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!\x1a\x07", "a RAR archive"),
        (b"a" * 257 + b"ustar\0", "a tar archive"),
        (b"%PDF-1.4", "a PDF"),
        (b"", "truncated or no checkpoint"),
        (b"PK\x03\x04 torn", "truncated or no checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints_are_named(tmp_path, beginning, kind):
    (tmp_path / "ffhq_10m.pt").write_bytes(beginning)
    with pytest.raises(UserError, match=kind) as caught:
        load_model(UNET, tmp_path / "ffhq_10m.pt")
    assert "python -m models.download ffhq" in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_a_zip_archive_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("weights.bin", b"x")
    with pytest.raises(UserError, match="is a zip archive"):
        load_model(UNET, tmp_path / "w.pt")


def test_a_checkpoint_that_unpacks_to_more_is_refused_unread(state, tmp_path):
    torch.save({**state, "out.0.weight": torch.zeros(1_000_000)}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(UserError, match="unpacks to .* which torch.save never does"):
        load_model(UNET, tmp_path / "w.pt")


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.to_sparse(),
        lambda v: v[:, None].to_sparse_csr(),
        lambda v: v.to(torch.float8_e4m3fn),
        lambda v: v.to("meta"),
        lambda v: v.to(torch.complex64),
        lambda v: v > 0,
        lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
        lambda v: torch.nested.nested_tensor([v, v[:3]]),
    ],
    ids=["sparse", "csr", "float8", "meta", "complex", "bool", "quantised", "nested"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds_are_refused(state, tmp_path, change):
    torch.save({**state, "out.0.weight": change(state["out.0.weight"])}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"1 tensor\(s\) are sparse, .*out\.0\.weight"):
        load_model(UNET, tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("wrap", "taken"),
    [
        (lambda w, o: {"state_dict": w, "epoch": 3}, '"state_dict"'),
        (lambda w, o: {"model": o, "ema": w}, '"ema"'),
        (lambda w, o: {"params": o, "params_ema": w}, '"params_ema"'),
        (lambda w, o: {"model": {"ema_params": w}}, '"model / ema_params"'),
        (lambda w, o: {f"module.{k}": v for k, v in w.items()}, 'without "module."'),
        (lambda w, o: {f"_orig_mod.{k}": v for k, v in w.items()}, 'without "_orig_mod."'),
        (lambda w, o: {"state_dict": {f"module._orig_mod.{k}": v for k, v in w.items()}},
         '"state_dict", names without "module._orig_mod."'),
        (lambda w, o: {"state_dict": w, "step": torch.tensor(3)}, '"state_dict"'),
        (lambda w, o: {"model": o, "ema": o, "best": {"score": 0.1, "weights": w}},
         '"best / weights"'),
        (lambda w, o: {"model": o, "ema": w, "best": {"score": 9.0, "weights": None}}, '"ema"'),
    ],
)  # fmt: skip
def test_checkpoints_as_trainers_save_them(state, tmp_path, capsys, wrap, taken):
    other = {k: torch.zeros_like(v) for k, v in state.items()}
    torch.save(wrap(state, other), tmp_path / "w.pt")
    model = load_model(UNET, tmp_path / "w.pt")
    assert torch.equal(model.out[0].weight, state["out.0.weight"])
    assert taken in capsys.readouterr().err


def test_plain_weights_are_taken_without_a_word(state, tmp_path, capsys):
    torch.save(state, tmp_path / "w.pt")
    load_model(UNET, tmp_path / "w.pt")
    assert capsys.readouterr().err == ""


def test_our_own_training_gives_a_checkpoint_that_loads(config, capsys):  # noqa: F811
    trainer = train(config, CPU)
    model = load_model(trainer.unet_config, f"{config.run_dir}/checkpoint.pt")
    for name, value in trainer.ema.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def _npz(*arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, *arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("write_file", "message"),
    [
        (lambda p: np.save(p, np.zeros((3, 3), "V8")), "values of type"),
        (lambda p: np.save(p, np.zeros(3, complex)), "values of type"),
        (lambda p: np.save(p, np.array([object()]), allow_pickle=True), "not a readable kernel"),
        (lambda p: p.write_bytes(_npz(np.ones(3), np.ones(3))), "holds 2 arrays"),
        (lambda p: p.write_bytes(b"PK\x03\x04 torn"), "not a readable kernel"),
        (lambda p: p.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': "
                                 b"False, 'shape': (99999, 99999), }" + b" " * 40 + b"\n"),
         "not a readable kernel"),
    ],
)  # fmt: skip
def test_arrays_that_are_none(tmp_path, write_file, message):
    write_file(tmp_path / "k.npy")
    with pytest.raises(UserError, match=message):
        load_numpy_array(tmp_path / "k.npy", "kernel")


def test_an_npz_under_the_name_of_an_npy_is_read(tmp_path):
    (tmp_path / "k.npy").write_bytes(_npz(np.eye(3)))
    np.testing.assert_array_equal(load_numpy_array(tmp_path / "k.npy", "kernel"), np.eye(3))


def test_one_number_that_claims_to_be_many(tmp_path):
    torch.save(torch.ones(1, 1).expand(200_001, 200_001), tmp_path / "k.pt")
    with pytest.raises(UserError, match="one plain tensor"):
        load_tensor_array(tmp_path / "k.pt", "kernel")


def test_download_into_what_is_no_folder(tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "models" / "ffhq_10m.pt").mkdir(parents=True)
    for folder, message in (
        (tmp_path / "file", "file: cannot be used"),
        (tmp_path / ("x" * 5000), "cannot be"),
        (tmp_path / "models", "is a folder"),
    ):
        assert main(["ffhq", "--folder", str(folder)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "source", ["nowhere", "http://[", "ftp://a/b", "http://a:99999", "file:///"]
)
def test_sources_that_are_no_urls(tmp_path, capsys, source):
    assert main(["ffhq", "--folder", str(tmp_path / "new"), "--source", source]) == 2
    assert "--source" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_urls_beyond_ascii_are_escaped():
    assert _checked_url("http://bücher.example:8/ä b?x=1") == (
        "http://xn--bcher-kva.example:8/%C3%A4%20b?x=1"
    )
    assert _checked_url("https://[::1]:80/a%20b") == "https://[::1]:80/a%20b"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_download_over_a_pipe(tmp_path, capsys):
    os.mkfifo(tmp_path / "ffhq_10m.pt.part")
    assert main(["ffhq", "--folder", str(tmp_path), "--source", "http://127.0.0.1:9"]) == 2
    assert "part: is no plain file" in capsys.readouterr().err


def test_two_downloads_of_one_file(tmp_path):
    pytest.importorskip("fcntl")
    part, entered, leave = tmp_path / "a.part", threading.Event(), threading.Event()

    def hold():
        with _alone(part):
            entered.set()
            leave.wait(30)

    first = threading.Thread(target=hold)
    first.start()
    assert entered.wait(30)
    with pytest.raises(UserError, match="another download is writing"), _alone(part):
        pass
    leave.set()
    first.join()
    with _alone(part) as file:
        assert file.read() == b""


def test_download_where_files_cannot_be_locked(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with _alone(tmp_path / "a.part") as file:
        assert file.read() == b""


@pytest.mark.parametrize(
    "change",
    [
        {"run_dir": "file"},
        {"run_dir": "file/below"},
        {"output": "file/weights.pt"},
        {"output": "folder"},
    ],
)
def test_training_that_could_not_be_saved(config, tmp_path, change):  # noqa: F811
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    change = {key: str(tmp_path / value) for key, value in change.items()}
    with pytest.raises(UserError, match="choose another run_dir"):
        train(dataclasses.replace(config, **change), CPU)
    assert not list(tmp_path.rglob("loss.csv"))


def test_small_pictures_do_not_validate(tmp_path, capsys):
    from tests.tiny_run import photograph, save

    small = save(tmp_path / "s.png", photograph(5, 6))
    large = save(tmp_path / "l.png", photograph(9, 17))
    (found,) = validation_images([small, large], 8, CPU)
    assert found.shape == (3, 8, 16)
    assert "s.png: smaller than 8 pixels" in capsys.readouterr().err


def test_names_that_are_no_utf8_are_escaped_in_tables(tmp_path):
    write(tmp_path / "t.md", "a\udcff.png")
    assert (tmp_path / "t.md").read_text() == "a\\udcff.png"
