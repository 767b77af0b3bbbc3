"""The Segmentation (SEG): where the structures are, frame by frame on the series' own slices."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from segdistill.dicom_results.codes import StructureCode, coding_schemes, label
from segdistill.dicom_results.identity import Identity
from segdistill.dicom_results.model import MANUFACTURER, RESEARCH_USE, Model
from segdistill.dicom_results.source import Source
from segdistill.dicom_results.texts import plain
from segdistill.runtime.plan import Structure

SegmentationType = Literal["BINARY", "LABELMAP"]


def make_segmentation(
    source: Source,
    labels: NDArray[np.uint8],
    found: Sequence[Structure],
    codes: Mapping[str, StructureCode],
    model: Model,
    when: datetime,
    kind: SegmentationType,
    identity: Identity,
) -> Segmentation:
    """A SEG whose segments 1, 2, ... are the structures ``found``, in that order.

    ``BINARY`` has a frame of one bit a pixel for each structure and each slice it is in. ``LABELMAP``
    has a frame for each slice of the series, empty ones too, compressed by RLE.

    Args:
        source: the series.
        labels: (X, Y, Z) label codes on its grid; other codes than those of ``found`` are background.
        found: the structures that have voxels; at least one.
        codes: by name, at least those of ``found``.
        model: what segmented it.
        when: the content's date and time.
        kind: ``BINARY`` or ``LABELMAP``.
        identity: gives the UIDs.
    """
    numbers = np.zeros(256, np.uint8)
    numbers[[entry.code for entry in found]] = np.arange(1, len(found) + 1)
    segmentation = Segmentation(
        source_images=source.images,
        pixel_array=source.frames(labels, numbers),
        segmentation_type=kind,
        segment_descriptions=[
            _description(number, entry, codes[entry.name], model, identity)
            for number, entry in enumerate(found, 1)
        ],
        series_instance_uid=identity.uid(f"SEG {kind} series"),
        series_number=9001,
        sop_instance_uid=identity.uid(f"SEG {kind}"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=plain(model.name),
        software_versions=plain(model.version),
        device_serial_number=model.bundle_digest,
        transfer_syntax_uid=RLELossless if kind == "LABELMAP" else ExplicitVRLittleEndian,
        # A frame without a voxel is a byte or two in RLE, and all of them make the volume whole.
        omit_empty_frames=kind == "BINARY",
        series_description="segdistill segmentation, research use only",
        content_label="RESEARCH_USE",
        content_description=RESEARCH_USE,
        content_qualification="RESEARCH",
        content_date=when.date(),
        content_time=when.time(),
        coding_schemes=coding_schemes(codes),
    )
    segmentation.ContentCreatorName = None  # must be there, and there is no person
    dimensions = identity.uid(f"SEG {kind} dimensions")
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    return segmentation


def _description(
    number: int, structure: Structure, code: StructureCode, model: Model, identity: Identity
) -> SegmentDescription:
    described = SegmentDescription(
        segment_number=number,
        segment_label=label(structure.name),
        segmented_property_category=code.category,
        segmented_property_type=code.kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=model.for_segments(),
        tracking_uid=identity.tracking(structure.name),
        tracking_id=plain(structure.name),
        display_color=CIELabColor(*code.colour),
    )
    if code.modifier is not None:
        item = described.SegmentedPropertyTypeCodeSequence[0]
        item.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept.from_code(code.modifier)]
    return described
