"""The quality of a label map: how sure the network was, and whether volumes are plausible."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segdistill.runtime.bundle import BundleError, seal
from segdistill.runtime.quality import FIELD, Gauge, Limits, judge
from segdistill.runtime.segment import Segmentator
from segdistill.runtime.setting import Setting
from tests.onnx_models import ball_scan, threshold_bundle

STRIDE = 2


def _logits(seed: int, shape: tuple[int, ...] = (4, 13, 12, 10)) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


def test_confidence_is_the_dice_that_the_probabilities_expect() -> None:
    """Of the voxels looked at, it is twice the probability inside over the voxels and all of it."""
    logits = _logits(0)
    gauge = Gauge(4)
    gauge.add(logits)
    seen = logits[:, :, ::STRIDE, ::STRIDE].astype(float)
    share = np.exp(seen) / np.exp(seen).sum(axis=0)
    winner = seen.argmax(axis=0)
    near = seen[1:].max(axis=0) > seen[0] - np.log(100)
    for channel in range(1, 4):
        given = winner == channel
        expected = 2 * share[channel][given].sum() / (given.sum() + share[channel][near].sum())
        assert gauge.confidence()[channel] == pytest.approx(expected, rel=1e-5)


def test_slabs_of_any_depth_give_the_same() -> None:
    """Whole or in slabs, the confidence is the same, and the logits stay as they were."""
    logits = _logits(1)
    before = logits.copy()
    whole, parts = Gauge(4), Gauge(4)
    whole.add(logits)
    for start, stop in ((0, 1), (1, 8), (8, 13)):
        parts.add(logits[:, start:stop])
    np.testing.assert_allclose(parts.confidence(), whole.confidence())
    np.testing.assert_array_equal(logits, before)


def test_a_structure_that_is_nowhere_has_no_confidence() -> None:
    """Without a voxel there's no figure of a structure, also where all is background."""
    logits = np.zeros((3, 4, 4, 4), np.float32)
    logits[0] = 20
    gauge = Gauge(3)
    gauge.add(logits)
    assert np.isnan(gauge.confidence()[1:]).all()
    logits[1] = 40
    gauge.add(logits)
    assert gauge.confidence()[1] == pytest.approx(1)
    assert np.isnan(gauge.confidence()[2])


def test_the_verdict_has_its_reasons() -> None:
    """What is below a limit or out of a range is named with both numbers; without limits, no verdict."""
    limits = Limits(0.8, 0.6, {"a": (1.0, 5.0), "c": (0.5, 2.0)})
    good = judge({"a": 0.9, "b": 0.8, "c": 0.9}, {"a": 2.0, "b": 99.0, "c": 1.0}, limits)
    assert (good.verdict, good.reasons, good.lowest) == ("good", (), ("b", 0.8))
    found = judge({"a": 0.9, "b": 0.5, "c": float("nan")}, {"a": 9.0, "b": 1.0, "c": 0.0}, limits)
    assert found.verdict == "check"
    assert found.reasons == (
        "the mean confidence is 0.70, below 0.80",
        "the confidence of b is 0.50, below 0.60",
        "a has 9.0 ml, expected are 1.0 to 5.0",
        "c has 0.0 ml, expected are 0.5 to 2.0",
    )
    assert judge({"a": 0.1}, {"a": 0.0}, None).verdict is None
    empty = judge({"a": float("nan")}, {"a": 0.0}, replace(limits, volumes_ml={}))
    assert (empty.confidence, empty.verdict, empty.lowest) == (0.0, "check", None)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("mode", ["windows", "whole"])
def test_noise_lowers_it_in_every_way_of_running(tmp_path: Path, mode: str, backend: str) -> None:
    """A clean scan is good and a drowned one is to be checked, by every engine and in either mode."""
    limits = Limits(0.9, 0.9, {"structure_1": (8.0, 16.0)})
    bundle = threshold_bundle(
        tmp_path / "bundle", provenance={FIELD: limits.to_json()}, patch_size=(16, 16, 16)
    )
    segmentator = Segmentator(bundle, setting=Setting(backend, "f32", mode, 0.5, 1))  # type: ignore[arg-type]
    scan, _ = ball_scan()
    clean = segmentator.segment(scan).quality
    assert clean.verdict == "good"
    assert clean.confidence > 0.99
    noise = np.random.default_rng(0).normal(100, 2, scan.array.shape).astype(np.float32)
    drowned = segmentator.segment(replace(scan, array=noise)).quality
    assert drowned.verdict == "check"
    assert drowned.confidence < clean.confidence


def test_limits_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    """Limits of other structures, or that aren't numbers, are refused before a scan is read."""
    bundle = threshold_bundle(tmp_path / "bundle")
    assert Limits.of(bundle) is None
    sound = Limits(0.5, 0.25, {"structure_1": (1.0, 2.0)})
    again = seal(bundle.folder, tmp_path / "sealed", {}, {FIELD: sound.to_json()})
    assert Limits.of(again) == sound
    for wrong in (
        {"confidence": 0.5},
        {**sound.to_json(), "confidence": 1.5},
        {**sound.to_json(), "volumes_ml": {"liver": [1, 2]}},
        {**sound.to_json(), "volumes_ml": {"structure_1": [2, 1]}},
        [0.5],
    ):
        other = seal(bundle.folder, tmp_path / "wrong", {}, {FIELD: wrong})
        with pytest.raises(BundleError, match="limits of quality"):
            Segmentator(other)
