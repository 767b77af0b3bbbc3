"""An enhanced DICOM file, a frame a slice, becomes the volume of its slices, or a clear refusal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless, RLELossless
from scipy.spatial.transform import Rotation

from segdistill.volume import VolumeError, read_dicom_series
from tests.dicom_series import enhanced, scan, written


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEGLSLossless])
def test_frames_are_the_volume_of_their_slices(tmp_path: Path, syntax: Any) -> None:
    """Frames in any order, each with a place and a scale of its own, give the slices' volume."""

    def change(whole: Dataset) -> None:
        frames = np.frombuffer(whole.PixelData, "<u2").reshape(7, 6, 7).copy()
        for number, (frame, groups) in enumerate(
            zip(frames, whole.PerFrameFunctionalGroupsSequence, strict=True)
        ):
            scale = Dataset()
            scale.RescaleSlope, scale.RescaleIntercept = 2, -1024 - 2 * number
            groups.PixelValueTransformationSequence = [scale]  # over the shared one
            frame += number
        whole.PixelData = frames.tobytes()
        if syntax is not None:
            whole.compress(syntax)

    hu = scan(7)
    cosines = Rotation.from_euler("xyz", (20, -30, 40), degrees=True).as_matrix()[:2]
    written(tmp_path, hu, cosines=cosines)
    slices = read_dicom_series(tmp_path)
    enhanced(tmp_path, change)
    frames = read_dicom_series(tmp_path)
    assert np.array_equal(frames.array, hu)
    assert np.array_equal(frames.affine, slices.affine)


def _at_one_place(whole: Dataset) -> None:
    groups = whole.PerFrameFunctionalGroupsSequence
    groups[1].PlanePositionSequence = groups[0].PlanePositionSequence


def _without_places(whole: Dataset) -> None:
    del whole.PerFrameFunctionalGroupsSequence


def _one_without_a_place(whole: Dataset) -> None:
    del whole.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence


def _more_frames(whole: Dataset) -> None:
    whole.NumberOfFrames = 6


def _fewer_pixels(whole: Dataset) -> None:
    whole.PixelData = whole.PixelData[: 7 * 6 * 2 * 4]


def _gap(whole: Dataset) -> None:
    for groups in whole.PerFrameFunctionalGroupsSequence:
        x, y, z = groups.PlanePositionSequence[0].ImagePositionPatient
        groups.PlanePositionSequence[0].ImagePositionPatient = [x, y, z + 2.5 * (z > 36)]


def _in_turns(whole: Dataset) -> None:
    groups = sorted(
        whole.PerFrameFunctionalGroupsSequence,
        key=lambda one: one.PlanePositionSequence[0].ImagePositionPatient[2],
    )
    for number, one in enumerate(groups):
        one.FrameContentSequence = [Dataset()]
        one.FrameContentSequence[0].TemporalPositionIndex = 1 + number % 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_at_one_place, r"enhanced \(frame [12]\) and enhanced \(frame [12]\) are at one place"),
        (_without_places, "several frames in one file, without their places"),
        (_one_without_a_place, "no ImagePositionPatient"),
        (_more_frames, "6 frames, 5 of them with a place"),
        (_fewer_pixels, "can't be decoded"),
        (_gap, "1 slices are missing"),
        (_in_turns, "2 acquisitions lie between each other, they differ in TemporalPositionIndex"),
    ],
)
def test_frames_that_are_no_even_stack_are_refused(
    tmp_path: Path, change: Callable[[Dataset], None], says: str
) -> None:
    """Doubled, missing or mixed frames, or frames without a place, are refused with the file's name."""
    written(tmp_path, scan())
    enhanced(tmp_path, change)
    with pytest.raises(VolumeError, match=says) as caught:
        read_dicom_series(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "Nobody" not in str(caught.value)


def test_an_enhanced_file_beside_another_file_is_refused(tmp_path: Path) -> None:
    """Two enhanced files in one folder are no single volume."""
    written(tmp_path, scan())
    path = enhanced(tmp_path)
    path.with_name("other").write_bytes(path.read_bytes())
    with pytest.raises(VolumeError, match="2 files, and several frames in one of them"):
        read_dicom_series(tmp_path)
