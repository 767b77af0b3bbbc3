"""The benchmarks' own machinery, on a network that takes no time."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import page
from benchmarks.families import Contender
from benchmarks.growth import make_scan
from benchmarks.packing import pack_and_unpack
from benchmarks.pipelines import Pipeline, compare, ours
from segdistill.runtime.segment import STEPS
from segdistill.runtime.setting import Setting
from segdistill.volume import read_label_map, read_volume
from tests.onnx_models import threshold_bundle


@pytest.fixture
def member(tmp_path):
    """A bundle that finds what is brighter than 100."""
    bundle = threshold_bundle(tmp_path / "bundle", [100.0])
    return Contender("student-x4", bundle, tmp_path, tmp_path, None)


def test_side_by_side(tmp_path, member):
    """Every pipeline segments the scan in a process of its own and says what each step cost."""
    scan = tmp_path / "scan.nii.gz"
    make_scan(scan, (40, 44, 36), voxel_mm=2.0)
    settings = [Setting("onnxruntime", "f32", mode, 0.5, 1) for mode in ("windows", "whole")]
    said: list[str] = []
    rows = compare([ours(member, s.mode, s) for s in settings], scan, tmp_path, 2, said.append)
    assert [row["pipeline"] for row in rows] == ["windows", "whole"]
    assert len(said) == 6  # a round that isn't counted and two that are
    for row in rows:
        assert list(row["cpu_by_step"]) == list(STEPS)
        assert row["scans"] == 2
        assert 0 < row["seconds"] < 60
        assert row["peak_rss_mb"] > 50
        found = read_label_map(Path(row["labels"])).array
        np.testing.assert_array_equal(found == 1, read_volume(scan).array >= 100)
    packed = pack_and_unpack(scan, tmp_path / "0.nii.gz")
    assert {entry["library"] for entry in packed} == {"zlib", "ISA-L"}
    assert len({entry["kB"] for entry in packed if entry["what"] == "unpack a scan"}) == 1


def test_process_that_ends(tmp_path):
    """A pipeline whose process ends is named with its last words."""
    broken = Pipeline("teacher", "broken", ("python3", "-c", "raise SystemExit('no such model')"))
    with pytest.raises(SystemExit, match=r"teacher in broken ended:\nno such model"):
        compare([broken], tmp_path / "scan.nii.gz", tmp_path, 1, print)


def test_page(tmp_path, monkeypatch):
    """A row compares its CPU time with nnU-Net's and the teacher's, and says what is not the network."""
    steps = {**dict.fromkeys(STEPS, 0.0), "read": 0.5, "network": 1.5}
    costs = {"scans": 1, "seconds": 2.0, "peak_rss_mb": 900, "cpu_by_step": {}}
    rows = [
        {"member": "teacher", "pipeline": "nnU-Net", "cpu_seconds": 120.0, **costs},
        {"member": "teacher", "pipeline": "ours, whole int8", "cpu_seconds": 8.0, **costs},
        {"member": "student-x4", "pipeline": "nnU-Net", "cpu_seconds": 24.0, **costs},
        {"member": "student-x4", "pipeline": "ours, whole int8", "cpu_seconds": 2.0, **costs},
    ]
    rows[-1]["cpu_by_step"] = steps
    speed = {"machine": 4e11, "student-x4": {"operations_per_second": 1e11}}
    results = {
        "machine": {"cpu": "c", "cores": 2, "memory_gib": 8, "onnxruntime": "1", "monai": "1"},
        "paper_scale": {"rows": rows, "operations": {"bf16": speed}},
    }
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    page.write(results, tmp_path)
    text = (tmp_path / "page.md").read_text()
    row = "| student-x4 | ours, whole int8 | 1 | 2.00 | 2.00 | 900 | 60.0 x | 12.0 x | -75.0% | 25% |"
    assert row in text
    assert "| bf16 | 400 | 100 (25%) |" in text
    assert "The trained family" not in text
