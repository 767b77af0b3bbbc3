"""DICOM results of a segmented series: a Segmentation (SEG) and a Structured Report (SR)."""

from segdistill.dicom_results.codes import StructureCode, structure_codes
from segdistill.dicom_results.model import Model
from segdistill.dicom_results.results import Results, make_results
from segdistill.dicom_results.segmentation import SegmentationType
from segdistill.dicom_results.source import DicomResultError, Source, read_source

__all__ = [
    "DicomResultError",
    "Model",
    "Results",
    "SegmentationType",
    "Source",
    "StructureCode",
    "make_results",
    "read_source",
    "structure_codes",
]
