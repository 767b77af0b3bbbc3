import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segdistill.files import SegdistillError
from segdistill.runtime.__main__ import main
from segdistill.runtime.backend import EngineError
from segdistill.runtime.preprocess import crop, to_grid
from segdistill.runtime.segment import STEPS, Segmentator, open_backend, peak_bytes
from segdistill.runtime.setting import Setting, processor
from segdistill.volume import (
    Volume,
    VolumeError,
    read_label_map,
    read_volume,
    same_grid,
    write_volume,
)
from segdistill.volume.memory import TooLittleMemoryError
from tests.onnx_models import ball_file, ball_scan, make_plan, threshold_bundle

OBLIQUE = np.array([[-1.4, 0.1, 0.2, 30], [0.1, -1.4, 0.1, 25], [0.1, 0.1, 3.5, -40], [0, 0, 0, 1]])


def dice(a, b):
    """Dice of two masks."""
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("mode", ["windows", "whole"])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_scan_to_label_map(tmp_path, mode, name):
    """From an oblique scan, the structure is found, on the scan's grid, with its volume in ml."""
    bundle = threshold_bundle(tmp_path / "bundle", [100.0], mode=mode)
    mask = ball_file(tmp_path / name, shape=(50, 46, 24), affine=OBLIQUE)
    outcome = Segmentator(bundle).segment_file(tmp_path / name, tmp_path / "labels.nii.gz")
    assert dice(outcome.labels == 1, mask) > 0.97
    written = read_label_map(tmp_path / "labels.nii.gz")
    assert same_grid(written, read_volume(tmp_path / name))
    np.testing.assert_array_equal(written.array, outcome.labels)
    voxel_ml = abs(np.linalg.det(OBLIQUE[:3, :3])) / 1000
    assert outcome.volumes_ml == {"structure_1": pytest.approx(np.sum(outcome.labels == 1) * voxel_ml)}
    # A ball of 14 mm has 4/3 pi 1.4^3 = 11.49 ml.
    assert outcome.volumes_ml["structure_1"] == pytest.approx(11.49, rel=0.05)


def test_a_scan_without_orientation_is_not_segmented(tmp_path):
    """Left and right are never assumed: without a form that counts there's a reason, no label map."""
    image = nib.Nifti1Image(ball_scan((24, 24, 24))[0].array, None)
    image.to_filename(tmp_path / "scan.nii")
    segmentator = Segmentator(threshold_bundle(tmp_path / "bundle"))
    with pytest.raises(
        VolumeError, match=r"scan\.nii: .*no orientation.*left and right are unknown.*DICOM"
    ):
        segmentator.segment_file(tmp_path / "scan.nii", tmp_path / "labels.nii")
    assert not (tmp_path / "labels.nii").exists()


def test_steps_are_timed_in_order(tmp_path):
    """Every step has wall and CPU seconds, in the order of the pipeline."""
    segmentator = Segmentator(threshold_bundle(tmp_path / "bundle"))
    ball_file(tmp_path / "scan.nii")
    timings = segmentator.segment_file(tmp_path / "scan.nii", tmp_path / "labels.nii").timings
    assert tuple(timings) == STEPS
    assert all(wall > 0 and cpu >= 0 for wall, cpu in timings.values())
    in_memory = segmentator.segment(read_volume(tmp_path / "scan.nii")).timings
    assert tuple(in_memory) == STEPS[1:-1]


def test_own_codes_and_names(tmp_path):
    """Label codes and names are the plan's, in its order, whatever the channel numbers."""
    from segdistill.runtime.plan import Structure

    structures = (Structure(200, "rind"), Structure(9, "core"))
    bundle = threshold_bundle(tmp_path / "bundle", [50.0, 150.0], structures=structures)
    scan, mask = ball_scan(inside=100)
    core = ball_scan(radius_mm=6)[1]
    scan.array[core] = 220
    outcome = Segmentator(bundle).segment(scan)
    assert list(outcome.volumes_ml) == ["rind", "core"]
    np.testing.assert_array_equal(outcome.labels, np.select([core, mask], [9, 200]))


def test_structure_that_is_absent(tmp_path):
    """A structure that isn't in the scan has 0 ml and the label map is empty."""
    bundle = threshold_bundle(tmp_path / "bundle", [5000.0], spacing_mm=(1.5, 1.5, 1.5))
    outcome = Segmentator(bundle).segment(ball_scan()[0])
    assert outcome.volumes_ml == {"structure_1": 0.0}
    assert not outcome.labels.any()


def test_scan_smaller_than_a_window(tmp_path):
    """A scan of a few voxels is segmented like any other."""
    bundle = threshold_bundle(tmp_path / "bundle", patch_size=(64, 64, 64))
    scan, mask = ball_scan((9, 7, 5), radius_mm=5)
    np.testing.assert_array_equal(Segmentator(bundle).segment(scan).labels, mask)


def test_own_backend(tmp_path):
    """Another backend can take ONNX Runtime's place."""
    bundle = threshold_bundle(tmp_path / "bundle")
    scan, mask = ball_scan()

    def inverted(x):
        return np.concatenate([x, np.full_like(x, 100)], axis=1)

    labels = Segmentator(bundle, backend=inverted).segment(scan).labels
    np.testing.assert_array_equal(labels == 1, ~mask)


def test_too_large_for_the_memory(tmp_path, monkeypatch):
    """A scan that would not fit the memory is refused with the numbers before work begins."""
    segmentator = Segmentator(threshold_bundle(tmp_path / "bundle"))
    scan = ball_scan()[0]
    monkeypatch.setattr("segdistill.runtime.segment.available_bytes", lambda: 1e5)
    with pytest.raises(SegdistillError, match=r"40 x 36 x 32 voxels of 2 x 2 x 2 mm.*GB.*crop"):
        segmentator.segment(scan)


def test_peak_grows_with_the_scan():
    """The predicted memory counts native voxels, the plan's voxels, classes and activations."""
    small = Volume(np.zeros((10, 10, 10), np.float32), np.eye(4))
    large = Volume(np.broadcast_to(np.float32(0), (304, 304, 304)), np.eye(4))
    one, ten = (make_plan(count, mode="whole") for count in (1, 10))
    assert peak_bytes(large, one) > 10 * 304**3
    assert peak_bytes(large, ten) - peak_bytes(large, one) >= 9 * 2 * 4 * 152**3
    assert peak_bytes(large, one, 70.0) - peak_bytes(large, one, 20.0) == 50 * 4 * 152**3
    halved = peak_bytes(large, one, 70.0, "bf16") - peak_bytes(large, one, 20.0, "bf16")
    assert halved == 50 * 2 * 152**3
    assert peak_bytes(large, replace(ten, mode="windows")) < peak_bytes(large, ten) / 4
    assert peak_bytes(small, make_plan(1)) < 1e7
    assert peak_bytes(small, make_plan(1, mode="whole")) < peak_bytes(small, make_plan(1)) / 5


_ALONE = """\
import json, sys
from pathlib import Path
from segdistill.runtime.__main__ import peak_rss_mb
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.segment import Segmentator
from segdistill.runtime.setting import Setting
folder, setting, scan, labels = sys.argv[1:]
setting = Setting.from_json(json.loads(setting), "setting")
Segmentator(Bundle.read(Path(folder)), setting=setting).segment_file(Path(scan), Path(labels))
print(peak_rss_mb())
"""


@pytest.mark.parametrize("mode", ["windows", "whole"])
@pytest.mark.parametrize(
    ("backend", "precision"), [("onnxruntime", "f32"), ("openvino", "f32"), ("openvino", "bf16")]
)
def test_prediction_holds(tmp_path, mode, backend, precision):
    """A process takes no more memory for a large scan than was predicted, and not a tenth of it."""
    if precision == "bf16" and "avx512_bf16" not in processor()["features"]:
        pytest.skip("this processor has no bf16")
    bundle = threshold_bundle(
        tmp_path / "bundle",
        list(range(100, 500, 40)),
        provenance={"activations": 1.0},
        mode=mode,
        spacing_mm=(0.8, 0.8, 0.8),
        patch_size=(64, 64, 64),
    )
    setting = Setting(backend, precision, mode, 0.5, 0)
    peaks = {}
    for name, shape in {"small": (20, 20, 20), "large": (260, 240, 220)}.items():
        scan = ball_scan(shape, np.diag([0.8, 0.8, 0.8, 1.0]), radius_mm=min(shape) * 0.4)[0]
        write_volume(tmp_path / f"{name}.nii", scan.array, scan.affine)
        words = [bundle.folder, json.dumps(setting.to_json()), tmp_path / f"{name}.nii"]
        done = subprocess.run(
            [sys.executable, "-c", _ALONE, *map(str, words), str(tmp_path / "labels.nii")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        peaks[name] = float(done.stdout) * 1e6
    taken = peaks["large"] - peaks["small"] - scan.array.nbytes
    predicted = peak_bytes(scan, bundle.plan, 1.0, precision)
    assert predicted / 10 < taken < predicted


def test_scan_is_let_go(tmp_path, monkeypatch):
    """While the network runs, nothing holds on to voxels of the scan, its crop or unpadded grid."""
    ball_file(tmp_path / "scan.nii.gz")
    kept, alive = [], []

    def watched(function):
        def call(*arguments):
            outcome = function(*arguments)
            kept.append(weakref.ref(outcome.array))
            return outcome

        return call

    def network(x):
        alive.extend(reference() for reference in kept)
        return np.concatenate([0 * x, x - 100], axis=1)

    for step in (read_volume, crop, to_grid):
        monkeypatch.setattr(f"segdistill.runtime.segment.{step.__name__}", watched(step))
    bundle = threshold_bundle(
        tmp_path / "bundle", mode="whole", spacing_mm=(1.1, 1.1, 1.1), size_divisor=(16, 16, 16)
    )
    Segmentator(bundle, backend=network).segment_file(
        tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"
    )
    assert alive == [None, None, None]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_engine_gives_its_memory_back(tmp_path, monkeypatch, backend):
    """What an engine kept from the last scan is given back before the next one is refused."""
    bundle = threshold_bundle(tmp_path / "bundle", mode="whole")
    segmentator = Segmentator(bundle, setting=Setting(backend, "f32", "whole", 0.5, 1))
    first, (scan, mask) = segmentator.backend, ball_scan()
    free = iter([0.0, 1e9, 0.0, 0.0])
    opened = []

    def watched(*arguments):
        opened.append(segmentator.backend is not None)  # the old one is there until the new one is
        return open_backend(*arguments)

    monkeypatch.setattr("segdistill.runtime.segment.open_backend", watched)
    monkeypatch.setattr("segdistill.runtime.segment.available_bytes", lambda: next(free))
    np.testing.assert_array_equal(segmentator.segment(scan).labels, mask)
    assert segmentator.backend is not first
    with pytest.raises(TooLittleMemoryError, match=r"0\.0 GB are free"):
        segmentator.segment(scan)
    assert opened == [True, True]


def test_engine_that_cannot_be_opened_anew(tmp_path, monkeypatch):
    """Where no second engine can be opened, the large scan is refused and the engine goes on."""
    segmentator = Segmentator(threshold_bundle(tmp_path / "bundle"))
    scan, mask = ball_scan()

    def none(*_):
        raise SegdistillError("no memory")

    with monkeypatch.context() as tight:
        tight.setattr("segdistill.runtime.segment.available_bytes", lambda: 1.0)
        tight.setattr("segdistill.runtime.segment.open_backend", none)
        with pytest.raises(SegdistillError, match="no memory"):
            segmentator.segment(scan)
        assert segmentator.ready()
    np.testing.assert_array_equal(segmentator.segment(scan).labels, mask)


@pytest.mark.parametrize("failure", [EngineError("bad"), MemoryError()])
def test_engine_that_failed(tmp_path, monkeypatch, failure):
    """An engine that failed isn't ready until it is opened anew, which asking does, as the next scan."""
    segmentator = Segmentator(threshold_bundle(tmp_path / "bundle"))
    scan, mask = ball_scan()

    def broken(_):
        raise failure

    def none(*_):
        raise SegdistillError("no memory")

    for heal in (segmentator.ready, lambda: True):
        segmentator.backend = broken
        with pytest.raises((EngineError, TooLittleMemoryError)):
            segmentator.segment(scan)
        with monkeypatch.context() as tight:
            tight.setattr("segdistill.runtime.segment.open_backend", none)
            assert not segmentator.ready()
            assert not segmentator.ready()
            with pytest.raises(SegdistillError, match="no memory"):
                segmentator.segment(scan)
        assert heal()
        np.testing.assert_array_equal(segmentator.segment(scan).labels, mask)
    assert segmentator.ready()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_network_that_cannot_run(tmp_path, backend):
    """What an engine raises while it runs is an error that says so, and the next scan is segmented."""
    bundle = threshold_bundle(tmp_path / "bundle")
    network = open_backend(bundle, Setting(backend, "f32", "windows", 0.5, 1))
    with pytest.raises(EngineError, match="can't run the network for 16 x 16 x 16 voxels"):
        network(np.zeros((1, 2, 16, 16, 16), np.float32))  # a channel that it doesn't know
    assert network(np.zeros((1, 1, 16, 16, 16), np.float32)).shape == (1, 2, 16, 16, 16)


def _same(scan):
    return scan


def _spelt_otherwise(scan):
    return scan.parent / "bundle" / ".." / scan.name


def _symlink(scan):
    link = scan.parent / "link.nii.gz"
    link.symlink_to(scan)
    return link


def _hardlink(scan):
    link = scan.parent / "link.nii.gz"
    link.hardlink_to(scan)
    return link


@pytest.mark.parametrize("name", [_same, _spelt_otherwise, _symlink, _hardlink])
def test_label_map_in_place_of_the_scan(tmp_path, name):
    """A label map that would take the scan's place, by whatever name, is refused; the scan stays."""
    segmentator = Segmentator(threshold_bundle(tmp_path / "bundle"))
    scan = tmp_path / "scan.nii.gz"
    ball_file(scan)
    before = scan.read_bytes()
    other = name(scan)
    for source, target in ((scan, other), (other, scan)):
        with pytest.raises(VolumeError, match="take the place of the scan"):
            segmentator.segment_file(source, target)
    assert scan.read_bytes() == before


def test_whole_volume_that_does_not_fit(tmp_path, monkeypatch):
    """Where one pass over all doesn't fit the memory, the reference's windows take its place."""
    bundle = threshold_bundle(tmp_path / "bundle", provenance={"activations": 500.0})
    whole = Setting("onnxruntime", "f32", "whole", 0.5, 1)
    segmentator = Segmentator(bundle, setting=whole)
    scan, mask = ball_scan()
    seen = []

    def backend(x):
        seen.append(x.shape[2:])
        return np.concatenate([0 * x, x - 100], axis=1)

    segmentator.backend = backend
    expected = segmentator.segment(scan).labels
    assert len(seen) == 1
    np.testing.assert_array_equal(expected, mask)
    between = (peak_bytes(scan, bundle.plan, 500.0) + peak_bytes(scan, segmentator.plan, 500.0)) / 2
    monkeypatch.setattr("segdistill.runtime.segment.available_bytes", lambda: between)
    np.testing.assert_array_equal(segmentator.segment(scan).labels, mask)
    assert len(seen) == 1  # the reference has a backend of its own


def test_bad_scan_leaves_no_label_map(tmp_path):
    """A scan that can't be used leaves nothing behind."""
    segmentator = Segmentator(threshold_bundle(tmp_path / "bundle"))
    (tmp_path / "scan.nii.gz").write_bytes(b"nothing")
    with pytest.raises(VolumeError, match=r"scan\.nii\.gz"):
        segmentator.segment_file(tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bundle", "scan.nii.gz"]


def run(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "segdistill.runtime", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_line(tmp_path):
    """The command prints one JSON line and writes the label map."""
    bundle = threshold_bundle(tmp_path / "bundle")
    mask = ball_file(tmp_path / "scan.nii.gz")
    done = run(bundle.folder, tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    line = json.loads(done.stdout)
    assert line["bundle"] == bundle.digest
    assert line["volumes_ml"]["structure_1"] == pytest.approx(mask.sum() * 8 / 1000, abs=1e-3)
    assert list(line["timings"]) == list(STEPS)
    assert 20 < line["peak_rss_mb"] < 2000
    labels = np.asanyarray(nib.load(tmp_path / "labels.nii.gz").dataobj)
    np.testing.assert_array_equal(labels, mask)


def test_command_line_error(tmp_path, capsys):
    """A bad scan ends the command with status 2 and one line that names it."""
    bundle = threshold_bundle(tmp_path / "bundle")
    scan, labels = tmp_path / "none.nii.gz", tmp_path / "labels.nii.gz"
    assert main([str(bundle.folder), str(scan), str(labels)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"error: {scan}: no such file. Check the path.\n"
    ball_file(scan)
    assert main([str(bundle.folder), str(scan), str(scan)]) == 2
    assert "take the place of the scan" in capsys.readouterr().err


def test_no_training_library_at_the_bedside():
    """Importing the runtime brings in no training library and no registry client."""
    code = "import sys, segdistill.runtime.segment, segdistill.runtime.__main__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "monai", "ray", "mlflow", "dvc", "pandas", "matplotlib", "onnx"}
    assert not heavy & set(loaded.stdout.split())
