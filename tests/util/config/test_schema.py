import shutil
from pathlib import Path

import pytest

from guided_diffusion.unet import UNetConfig
from util.config.run_config import load_run_config
from util.config.schema import parse_yaml, read_yaml
from util.errors import UserError

CONFIGS = Path("configs")
TASKS = sorted(CONFIGS.glob("*_config.yaml"))
TASKS = [p for p in TASKS if "model" not in p.name and "diffusion" not in p.name]


def load(task="super_resolution", overrides=(), model="model", diffusion="diffusion"):
    return load_run_config(
        CONFIGS / f"{model}_config.yaml",
        CONFIGS / f"{diffusion}_config.yaml",
        CONFIGS / f"{task}_config.yaml",
        overrides,
    )


def test_tuples_without_an_unsafe_loader():
    assert parse_yaml("a: !!python/tuple [1, 3]", "x") == {"a": (1, 3)}
    with pytest.raises(UserError, match=r"x: line 1, column 4: .*python/object"):
        parse_yaml("a: !!python/object/apply:os.system [echo]", "x")


def test_published_values():
    config = load()
    assert config.model.unet == UNetConfig(
        256, 128, 1, "", True, False, False, 16, 4, 64, -1, True, 0.0, True, False, False
    )
    assert config.model.model_path == "models/ffhq_10m.pt"
    assert config.diffusion.timestep_respacing == 1000
    assert config.task.operator.params == {"in_shape": (1, 3, 256, 256), "scale_factor": 4}
    assert config.task.conditioning.params == {"scale": 1.0}
    assert config.task.noise.params == {"sigma": 0.01}
    mask = load("inpainting").task.mask_opt
    assert (mask.mask_type, mask.mask_prob_range, mask.margin) == ("random", (0.7, 0.9), (16, 16))
    expected = {
        "super_resolution": ("dpps", 1.0, 0.01),
        "gaussian_deblur": ("dpps", 0.4, 0.01),
        "motion_deblur": ("dpps", 0.4, 0.01),
        "inpainting": ("dpps", 1.0, 0.01),
        "phase_retrieval": ("ps", 1.0, 0.05),
        "nonlinear_deblur": ("ps", 0.3, 0.05),
    }
    for task, values in expected.items():
        config = load(task).task
        found = (config.conditioning.name, config.conditioning.params["scale"])
        assert (*found, config.noise.params["sigma"]) == values


DEMO = {"model": "demo_model", "diffusion": "demo_diffusion"}


def test_a_number_of_steps_brings_guidance_without_a_scale():
    config = load(**DEMO)
    assert config.diffusion.num_steps == 25
    tuned = {"guidance_rule": "line_search", "init": "inverse"}
    assert config.task.conditioning.params == {**tuned, "scale": 1.0}
    for task, method, expected in (
        ("gaussian_deblur", "ps", {**tuned, "scale": 0.4}),
        ("gaussian_deblur", "ps+", {"init": "inverse", "scale": 0.4}),
        ("gaussian_deblur", "vanilla", {}),
        ("gaussian_deblur", "pigdm", {"init": "inverse"}),
    ):
        other = load(task, overrides=[f"task.conditioning.method={method}"], **DEMO)
        assert other.task.conditioning.params == expected
    whole = load(overrides=["task.conditioning={method: dpps, params: {init: noise}}"], **DEMO)
    assert whole.task.conditioning.params == {**tuned, "init": "noise"}
    assert load().task.conditioning.params == {"scale": 1.0}


def test_the_last_word_on_the_steps_counts():
    published = load(overrides=["diffusion.num_steps=30"])
    assert (published.diffusion.num_steps, published.diffusion.timestep_respacing) == (30, "")
    own = load(overrides=["diffusion.timestep_respacing=7"], **DEMO)
    assert (own.diffusion.num_steps, own.diffusion.build().num_timesteps) == (None, 7)
    assert own.task.conditioning.params == {"scale": 1.0}
    assert load(overrides=["diffusion.num_steps=null"]).diffusion.timestep_respacing == 1000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["diffusion.num_steps=0"], "num_steps 0: expected 1 to 1000"),
        (["diffusion.num_steps=1001"], "num_steps 1001: expected 1 to 1000"),
        (["diffusion.num_steps=9", "diffusion.timestep_respacing=9"], "both say how many steps"),
        (["task.conditioning.params.scale=3"], "line_search has no scale"),
        (["task.conditioning.params={scale: 3}"], "line_search has no scale"),
        (["diffusion=demo"], "diffusion: demo is a single value"),
        (["model=5"], "model: 5 is a single value"),
        (["task="], "task: None is a single value"),
        (["task.conditioning.params.max_timestep=300"], "the start follows from the measurement"),
    ],
)
def test_settings_that_do_not_belong_together(overrides, message):
    with pytest.raises(UserError, match=message):
        load(overrides=overrides, **DEMO)


def test_a_key_that_sounds_like_a_scale_is_none():
    config = load(overrides=["task.conditioning.params={limit_scale: True}"], **DEMO)
    assert config.task.conditioning.params["limit_scale"]


def test_guidance_brings_its_own_steps():
    guidance = "diffusion.guidance={super_resolution: {scale: 2.0, timestep_respacing: 7}}"
    config = load(overrides=[guidance])
    assert config.diffusion.build().num_timesteps == 7
    assert config.task.conditioning.params == {"scale": 2.0}
    other = load("gaussian_deblur", overrides=[guidance])
    assert other.diffusion.build().num_timesteps == 1000
    override = "diffusion.timestep_respacing=9"
    assert load(overrides=[guidance, override]).diffusion.build().num_timesteps == 9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.image_sizes=3"], 'unknown key "image_sizes" .did you mean "image_size"'),
        (["model.image_size=big"], "image_size: expected a whole number, got 'big'"),
        (["model.model_path="], "model_path: expected a string, got nothing"),
        (["model.model_path=''"], "model_path is empty"),
        (["diffusion.sampler=dpm"], 'unknown sampler "dpm".*known: ddim, ddpm'),
        (["diffusion.noise_schedule=lin"], 'noise_schedule "lin".*did you mean "linear"'),
        (["diffusion.model_var_type=x"], "known: fixed_large, fixed_small, learned"),
        (["diffusion.model_mean_type=x"], "known: epsilon, previous_x, start_x"),
        (["diffusion.clip_denoised=1"], "clip_denoised: expected True or False, got 1"),
        (["diffusion.timestep_respacing=5000"], "cannot keep"),
        (["diffusion.steps=20"], "too few for the linear schedule"),
        (["diffusion.eta=2"], r"eta in \[0, 1\]"),
        (["model.dropout=2"], "dropout"),
        (["model.num_head_channels=0"], "num_head_channels"),
        (["model.attention_resolutions='0.5'"], "whole numbers"),
        (["task.measurement.noise.sigma=.nan"], "sigma: expected a number"),
        (["diffusion.guidance={blur: {}}"], 'guidance: unknown operator "blur"'),
        (["diffusion.guidance={noise: {s: 1}}"], 'unknown key "s"'),
        (["diffusion.guidance={noise: {timestep_respacing: 5000}}"], "cannot keep"),
        (["diffusion.guidance={noise: {timestep_respacing: [5]}}"], "timestep_respacing: expected"),
        (["task.conditioning.method=dpp"], 'conditioning method "dpp" .did you mean "dpps"'),
        (["task.conditioning.params.scale=high"], "scale: expected a number, got 'high'"),
        (["task.conditioning.params.init=zero"], 'init: unknown value "zero".*known: aligned'),
        (["task.conditioning.params.candidates=[1]"], "candidates: expected"),
        (["task.measurement.operator.name=blur"], 'operator "blur"'),
        (["task.measurement.operator.name=[1]", "diffusion.guidance={noise: {}}"], "operator"),
        (["task.measurement.operator.factor=2"], 'unknown key "factor"'),
        (["task.measurement.noise.name=white"], "known: clean, gaussian, poisson"),
        (["task.measurement.extra=1"], 'measurement: unknown key "extra"'),
        (["task.measurement.mask_opt={mask_type: round}"], "known: box, extreme, random"),
        (["task.data.name=celeba"], 'data set "celeba"'),
        (["task.data=3"], "data: expected keys and values"),
        (["data.root=x"], "SECTION one of model, diffusion, task"),
        (["model.image_size"], "SECTION|KEY=VALUE"),
        (["model.image_size.x=1"], '"image_size" is a single value'),
        (["model.image_size=[1"], "not valid YAML"),
    ],
)
def test_bad_values_are_refused(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        load(overrides=overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "expected keys and values"),
        ("", "expected keys and values"),
        ("conditioning: {method: dpps}", "missing key data, measurement"),
        ("a: !!python/name:os.system x", "plain values"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_run_config("configs/model_config.yaml", "configs/diffusion_config.yaml", path)
    assert str(path) in str(caught.value)


def test_missing_file():
    with pytest.raises(UserError, match="nowhere.yaml: no such config file"):
        read_yaml("nowhere.yaml")


def test_missing_model_path(tmp_path):
    text = Path("configs/model_config.yaml").read_text()
    path = tmp_path / "model.yaml"
    path.write_text("\n".join(line for line in text.splitlines() if "model_path" not in line))
    with pytest.raises(UserError, match="missing key model_path"):
        load_run_config(path, "configs/diffusion_config.yaml", TASKS[0])


@pytest.mark.parametrize("task", TASKS, ids=lambda p: p.stem)
def test_every_shipped_task_config_is_valid(task, tmp_path):
    copy = shutil.copy(task, tmp_path)
    load_run_config("configs/model_config.yaml", "configs/diffusion_config.yaml", copy)
