"""What nnU-Net's plans.json and dataset.json say, in this platform's words, and the other way round."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdistill.files import SegdistillError
from segdistill.interop.names import our_axes, reordered
from segdistill.network.architecture import Architecture
from segdistill.runtime.plan import STORED, Normalisation, Plan, Structure
from segdistill.sites.imports.nnunet import channel_names, label_names

CONFIGURATION = "3d_fullres"
_UNET = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
_INTENSITIES = ("mean", "std", "percentile_00_5", "percentile_99_5")
_RESAMPLING = "resample_data_or_seg_to_shape"
# How nnU-Net's readers leave a scan's axes.
_READERS = {
    "SimpleITKIO": STORED,
    "NibabelIO": STORED,
    "NibabelIOWithReorient": "RAS",
    "SimpleITKIOWithReorient": "RAS",
}


@dataclass(frozen=True)
class Understood:
    """nnU-Net's plans and dataset, understood.

    Attributes:
        plan: for the runtime.
        architecture: of the network.
        axes: for each of our axes, that of nnU-Net's network; see :mod:`~segdistill.interop.names`.
    """

    plan: Plan
    architecture: Architecture
    axes: tuple[int, int, int]


def configuration_of(plans: Mapping[str, Any], name: str, source: Path) -> dict[str, Any]:
    """A configuration of plans.json with what it inherits.

    Raises:
        SegdistillError: it isn't there, or inherits from itself.
    """
    chain: list[Mapping[str, Any]] = []
    wanted: str | None = name
    while wanted is not None:
        found = plans.get("configurations", {}).get(wanted)
        if found is None or len(chain) > len(plans["configurations"]):
            raise SegdistillError(f"{source}: no usable configuration {wanted!r}. Copy plans.json anew.")
        chain.append(found)
        wanted = found.get("inherits_from")
    return {key: value for part in reversed(chain) for key, value in part.items()}


def understand(
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    configuration: str,
    source: Path,
    *,
    task: str | None,
    label_protocol: str | None,
    orientation: str | None,
) -> Understood:
    """Turn nnU-Net's plans into ours.

    Args:
        plans: plans.json.
        dataset: dataset.json.
        configuration: the name of a 3D configuration, as the checkpoint says.
        source: the results folder, for messages.
        task: name of the task; by default the dataset's.
        label_protocol: by default the dataset's name too.
        orientation: of the scans nnU-Net was trained on, e.g. ``LPS``; others are then turned to it.
            By default what nnU-Net's reader does: mostly nothing.

    Raises:
        SegdistillError: a part that this platform has no exact counterpart of.
    """
    path = source / "plans.json"
    try:
        body = configuration_of(plans, configuration, path)
        _check(body, plans, dataset, source)
        axes = our_axes(plans["transpose_forward"])
        architecture = _architecture(body, len(_labels(dataset, source)), axes, path)
        name = str(plans["dataset_name"])
        normalisation = _normalisation(body, plans, path)
        plan = Plan(
            task=task or name,
            modality="ct" if normalisation.scheme == "ct" else "mri",
            orientation=orientation or _READERS[plans["image_reader_writer"]],
            spacing_mm=reordered([float(size) for size in body["spacing"]], axes),
            foreground="nonzero",
            normalisation=normalisation,
            patch_size=reordered([int(size) for size in body["patch_size"]], axes),
            size_divisor=architecture.divisor,
            mode="windows",
            overlap=0.5,
            structures=tuple(
                Structure(code, label) for code, label in _labels(dataset, source).items() if code
            ),
            label_protocol=label_protocol or name,
            convention="nnunet",
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise SegdistillError(
            f"{path}: not the plans.json of nnU-Net v2 that was expected ({error!r}). Copy plans.json "
            "and dataset.json from the results folder anew."
        ) from error
    return Understood(Plan.from_json(plan.to_json(), str(path)), architecture, axes)


def _check(
    body: Mapping[str, Any], plans: Mapping[str, Any], dataset: Mapping[str, Any], source: Path
) -> None:
    """Raise SegdistillError for what changes the outcome and has no counterpart here."""
    channels = channel_names(dataset)
    kind = body.get("architecture", {}).get("network_class_name") or body.get("UNet_class_name", "")
    kind = kind.rsplit(".", 1)[-1]
    data, logits = (body.get(f"resampling_fn_{what}_kwargs") for what in ("data", "probabilities"))
    usual = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    functions = {body.get(f"resampling_fn_{what}", _RESAMPLING) for what in ("data", "probabilities")}
    wrong = None
    if kind != "PlainConvUNet":
        wrong = f"the network is a {kind}; only the PlainConvUNet can be expressed here"
    elif len(body["patch_size"]) != 3:
        wrong = "this is a 2d configuration; import the model of 3d_fullres"
    elif body.get("previous_stage"):
        wrong = "this is the second stage of a cascade; import the model of 3d_fullres"
    elif len(channels) != 1:
        wrong = f"the network takes {len(channels)} channels; this platform has one scan per case"
    elif body.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        wrong = f"it preprocesses with {body['preprocessor_name']}, not with the DefaultPreprocessor"
    elif plans["image_reader_writer"] not in _READERS:
        wrong = f"it reads scans with {plans['image_reader_writer']}; known are {', '.join(_READERS)}"
    elif (
        functions != {_RESAMPLING}
        or (data or {**usual, "order": 3}) != {**usual, "order": 3}
        or (logits or {**usual, "order": 1}) != {**usual, "order": 1}
    ):
        wrong = "it resamples in another way than nnU-Net's default"
    elif sorted(plans["transpose_forward"]) != [0, 1, 2]:
        wrong = f"transpose_forward {plans['transpose_forward']} isn't an order of three axes"
    if wrong:
        raise SegdistillError(f"{source}: {wrong}. docs/nnunet.md lists what can be imported.")


def _architecture(
    body: Mapping[str, Any], classes: int, axes: Sequence[int], path: Path
) -> Architecture:
    """Our architecture for that of a configuration, of plans before and after nnU-Net 2.4."""
    if "architecture" in body:
        parts = body["architecture"]["arch_kwargs"]
    else:
        levels = len(body["n_conv_per_stage_encoder"])
        base, most = body["UNet_base_num_features"], body["unet_max_num_features"]
        parts = {
            "n_stages": levels,
            "features_per_stage": [min(base * 2**level, most) for level in range(levels)],
            "kernel_sizes": body["conv_kernel_sizes"],
            "strides": body["pool_op_kernel_sizes"],
            "n_conv_per_stage": body["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": body["n_conv_per_stage_decoder"],
        }
    levels = parts["n_stages"]

    def each(name: str, count: int) -> list[Any]:
        value = parts[name]
        return [value] * count if isinstance(value, int) else list(value)

    def triples(name: str) -> tuple[tuple[int, int, int], ...]:
        sizes = [[size] * 3 if isinstance(size, int) else size for size in each(name, levels)]
        return tuple(reordered([int(step) for step in size], axes) for size in sizes)

    convolutions = {*each("n_conv_per_stage", levels), *each("n_conv_per_stage_decoder", levels - 1)}
    norm = {"eps": 1e-5, "affine": True, **(parts.get("norm_op_kwargs") or {})}
    slope = (parts.get("nonlin_kwargs") or {}).get("negative_slope", 0.01)
    wrong = None
    if convolutions != {2}:
        wrong = f"stages of {sorted(convolutions)} convolutions (n_conv_per_stage); here every one has 2"
    elif not str(parts.get("conv_op", "Conv3d")).endswith("Conv3d"):
        wrong = f"convolutions {parts['conv_op']}; here they are Conv3d"
    elif not str(parts.get("norm_op", "InstanceNorm3d")).endswith("InstanceNorm3d"):
        wrong = f"norm {parts['norm_op']}; here it is InstanceNorm3d"
    elif norm != {"eps": 1e-5, "affine": True}:
        wrong = f"norm_op_kwargs {norm}; here they are eps 1e-05 and affine"
    elif parts.get("dropout_op"):
        wrong = f"dropout {parts['dropout_op']}; here there is none"
    elif not str(parts.get("nonlin", "LeakyReLU")).endswith("LeakyReLU") or slope != 0.01:
        wrong = f"{parts.get('nonlin')} of slope {slope}; here it is LeakyReLU of slope 0.01"
    elif parts.get("nonlin_first"):
        wrong = "nonlin_first; here the norm comes before the nonlinearity"
    if wrong:
        raise SegdistillError(f"{path}: the network has {wrong}. It can't be imported.")
    try:
        return Architecture(
            channels=tuple(int(count) for count in each("features_per_stage", levels)),
            channels_in=1,
            channels_out=classes,
            stem_stride=1,
            norm="instance",
            deep_supervision=levels - 2,
            strides=triples("strides"),
            kernels=triples("kernel_sizes"),
        )
    except SegdistillError as error:
        raise SegdistillError(f"{path}: {error} It can't be imported.") from error


def _labels(dataset: Mapping[str, Any], source: Path) -> dict[int, str]:
    """Code to name, in the order of the network's outputs, background first."""
    path = source / "dataset.json"
    named = label_names(path, dataset.get("labels"))
    codes = {code: name for code, name in sorted(named.items()) if name != "ignore"}
    wrong = None
    if any(isinstance(code, list) and len(code) > 1 for code in dataset["labels"].values()):
        wrong = "it was trained on regions (overlapping classes)"
    elif list(codes) != list(range(len(codes))) or len(codes) > 256:
        wrong = f"label codes {list(codes)} aren't 0, 1, 2, ... up to 255"
    elif len(set(codes.values())) < len(codes):
        wrong = "two label codes have one name"
    if wrong:
        raise SegdistillError(f"{path}: {wrong}. It can't be imported.")
    return codes


def _normalisation(body: Mapping[str, Any], plans: Mapping[str, Any], path: Path) -> Normalisation:
    scheme, masked = body["normalization_schemes"][0], body["use_mask_for_norm"][0]
    if not isinstance(masked, bool):
        raise SegdistillError(f"{path}: use_mask_for_norm is {masked!r}; it must be true or false.")
    if scheme == "ZScoreNormalization":
        return Normalisation("zscore", region="filled" if masked else "crop")
    if scheme != "CTNormalization":
        raise SegdistillError(
            f"{path}: it normalises with {scheme}; ZScoreNormalization and CTNormalization can be "
            "imported."
        )
    known = (
        plans.get("foreground_intensity_properties_per_channel")
        or (plans["foreground_intensity_properties_by_modality"])
    )
    of = known["0"]
    unknown = [name for name in _INTENSITIES if not isinstance(of.get(name), int | float)]
    if unknown:
        raise SegdistillError(
            f"{path}: foreground_intensity_properties: no finite number for {', '.join(unknown)}. "
            "Copy plans.json anew; if nnU-Net wrote it so, a scan of its dataset has such voxels."
        )
    return Normalisation(
        "ct",
        clip_hu=(float(of["percentile_00_5"]), float(of["percentile_99_5"])),
        mean_hu=float(of["mean"]),
        std_hu=float(of["std"]),
    )


def differences(plan: Plan) -> tuple[str, ...]:
    """Where nnU-Net will treat a scan otherwise than this plan does; empty for an imported plan."""
    if plan.convention == "nnunet" and plan.overlap == 0.5:
        return ()
    found = ["windows: nnU-Net pads small scans with zeros and weights a window about another voxel"]
    if plan.convention != "nnunet":
        found.append("resampling: nnU-Net's linear interpolation doesn't smooth against aliasing")
    if plan.overlap != 0.5:
        found.append(f"overlap: nnU-Net takes 0.5 by default, the plan {plan.overlap:g}")
    if plan.mode == "whole":
        found.append("mode: nnU-Net takes windows, the plan the whole volume at once")
    if plan.foreground != "nonzero":
        found.append(f"crop: nnU-Net's is to voxels that aren't zero, the plan's to {plan.foreground}")
    if plan.normalisation.scheme == "zscore" and plan.normalisation.region == "foreground":
        found.append(
            "z-score: nnU-Net's is of the whole crop; the first instance norm takes the difference out "
            "again, except at the rim of a window"
        )
    return tuple(found)


def written(
    plan: Plan, architecture: Architecture, dataset_name: str
) -> tuple[dict[str, Any], dict[str, Any], tuple[int, int, int]]:
    """plans.json, dataset.json and the order of axes (as :func:`our_axes`) for a plan of ours.

    Raises:
        SegdistillError: nnU-Net has no counterpart of a part.
    """
    wrong = None
    if architecture.stem_stride != 1:
        wrong = (
            f"its stem_stride is {architecture.stem_stride}; nnU-Net begins at full resolution. "
            "Train with network.stem_stride 1"
        )
    elif architecture.norm != "instance":
        wrong = f"it has {architecture.norm} norm. Train with network.norm instance"
    elif architecture.channels_in != 1:
        wrong = f"it takes {architecture.channels_in} channels"
    elif plan.orientation not in (STORED, "RAS"):
        wrong = (
            f"its plan turns scans to {plan.orientation}; nnU-Net takes them as stored or as RAS. "
            "Train with plan.orientation RAS"
        )
    if wrong:
        raise SegdistillError(f"the network can't be an nnU-Net: {wrong}.")
    axes = our_axes((0, 1, 2))
    back = (2, 1, 0)  # (X, Y, Z) to (z, y, x), and the other way round
    exact = plan.convention == "nnunet"
    how = plan.normalisation
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None if exact else False}
    spacing = [float(plan.spacing_mm[axis]) for axis in back]
    patch = [int(plan.patch_size[axis]) for axis in back]
    levels = len(architecture.channels)
    properties = {
        "mean": how.mean_hu,
        "std": how.std_hu,
        "percentile_00_5": None if how.clip_hu is None else how.clip_hu[0],
        "percentile_99_5": None if how.clip_hu is None else how.clip_hu[1],
    }
    configuration = {
        "data_identifier": f"nnUNetPlans_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": patch,
        "spacing": spacing,
        "normalization_schemes": [
            "CTNormalization" if how.scheme == "ct" else "ZScoreNormalization",
        ],
        "use_mask_for_norm": [how.region == "filled"],
        "resampling_fn_data": _RESAMPLING,
        "resampling_fn_seg": _RESAMPLING,
        "resampling_fn_data_kwargs": {**resampling, "order": 3 if exact else 1},
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": _RESAMPLING,
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {
            "network_class_name": _UNET,
            "arch_kwargs": {
                "n_stages": levels,
                "features_per_stage": list(architecture.channels),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[size[axis] for axis in back] for size in architecture.kernels],
                "strides": [[step[axis] for axis in back] for step in architecture.strides],
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
        "batch_dice": math.prod(patch) < 96**3,
    }
    reader = "SimpleITKIO" if plan.orientation == STORED else "NibabelIOWithReorient"
    plans = {
        "dataset_name": dataset_name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": patch,
        "image_reader_writer": reader,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": properties},
    }
    dataset = {
        "channel_names": {"0": "CT" if how.scheme == "ct" else "MRI"},
        "labels": {
            "background": 0,
            **{entry.name: number for number, entry in enumerate(plan.structures, start=1)},
        },
        "numTraining": 0,
        "file_ending": ".nii.gz",
        "name": dataset_name,
    }
    return plans, dataset, axes
