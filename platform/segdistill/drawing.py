"""What pictures of label maps have in common: colours, veils over a scan, and which way is up."""

from collections.abc import Iterable
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

#: Okabe and Ito's eight, then eight more that are told apart from them; recycled after that.
PALETTE = (
    "#56B4E9",
    "#0072B2",
    "#E69F00",
    "#F0E442",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#999999",
    "#B2DF8A",
    "#CAB2D6",
    "#8C510A",
    "#17BECF",
    "#FB9A99",
    "#6A3D9A",
    "#4D7C0F",
    "#FDE0DD",
)


def colours(structures: int) -> NDArray[np.float64]:
    """A colour per structure, (N, 3), RGB in [0, 1]."""
    hexes = [PALETTE[number % len(PALETTE)] for number in range(structures)]
    return np.array([[int(text[n : n + 2], 16) / 255 for n in (1, 3, 5)] for text in hexes])


def colours_by_code(codes: Iterable[int]) -> NDArray[np.float64]:
    """The colours of structures at the places of their codes, (largest code + 1, 3)."""
    listed = list(codes)
    found = np.zeros((max(listed) + 1, 3))
    found[listed] = colours(len(listed))
    return found


def overlaid(
    grey: NDArray[Any], codes: NDArray[Any], tones: NDArray[np.float64], veil: float
) -> NDArray[np.float64]:
    """A plane with the colours of its labels over it, (H, W, 3), RGB in [0, 1].

    Args:
        grey: (H, W) intensities in [0, 1].
        codes: (H, W) label codes; those without a colour are left grey.
        tones: from :func:`colours_by_code`.
        veil: how much of a voxel's colour is the structure's, the rest is the scan.
    """
    known = np.where(codes < len(tones), codes, 0).astype(int)
    over = veil * (known > 0)[..., None]
    picture: NDArray[np.float64] = grey[..., None] * (1 - over) + tones[known] * over
    return picture


def to_ras(array: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Flip and swap axes to RAS; returns the array and its spacing in mm along the new axes."""
    orientation = nib.orientations.io_orientation(affine)
    turned = nib.orientations.apply_orientation(array, orientation)
    spacing = np.empty(3)
    spacing[orientation[:, 0].astype(int)] = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return turned, spacing
