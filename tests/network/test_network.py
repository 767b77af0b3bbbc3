import json
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segdistill.files import SegdistillError
from segdistill.network.architecture import Architecture, NetworkKnobs
from segdistill.network.export import activations, agreement, export_onnx
from segdistill.network.model import MODEL_JSON, WEIGHTS, TorchBackend, read_model, write_model
from segdistill.network.quantise import quantise
from segdistill.network.unet import UNet, inference_parameters, macs, unfold_cells
from segdistill.runtime.backend import OnnxBackend, OpenVinoBackend, as_float32
from segdistill.runtime.plan import Normalisation, Plan, Structure
from segdistill.runtime.setting import Precision, processor
from segdistill.runtime.windows import predict

KNOBS = NetworkKnobs(
    base_channels=8,
    max_channels=20,
    stages=3,
    stem_stride=2,
    norm="batch",
    min_channels=3,
    deep_supervision=1,
)
PLAN = Plan(
    task="toy",
    modality="mri",
    orientation="RAS",
    spacing_mm=(2, 2, 2),
    foreground="above_mean",
    normalisation=Normalisation("zscore"),
    patch_size=(16, 16, 16),
    size_divisor=(8, 8, 8),
    mode="windows",
    overlap=0.5,
    structures=(Structure(1, "a"), Structure(2, "b")),
    label_protocol="toy",
)


def _network(width: float = 1.0, **knobs: object) -> UNet:
    torch.manual_seed(0)
    return UNet(Architecture.scaled(replace(KNOBS, **knobs), width, PLAN.channels_out))


def test_a_student_scales_every_level_down_to_the_floor() -> None:
    """Channels are width times the teacher's, never under min_channels, never over max_channels."""
    assert Architecture.scaled(KNOBS, 1, 3).channels == (8, 16, 20)
    assert Architecture.scaled(KNOBS, 0.5, 3).channels == (4, 8, 10)
    assert Architecture.scaled(KNOBS, 0.125, 3).channels == (3, 3, 3)


def test_a_quarter_of_the_width_has_a_sixteenth_of_the_parameters() -> None:
    """The x1/4 student of the default family has at least 93.7% fewer parameters than its teacher."""
    knobs = replace(KNOBS, base_channels=32, max_channels=320, stages=4, deep_supervision=2)
    teacher, student = (inference_parameters(UNet(Architecture.scaled(knobs, w, 11))) for w in (1, 0.25))
    assert 1 - student / teacher >= 0.937


@pytest.mark.parametrize(
    ("knobs", "width", "named"),
    [
        ({"stages": 2}, 1, "stages"),
        ({"deep_supervision": 2}, 1, "deep_supervision"),
        ({"norm": "layer"}, 1, "norm"),
        ({}, 0, "width"),
    ],
)
def test_knobs_that_make_no_network_are_named(
    knobs: dict[str, object], width: float, named: str
) -> None:
    """A wrong knob of the network is refused with its name."""
    with pytest.raises(SegdistillError, match=named):
        Architecture.scaled(replace(KNOBS, **knobs), width, 3)


@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_training_gives_every_level_and_inference_the_finest(stem_stride: int, norm: str) -> None:
    """In training every supervised level comes at its own resolution; in evaluation only full logits."""
    network = _network(stem_stride=stem_stride, norm=norm)
    image = torch.randn(2, 1, 16, 16, 16)
    levels = network.train()(image)
    assert [tuple(level.shape) for level in levels] == [
        (2, 3, 16, 16, 16),
        (2, 3, *[16 // (2 * stem_stride)] * 3),
    ]
    assert network.eval()(image).shape == (2, 3, 16, 16, 16)


def test_every_parameter_is_trained() -> None:
    """One backward pass over all levels gives every parameter a gradient (DDP relies on it)."""
    network = _network().train()
    sum(level.square().mean() for level in network(torch.randn(2, 1, 16, 16, 16))).backward()
    assert all(value.grad is not None for value in network.parameters())


@settings(max_examples=25, deadline=None)
@given(
    stride=st.sampled_from([1, 2, 3]),
    classes=st.integers(1, 3),
    shape=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_unfolding_puts_every_channel_at_its_voxel(
    stride: int, classes: int, shape: tuple[int, int, int]
) -> None:
    """Channel (k, i, j, m) of cell (x, y, z) lands on class k at voxel (x*s+i, y*s+j, z*s+m)."""
    cells = torch.arange(classes * stride**3 * int(np.prod(shape))).reshape(
        1, classes * stride**3, *shape
    )
    out = unfold_cells(cells, stride)
    for k, i, j, m in np.ndindex(classes, stride, stride, stride):
        channel = ((k * stride + i) * stride + j) * stride + m
        assert torch.equal(out[0, k, i::stride, j::stride, m::stride], cells[0, channel])


def test_macs_are_those_of_the_convolutions() -> None:
    """MACs agree with a count by hand over the network's convolutions."""
    network = _network().eval()
    counted = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal counted
        if isinstance(module, torch.nn.ConvTranspose3d):
            counted += inputs[0].numel() * module.out_channels * 8
        elif isinstance(module, torch.nn.Conv3d):
            counted += output.numel() * module.in_channels * int(np.prod(module.kernel_size))

    for module in set(network.modules()):
        module.register_forward_hook(count)
    reported = macs(network, (16, 16, 16))
    assert counted > 0
    assert reported == counted


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_onnx_says_what_torch_says_at_any_size(tmp_path: Path, norm: str) -> None:
    """The exported network gives torch's logits, also at a size that it wasn't exported with."""
    network = _network(norm=norm)
    network.train()(
        torch.randn(2, 1, 16, 16, 16) * 3 + 1
    )  # batch statistics that aren't the initial ones
    network.eval()
    export_onnx(network, PLAN, tmp_path / "model.onnx")
    image = np.random.default_rng(0).normal(size=(1, 1, 24, 16, 32)).astype(np.float32)
    ours, theirs = TorchBackend(network)(image), OnnxBackend(tmp_path / "model.onnx", threads=1)(image)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert agreement(ours[0], theirs[0]) >= 0.9999


def test_a_model_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Weights, role, width and counts survive the way to disk and back."""
    network = _network(0.5)
    write_model(
        tmp_path / "m",
        network,
        PLAN,
        name="student-x2",
        role="student",
        width=0.5,
        training={"steps": 3},
    )
    model = read_model(tmp_path / "m", PLAN)
    image = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(model.network(image), network.eval()(image))
    assert (model.name, model.role, model.width) == ("student-x2", "student", 0.5)
    assert model.parameters == inference_parameters(network)
    assert model.training == {"steps": 3}


def test_an_altered_model_is_refused(tmp_path: Path) -> None:
    """One flipped byte in the weights is noticed before they are used."""
    write_model(tmp_path / "m", _network(), PLAN, name="teacher", role="teacher", width=1.0, training={})
    weights = bytearray((tmp_path / "m" / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (tmp_path / "m" / WEIGHTS).write_bytes(weights)
    with pytest.raises(SegdistillError, match=f"{WEIGHTS}.*dvc repro"):
        read_model(tmp_path / "m", PLAN)


def test_flat_kernels_and_strides_are_kept(tmp_path: Path) -> None:
    """Levels with flat kernels and strides come back from disk, export, and keep the input's size."""
    flat = Architecture(
        (4, 6, 8),
        1,
        PLAN.channels_out,
        1,
        "instance",
        1,
        strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
        kernels=((3, 3, 1), (3, 3, 3), (3, 3, 3)),
    )
    assert flat.divisor == (4, 4, 2)
    torch.manual_seed(0)
    write_model(tmp_path / "a", UNet(flat), PLAN, name="a", role="teacher", width=1, training={})
    body = json.loads((tmp_path / "a" / MODEL_JSON).read_text())["architecture"]
    assert body["strides"][1] == [2, 2, 1]
    network = read_model(tmp_path / "a", PLAN).network
    assert network.architecture == flat
    # The finest level's own kernel in its decoder block too, as in nnU-Net.
    assert network.body.upsamples[-1].conv_block.conv1.conv.kernel_size == (3, 3, 1)
    assert network.body.upsamples[-2].transp_conv.conv.stride == (2, 2, 2)
    image = np.random.default_rng(0).normal(size=(1, 1, 12, 16, 10)).astype(np.float32)
    export_onnx(network, PLAN, tmp_path / "flat.onnx")
    torch_says = TorchBackend(network)(image)
    assert torch_says.shape == (1, PLAN.channels_out, 12, 16, 10)
    assert np.abs(OnnxBackend(tmp_path / "flat.onnx")(image) - torch_says).max() < 1e-4


def test_usual_kernels_and_strides_go_without_saying() -> None:
    """An architecture of cubes has the JSON it had before there were others, and means the same."""
    usual = Architecture.scaled(KNOBS, 1, 3)
    body = usual.to_json()
    assert not {"strides", "kernels"} & set(body)
    assert Architecture.from_json(body) == usual
    assert usual.strides == ((2, 2, 2),) * 3
    assert usual.kernels == ((3, 3, 3),) * 3


@pytest.mark.parametrize(
    "changed",
    [
        {"strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2))},  # not the stem_stride
        {"strides": ((2, 2, 2), (4, 2, 2), (2, 2, 2))},
        {"strides": ((2, 2, 2),)},
        {"kernels": ((5, 5, 5),) * 3},
    ],
)
def test_kernels_and_strides_that_make_no_network_are_refused(
    changed: dict[str, tuple[tuple[int, int, int], ...]],
) -> None:
    """Strides other than 1 and 2, kernels other than 1 and 3, and one too few are named."""
    with pytest.raises(SegdistillError, match=r"strides|kernels|stem_stride"):
        replace(Architecture.scaled(KNOBS, 1, 3), **changed)  # type: ignore[arg-type]


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    """Weights that don't fit the architecture beside them are refused before they are used."""
    write_model(tmp_path / "m", _network(), PLAN, name="teacher", role="teacher", width=1.0, training={})
    card = json.loads((tmp_path / "m" / MODEL_JSON).read_text())
    card["architecture"]["channels"] = [4, 8, 16]
    (tmp_path / "m" / MODEL_JSON).write_text(json.dumps(card))
    with pytest.raises(SegdistillError, match="doesn't fit the architecture"):
        read_model(tmp_path / "m", PLAN)


def test_a_model_of_another_plan_is_refused(tmp_path: Path) -> None:
    """Teacher and students share one plan: a model that was trained with another is not read."""
    write_model(tmp_path / "m", _network(), PLAN, name="teacher", role="teacher", width=1.0, training={})
    with pytest.raises(SegdistillError, match=f"{MODEL_JSON}.*another plan"):
        read_model(tmp_path / "m", replace(PLAN, overlap=0.25))


def test_int8_network_says_nearly_the_same(tmp_path: Path) -> None:
    """Quantised with a few windows, the network runs in both backends, its head still in float32."""
    export_onnx(_network(norm="instance").eval(), PLAN, tmp_path / "model.onnx")
    random = np.random.default_rng(0)
    images = [random.standard_normal((1, 40, 32, 20)).astype(np.float16) for _ in range(3)]
    quantise(tmp_path / "model.onnx", PLAN, images, tmp_path / "int8.onnx")
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) > 5
    made_from = {name: node for node in nodes for name in node.output}
    for node in nodes:
        if node.op_type == "Conv" and "/output_block/" in node.name:
            assert "QuantizeLinear" not in made_from[node.input[0]].op_type
    image = images[0].astype(np.float32)
    exact = predict(image, PLAN, OnnxBackend(tmp_path / "model.onnx"))
    for backend in (
        OnnxBackend(tmp_path / "int8.onnx"),
        OpenVinoBackend(tmp_path / "int8.onnx", precision="int8"),
    ):
        assert agreement(predict(image, PLAN, backend), exact) > 0.8


def test_bf16_network_says_nearly_the_same(tmp_path: Path) -> None:
    """In bfloat16, windows and whole volumes keep nearly every label, and logits to its 8 bits."""
    if "avx512_bf16" not in processor()["features"]:
        pytest.skip("this processor has no bf16")
    export_onnx(_network(norm="instance").eval(), PLAN, tmp_path / "model.onnx")
    image = np.random.default_rng(0).standard_normal((1, 40, 32, 20)).astype(np.float32)
    for mode in ("windows", "whole"):
        plan = replace(PLAN, mode=mode)
        exact = predict(image, plan, OnnxBackend(tmp_path / "model.onnx"))
        rounded = predict(image, plan, OpenVinoBackend(tmp_path / "model.onnx", precision="bf16"))
        assert agreement(rounded, exact) > 0.97
        assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("precision", ["f32", "bf16", "int8"])
def test_large_inputs_are_run_at_their_own_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """Compiled for one size, with sums for concatenations, the network still gives the same."""
    if precision == "bf16" and "avx512_bf16" not in processor()["features"]:
        pytest.skip("this processor has no bf16")
    export_onnx(_network(norm="instance").eval(), PLAN, tmp_path / "model.onnx")
    random = np.random.default_rng(0)
    images = [
        random.standard_normal((1, 1, *size)).astype(np.float32)
        for size in ((32, 32, 32), (48, 32, 16), (32, 32, 32), (16, 16, 16))
    ]
    quantise(tmp_path / "model.onnx", PLAN, [images[0][0]], tmp_path / "int8.onnx")
    path = tmp_path / ("int8.onnx" if precision == "int8" else "model.onnx")
    exact, free, fixed = (
        OpenVinoBackend(tmp_path / "model.onnx"),
        OpenVinoBackend(path, precision=precision),
        OpenVinoBackend(path, precision=precision),
    )
    expected = [(as_float32(free(image)).copy(), exact(image).copy()) for image in images]
    monkeypatch.setattr("segdistill.runtime.backend.FIXED_VOXELS", 16**3 + 1)
    for image, (said, true) in zip(images, expected, strict=True):
        found = as_float32(fixed(image))
        large = image.size > 16**3
        assert fixed._network.input(0).partial_shape.is_static == large
        if large:  # two levels and the head are sums, but for what is quantised: not the head
            assert _joins(fixed) == (2 if precision == "int8" else 0)
        if precision == "bf16":  # rounded elsewhere, but no more
            assert np.abs(found - true).mean() < 1.1 * np.abs(said - true).mean()
        else:
            np.testing.assert_allclose(found, said, atol=2e-4)


def _joins(backend: OpenVinoBackend) -> int:
    layers = backend._network.get_runtime_model().get_ops()
    return sum(layer.get_rt_info()["layerType"].astype(str) == "Concatenation" for layer in layers)


def test_threads_share_one_network_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another size ends what other threads hold of the network before; a failure is said and passes."""
    export_onnx(_network(norm="instance").eval(), PLAN, tmp_path / "model.onnx")
    backend = OpenVinoBackend(tmp_path / "model.onnx", threads=1)
    monkeypatch.setattr("segdistill.runtime.backend.FIXED_VOXELS", 16**3 + 1)
    small, large = np.ones((1, 1, 16, 16, 16), np.float32), np.ones((1, 1, 32, 16, 16), np.float32)
    with ThreadPoolExecutor(1) as thread:
        kept = thread.submit(backend, small).result()
        expected = kept.copy()
        before = thread.submit(lambda: weakref.ref(backend._own.request)).result()
        backend(large)
        assert before() is None
        np.testing.assert_array_equal(kept, expected)  # what somebody still reads stays
        np.testing.assert_array_equal(thread.submit(backend, small).result(), expected)
        with pytest.raises(SegdistillError, match="can't prepare the network for 32 x 16 x 16 voxels"):
            backend(np.repeat(large, 2, axis=1))  # a channel that it doesn't know
        np.testing.assert_array_equal(thread.submit(backend, small).result(), expected)


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_bfloat16_is_read_as_torch_reads_it(values: list[float]) -> None:
    """The bits of any bfloat16, infinities and NaN too, become the same float32."""
    rounded = torch.tensor(values).to(torch.bfloat16)
    bits = rounded.view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(as_float32(bits), rounded.float().numpy())


def test_int8_is_calibrated_with_what_the_network_will_see(tmp_path: Path) -> None:
    """A bright corner beyond the middle window counts in whole mode, and in windows it does not."""
    export_onnx(_network().eval(), PLAN, tmp_path / "model.onnx")
    image = np.random.default_rng(0).standard_normal((1, 40, 40, 40)).astype(np.float32)
    bright = image.copy()
    bright[:, :4, :4, :4] += 50
    made = {}
    for mode in ("windows", "whole"):
        for name, one in (("plain", image), ("bright", bright)):
            path = tmp_path / f"{mode}-{name}.onnx"
            quantise(tmp_path / "model.onnx", replace(PLAN, mode=mode), [one], path)
            made[mode, name] = path.read_bytes()
    assert made["windows", "plain"] == made["windows", "bright"]
    assert made["whole", "plain"] != made["whole", "bright"]


def test_nothing_to_calibrate_with_is_refused(tmp_path: Path) -> None:
    """Without a training case there is no int8 network, and the message says what to do."""
    with pytest.raises(SegdistillError, match="no training case"):
        quantise(tmp_path / "model.onnx", PLAN, [], tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()


def test_activations():
    """The values held at once per voxel grow with the width, and cover the finest level's own maps."""
    patch = (16, 16, 16)
    teacher, student = (
        UNet(Architecture.scaled(replace(KNOBS, stem_stride=1), width, 3)) for width in (1.0, 0.5)
    )
    finest = teacher.architecture.channels[0]
    assert 4 * finest < activations(teacher, patch) < 12 * finest
    assert activations(student, patch) < 0.6 * activations(teacher, patch)
