"""Telling a scan that is there twice, whatever its file is called and however its axes are stored."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation

from segdistill.sites.manifest import Site, site_folders
from segdistill.volume import Volume, read_volume, stored_shape


def voxel_digest(volume: Volume) -> str:
    """SHA-256 of a scan's shape and float32 intensities, its axes brought nearest to RAS first."""
    array = apply_orientation(volume.array, io_orientation(volume.affine))
    voxels = np.ascontiguousarray(array, dtype=np.float32)
    return hashlib.sha256(repr(voxels.shape).encode() + voxels.tobytes()).hexdigest()


def digests_of_sites(folder: Path, shapes: set[tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    """Digest and case name of every real scan under ``folder`` whose sorted shape is in ``shapes``.

    Simulated sites are left out (no source folder holds their scans), and so are scans that DVC has not
    brought onto this machine.

    Raises:
        SegdistillError: a site's manifest or scan can't be read.
    """
    for where in site_folders(folder):
        site = Site.read(where)
        for case in () if site.simulated else site.cases:
            image = where / case.image if case.image else None
            if image and image.is_file() and tuple(sorted(stored_shape(image))) in shapes:
                yield voxel_digest(read_volume(image)), f"{case.case} of site {site.site}"
