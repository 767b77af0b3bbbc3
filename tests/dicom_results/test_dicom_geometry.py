"""However a series lies, its SEG has every voxel of the label map at its place, as dcmqi reads it."""

import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy.spatial.transform import Rotation

from segdistill.dicom_results import (
    Model,
    Results,
    SegmentationType,
    Source,
    make_results,
    read_source,
    structure_codes,
)
from segdistill.volume import read_volume
from tests.dicom_readers import complaints, on_grid, segments
from tests.dicom_series import enhanced, written
from tests.onnx_models import make_plan

PLAN = make_plan(4)
WHEN = datetime(2026, 1, 2, 3, 4, 5)
MODEL = Model("brain_mri student-x4", "3", "ab" * 32)
SHAPE = (11, 9, 7)
PLANES = {
    "axial": [[1, 0, 0], [0, 1, 0]],
    "axial from below": [[-1, 0, 0], [0, 1, 0]],
    "coronal": [[1, 0, 0], [0, 0, -1]],
    "sagittal": [[0, 1, 0], [0, 0, -1]],
    "negated column cosine": [[1, 0, 0], [0, -1, 0]],
    "oblique": Rotation.from_euler("xyz", (17, -23, 41), degrees=True).as_matrix()[:2],
}


def noise(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.int16]:
    """HU, some at every place."""
    return np.random.default_rng(0).integers(-500, 500, shape).astype(np.int16) // 2 * 2


def blobs(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> NDArray[np.uint8]:
    """Labels 1, 2 and 4 without any symmetry; slices at one end and some between are empty."""
    labels = np.random.default_rng(seed).choice(np.array([0, 0, 1, 2, 4], np.uint8), shape)
    labels[:, :, -2:] = 0
    labels[:, :, 2] = 0
    return labels


def results(
    source: Source, labels: NDArray[np.uint8], kind: SegmentationType = "BINARY", **changes: Any
) -> Results:
    """Results of the plan above."""
    volumes = {entry.name: 0.25 * float((labels == entry.code).sum()) for entry in PLAN.structures}
    given: dict[str, Any] = {
        "volumes_ml": volumes,
        "structures": PLAN.structures,
        "codes": structure_codes(PLAN),
        "model": MODEL,
        "when": WHEN,
        "kind": kind,
    }
    return make_results(source, labels, **{**given, **changes})


def check_read_back(folder: Path, kind: SegmentationType) -> None:
    """Compare what dcmqi reads with the label map, voxel by voxel; dciodvfy finds no error."""
    source = read_source(folder)
    labels = blobs(source.grid.array.shape)
    seg = results(source, labels, kind).seg
    assert seg is not None
    assert complaints(seg) == []
    found, read = segments(seg)
    assert [segment["labelID"] for segment in found] == [1, 2, 3]
    assert [segment["SegmentLabel"][-1] for segment in found] == ["1", "2", "4"]
    numbers = on_grid(read, read_volume(folder))
    codes = np.array([0, 1, 2, 4], np.uint8)
    assert np.array_equal(codes[numbers], labels)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.9, 3.0)], ids=["isotropic", "anisotropic"])
def test_every_voxel_is_where_the_label_map_has_it(
    tmp_path: Path, plane: str, spacing: tuple[float, float, float], kind: SegmentationType
) -> None:
    """Axial, coronal, sagittal, oblique or mirrored, thin or thick slices: dcmqi reads the label map."""
    written(tmp_path, noise(), cosines=np.array(PLANES[plane], float), spacing=spacing)
    check_read_back(tmp_path, kind)


@settings(max_examples=12)
@given(
    turn=st.tuples(*[st.floats(-180.0, 180.0)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 5.0).map(lambda mm: round(mm, 3))] * 3),
    origin=st.tuples(*[st.floats(-400.0, 400.0).map(lambda mm: round(mm, 3))] * 3),
    kind=st.sampled_from(["BINARY", "LABELMAP"]),
)
def test_any_grid_is_read_back(
    turn: tuple[float, float, float],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    kind: SegmentationType,
) -> None:
    """Turned in any way, with any voxel size, at any place: dcmqi reads the label map."""
    cosines = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()[:2]
    with tempfile.TemporaryDirectory() as name:
        written(Path(name), noise(), spacing=spacing, cosines=cosines, origin=origin)
        check_read_back(Path(name), kind)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("plane", ["axial", "oblique"])
def test_an_enhanced_file_is_read_back(tmp_path: Path, plane: str, kind: SegmentationType) -> None:
    """Of frames in any order in one file, dcmqi reads the label map."""
    written(tmp_path, noise(), cosines=np.array(PLANES[plane], float), spacing=(0.7, 0.9, 3.0))
    enhanced(tmp_path)
    check_read_back(tmp_path, kind)


def _rounded(index: int, slice_: Dataset) -> None:
    """Places with one decimal, directions that differ in the seventh, a thickness with a gap."""
    slice_.ImagePositionPatient = [f"{float(mm) + 0.33:.1f}" for mm in slice_.ImagePositionPatient]
    slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 1e-7 * (-1) ** index]
    slice_.SliceThickness, slice_.SpacingBetweenSlices = "2.0", "-9"


def _leaning(index: int, slice_: Dataset) -> None:
    x, y, z = (float(mm) for mm in slice_.ImagePositionPatient)
    slice_.ImagePositionPatient = [x, y + 0.02 * index, z]


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("change", [_rounded, _leaning])
def test_what_the_volume_takes_for_even_is_even_in_the_seg(
    tmp_path: Path, change: Callable[[int, Dataset], None], kind: SegmentationType
) -> None:
    """Rounded places and directions, a wrong distance, a lean: the SEG is on the volume's grid."""
    written(tmp_path, noise(), change=change)
    check_read_back(tmp_path, kind)
