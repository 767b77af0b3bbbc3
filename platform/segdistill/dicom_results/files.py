"""From files to results: a series' folder, its label map as NIfTI, the bundle that made it."""

from datetime import datetime
from pathlib import Path

import numpy as np

from segdistill.dicom_results.codes import structure_codes
from segdistill.dicom_results.model import Model
from segdistill.dicom_results.results import Results, make_results
from segdistill.dicom_results.segmentation import SegmentationType
from segdistill.dicom_results.source import DicomResultError, read_source
from segdistill.runtime.bundle import Bundle
from segdistill.texts import read_yaml_mapping
from segdistill.volume import grid_difference, read_label_map


def results_of_files(
    series: Path,
    labels: Path,
    bundle: Bundle,
    protocols: Path,
    *,
    when: datetime,
    version: str | None = None,
    kind: SegmentationType = "BINARY",
) -> Results:
    """The SEG and the SR of a series and its label map, with the volumes that the label map has.

    Args:
        series: the folder with the series.
        labels: the label map, ``.nii`` or ``.nii.gz``, on the series' grid as the platform writes it.
        bundle: that made it.
        protocols: the folder with the tasks' label protocols, whose codes are taken.
        when: see :func:`~segdistill.dicom_results.make_results`.
        version: of the model; None: the start of the bundle's digest.
        kind: ``BINARY`` or ``LABELMAP``.

    Raises:
        VolumeError: the series or the label map can't be read.
        DicomResultError: they aren't on one grid, or as :func:`~segdistill.dicom_results.make_results`.
    """
    source = read_source(series)
    found = read_label_map(labels)
    difference = grid_difference(found, source.grid)
    if difference:
        raise DicomResultError(
            f"{labels}: not on the grid of the series ({difference}). Give the label map that was made "
            "of this series."
        )
    if found.array.dtype != np.uint8:
        raise DicomResultError(
            f"{labels}: codes must be 0 to 255. Give the label map that was made here."
        )
    plan = bundle.plan
    protocol = protocols / f"{plan.task}.yaml"
    known = read_yaml_mapping(protocol) if protocol.is_file() else None
    voxel_ml = abs(float(np.linalg.det(source.grid.affine[:3, :3]))) / 1000
    return make_results(
        source,
        found.array,
        {
            entry.name: float(np.count_nonzero(found.array == entry.code)) * voxel_ml
            for entry in plan.structures
        },
        plan.structures,
        structure_codes(plan, known, str(protocol)),
        Model.of(bundle, version),
        when=when,
        kind=kind,
    )
