"""Settings with their defaults filled in: what makes two runs the same."""

import numpy as np
import pytest
import yaml

from util.config.effective import effective_settings
from util.config.run_config import load_run_config
from util.hashing import settings_hash

CONFIGS = {
    "model": {"image_size": 64, "num_channels": 32, "num_res_blocks": 1, "model_path": "a.pt"},
    "diffusion": {"timestep_respacing": 10},
    "task": {
        "conditioning": {"method": "dpps"},
        "data": {"name": "folder", "root": "images"},
        "measurement": {"operator": {"name": "motion_blur"}, "noise": {"name": "gaussian"}},
    },
}
KERNEL = "task.measurement.operator.kernel"


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """The effective settings with overrides, in an empty working folder."""
    for name, config in CONFIGS.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)

    def load(*overrides: str) -> dict:
        return effective_settings(load_run_config(*(f"{n}.yaml" for n in CONFIGS), overrides))

    return load


@pytest.mark.parametrize(
    ("stated", "other"),
    [
        ("task.data.fit=crop", "task.data.fit=pad"),
        ("task.measurement.noise.sigma=0.01", "task.measurement.noise.sigma=0.02"),
        (
            "task.measurement.operator.intensity=0.5",
            "task.measurement.operator.intensity=0.6",
        ),
        ("task.conditioning.params.candidates=adaptive", "task.conditioning.params.candidates=1"),
        ("task.conditioning.params.scale=1", "task.conditioning.params.scale=2"),
        ("diffusion.timestep_respacing='10'", "diffusion.timestep_respacing=ddim10"),
        ("diffusion.steps=1000", "diffusion.steps=500"),
        ("model.num_heads_upsample=4", "model.num_heads_upsample=2"),
        ("model.channel_mult='1,2,3,4'", "model.channel_mult='1,2,3'"),
        ("model.attention_resolutions='16'", "model.attention_resolutions='8'"),
    ],
)
def test_a_stated_default_is_one_left_out(settings, stated, other):
    assert settings_hash(settings(stated)) == settings_hash(settings())
    assert settings_hash(settings(other)) != settings_hash(settings())


def test_every_timestep_is_every_step(settings):
    left_out = settings("diffusion.timestep_respacing=''")
    assert left_out == settings("diffusion.timestep_respacing=1000")
    assert left_out != settings()


def test_memory_and_the_checkpoint_do_not_count(settings):
    assert settings("model.model_path=b.pt", "model.use_checkpoint=True") == settings()


def test_files_are_known_by_their_content(settings, tmp_path):
    for name, side in (("a.npy", 3), ("b.npy", 3), ("c.npy", 5)):
        np.save(tmp_path / name, np.ones((side, side)))
    a, b, c = (settings(f"{KERNEL}={name}") for name in ("a.npy", "b.npy", "c.npy"))
    assert a == b
    assert a != c


def test_the_folder_of_images_is_not_read(settings, tmp_path):
    before = settings()
    (tmp_path / "images").mkdir()
    assert settings() == before
    assert settings("task.data.root=elsewhere") != before


def test_words_are_not_files_that_have_their_name(settings, tmp_path):
    before = settings()
    for name in ("crop", "aligned", "adaptive"):
        (tmp_path / name).mkdir()
    assert settings() == before
