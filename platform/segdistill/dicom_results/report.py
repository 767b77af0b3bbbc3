"""The Structured Report (SR): the volume of every structure of the plan, found or not."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from highdicom.seg import Segmentation
from highdicom.sr import (
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.sr.codedict import codes as known

from segdistill.dicom_results.codes import StructureCode, coding_schemes
from segdistill.dicom_results.identity import Identity
from segdistill.dicom_results.model import MANUFACTURER, RESEARCH_USE, Model
from segdistill.dicom_results.source import Source
from segdistill.dicom_results.texts import plain
from segdistill.runtime.plan import Structure

_Group = MeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations


def make_report(
    source: Source,
    segmentation: Segmentation | None,
    volumes_ml: Mapping[str, float],
    structures: Sequence[Structure],
    found: Sequence[Structure],
    codes: Mapping[str, StructureCode],
    model: Model,
    when: datetime,
    identity: Identity,
) -> Comprehensive3DSR:
    """A Comprehensive 3D SR by TID 1500 with one group of measurements for each structure.

    A structure that was found has a group by TID 1411, with its segment; one that was not, by TID 1501,
    with a volume of 0.

    Args:
        source: the series.
        segmentation: of it; None where no structure was found.
        volumes_ml: by name, at least those of ``structures``.
        structures: all that the model looks for.
        found: those in ``segmentation``, in the order of its segments.
        codes: by name, at least those of ``structures``.
        model: what segmented it.
        when: the content's date and time.
        identity: gives the UIDs.
    """
    segments = {entry.name: number for number, entry in enumerate(found, 1)}

    def group(structure: Structure) -> _Group:
        code = codes[structure.name]
        common: dict[str, Any] = {
            "tracking_identifier": TrackingIdentifier(
                uid=identity.tracking(structure.name), identifier=plain(structure.name)
            ),
            "finding_category": code.category,
            "finding_type": code.kind,
            "finding_sites": [FindingSite(code.kind, laterality=code.modifier)],
            "algorithm_id": model.for_measurements(),
            "measurements": [
                Measurement(
                    name=known.SCT.Volume,
                    value=volumes_ml[structure.name],
                    unit=known.UCUM.CubicCentimeter,  # 1 cm3 is 1 ml; DICOM's list of units has no ml
                )
            ],
        }
        if segmentation is None or structure.name not in segments:
            return MeasurementsAndQualitativeEvaluations(**common)
        return VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=ReferencedSegment(
                sop_class_uid=segmentation.SOPClassUID,
                sop_instance_uid=segmentation.SOPInstanceUID,
                segment_number=segments[structure.name],
                source_series=SourceSeriesForSegmentation(source.series),
            ),
            **common,
        )

    report = MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(
                observer_type=known.DCM.Device,
                observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                    uid=identity.device,
                    name=plain(model.name),
                    manufacturer_name=MANUFACTURER,
                    model_name=plain(model.name),
                    serial_number=model.bundle_digest,
                ),
            )
        ),
        procedure_reported=known.SCT.ImagingProcedure,
        imaging_measurements=[group(structure) for structure in structures],
        title=known.DCM.ImagingMeasurementReport,
    )
    report[0].ContentSequence.append(
        TextContentItem(
            name=known.DCM.Comment,
            value=f"{RESEARCH_USE}. Segmented automatically, verified by nobody.",
            relationship_type=RelationshipTypeValues.CONTAINS,
        )
    )
    # Of which segmentation it reports is part of what it is.
    kind = f"SR {segmentation.SegmentationType}" if segmentation is not None else "SR"
    return Comprehensive3DSR(
        evidence=[*source.images, *([] if segmentation is None else [segmentation])],
        content=report,
        series_instance_uid=identity.uid(f"{kind} series"),
        series_number=9002,
        sop_instance_uid=identity.uid(kind),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=plain(model.name),
        software_versions=plain(model.version),
        device_serial_number=model.bundle_digest,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="segdistill volumes, research use only",
        content_qualification="RESEARCH",
        content_date=when.date(),
        content_time=when.time(),
        coding_schemes=coding_schemes(codes),
    )
