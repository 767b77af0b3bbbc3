"""Whether the quality figure tells good label maps from bad, and the limits that follow."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quality as command
from segdistill.evaluation.quality import labelled_cases, quality_table, sort, spoilt
from segdistill.files import SegdistillError, read_json
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.quality import Limits
from segdistill.runtime.segment import Segmentator
from segdistill.sites.manifest import Case, Site
from segdistill.volume import write_label_map
from tests.onnx_models import ball_file, ball_scan, threshold_bundle


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    """One site with two labelled validation cases of balls."""
    folder = tmp_path / "sites" / "ward"
    cases = []
    for number, radius in enumerate((12.0, 14.0), start=1):
        case = Case(f"ward-{number}", f"s{number}", f"{number}.nii", f"{number}-labels.nii", "val")
        mask = ball_file(folder / f"{number}.nii", radius_mm=radius)
        write_label_map(folder / f"{number}-labels.nii", mask.astype(np.uint8), ball_scan()[0])
        cases.append(case)
    Site("ward", "brain_mri", True, False, "test", {1: "structure_1"}, tuple(cases), "").write(folder)
    return tmp_path / "sites"


def test_a_figure_that_follows_dice_sorts_and_a_constant_one_does_not() -> None:
    """Rank correlation and area are 1 where the figure follows the Dice; the limit lies in the gap."""
    dice = np.array([0.1, 0.3, 0.6, 0.8, 0.9])
    found = sort(dice**2, dice, 0.7)
    assert (found.spearman, found.auc, found.found, found.spared) == (pytest.approx(1), 1, 1, 1)
    assert 0.36 < found.limit < 0.64
    flat = sort(np.full(5, 0.5), dice, 0.7)
    assert (flat.spearman, flat.auc) == (None, 0.5)
    assert sort(dice, dice, 0.05).limit == 0


def test_a_spoilt_scan_stays_on_its_grid() -> None:
    """Every way of spoiling keeps shape and voxel size, and changes the voxels or their direction."""
    scan, _ = ball_scan()
    ways = spoilt(scan)
    assert len(ways) > 5
    for name, other in ways.items():
        assert other.array.shape == scan.array.shape
        assert other.spacing_mm == pytest.approx(scan.spacing_mm)
        same = np.array_equal(other.array, scan.array) and np.array_equal(other.affine, scan.affine)
        assert same == (name == "as it is")


def test_the_command_writes_figures_and_seals_the_limits(
    sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row for each case and way, a summary, and a bundle whose limits suit the scans as they are."""
    bundle = threshold_bundle(tmp_path / "bundle")
    words = [bundle.folder, sites, tmp_path / "out", "--seal", tmp_path / "sealed"]
    monkeypatch.setattr(sys, "argv", ["quality", *map(str, words)])
    command.main()
    body = read_json(tmp_path / "out" / "quality.json")
    assert body["scans"] == 2 * len(spoilt(ball_scan()[0]))
    assert body["means"]["as it is"]["dice"] == 1.0
    assert body["means"]["contrast inverted"]["dice"] < 0.5
    sealed = Bundle.read(tmp_path / "sealed")
    limits = Limits.of(sealed)
    assert limits is not None
    assert limits.to_json() == body["limits"]
    low, high = limits.volumes_ml["structure_1"]
    assert low == pytest.approx(7.24 / 2, rel=0.05)  # 4/3 pi 1.2^3 ml
    assert high == pytest.approx(11.49 * 2, rel=0.05)
    table = quality_table(Segmentator(sealed), labelled_cases(sites, "val"))
    plain = table[table["spoilt"] == "as it is"]
    assert set(plain["verdict"]) == {"good"}
    with pytest.raises(SegdistillError, match="no labelled case of the split test"):
        labelled_cases(sites, "test")
