"""Random changes of a patch, so that the network meets more scanners and heads than it was given."""

from collections.abc import Mapping

import numpy as np
import torch
from monai import transforms
from monai.data import set_track_meta
from torch import Tensor

# Patches carry no affine, and keeping track of one costs ten times what the transforms themselves cost.
set_track_meta(False)

_ALL = ("image", "label", "soft")  # soft labels only where there are some


def augmentation(flip_left_right: bool) -> transforms.Compose:
    """MONAI's transforms with nnU-Net's choice of kinds, for normalised intensities.

    Args:
        flip_left_right: mirror the first axis half of the time; not for tasks in which a left
            structure has another name than its right one.
    """
    return transforms.Compose(
        [
            transforms.RandFlipd(
                _ALL,
                prob=0.5 if flip_left_right else 0.0,
                spatial_axis=0,
                allow_missing_keys=True,
            ),
            transforms.RandAffined(
                _ALL,
                prob=0.3,
                rotate_range=(0.2, 0.2, 0.2),
                scale_range=(0.12, 0.12, 0.12),
                mode=("bilinear", "nearest", "nearest"),
                padding_mode="border",
                allow_missing_keys=True,
            ),
            transforms.RandGaussianNoised("image", prob=0.2, std=0.15),
            transforms.RandGaussianSmoothd(
                "image", prob=0.15, sigma_x=(0.3, 0.9), sigma_y=(0.3, 0.9), sigma_z=(0.3, 0.9)
            ),
            transforms.RandSimulateLowResolutiond("image", prob=0.15, zoom_range=(0.5, 1.0)),
            transforms.RandScaleIntensityd("image", factors=0.25, prob=0.4),
            transforms.RandShiftIntensityd("image", offsets=0.25, prob=0.4),
            transforms.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
        ]
    )


def apply(
    transform: transforms.Compose, patch: Mapping[str, np.ndarray], random: np.random.Generator
) -> dict[str, Tensor]:
    """One patch through ``transform``, all of its choices drawn from ``random``.

    Args:
        transform: of :func:`augmentation`.
        patch: ``image`` (1, X, Y, Z) float32, ``label`` (1, X, Y, Z) uint8 and, if there are any,
            ``soft`` (4, X, Y, Z) uint8, which moves as the label does.
        random: where the randomness comes from.

    Returns:
        Tensors of the same names and shapes.
    """
    transform.set_random_state(seed=int(random.integers(2**31)))
    out: dict[str, Tensor] = transform({name: torch.from_numpy(array) for name, array in patch.items()})
    return out
