"""Thousands of damaged files and odd configs: each is read, or refused by a UserError; nothing else
is raised, and nothing hangs."""

import copy
import io
import json
import math
import warnings

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from data.image_files import read_picture
from tests.tiny_run import photograph, write_configs
from util.config.run_config import RunConfig, load_run_config
from util.config.schema import parse_yaml
from util.errors import UserError
from util.runs.manifest import Record, check_settings, read_records, recorded_names
from util.tensor_files import load_numpy_array

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
SETTINGS = hypothesis.settings(
    max_examples=600,
    deadline=5000,  # ms a case: none hangs
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["dpps", "0", "-1", "1e400", "auto", ".nan", "crop", "../x", "a\0b"]),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def outcome(function, *args):
    """What function(*args) returns, or the UserError that it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*args)
        except UserError as error:
            return error


def paths(tree: dict, prefix: tuple = ()) -> list[tuple]:
    """Where values stand in nested sections."""
    found = []
    for key, value in tree.items():
        found.append((*prefix, key))
        if isinstance(value, dict):
            found += paths(value, (*prefix, key))
    return found


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    write_configs(folder, "inpainting")
    names = ("model", "diffusion", "task")
    return folder, {n: yaml.safe_load((folder / f"{n}.yaml").read_text()) for n in names}


@SETTINGS
@hypothesis.given(data=st.data())
def test_config_trees(configs, data):
    folder, good = configs
    odd = copy.deepcopy(good)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(odd)))
        places = paths(odd[name])
        if not places:
            continue
        *above, key = data.draw(st.sampled_from(places))
        section = odd[name]
        for part in above:
            section = section[part]
        if data.draw(st.booleans()):
            section[key] = data.draw(TREES)
        else:
            section[data.draw(st.text(max_size=6))] = data.draw(TREES)
    for name, tree in odd.items():
        (folder / f"odd_{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    found = outcome(load_run_config, *(folder / f"odd_{name}.yaml" for name in odd))
    assert isinstance(found, UserError | RunConfig)


@SETTINGS
@hypothesis.given(text=st.one_of(st.text(), st.text(alphabet="a:-{}[]&*!?<> \n'\"|>#,1.")))
def test_yaml_text(text):
    found = outcome(parse_yaml, text, "f.yaml")
    assert not isinstance(found, UserError) or str(found).startswith("f.yaml: ")


def encoded() -> dict[str, bytes]:
    """A small picture in every kind of file."""
    files = {}
    pixels = photograph(12, 16)
    for kind in ("png", "jpeg", "tiff", "gif", "webp", "bmp", "ppm", "tga", "jpeg2000"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format=kind)
        files[kind] = buffer.getvalue()
    for name, options in (
        ("deep", {"photometric": "rgb"}),
        ("planar", {"photometric": "rgb", "planarconfig": "separate"}),
        ("lzw", {"photometric": "rgb", "compression": "lzw", "predictor": True}),
    ):
        data = pixels.astype(np.uint16) * 257
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, np.moveaxis(data, -1, 0) if name == "planar" else data, **options)
        files[name] = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(buffer, format="PNG")
    files["grey16"] = buffer.getvalue()
    return files


ENCODED = encoded()


def damaged(data: st.DataObject, whole: bytes, reach: int) -> bytes:
    """`whole` with bytes changed, the first `reach` of them most often, or cut."""
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        end = len(content) if data.draw(st.integers(0, 3)) == 0 else min(reach, len(content))
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 9)) == 0
    return bytes(content[: data.draw(st.integers(0, len(content)))] if cut else content)


@SETTINGS
@hypothesis.given(data=st.data())
def test_image_headers(tmp_path_factory, data):
    kind = data.draw(st.sampled_from(sorted(ENCODED)))
    path = tmp_path_factory.getbasetemp() / "odd.png"
    path.write_bytes(damaged(data, ENCODED[kind], 120))
    found = outcome(read_picture, path)
    if isinstance(found, UserError):
        assert "odd.png" in str(found)
    else:
        assert found.pixels.ndim == 3
        assert found.pixels.dtype in (np.uint8, np.uint16)


@SETTINGS
@hypothesis.given(data=st.data())
def test_npy_headers(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "odd.npy"
    buffer = io.BytesIO()
    np.save(buffer, np.arange(12, dtype=data.draw(st.sampled_from("fdiBH"))).reshape(3, 4))
    path.write_bytes(damaged(data, buffer.getvalue(), 128))
    found = outcome(load_numpy_array, path, "kernel")
    if isinstance(found, UserError):
        assert "odd.npy" in str(found)
    else:
        assert found.size <= 12 * 8


GOOD = {
    "file": "a.png", "config": "C", "seed": 0, "time": 1.0, "seconds": 0.5, "residual": 1.0,
    "expected_residual": None, "metrics": {"psnr": 20.0}, "error": None,
    "source": {"image": {"bytes": 1}}, "files": {"recon/a.png": {"bytes": 1}},
}  # fmt: skip


@SETTINGS
@hypothesis.given(data=st.data())
def test_manifest_lines(tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "manifests"
    root.mkdir(exist_ok=True)
    lines = []
    for _ in range(data.draw(st.integers(1, 4))):
        line = copy.deepcopy(GOOD)
        for key in data.draw(st.lists(st.sampled_from([*GOOD, "settings", "more"]), max_size=3)):
            line[key] = data.draw(TREES)
        text = json.dumps(line)
        lines.append(data.draw(st.sampled_from([text, text[: len(text) // 2], "[" * 5000, ""])))
    content = "\n".join(lines).encode(errors="surrogatepass")
    (root / "manifest.0.jsonl").write_bytes(content)
    for name, record in read_records(root, "C").items():
        assert isinstance(record, Record)
        assert record.file == name
        assert math.isfinite(record.time) or record.time != record.time
    assert all(isinstance(name, str) for name in recorded_names(root))
    found = outcome(check_settings, root, {"a": 1})
    assert isinstance(found, bool) or "other settings" in str(found)
