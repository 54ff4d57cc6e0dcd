import pytest

from util.errors import UserError
from util.hashing import settings_hash
from util.runs.manifest import Manifest, Record, check_settings, forget, read_records

SETTINGS = {"seed": 0, "task": {"noise": {"sigma": 0.01}}}
CONFIG = settings_hash(SETTINGS)


def record(name: str, time: float, **more) -> Record:
    return Record(name, CONFIG, 0, time, **more)


def test_latest_record_of_all_ranks_counts(tmp_path):
    first, second = Manifest(tmp_path, 0), Manifest(tmp_path, 1)
    second.append(record("a.png", 3.0, residual=1.5, metrics={"psnr": 20.0}))
    first.append(record("a.png", 2.0, error="unreadable"))
    first.append(record("b \udcff\u00e9.png", 1.0))
    first.append(Record("c.png", "another config", 0, 9.0))
    found = read_records(tmp_path, CONFIG)
    assert set(found) == {"a.png", "b \udcff\u00e9.png"}
    assert found["a.png"].done
    assert found["a.png"] == record("a.png", 3.0, residual=1.5, metrics={"psnr": 20.0})


def test_line_after_a_torn_one_is_whole(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.append(record("a.png", 1.0))
    with open(manifest.path, "ab") as file:
        file.write(b'{"file": "b.png", "conf')
    assert set(read_records(tmp_path, CONFIG)) == {"a.png"}
    manifest.append(record("c.png", 1.0))
    assert set(read_records(tmp_path, CONFIG)) == {"a.png", "c.png"}


def test_settings_of_a_folder(tmp_path):
    assert not check_settings(tmp_path, SETTINGS)
    Manifest(tmp_path).append_settings(SETTINGS)
    Manifest(tmp_path, 3).append(record("a.png", 1.0))
    assert check_settings(tmp_path, SETTINGS)
    with pytest.raises(UserError, match=r"task.noise.sigma: 0.01 there, 0.02 now"):
        check_settings(tmp_path, {"seed": 0, "task": {"noise": {"sigma": 0.02}}})
    with pytest.raises(UserError, match=r"task.noise.sigma: 0.01 there, nothing now"):
        check_settings(tmp_path, {"seed": 0})
    forget(tmp_path)
    assert not check_settings(tmp_path, {"seed": 0})
