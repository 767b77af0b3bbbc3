"""Dice, NSD and HD95 against shapes whose figures follow from a pencil."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segdistill.evaluation.metrics import StructureScore, score_label_map
from segdistill.files import SegdistillError
from segdistill.overlap import IGNORED


def score(predicted, reference, spacing=(1.0, 1.0, 1.0), tolerance=2.0) -> StructureScore:
    """The score of structure 1."""
    return score_label_map(predicted, reference, spacing, {1: "it"}, tolerance)[0]


def box(shape, corner, size) -> np.ndarray:
    """A map of ``shape`` with a box of ones."""
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = 1
    return labels


PLATE = box((40, 40, 16), (4, 4, 4), (30, 30, 6))


def test_equal_maps_score_perfectly():
    """A map that equals its reference has Dice 1, NSD 1 and HD95 0."""
    found = score(PLATE, PLATE, spacing=(1.4, 1.4, 4.0))
    assert (found.dice, found.nsd, found.hd95_mm) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(("axis", "expected_mm"), [(0, 0.5), (2, 4.0)])
def test_hd95_of_a_shifted_plate_is_the_shift_in_mm(axis, expected_mm):
    """A plate shifted by one voxel is one voxel size of that axis away in mm, not one voxel."""
    # Across the plate, 43% of its surface voxels are at least 4 mm from any wall, so the 95th percentile
    # is the whole shift. Along it the two end faces are 16%, and their inner voxels are 0.5 mm away.
    shifted = np.roll(PLATE, 1, axis=axis)
    spacing = (0.5, 1.0, 4.0) if axis == 0 else (1.0, 1.0, 4.0)
    assert score(shifted, PLATE, spacing).hd95_mm == pytest.approx(expected_mm)


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_dice_of_a_shifted_plate_is_its_overlap(shift):
    """A plate six voxels thick, shifted across by n, overlaps with itself by (6 - n) / 6."""
    assert score(np.roll(PLATE, shift, axis=2), PLATE).dice == pytest.approx((6 - shift) / 6)


def test_nsd_counts_a_shift_up_to_the_tolerance():
    """A plate shifted by 4 mm agrees entirely within 4 mm, and not within a little less."""
    shifted = np.roll(PLATE, 1, axis=2)
    assert score(shifted, PLATE, (1.0, 1.0, 4.0), tolerance=4.0).nsd == 1.0
    assert score(shifted, PLATE, (1.0, 1.0, 4.0), tolerance=3.9).nsd < 0.95


@pytest.mark.parametrize(("tolerance", "expected"), [(4.9, 0.0), (5.0, 0.5), (7.4, 0.5), (7.5, 1.0)])
def test_two_lone_voxels_are_their_distance_in_mm_apart(tolerance, expected):
    """Three slices of 2.5 mm apart, HD95 is 7.5 mm; of the surfaces, the near halves are 5 mm apart."""
    one, other = box((9, 9, 9), (4, 4, 2), (1, 1, 1)), box((9, 9, 9), (4, 4, 5), (1, 1, 1))
    found = score(one, other, (1.0, 1.0, 2.5), tolerance)
    assert (found.dice, found.hd95_mm) == (0.0, 7.5)
    assert found.nsd == expected


def test_nsd_of_a_missed_half_is_two_thirds():
    """With one of two equal cubes missed, two of the three surfaces agree."""
    both = box((30, 10, 10), (2, 2, 2), (4, 4, 4)) + box((30, 10, 10), (20, 2, 2), (4, 4, 4))
    one = box((30, 10, 10), (2, 2, 2), (4, 4, 4))
    found = score(one, both, (1.0, 2.0, 1.5))
    assert found.nsd == pytest.approx(2 / 3)
    assert found.dice == pytest.approx(2 / 3)


def test_volumes_are_in_ml():
    """64 voxels of 2 x 2 x 2.5 mm are 0.64 ml."""
    cube = box((10, 10, 10), (3, 3, 3), (4, 4, 4))
    found = score(cube, np.zeros_like(cube), (2.0, 2.0, 2.5))
    assert (found.volume_ml, found.reference_ml) == (pytest.approx(0.64), 0.0)


def test_a_structure_in_neither_map_has_no_score():
    """A structure that nobody labelled is no success and no failure."""
    nothing = np.zeros((5, 5, 5), np.uint8)
    found = score(nothing, nothing)
    assert all(math.isnan(value) for value in (found.dice, found.nsd, found.hd95_mm))


@pytest.mark.parametrize("missing_in", ["prediction", "reference"])
def test_a_structure_in_one_map_alone_scores_zero(missing_in):
    """A missed or invented structure has Dice 0, NSD 0 and no distance."""
    cube, nothing = box((8, 8, 8), (2, 2, 2), (3, 3, 3)), np.zeros((8, 8, 8), np.uint8)
    found = score(nothing, cube) if missing_in == "prediction" else score(cube, nothing)
    assert (found.dice, found.nsd) == (0.0, 0.0)
    assert math.isnan(found.hd95_mm)


def test_structures_are_scored_apart():
    """Each structure is compared with itself, in the order of the codes given, gaps included."""
    reference = box((12, 12, 12), (1, 1, 1), (4, 4, 4)) * 7 + box((12, 12, 12), (7, 7, 7), (4, 4, 4)) * 2
    predicted = np.where(reference == 7, 7, 0).astype(np.uint8)
    scores = score_label_map(predicted, reference, (1.0, 1.0, 1.0), {7: "seven", 2: "two"}, 1.0)
    assert [(s.structure, s.dice) for s in scores] == [("seven", 1.0), ("two", 0.0)]


def test_maps_of_different_shape_are_refused():
    """A prediction off the scan's grid can't be scored."""
    with pytest.raises(SegdistillError, match="grid"):
        score(np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 5), np.uint8))


MASKS = hnp.arrays(np.uint8, (5, 6, 4), elements=st.integers(0, 1))


@settings(max_examples=40, deadline=None)
@given(MASKS, MASKS)
def test_dice_is_symmetric_and_one_only_for_equal_maps(one, other):
    """Dice is twice the overlap over the sum, the same both ways, and 1 exactly where the maps agree."""
    found, reverse = score(one, other), score(other, one)
    total = int(one.sum()) + int(other.sum())
    if total == 0:
        assert math.isnan(found.dice)
        return
    assert found.dice == reverse.dice == pytest.approx(2 * int((one & other).sum()) / total)
    assert 0 <= found.dice <= 1
    assert (found.dice == 1) == np.array_equal(one, other)


@settings(max_examples=20, deadline=None)
@given(MASKS, MASKS, st.permutations((0, 1, 2)))
def test_scores_do_not_depend_on_the_order_of_axes(one, other, order):
    """Axes and voxel sizes permuted together, every figure stays."""
    spacing = (0.8, 1.5, 3.0)
    found = score(one, other, spacing)
    turned = score(one.transpose(order), other.transpose(order), tuple(spacing[a] for a in order))
    assert turned.nsd == pytest.approx(found.nsd, abs=1e-5, nan_ok=True)
    assert turned.hd95_mm == pytest.approx(found.hd95_mm, abs=1e-5, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(MASKS, MASKS)
def test_scores_do_not_depend_on_the_empty_space_around(one, other):
    """A wider field of view with nothing in it changes no figure."""
    found = score(one, other)
    wide = score(np.pad(one, 3), np.pad(other, 3))
    for name in ("dice", "nsd", "hd95_mm"):
        assert getattr(wide, name) == pytest.approx(getattr(found, name), abs=1e-6, nan_ok=True)


def test_what_the_reference_ignores_is_scored_nowhere():
    """Neither overlap nor surface sees ignored voxels; a structure that may lie there has no score."""
    reference, found = PLATE.copy(), PLATE.copy()
    reference[20:] = IGNORED
    found[20:] = 2
    one, two = score_label_map(found, reference, (1.0, 1.0, 1.0), {1: "plate", 2: "hidden"}, 1.0)
    assert (one.dice, one.nsd, one.hd95_mm) == (1.0, 1.0, 0.0)
    assert one.volume_ml == one.reference_ml == pytest.approx(PLATE[:20].sum() / 1000)
    assert math.isnan(two.dice)
    assert two.volume_ml == 0
