"""Synthetic scans with label maps, and the plans of a small nnU-Net, for the comparison."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

THIN, THICK = (1.5, 1.5, 1.5), (1.0, 1.0, 4.0)
_CENTRES = np.array([[0, 0, 0], [20, 8, -6], [-18, -10, 10], [6, -20, -14], [-8, 18, 16]], float)


def write_scan(
    image: Path,
    label: Path | None,
    *,
    seed: int,
    spacing: tuple[float, float, float],
    size_mm: tuple[float, float, float] = (92, 100, 84),
    codes: str = "RAS",
) -> None:
    """A noisy head of ellipsoids with a hole and a border of zeros, stored in the axes ``codes``."""
    random = np.random.default_rng(seed)
    shape = [round(length / step) for length, step in zip(size_mm, spacing, strict=True)]
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    place = (index - (np.array(shape) - 1) / 2) * spacing
    wave = 3 * np.sin(place[..., [1, 2, 0]] / random.uniform(9, 14, 3) + random.uniform(0, 6, 3))
    place = place + wave
    labels = np.zeros(shape, np.uint8)
    inside = _ball(place, np.zeros(3), np.array([38.0, 42.0, 34.0]))
    for code, centre in enumerate(_CENTRES):
        radii = random.uniform(7, 12, 3) if code else random.uniform(24, 28, 3)
        labels[_ball(place, centre + random.uniform(-2, 2, 3), radii) & inside] = min(code, 3) + 1
    bright = np.array([40.0, 120, 200, 80, 160])[labels]
    inside &= ~_ball(place, np.array([0.0, 24.0, 0.0]), np.full(3, 5.0))  # a hole of zeros
    scan = np.where(inside, bright + random.normal(0, 12, shape), 0).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-30, -40, 20]
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    for path, array in ((image, scan), (label, labels)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine).as_reoriented(turn), path)


def _ball(place: NDArray[Any], centre: NDArray[Any], radii: NDArray[Any]) -> NDArray[np.bool_]:
    ball: NDArray[np.bool_] = (((place - centre) / radii) ** 2).sum(axis=-1) < 1
    return ball


def small_plans(
    spacing_zyx: list[float],
    kernels: list[list[int]],
    strides: list[list[int]],
    patch: list[int],
    *,
    scheme: str = "ZScoreNormalization",
    masked: bool = False,
    transpose: tuple[int, int, int] = (0, 1, 2),
) -> dict[str, Any]:
    """plans.json of a small PlainConvUNet; everything in the order of nnU-Net's network axes."""
    levels = len(kernels)
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    function = "resample_data_or_seg_to_shape"
    return {
        "dataset_name": "Dataset777_Toy",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": spacing_zyx,
        "original_median_shape_after_transp": patch,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose),
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": patch,
                "median_image_size_in_voxels": patch,
                "spacing": spacing_zyx,
                "normalization_schemes": [scheme],
                "use_mask_for_norm": [masked],
                "resampling_fn_data": function,
                "resampling_fn_seg": function,
                "resampling_fn_data_kwargs": {**resampling, "order": 3},
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": function,
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "architecture": {
                    "network_class_name": (
                        "dynamic_network_architectures.architectures.unet.PlainConvUNet"
                    ),
                    "arch_kwargs": {
                        "n_stages": levels,
                        "features_per_stage": [8 * 2**level for level in range(levels)],
                        "conv_op": "torch.nn.modules.conv.Conv3d",
                        "kernel_sizes": kernels,
                        "strides": strides,
                        "n_conv_per_stage": [2] * levels,
                        "n_conv_per_stage_decoder": [2] * (levels - 1),
                        "conv_bias": True,
                        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                        "dropout_op": None,
                        "dropout_op_kwargs": None,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": True},
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
                "batch_dice": False,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {
                "max": 250.0,
                "mean": 140.0,
                "median": 130.0,
                "min": 20.0,
                "percentile_00_5": 45.0,
                "percentile_99_5": 220.0,
                "std": 50.0,
            }
        },
    }


DATASET: dict[str, Any] = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "one": 1, "two": 2, "three": 3, "four": 4},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
