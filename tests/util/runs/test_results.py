import csv

import numpy as np
import torch
from PIL import Image

from util.runs.manifest import Record
from util.runs.results import Results


def test_measurements_without_labels_of_several_sizes(tmp_path):
    """No label column, no metrics; the residual instead."""
    results, rows = Results(tmp_path), []
    for name, (height, width) in {"b": (16, 24), "a": (32, 8)}.items():
        image = torch.zeros(3, height, width)
        results.save_measurement(name, image[:, ::2, ::2], image[:, ::2, ::2])
        assert results.save_restored(name, None, image) == {}
        rows.append(Record(f"{name}.png", "", 0, 0.0, residual=height / 10))
    results.save_report(rows)
    with open(tmp_path / "metrics.csv") as file:
        table = list(csv.reader(file))
    assert table == [["file", "residual"], ["a", "3.2000"], ["b", "1.6000"], ["mean", "2.4000"]]
    assert not (tmp_path / "label").exists()
    assert Image.open(tmp_path / "recon/a.png").size == (8, 32)
    assert np.load(tmp_path / "input/b.npy").shape == (3, 8, 12)
    assert Image.open(tmp_path / "contact_sheet.png").width == 2 * (24 + 8) + 8  # two columns
