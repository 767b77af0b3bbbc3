"""DICOM results as other programs read them: dcmqi (a SEG's voxels, a SR's volumes) and dciodvfy."""

import json
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from segdistill.volume import Volume


def _program(package: str, name: str) -> Path:
    """A program of a package, without the interpreter that its script would start first."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "bin" / name


def complaints(body: bytes) -> list[str]:
    """The errors that dciodvfy finds in a DICOM file."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "result.dcm")
        path.write_bytes(body)
        done = subprocess.run(
            [_program("dicom3tools", "dciodvfy"), path],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    lines = (done.stdout + done.stderr).splitlines()
    assert lines  # it names at least what kind of object it is
    return [line for line in lines if line.startswith("Error")]


def segments(seg: bytes) -> tuple[list[dict[str, Any]], Volume]:
    """A SEG as dcmqi reads it: its segments by number, and their numbers voxel by voxel."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "seg.dcm").write_bytes(seg)
        done = subprocess.run(
            [
                _program("dcmqi", "segimage2itkimage"),
                *("--inputDICOM", folder / "seg.dcm", "--outputDirectory", folder),
                *("--outputType", "nii", "--mergeSegments"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        # It ends with 0 without an image, too.
        images = [path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz"))]
        assert len(images) == 1, done.stdout + done.stderr
        image = nib.load(images[0])
        meta = json.loads((folder / "meta.json").read_text())
        found = [segment for group in meta["segmentAttributes"] for segment in group]
        return found, Volume(np.asarray(image.dataobj).astype(np.uint8), image.affine)


def volumes(sr: bytes) -> list[dict[str, Any]]:
    """The measurement groups of a SR as dcmqi reads them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sr.dcm").write_bytes(sr)
        subprocess.run(
            [
                _program("dcmqi", "tid1500reader"),
                *("--inputDICOM", folder / "sr.dcm", "--outputMetadata", folder / "sr.json"),
            ],
            capture_output=True,
            check=True,
        )
        groups: list[dict[str, Any]] = json.loads((folder / "sr.json").read_text())["Measurements"]
        return groups


def on_grid(read: Volume, grid: Volume) -> NDArray[np.uint8]:
    """What was read, on another grid that holds the same places: every voxel must fall on one of it."""
    index = np.argwhere(read.array)
    to_grid = np.linalg.inv(grid.affine) @ read.affine
    places = index @ to_grid[:3, :3].T + to_grid[:3, 3]
    assert np.abs(places - places.round()).max(initial=0) < 0.1  # voxels
    voxels = np.zeros(grid.array.shape, np.uint8)
    x, y, z = places.round().astype(int).T
    voxels[x, y, z] = read.array[tuple(index.T)]
    return voxels
