"""From a segmented series to the files that go to the PACS."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.valuerep import DA, DT, TM

from segdistill.dicom_results.codes import StructureCode
from segdistill.dicom_results.identity import Identity
from segdistill.dicom_results.model import Model
from segdistill.dicom_results.report import make_report
from segdistill.dicom_results.segmentation import SegmentationType, make_segmentation
from segdistill.dicom_results.source import DicomResultError, Source
from segdistill.files import atomic_path
from segdistill.runtime.plan import Structure
from segdistill.volume.grid import reason

SEG, SR = "seg.dcm", "sr.dcm"


@dataclass(frozen=True)
class Results:
    """What goes to the PACS, each a DICOM file (PS3.10) byte for byte.

    Attributes:
        seg: the Segmentation; None where no structure was found, since a SEG has at least one segment.
        sr: the Structured Report.
    """

    seg: bytes | None
    sr: bytes

    def write(self, folder: Path) -> list[Path]:
        """Write ``seg.dcm``, if there is one, and ``sr.dcm``; each is whole or absent.

        Returns:
            The files.

        Raises:
            DiskFullError: the disk is full.
        """
        written = []
        for name, body in ((SEG, self.seg), (SR, self.sr)):
            path = folder / name
            if body is None:
                path.unlink(missing_ok=True)  # of another scan
                continue
            with atomic_path(path) as partial:
                partial.write_bytes(body)
            written.append(path)
        return written


def make_results(
    source: Source,
    labels: NDArray[np.uint8],
    volumes_ml: Mapping[str, float],
    structures: Sequence[Structure],
    codes: Mapping[str, StructureCode],
    model: Model,
    *,
    when: datetime,
    kind: SegmentationType = "BINARY",
) -> Results:
    """The SEG and the SR of a segmented series.

    The same arguments give the same bytes. The UIDs depend on the series, its SOP instances, the bundle
    and ``kind`` alone; a caller that retries gives the same ``when`` again, for the same object with the
    same bytes.

    Args:
        source: the series, from :func:`~segdistill.dicom_results.read_source`.
        labels: (X, Y, Z) uint8 label codes on its grid.
        volumes_ml: millilitres per structure, by name.
        structures: all that the model looks for, as the plan has them.
        codes: by structure's name, from :func:`~segdistill.dicom_results.structure_codes`.
        model: what segmented it.
        when: date and time that both objects say for their content and their creation, local time.
        kind: ``BINARY`` (every PACS knows it), or ``LABELMAP`` (much smaller, and newer: its SOP class
            must be switched on in some PACS).

    Raises:
        DicomResultError: the label map isn't on the series' grid or has a code that no structure has, or
            the series can't be referred to.
    """
    if labels.shape != source.grid.array.shape:
        raise DicomResultError(
            f"the label map has {labels.shape} voxels, the series {source.grid.array.shape}. Give the "
            "label map of this series."
        )
    # Slice by slice: counting makes 8 bytes of each voxel.
    voxels = sum(np.bincount(part.ravel(), minlength=256) for part in np.moveaxis(labels, 2, 0))
    present = set(np.flatnonzero(voxels).tolist()) - {0}
    unknown = present - {entry.code for entry in structures}
    if unknown:
        raise DicomResultError(
            f"the label map has the code {min(unknown)}, which isn't one of the model's structures. "
            "Give the label map that this model made."
        )
    found = [entry for entry in structures if entry.code in present]
    identity = Identity(
        source.series,
        frozenset(str(image.SOPInstanceUID) for image in source.images),
        model.bundle_digest,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's quote values of the header
        try:
            seg = None
            if found:
                seg = make_segmentation(source, labels, found, codes, model, when, kind, identity)
            sr = make_report(source, seg, volumes_ml, structures, found, codes, model, when, identity)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # Nothing of the patient is in what was handed over, so the words are safe.
            raise DicomResultError(
                f"no DICOM results can be made for this series ({reason(error)}). Export the series "
                "from the PACS again, or take the label map as NIfTI."
            ) from error
        return Results(None if seg is None else _file(seg, source, when), _file(sr, source, when))


def _file(result: Dataset, source: Source, when: datetime) -> bytes:
    """The bytes of a result, filed as its series is."""
    for element in source.filed:
        result[element.tag] = element
    # highdicom asks the clock for these.
    result.InstanceCreationDate, result.InstanceCreationTime = DA(when.date()), TM(when.time())
    for equipment in result.ContributingEquipmentSequence:
        equipment.ContributionDateTime = DT(when)
    # pydicom writes raw elements as they are if nothing tells it to spell them anew.
    correct_ambiguous_vr(result, True)
    characters = result.get("SpecificCharacterSet")
    result.set_original_encoding(
        False, True, convert_encodings(characters) if characters else default_encoding
    )
    stream = BytesIO()
    pydicom.dcmwrite(stream, result, enforce_file_format=True)
    return stream.getvalue()
