import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdistill.files import SegdistillError
from segdistill.runtime.backend import OnnxBackend
from segdistill.runtime.cpus import _quota, usable_cpus
from segdistill.runtime.windows import pad, predict, predict_slabs, starts
from tests.onnx_models import make_plan, threshold_model


class Pointwise:
    """A network whose logits are known functions of each voxel; keeps the shapes that it saw."""

    def __init__(self):
        self.seen = []

    def __call__(self, x):
        """Three channels: the intensity, its square and one."""
        self.seen.append(x.shape)
        return np.concatenate([x, x * x, np.ones_like(x)], axis=1)


class Place:
    """A network that says where in its window a voxel is, so that windows' weights can be seen."""

    def __call__(self, x):
        """One where the voxel is within 2 of the window's border, 0 elsewhere; twice."""
        border = np.ones_like(x)
        border[:, :, 2:-2, 2:-2, 2:-2] = 0
        return np.concatenate([border, border], axis=1)


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 40)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    mode=st.sampled_from(["windows", "whole"]),
)
def test_same_as_one_pass(size, overlap, mode):
    """For a network that looks at single voxels, any windowing gives what one pass would give."""
    plan = make_plan(2, overlap=overlap, mode=mode)
    array = np.random.default_rng(0).random((1, *size), np.float32)
    network = Pointwise()
    logits = predict(array, plan, network)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, network(array[None])[0], atol=1e-5)
    for shape in network.seen[:-1]:
        if mode == "windows":
            assert shape == (1, 1, *plan.patch_size)
        else:
            assert all(n % d == 0 for n, d in zip(shape[2:], plan.size_divisor, strict=True))


def test_logits_for_one_window_deep():
    """A long volume's logits come in slabs no deeper than a window, each when no window is missing."""
    plan = make_plan(2, overlap=0.5)
    array = np.random.default_rng(0).random((1, 100, 20, 18), np.float32)
    network = Pointwise()
    slabs, windows = [], []
    for slab in predict_slabs(array, plan, network):
        slabs.append(slab.copy())  # its memory is used again
        windows.append(len(network.seen))
    assert max(slab.shape[1] for slab in slabs) <= plan.patch_size[0]
    assert windows == sorted(set(windows))
    np.testing.assert_allclose(np.concatenate(slabs, axis=1)[0], array[0], atol=1e-5)


@given(
    size=st.integers(1, 300),
    window=st.integers(1, 96),
    overlap=st.sampled_from([0, 0.25, 0.5, 0.75, 0.9]),
)
def test_windows_cover_the_axis(size, window, overlap):
    """Windows begin at the first voxel, end at the last and overlap at least as asked."""
    begin = starts(size, window, overlap)
    assert begin[0] == 0
    if size > window:
        assert begin[-1] == size - window
        # Rounding to whole voxels may shift a window by one.
        assert max(np.diff(begin)) <= max(1, window * (1 - overlap)) + 1
    else:
        assert begin == [0]


def test_centres_outweigh_borders():
    """Where windows overlap, a voxel's value comes from the window that has it in the middle."""
    plan = make_plan(1, patch_size=(16, 16, 16), overlap=0.5)
    logits = predict(np.zeros((1, 48, 48, 48), np.float32), plan, Place())
    assert logits[0, 2:-2, 2:-2, 2:-2].max() < 0.05
    assert logits[0, 0].min() == pytest.approx(1)  # no window has the volume's border inside


def test_padding_repeats_the_border():
    """A volume smaller than a window grows on both sides by repeating its outermost voxels."""
    array = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1) + 5
    grown = pad(array, (8, 1, 2))
    assert grown.shape == (1, 8, 1, 2)
    assert grown[0, :, 0, 0].tolist() == [5, 5, 5, 6, 7, 7, 7, 7]
    assert pad(array, (2, 1, 1)) is array


def test_network_of_another_plan(tmp_path):
    """A network with another number of classes than the plan's is refused, saying what to do."""
    backend = OnnxBackend(threshold_model(tmp_path / "model.onnx", [1.0, 2.0]))
    with pytest.raises(SegdistillError, match=r"model\.onnx and plan\.json.*Export"):
        predict(np.zeros((1, 16, 16, 16), np.float32), make_plan(1), backend)


def test_onnx_thresholds(tmp_path):
    """ONNX Runtime gives the channels that the thresholds say, whatever the number of threads."""
    path = threshold_model(tmp_path / "model.onnx", [10.0, 20.0, 35.0])
    x = np.random.default_rng(0).uniform(0, 50, (1, 1, 8, 12, 4)).astype(np.float32)
    expected = np.digitize(x[0, 0], [10, 20, 35])
    for threads in (0, 1, 2):
        logits = OnnxBackend(path, threads)(x)
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits[0].argmax(axis=0), expected)


def test_no_more_threads_than_cpus(tmp_path):
    """Asked for absurdly many threads, an engine takes as many as the machine has CPUs."""
    path = threshold_model(tmp_path / "model.onnx", [10.0])
    before = len(list(Path("/proc/self/task").iterdir()))
    engine = OnnxBackend(path, 500)
    engine(np.zeros((1, 1, 8, 8, 8), np.float32))
    assert len(list(Path("/proc/self/task").iterdir())) - before <= 2 * os.cpu_count() + 8


def test_not_an_onnx_model(tmp_path):
    """A file that's no ONNX model, or none at all, is named with what to do."""
    with pytest.raises(SegdistillError, match=r"none\.onnx.*no such file.*[Ff]etch"):
        OnnxBackend(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(SegdistillError, match=r"(?s)bad\.onnx.*not a usable ONNX model.*Export"):
        OnnxBackend(tmp_path / "bad.onnx")


def test_onnx_of_another_kind(tmp_path):
    """A model whose input has another name is refused, saying which names are needed."""
    import onnx

    path = threshold_model(tmp_path / "model.onnx", [1.0])
    model = onnx.load(path)
    model.graph.input[0].name = model.graph.node[0].input[0] = "picture"
    onnx.save(model, path)
    with pytest.raises(SegdistillError, match=r"'scan'.*'logits'.*picture"):
        OnnxBackend(path)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({}, float("inf")),
    ],
)
def test_control_group_limits_cpus(tmp_path, files, cpus):
    """The CPU quota of either version of control groups is read; none means no limit."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _quota(tmp_path) == cpus


def test_usable_cpus_follow_affinity():
    """A process that is bound to one CPU uses one thread."""
    import os

    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= usable_cpus() <= len(before)


class Overflowing:
    """A network of finite weights one of whose logits isn't a number, at one voxel."""

    def __init__(self, value):
        self.value = value

    def __call__(self, x):
        """Two channels of zeros but for the value at the brightest voxel, in the second."""
        logits = np.zeros((1, 2, *x.shape[2:]), np.float32)
        logits[:, 1][x[:, 0] == 1] = self.value
        return logits


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", ["windows", "whole"])
def test_logits_that_are_no_numbers_are_refused(mode, value):
    """One logit that is NaN or infinite, in whichever window, is the model's error, never background."""
    for place in [(0, 0, 0), (20, 20, 20), (39, 39, 39)]:
        array = np.zeros((1, 40, 40, 40), np.float32)
        array[(0, *place)] = 1
        with pytest.raises(SegdistillError, match="network gave logits that are NaN or infinite"):
            predict(array, make_plan(1, mode=mode), Overflowing(value))


def test_large_logits_are_results():
    """Logits so large that their sum overflows are still compared."""
    plan = make_plan(1, mode="whole")
    logits = predict(np.ones((1, 16, 16, 16), np.float32), plan, Overflowing(3e38))
    assert (logits[1] == np.float32(3e38)).all()
