"""Import and export without nnU-Net: what is refused, and that axes and weights come back."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from segdistill.cli import app
from segdistill.files import SegdistillError
from segdistill.interop.exporting import export_nnunet
from segdistill.interop.importing import import_nnunet, read_checkpoint
from segdistill.interop.names import hand_over, our_axes, reordered, take_over
from segdistill.network.architecture import Architecture
from segdistill.network.model import Model, read_model, write_model
from segdistill.network.unet import UNet, own_tensors
from segdistill.runtime.plan import Normalisation, Plan, Structure

FLAT = Architecture(
    channels=(4, 6, 8),
    channels_in=1,
    channels_out=3,
    stem_stride=1,
    norm="instance",
    deep_supervision=1,
    strides=((1, 1, 1), (2, 2, 1), (1, 2, 2)),
    kernels=((3, 3, 1), (3, 1, 3), (3, 3, 3)),
)
PLAN = Plan(
    task="toy",
    modality="mri",
    orientation="stored",
    spacing_mm=(1.0, 1.5, 4.0),
    foreground="nonzero",
    normalisation=Normalisation("zscore", region="crop"),
    patch_size=(16, 24, 8),
    size_divisor=(2, 4, 2),
    mode="windows",
    overlap=0.5,
    structures=(Structure(1, "one"), Structure(2, "two")),
    label_protocol="toy",
    convention="nnunet",
)


def network(architecture: Architecture = FLAT, seed: int = 0) -> UNet:
    """A network without a weight that is zero or one."""
    torch.manual_seed(seed)
    made = UNet(architecture)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return made.eval()


def model(folder: Path, plan: Plan = PLAN, architecture: Architecture = FLAT) -> Model:
    """A model on disk, read."""
    write_model(folder, network(architecture), plan, name="a", role="teacher", width=1.0, training={})
    return read_model(folder, plan)


def edited(folder: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file."""
    body = json.loads((folder / name).read_text())
    edit(body)
    (folder / name).write_text(json.dumps(body))


def fullres(plans: dict[str, Any]) -> dict[str, Any]:
    """The one configuration of exported plans."""
    found: dict[str, Any] = plans["configurations"]["3d_fullres"]
    return found


def intensities(plans: dict[str, Any], **changes: object) -> None:
    """Plans of a CT with usual intensities, but for ``changes``."""
    fullres(plans)["normalization_schemes"] = ["CTNormalization"]
    usual = {"mean": 1.0, "std": 2.0, "percentile_00_5": -10.0, "percentile_99_5": 10.0}
    plans["foreground_intensity_properties_per_channel"] = {"0": usual | changes}


@pytest.mark.parametrize("transpose", list(permutations(range(3))))
def test_weights_come_back_through_every_order_of_axes(transpose: tuple[int, int, int]) -> None:
    """Handed over and taken over with any order of axes, every weight is what and where it was."""
    axes = our_axes(transpose)
    source, target = network(), network(seed=1)
    state = hand_over(source, axes)
    assert take_over(target, state, axes) == []
    for name, value in own_tensors(source).items():
        assert torch.equal(own_tensors(target)[name], value), name
    zyx = ("z", "y", "x")
    assert reordered([zyx[axis] for axis in transpose], axes) == ("x", "y", "z")


def test_an_export_is_imported_as_the_same_model(tmp_path: Path) -> None:
    """Exported and imported again, plan and weights are the same, flat kernels and strides included."""
    before = model(tmp_path / "a")
    done = export_nnunet(before, PLAN, tmp_path / "Dataset123_Toy" / "results")
    assert done.differences == ()
    assert not done.renumbered
    made = import_nnunet(done.folder, tmp_path / "b", task="toy", label_protocol="toy")
    plan = Plan.read(made.plan)
    assert plan == PLAN
    after = read_model(made.teacher, plan)
    assert after.network.architecture == FLAT
    assert after.training["dataset"] == "Dataset123_Toy"
    for name, value in own_tensors(before.network).items():
        assert torch.equal(own_tensors(after.network)[name], value), name
    with pytest.raises(SegdistillError, match="b: exists"):
        import_nnunet(done.folder, tmp_path / "b")


def _architecture(plans: dict[str, Any], **changes: Any) -> None:
    fullres(plans)["architecture"]["arch_kwargs"].update(changes)


@pytest.mark.parametrize(
    ("name", "edit", "says"),
    [
        (
            "plans.json",
            lambda p: fullres(p)["architecture"].update(
                network_class_name="dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
            ),
            "ResidualEncoderUNet",
        ),
        ("plans.json", lambda p: _architecture(p, n_conv_per_stage=[2, 3, 2]), "n_conv_per_stage"),
        ("plans.json", lambda p: _architecture(p, norm_op="torch.nn.BatchNorm3d"), "BatchNorm3d"),
        ("plans.json", lambda p: _architecture(p, dropout_op="torch.nn.Dropout3d"), "dropout"),
        ("plans.json", lambda p: _architecture(p, nonlin="torch.nn.ReLU"), "LeakyReLU"),
        ("plans.json", lambda p: _architecture(p, kernel_sizes=[[5, 5, 5]] * 3), "1 or 3 voxels"),
        ("plans.json", lambda p: _architecture(p, strides=[[1, 1, 1], [4, 2, 2], [2, 2, 2]]), "1 or 2"),
        ("plans.json", lambda p: fullres(p).update(previous_stage="3d_lowres"), "cascade"),
        ("plans.json", lambda p: fullres(p).update(patch_size=[64, 64]), "2d"),
        ("plans.json", lambda p: fullres(p).update(preprocessor_name="Other"), "Other"),
        (
            "plans.json",
            lambda p: fullres(p)["resampling_fn_data_kwargs"].update(order=1),
            "resamples in another way",
        ),
        (
            "plans.json",
            lambda p: fullres(p).update(normalization_schemes=["NoNormalization"]),
            "NoNormalization",
        ),
        ("plans.json", lambda p: p.update(image_reader_writer="Tiff3DIO"), "Tiff3DIO"),
        ("plans.json", lambda p: p.pop("transpose_forward"), "transpose_forward"),
        ("plans.json", lambda p: p["configurations"].clear(), "no usable configuration"),
        (
            "plans.json",
            lambda p: _architecture(p, features_per_stage=[4, 6, 9]),
            "don't fit the network",
        ),
        ("dataset.json", lambda d: d["channel_names"].update({"1": "T2"}), "2 channels"),
        ("dataset.json", lambda d: d["labels"].update(both=[1, 2]), "regions"),
        ("dataset.json", lambda d: d["labels"].update(two=5), "codes"),
        ("dataset.json", lambda d: d["labels"].update(other=2), "two names"),
        ("plans.json", lambda p: fullres(p).update(use_mask_for_norm=["False"]), "use_mask_for_norm"),
        ("plans.json", lambda p: intensities(p, mean=float("nan")), "no finite number for mean"),
        ("plans.json", lambda p: intensities(p, std="1"), "no finite number for std"),
        ("plans.json", lambda p: intensities(p, std=0.0), "std_hu be above 0"),
        ("plans.json", lambda p: intensities(p, percentile_00_5=20.0), "clip_hu rise"),
        ("plans.json", lambda p: fullres(p).update(spacing=[float("inf"), 1, 1]), "plans.json"),
    ],
)
def test_what_has_no_counterpart_is_refused(
    tmp_path: Path, name: str, edit: Callable[[dict[str, Any]], object], says: str
) -> None:
    """What this platform can't express exactly is refused with its name, and nothing is written."""
    results = export_nnunet(model(tmp_path / "a"), PLAN, tmp_path / "results").folder
    edited(results, name, edit)
    done = CliRunner().invoke(app, ["import-nnunet", str(results), "--out", str(tmp_path / "b")])
    assert done.exit_code == 1
    assert says in done.stderr
    assert str(results) in done.stderr
    assert not (tmp_path / "b").exists()


def test_plans_of_older_versions_are_understood(tmp_path: Path) -> None:
    """Plans that describe the network by base features and pooling mean the same network."""
    usual = Architecture((4, 8, 8), 1, 3, 1, "instance", 1)
    plan = replace(PLAN, size_divisor=(4, 4, 4))
    results = export_nnunet(model(tmp_path / "a", plan, usual), plan, tmp_path / "results").folder

    def older(plans: dict[str, Any]) -> None:
        body = fullres(plans)
        parts = body.pop("architecture")["arch_kwargs"]
        body.update(
            UNet_class_name="PlainConvUNet",
            UNet_base_num_features=4,
            unet_max_num_features=8,
            n_conv_per_stage_encoder=parts["n_conv_per_stage"],
            n_conv_per_stage_decoder=parts["n_conv_per_stage_decoder"],
            conv_kernel_sizes=parts["kernel_sizes"],
            pool_op_kernel_sizes=parts["strides"],
        )
        plans["configurations"]["base"] = body
        plans["configurations"]["3d_fullres"] = {"inherits_from": "base", "batch_size": 4}

    edited(results, "plans.json", older)
    made = import_nnunet(results, tmp_path / "b")
    assert read_model(made.teacher, Plan.read(made.plan)).network.architecture == usual


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_names": ["MRI"]},
        {"channel_names": "MRI"},
        {"labels": {"two": 2, "one": 1, "background": 0}},
        {"labels": {"background": "0", "one": "1", "two": "2"}},
        {"labels": {"0": "background", "1": "one", "2": "two"}},
        {"labels": {"background": 0, "one": [1], "two": [2], "ignore": 3}},
    ],
)
def test_variants_of_dataset_json_mean_the_same_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    """However a results folder writes channels and labels, where the meaning is clear it is imported."""
    results = export_nnunet(model(tmp_path / "a"), PLAN, tmp_path / "results").folder
    edited(results, "dataset.json", lambda body: body.update(changes))
    made = import_nnunet(results, tmp_path / "b", task="toy", label_protocol="toy")
    assert Plan.read(made.plan) == PLAN


def altered(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a checkpoint."""
    path = folder / "fold_0" / "checkpoint_final.pth"
    state = torch.load(path, weights_only=True)
    edit(state)
    torch.save(state, path)


def fill(state: dict[str, Any], value: float) -> None:
    """Put a value into one place of one tensor."""
    state["network_weights"]["encoder.stages.0.0.convs.0.conv.weight"].view(-1)[3] = value


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda s: fill(s, float("nan")), r"1 of the \d+ values of encoder\.stages\.0.*NaN or infinite"),
        (lambda s: fill(s, float("-inf")), "NaN or infinite"),
        (lambda s: s["init_args"].pop("configuration"), "don't name the configuration"),
        (lambda s: s.update(init_args=None), "not a checkpoint of nnU-Net v2"),
        (lambda s: s.pop("init_args"), "not a checkpoint of nnU-Net v2"),
        (lambda s: s.update(network_weights=[1.0]), "not a checkpoint of nnU-Net v2"),
        (lambda s: s.update(network_weights={}), "don't fit the network"),
        (lambda s: s["network_weights"].update(extra="text"), "extra in network_weights isn't a plain"),
    ],
)
def test_a_checkpoint_that_cannot_be_a_network_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], says: str
) -> None:
    """Weights that aren't finite and missing or odd parts are refused by name; nothing is written."""
    results = export_nnunet(model(tmp_path / "a"), PLAN, tmp_path / "results").folder
    altered(results, edit)
    with pytest.raises(SegdistillError, match=says):
        import_nnunet(results, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("length", [0, 1, 4, 300, 5000, -1])
def test_a_checkpoint_that_was_cut_off_is_refused(tmp_path: Path, length: int) -> None:
    """However few bytes of a checkpoint are left, it is refused with what to do."""
    results = export_nnunet(model(tmp_path / "a"), PLAN, tmp_path / "results").folder
    path = results / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(SegdistillError, match="Copy it anew"):
        read_checkpoint(path)


def test_odd_notes_in_a_checkpoint_do_not_stop_its_import(tmp_path: Path) -> None:
    """What is only noted of a checkpoint may be anything: what is no text or number is left out."""
    results = export_nnunet(model(tmp_path / "a"), PLAN, tmp_path / "results").folder
    altered(results, lambda s: s.update(trainer_name=torch.ones(2), current_epoch=float("nan")))
    made = import_nnunet(results, tmp_path / "b")
    training = read_model(made.teacher, Plan.read(made.plan)).training
    assert (training["trainer"], training["epochs"]) == (None, 0)


def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path) -> None:
    """A network with an infinity in it is no results folder."""
    made = model(tmp_path / "a")
    with torch.no_grad():
        next(iter(own_tensors(made.network).values())).view(-1)[0] = float("inf")
    with pytest.raises(SegdistillError, match="NaN or infinite"):
        export_nnunet(made, PLAN, tmp_path / "results")
    assert not (tmp_path / "results").exists()


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_with_code_is_not_run(tmp_path: Path) -> None:
    """A checkpoint that would run code when unpickled is refused, and the code didn't run."""
    path, trace = tmp_path / "checkpoint_final.pth", tmp_path / "ran"
    torch.save({"network_weights": {}, "init_args": _Payload(trace)}, path)
    with pytest.raises(SegdistillError, match="tensors and numbers alone"):
        read_checkpoint(path)
    assert not trace.exists()


def test_a_checkpoint_with_numpys_numbers_is_read(tmp_path: Path) -> None:
    """NumPy numbers and arrays of every usual type, which nnU-Net logs, are read from a checkpoint."""
    path = tmp_path / "checkpoint_final.pth"
    logged = {"dice": [np.float32(0.5), np.float64(0.25), np.int64(3)], "all": np.arange(3.0)}
    torch.save({"network_weights": {}, "init_args": {}, "logging": logged}, path)
    read = read_checkpoint(path)["logging"]
    assert read["dice"] == [0.5, 0.25, 3]
    assert np.array_equal(read["all"], np.arange(3.0))


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    """A fold that isn't there is one line with the path and what to give."""
    results = export_nnunet(model(tmp_path / "a"), PLAN, tmp_path / "results").folder
    words = ["import-nnunet", str(results), "--out", str(tmp_path / "b"), "--fold", "all"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "fold_all/checkpoint_final.pth: no such file" in done.stderr
    assert "--fold" in done.stderr


@pytest.mark.parametrize(
    ("architecture", "plan", "says"),
    [
        (
            Architecture((4, 6, 8), 1, 3, 2, "instance", 1),
            {"size_divisor": (8, 8, 8)},
            "stem_stride is 2",
        ),
        (Architecture((4, 6, 8), 1, 3, 1, "batch", 1), {"size_divisor": (4, 4, 4)}, "batch norm"),
        (FLAT, {"orientation": "LPS"}, "LPS"),
    ],
)
def test_what_nnunet_has_not_is_not_exported(
    tmp_path: Path, architecture: Architecture, plan: dict[str, Any], says: str
) -> None:
    """A network or plan that nnU-Net can't express is refused with the reason; nothing is written."""
    changed = replace(PLAN, **plan)
    changed.write(tmp_path / "plan.json")
    model(tmp_path / "a", changed, architecture)
    words = ["export-nnunet", str(tmp_path / "a"), "--out", str(tmp_path / "results")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert says in done.stderr
    assert not (tmp_path / "results").exists()


def test_an_export_says_where_nnunet_differs(tmp_path: Path) -> None:
    """For a plan of this platform's own, the export names each step that nnU-Net does otherwise."""
    plan = replace(
        PLAN,
        orientation="RAS",
        foreground="above_mean",
        normalisation=Normalisation("zscore"),
        convention="own",
        structures=(Structure(4, "one"), Structure(9, "two")),
    )
    plan.write(tmp_path / "plan.json")
    model(tmp_path / "a", plan)
    done = CliRunner().invoke(
        app, ["export-nnunet", str(tmp_path / "a"), "--out", str(tmp_path / "results")]
    )
    assert done.exit_code == 0, done.stderr
    for word in ("resampling", "crop", "z-score", "numbers the labels"):
        assert word in done.stdout
    plans = json.loads((tmp_path / "results" / "plans.json").read_text())
    assert plans["image_reader_writer"] == "NibabelIOWithReorient"
    assert fullres(plans)["spacing"] == [4.0, 1.5, 1.0]
    dataset = json.loads((tmp_path / "results" / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "one": 1, "two": 2}
