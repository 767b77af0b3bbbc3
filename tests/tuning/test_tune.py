"""Ways of running a bundle: both backends say the same, and tuning chooses by evidence alone."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segdistill.files import SegdistillError
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.segment import Segmentator, open_backend
from segdistill.runtime.setting import Setting, processor
from segdistill.tuning import search as tuning_module
from segdistill.tuning.__main__ import main
from segdistill.tuning.choice import Tolerance, best, chosen
from segdistill.tuning.search import TuningCase, candidates, tune
from segdistill.volume import read_label_map, read_volume, write_label_map, write_volume
from tests.onnx_models import ball_file, make_plan, threshold_bundle

CPUINFO = """\
processor	: 0
model name	: Some Processor 3000
flags		: fpu avx2 avx512f avx512_bf16 fma

processor	: 1
model name	: Some Processor 3000
flags		: fpu avx2 avx512f avx512_bf16 fma
"""


def openvino(precision: Any = "f32", **changes: Any) -> Setting:
    """A setting of OpenVINO, in windows and on one thread unless changed."""
    fields: dict[str, Any] = {"mode": "windows", "overlap": 0.5, "threads": 1}
    return Setting("openvino", precision, **{**fields, **changes})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle with one threshold."""
    return threshold_bundle(tmp_path / "bundle")


@pytest.fixture
def case(tmp_path: Path) -> TuningCase:
    """A ball and its label map."""
    mask = ball_file(tmp_path / "scan.nii.gz")
    labels = tmp_path / "labels.nii.gz"
    write_label_map(labels, mask.astype(np.uint8), read_volume(tmp_path / "scan.nii.gz"))
    return TuningCase(tmp_path / "scan.nii.gz", labels)


def test_a_label_map_on_another_grid_is_refused(
    bundle: Bundle, case: TuningCase, tmp_path: Path
) -> None:
    """Tuning compares with a label map on its scan's grid only, and says how far another one is off."""
    assert case.labels is not None
    scan, moved = read_volume(case.scan), tmp_path / "moved.nii"
    write_volume(moved, read_label_map(case.labels).array, scan.affine + 5.0 * np.eye(4, k=3))
    with pytest.raises(
        SegdistillError, match=r"moved\.nii: not on the grid of .*scan\.nii\.gz: .* 5 mm apart"
    ):
        tune(bundle.folder, [TuningCase(case.scan, moved)])


@pytest.mark.parametrize("mode", ["windows", "whole"])
def test_both_backends_say_the_same(bundle: Bundle, case: TuningCase, mode: Any) -> None:
    """In float32, OpenVINO and ONNX Runtime give the same label map, in windows and in one pass."""
    scan = read_volume(case.scan)
    ours = Segmentator(bundle, setting=Setting("onnxruntime", "f32", mode, 0.5, 1)).segment(scan)
    theirs = Segmentator(bundle, setting=openvino(mode=mode)).segment(scan)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert ours.volumes_ml == theirs.volumes_ml


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (Setting("onnxruntime", "bf16", "windows", 0.5, 1), "no bf16"),
        (openvino("int8"), "no quantised network"),
    ],
)
def test_what_cant_be_run_is_refused(bundle: Bundle, setting: Setting, says: str) -> None:
    """A precision that backend or bundle doesn't have is refused in words."""
    with pytest.raises(SegdistillError, match=says):
        open_backend(bundle, setting)


def test_openvino_reports_nothing(bundle: Bundle) -> None:
    """Running OpenVINO loads no telemetry, no web client, and looks nothing up."""
    program = (
        "import socket, sys; from pathlib import Path\n"
        "def refuse(*_, **__): raise AssertionError('a connection')\n"
        "socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse\n"
        "from segdistill.runtime.backend import OpenVinoBackend\n"
        "import numpy\n"
        "network = OpenVinoBackend(Path(sys.argv[1]), 1)\n"
        "network(numpy.zeros((1, 1, 16, 16, 16), 'float32'))\n"
        "loaded = [name for name in sys.modules if name.startswith('openvino_telemetry.')]\n"
        "assert not loaded and 'http.client' not in sys.modules, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle.model)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_damaged_network_is_refused(bundle: Bundle) -> None:
    """OpenVINO names the file that it can't read."""
    bundle.model.write_bytes(b"not a network")
    with pytest.raises(SegdistillError, match=r"model\.onnx.*Export the bundle again"):
        open_backend(bundle, openvino())


def test_every_combination_is_a_candidate_once() -> None:
    """The reference comes first; int8 where there is such a network, in OpenVINO if it is there."""
    plan = make_plan()
    found = candidates(plan, int8=True, overlaps=[0.5, 0.25], openvino=True)
    assert found[0] == Setting.reference(plan)
    assert len(set(found)) == len(found) == 4 * 3
    assert {s.backend for s in found if s.precision == "int8"} == {"openvino"}
    without = candidates(plan, int8=True, openvino=False)
    assert {s.backend for s in without if s.precision == "int8"} == {"onnxruntime"}
    plain = candidates(plan, int8=False, openvino=False)
    assert {(s.backend, s.precision) for s in plain} == {("onnxruntime", "f32")}
    assert {s.mode for s in plain} == {"windows", "whole"}


def test_tuning_measures_and_chooses(bundle: Bundle, case: TuningCase, tmp_path: Path) -> None:
    """Every row has its evidence; the choice is about the fastest within the tolerance and readable."""
    said: list[str] = []
    found = json.loads(json.dumps(tune(bundle.folder, [case], progress=said.append)))
    rows = [row for row in found["rows"] if "refused" not in row]
    assert found["labelled"] == found["cases"] == 1
    assert rows[0]["setting"] == Setting.reference(bundle.plan).to_json()
    assert rows[0]["dice_change"] == 0.0
    assert rows[0]["dice"] == pytest.approx(1.0)
    assert all(row["seconds"] > 0 and row["peak_rss_mb"] > 10 for row in rows)
    fastest = min(row["seconds"] for row in rows if row["within"])
    assert any(
        found["choice"] == row["setting"] and row["within"] and row["seconds"] <= 1.05 * fastest
        for row in rows
    )
    assert {row["setting"]["threads"] for row in rows} == {0, 1}
    setting, why = chosen(found, bundle, "tuning.json")
    assert setting.to_json() == found["choice"]
    assert "fastest" in why
    assert len(said) == len(found["rows"])


def test_a_tie_goes_to_the_smaller_loss() -> None:
    """Of settings that are about as fast, the one that loses least is taken; a slower one never is."""
    rows = [
        {"name": "int8", "seconds": 0.120, "dice_change": -0.0014},
        {"name": "bf16", "seconds": 0.123, "dice_change": -0.0001},
        {"name": "f32", "seconds": 0.150, "dice_change": 0.0},
    ]
    assert best(rows)["name"] == "bf16"
    assert best(rows[::2])["name"] == "int8"
    assert best([rows[1], rows[1] | {"name": "quicker", "seconds": 0.121}])["name"] == "quicker"


def test_scans_without_labels_are_measured_against_the_reference(
    bundle: Bundle, case: TuningCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without labels, any difference from the reference's own label map is a loss."""
    reference = Setting.reference(bundle.plan)
    other = openvino()
    monkeypatch.setattr(tuning_module, "candidates", lambda *_, **__: [reference, other])

    def run(_: Path, setting: Setting, scans: Any) -> Any:
        labels = Segmentator(bundle).segment(read_volume(scans[0])).labels
        if setting.backend == "openvino":
            labels[labels.shape[0] // 2 :] = 0  # half of the ball is lost
        seconds = 0.1 if setting.backend == "openvino" else 1.0
        return [labels], {"seconds": seconds, "cpu_seconds": seconds, "peak_rss_mb": 100.0}

    monkeypatch.setattr(tuning_module, "_alone", run)
    found = tune(bundle.folder, [TuningCase(case.scan)])
    assert found["labelled"] == 0
    lost = next(row for row in found["rows"] if row["setting"]["backend"] == "openvino")
    assert lost["dice_change"] < -0.2
    assert not lost["within"]
    assert found["choice"]["backend"] == "onnxruntime"  # the slower one that gives the same label map


def _tuning(bundle: Bundle) -> dict[str, Any]:
    """A tuning made by hand: bf16 is fastest, whole volumes lose too much."""
    reference, bf16 = Setting.reference(bundle.plan), openvino("bf16")
    evidence = {"dice": 0.9, "worst_structure": "structure_1", "cpu_seconds": 1.0, "peak_rss_mb": 1.0}
    good = {"dice_change": 0.0, "worst_change": 0.0, "within": True}
    bad = {"dice_change": -0.1, "worst_change": -0.1, "within": True}  # what the file claims
    return {
        "bundle_digest": bundle.digest,
        "processor": processor(),
        "tolerance": vars(Tolerance(0.002, 0.005)),
        "rows": [
            {"setting": reference.to_json(), **evidence, **good, "seconds": 2.0},
            {"setting": openvino().to_json(), **evidence, **good, "seconds": 1.0},
            {"setting": bf16.to_json(), **evidence, **good, "seconds": 0.5},
            {"setting": openvino(mode="whole").to_json(), **evidence, **bad, "seconds": 0.1},
        ],
        "choice": bf16.to_json(),
    }


def test_another_processor_falls_back_to_float32(bundle: Bundle) -> None:
    """Where the processor differs, the fastest float32 setting that kept the Dice is taken, and said."""
    found = _tuning(bundle)
    assert chosen(found, bundle, "t")[0].precision == "bf16"
    found["processor"] = {"name": "Old Box", "features": []}
    setting, why = chosen(found, bundle, "t")
    assert setting == openvino()
    assert "Old Box" in why


def test_without_a_float32_row_another_processor_is_refused(bundle: Bundle) -> None:
    """A tuning whose reference was taken out has nothing to fall back to, and says so."""
    found = _tuning(bundle)
    found["rows"] = [row for row in found["rows"] if row["setting"]["precision"] == "bf16"]
    found["processor"] = {"name": "Old Box", "features": []}
    with pytest.raises(SegdistillError, match="no float32 row"):
        chosen(found, bundle, "t")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"choice": openvino(mode="whole").to_json()}, "not among what it measured"),
        ({"bundle_digest": "0" * 64}, "tuned for the bundle 0000"),
        ({"rows": None}, "not the result of tuning"),
        ({"tolerance": {"mean": 1}}, "not the result of tuning"),
    ],
)
def test_a_tuning_that_proves_nothing_is_refused(
    bundle: Bundle, change: dict[str, Any], says: str
) -> None:
    """Another bundle's tuning, a damaged one, and a choice outside the tolerance are refused."""
    with pytest.raises(SegdistillError, match=rf"t\.json.*{says}"):
        chosen(copy.deepcopy(_tuning(bundle)) | change, bundle, "t.json")


def test_the_processor_is_told_by_name_and_features(tmp_path: Path) -> None:
    """Name and the features that matter come from /proc/cpuinfo; without it, nothing fails."""
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    assert processor(tmp_path / "cpuinfo") == {
        "name": "Some Processor 3000",
        "features": ["avx2", "avx512f", "avx512_bf16"],
    }
    assert processor(tmp_path / "none")["features"] == []


def test_the_command_says_what_is_wrong(bundle: Bundle, tmp_path: Path, capsys: Any) -> None:
    """A scan that isn't there ends with status 2 and one line, and no file is written."""
    out = tmp_path / "tuning.json"
    assert main([str(bundle.folder), str(out), str(tmp_path / "none.nii")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "none.nii" in said[0]
    assert not out.exists()
