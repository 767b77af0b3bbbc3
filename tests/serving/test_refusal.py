"""Whose fault an error is, and what the client reads of it."""

from pathlib import Path

import pytest

from segdistill.files import DiskFullError, SegdistillError
from segdistill.runtime.backend import EngineError
from segdistill.runtime.bundle import BundleError
from segdistill.volume import VolumeError
from segdistill.volume.memory import TooLittleMemoryError
from serving.service.refusal import refusal


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (VolumeError("scan: 4 axes. Give one volume."), 400, "4 axes"),
        (TooLittleMemoryError("the scan needs 9 GB, 8 GB are free."), 503, "8 GB are free"),
        (DiskFullError(Path("/srv/tmp/labels.nii.gz")), 507, "disk of this service is full"),
        (EngineError("the engine can't run /srv/model.onnx"), 503, "can't run its network"),
        (BundleError("/srv/model.onnx: changed."), 503, "can't run its network"),
        (SegdistillError("/srv/model.onnx: not a usable ONNX model"), 503, "can't run its network"),
    ],
)
def test_what_is_wrong_here_is_not_the_client_s(error: SegdistillError, status: int, words: str) -> None:
    """The scan's faults are 400, a full disk is 507, all else is 503; and no folder of ours is named."""
    found, message = refusal(error)
    assert found == status
    assert words in message
    assert "/srv" not in message
