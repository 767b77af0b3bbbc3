"""A scan: voxels and an affine in mm, read, checked and written."""

from segdistill.volume.dicom import read_dicom_series
from segdistill.volume.grid import (
    Volume,
    VolumeError,
    check_volume,
    grid_difference,
    reoriented,
    same_grid,
)
from segdistill.volume.reading import read_label_map, read_volume, stored_shape
from segdistill.volume.writing import write_label_map, write_volume

__all__ = [
    "Volume",
    "VolumeError",
    "check_volume",
    "grid_difference",
    "read_dicom_series",
    "read_label_map",
    "read_volume",
    "reoriented",
    "same_grid",
    "stored_shape",
    "write_label_map",
    "write_volume",
]
