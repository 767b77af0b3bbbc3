"""A real site, imported whole or not at all."""

import csv
import errno
import hashlib
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from import_layouts import (
    AFFINE,
    FREESURFER_CODES,
    PATIENT,
    label_array,
    make_bids,
    make_freesurfer,
    make_nnunet,
    save_mgz,
    save_nifti,
    scan_array,
    write_dataset,
)
from typer.testing import CliRunner

from segdistill.cli import app
from segdistill.files import SegdistillError
from segdistill.sites.imports import site as import_site
from segdistill.sites.imports.privacy import patient_fields
from segdistill.sites.imports.scan import ImportProblemsError
from segdistill.sites.imports.site import Added, Request, add_site
from segdistill.sites.manifest import Case, Site, read_sites
from segdistill.sites.protocol import read_protocol
from segdistill.volume import read_label_map, read_volume, same_grid

MAKERS = {"bids": make_bids, "nnunet": make_nnunet, "freesurfer": make_freesurfer}
SITES = Path("data/sites/brain_mri")


def everything(root: Path) -> list[Path]:
    """Every file and folder below the sites folder, hidden ones too."""
    return sorted((root / SITES).rglob("*")) if (root / SITES).exists() else []


def problems_of(source: Path, root: Path, **changes: object) -> dict[str, str]:
    """What is wrong with a source, by case; checks that nothing of it was written."""
    before = everything(root)
    with pytest.raises(ImportProblemsError) as caught:
        add_site(Request("ward", source, root, **changes))
    assert everything(root) == before
    for problem in caught.value.problems:
        assert f"  {problem.case}: {problem.what}" in str(caught.value)
    return {problem.case: problem.what for problem in caught.value.problems}


def label_of(added: Added, place: int) -> np.ndarray:
    """The codes of the label map of a case, by its place in the manifest."""
    return read_label_map(added.folder / added.site.cases[place].label).array


# ---- the three layouts ----


@pytest.mark.parametrize("layout", MAKERS)
def test_a_layout_becomes_a_site_that_the_rest_can_read(tmp_path: Path, layout: str) -> None:
    """Each layout ends as a site with clean scans and label maps in the task's codes on their grid."""
    added = add_site(Request("ward", MAKERS[layout](tmp_path / "data"), tmp_path))
    ((folder, site),) = read_sites(tmp_path / SITES)
    assert (folder, site) == (added.folder, added.site)
    assert site.structures == read_protocol("brain_mri").structures
    assert (site.label_protocol, site.simulated, site.held_out) == ("mindboggle-10", False, False)
    assert added.missing == ()
    for case in site.cases:
        image, label = read_volume(folder / case.image), read_label_map(folder / case.label)
        assert same_grid(image, label)
        assert np.allclose(image.affine, AFFINE, atol=1e-5)
        assert case.scanner["voxel_mm"] == [1.5, 1.5, 2.0]
        assert set(np.unique(label.array)) == set(range(11))


def test_voxels_and_codes_arrive_unchanged(tmp_path: Path) -> None:
    """Every scan is there with its intensities, and its label map is mapped voxel by voxel."""
    source = make_freesurfer(tmp_path / "data", subjects=3)
    key = tmp_path / "key.csv"
    added = add_site(Request("ward", source, tmp_path / "root", key=key))
    with key.open(newline="") as stream:
        sources = {row["case"]: row["source"] for row in csv.DictReader(stream)}
    for place, case in enumerate(added.site.cases):
        stored = nib.load(added.folder / case.image)
        assert stored.get_data_dtype() == np.int16
        number = int(sources[case.case].removeprefix("bert"))
        assert np.array_equal(np.asarray(stored.dataobj), scan_array(number))
        assert np.array_equal(label_of(added, place), label_array())


def test_scans_that_are_not_whole_numbers_stay_float(tmp_path: Path) -> None:
    """Intensities with fractions are kept to the bit as float32."""
    array = scan_array(1).astype(np.float32) / 7
    save_nifti(tmp_path / "data" / "sub-a" / "anat" / "sub-a_T1w.nii.gz", array)
    added = add_site(Request("ward", tmp_path / "data", tmp_path))
    assert np.array_equal(read_volume(added.folder / added.site.cases[0].image).array, array)


def test_names_in_dataset_json_decide_the_codes(tmp_path: Path) -> None:
    """NnU-Net codes are read by their names, so a dataset that numbers otherwise comes out right."""
    added = add_site(Request("ward", make_nnunet(tmp_path / "data", train=2), tmp_path))
    assert np.array_equal(label_of(added, 0)[1:11, 0, 0], np.arange(10, 0, -1))


def test_a_map_file_decides_the_codes(tmp_path: Path) -> None:
    """A user's map replaces the source's names."""
    source = make_nnunet(tmp_path / "data", train=1)
    (tmp_path / "map.yaml").write_text("\n".join(f"{code}: thalamus" for code in range(1, 11)))
    added = add_site(Request("ward", source, tmp_path, labels=str(tmp_path / "map.yaml")))
    assert set(np.unique(label_of(added, 0))) == {0, 5}
    assert "csf" in added.missing
    assert "thalamus" not in added.missing
    assert "No label map has: csf" in added.site.note


# ---- splits and pseudonyms ----


def test_sessions_of_a_subject_stay_in_one_split(tmp_path: Path) -> None:
    """Both sessions of every subject share subject and split, and shares count subjects."""
    source = make_bids(tmp_path / "data", subjects=5, sessions=2)
    shares = (0.6, 0.2, 0.2)
    site = add_site(Request("ward", source, tmp_path, fractions=shares, seed=3)).site
    assert len(site.cases) == 10
    by_subject: dict[str, set[str]] = {}
    for case in site.cases:
        by_subject.setdefault(case.subject, set()).add(case.split)
    assert sorted(split for splits in by_subject.values() for split in splits) == (
        ["test"] + ["train"] * 3 + ["val"]
    )


def test_a_pattern_names_the_subject(tmp_path: Path) -> None:
    """--subject finds the person in a case's name where the layout doesn't say."""
    source = make_nnunet(tmp_path / "data", train=12)
    site = add_site(Request("ward", source, tmp_path, subject=r"case_(\d\d)")).site
    assert len({case.subject for case in site.cases}) == 2
    assert problems_of(source, tmp_path / "b", subject=r"case_00(\d)") == {
        f"Trcase_{n:03d}": r"--subject case_00(\d) finds no subject in this name" for n in (10, 11)
    }


@pytest.mark.parametrize("pattern", ["(", "case"])
def test_a_wrong_subject_pattern_is_refused(tmp_path: Path, pattern: str) -> None:
    """A pattern that isn't one, or has no group, is refused."""
    with pytest.raises(SegdistillError, match="--subject"):
        add_site(Request("ward", make_nnunet(tmp_path / "data", train=1), tmp_path, subject=pattern))


def test_held_out_sites_are_all_test(tmp_path: Path) -> None:
    """A held-out site has no case in train or val, and its manifest says so."""
    source = make_nnunet(tmp_path / "data", train=3, test=1)
    site = add_site(Request("ward", source, tmp_path, held_out=True)).site
    assert site.held_out
    assert {case.split for case in site.cases} == {"test"}


def test_the_sources_test_scans_are_test(tmp_path: Path) -> None:
    """NnU-Net's own test scans are the test split."""
    source = make_nnunet(tmp_path / "data", train=8, test=3)
    site = add_site(Request("ward", source, tmp_path)).site
    assert sorted(case.split for case in site.cases) == ["test"] * 3 + ["train"] * 7 + ["val"]


def test_the_same_import_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two imports of one source with one seed are equal to the byte."""
    source = make_bids(tmp_path / "data", subjects=3)
    digests = []
    for root in (tmp_path / "a", tmp_path / "b"):
        folder = add_site(Request("ward", source, root)).folder
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests.append(
            [(str(f.relative_to(root)), hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]
        )
    assert digests[0] == digests[1]
    assert len(digests[0]) == 13


def test_scans_without_labels_are_taken_unless_refused(tmp_path: Path) -> None:
    """A scan without a label map is a case with label None; --require-labels lists it instead."""
    source = make_freesurfer(tmp_path / "data")
    (source / "bert2" / "mri" / "aparc.DKTatlas+aseg.mgz").unlink()
    assert problems_of(source, tmp_path, require_labels=True) == {"bert2": "has no label map"}
    site = add_site(Request("ward", source, tmp_path)).site
    (bare,) = [case for case in site.cases if case.label is None]
    assert bare.split == "train"
    assert not (tmp_path / SITES / "ward" / "labels" / f"{bare.case}.nii.gz").exists()


# ---- privacy ----


@pytest.mark.parametrize("layout", MAKERS)
def test_nothing_of_a_patient_is_left(tmp_path: Path, layout: str) -> None:
    """No header text, no extension, and no name from the source in any file's bytes or name."""
    source = MAKERS[layout](tmp_path / "data")
    folder = add_site(Request("ward", source, tmp_path)).folder
    names = [b"JANE", PATIENT, b"DOE", b"St. X", b"sub-0", b"bert", b"case_", str(source).encode()]
    for path in folder.rglob("*"):
        if path.is_file():
            packed = path.suffix == ".gz"
            body = gunzip(path) if packed else path.read_bytes()
            assert not [name for name in names if name in body[:352] + (b"" if packed else body)]
            assert path.name == "manifest.json" or path.name.startswith("ward-")
            assert not packed or patient_fields(path) == []


def gunzip(path: Path) -> bytes:
    """A gzip file's content; its own header must hold neither a name nor a time."""
    import gzip

    packed = path.read_bytes()
    assert packed[3] == 0
    assert packed[4:8] == b"\0\0\0\0"
    return gzip.decompress(packed)


def test_patient_fields_are_seen(tmp_path: Path) -> None:
    """A header with text in every free field and an extension is reported field by field."""
    path = save_nifti(tmp_path / "scan.nii", scan_array(1))
    assert patient_fields(path) == ["db_name", "descrip", "aux_file", "intent_name", "extensions"]


def test_the_key_is_written_only_on_request_and_for_the_owner_alone(tmp_path: Path) -> None:
    """With --key, and only then, a file outside the project says whose pseudonym is whose."""
    source, key = make_bids(tmp_path / "data", subjects=2, sessions=1), tmp_path / "key.csv"
    add_site(Request("open", source, tmp_path / "a"))
    assert not key.exists()
    site = add_site(Request("ward", source, tmp_path / "b", key=key)).site
    assert key.stat().st_mode & 0o777 == 0o600
    with key.open(newline="") as stream:
        rows = {row["case"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {case.case for case in site.cases}
    assert {row["source_subject"] for row in rows.values()} == {"sub-00", "sub-01"}


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("root/key.csv", "outside the project folder"),
        ("root/data/sites/brain_mri/ward/key.csv", "outside the project folder"),
        ("old.csv", "there already"),
        ("gone/key.csv", "no such folder"),
    ],
)
def test_a_key_in_a_wrong_place_is_refused(tmp_path: Path, key: str, wrong: str) -> None:
    """A key inside the project, over another file or nowhere is refused before anything is read."""
    (tmp_path / "old.csv").write_text("kept")
    source = make_bids(tmp_path / "data", subjects=1)
    with pytest.raises(SegdistillError, match=wrong):
        add_site(Request("ward", source, tmp_path / "root", key=tmp_path / key))
    assert everything(tmp_path / "root") == []
    assert (tmp_path / "old.csv").read_text() == "kept"


# ---- what is wrong, case by case ----


def shift_label(source: Path) -> None:
    """Move a label map by half a voxel."""
    affine = AFFINE.copy()
    affine[0, 3] += 0.75
    save_nifti(source / "labelsTr" / "Trcase_001.nii.gz", label_array(), affine)


def crop_label(source: Path) -> None:
    """Cut a slice off a label map."""
    save_nifti(source / "labelsTr" / "Trcase_001.nii.gz", label_array()[:, :, :-1])


def strange_code(source: Path) -> None:
    """Put two codes that nothing names into a label map."""
    save_nifti(source / "labelsTr" / "Trcase_001.nii.gz", label_array((1, 30, 77)))


def fractional_code(source: Path) -> None:
    """Make a label map of probabilities."""
    save_nifti(source / "labelsTr" / "Trcase_001.nii.gz", label_array().astype(np.float32) / 3)


def empty_label(source: Path) -> None:
    """Make a label map of background alone."""
    save_nifti(source / "labelsTr" / "Trcase_001.nii.gz", label_array(()))


def nan_voxel(source: Path) -> None:
    """Put a NaN into a scan."""
    array = scan_array(1).astype(np.float32)
    array[3, 3, 3] = np.nan
    save_nifti(source / "imagesTr" / "Trcase_001_0000.nii.gz", array)


def truncated(source: Path) -> None:
    """Cut a scan's file in half."""
    path = source / "imagesTr" / "Trcase_001_0000.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def not_nifti(source: Path) -> None:
    """Put a text where a label map should be."""
    (source / "labelsTr" / "Trcase_001.nii.gz").write_text("hello")


def time_series(source: Path) -> None:
    """Make a scan 4D."""
    save_nifti(source / "imagesTr" / "Trcase_001_0000.nii.gz", np.stack([scan_array(1)] * 2, axis=-1))


def no_orientation(source: Path) -> None:
    """Make a scan whose header doesn't say where left is."""
    image = nib.Nifti1Image(scan_array(1), None)
    image.header.set_zooms((1.0, 1.0, 1.0))
    nib.save(image, source / "imagesTr" / "Trcase_001_0000.nii.gz")


def same_voxels(source: Path) -> None:
    """Give a case the scan of another, stored with a flipped first axis."""
    flipped = AFFINE.copy()
    flipped[0, 0] *= -1
    flipped[0, 3] += AFFINE[0, 0] * 15
    save_nifti(source / "imagesTr" / "Trcase_001_0000.nii.gz", scan_array(0)[::-1], flipped)
    save_nifti(source / "labelsTr" / "Trcase_001.nii.gz", label_array()[::-1], flipped)


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (
            shift_label,
            "not on the same grid: the same voxel is up to 0.75 mm apart (0.5 voxels along axis 1",
        ),
        (crop_label, "not on the same grid: shape "),
        (strange_code, "unknown label code(s) 30, 77;"),
        (fractional_code, "whole numbers"),
        (empty_label, "only background"),
        (nan_voxel, "NaN"),
        (truncated, "truncated"),
        (not_nifti, "not a NIfTI"),
        (time_series, "4 axes"),
        (no_orientation, "left and right are unknown"),
        (same_voxels, "has the same voxels as Trcase_00"),
    ],
)
def test_one_bad_case_is_named_and_nothing_is_imported(
    tmp_path: Path, spoil: Callable[[Path], None], wrong: str
) -> None:
    """A single bad case is listed with what is wrong, and not one file of the site remains."""
    source = make_nnunet(tmp_path / "data", train=3)
    spoil(source)
    problems = problems_of(source, tmp_path)
    assert len(problems) == 1
    ((case, what),) = problems.items()
    assert wrong in what
    assert case == "Trcase_001" or spoil is same_voxels


def test_a_label_map_turned_by_rounding_is_on_the_scans_grid(tmp_path: Path) -> None:
    """A direction that a round trip through another tool rounded is taken, and the site has one grid."""
    source = make_nnunet(tmp_path / "data", train=3)
    turned = AFFINE.copy()
    turned[:2, :2] = AFFINE[:2, :2] @ np.array([[1, 1.1e-4], [-1.1e-4, 1]])
    save_nifti(source / "labelsTr" / "Trcase_001.nii.gz", label_array(), turned)
    added = add_site(Request("ward", source, tmp_path))
    for case in added.site.cases:
        image = read_volume(added.folder / case.image)
        label = read_label_map(added.folder / str(case.label))
        assert np.array_equal(image.affine, label.affine)


def test_all_problems_of_all_cases_are_listed_at_once(tmp_path: Path) -> None:
    """One run lists every problem, those of the layout and those of the voxels."""
    source = make_nnunet(tmp_path / "data", train=4)
    strange_code(source)
    save_nifti(source / "labelsTr" / "Trcase_002.nii.gz", label_array(()))
    save_nifti(source / "labelsTr" / "stray.nii.gz", label_array())
    write_dataset(source, numTraining=9)
    assert set(problems_of(source, tmp_path)) == {
        "Trcase_001",
        "Trcase_002",
        "labelsTr/stray.nii.gz",
        "dataset.json",
    }


def test_what_is_wrong_can_be_left_out(tmp_path: Path) -> None:
    """Excluding the listed case imports the others."""
    source = make_nnunet(tmp_path / "data", train=3)
    write_dataset(source, numTraining=None)
    strange_code(source)
    assert len(add_site(Request("ward", source, tmp_path, exclude=("Trcase_001",))).site.cases) == 2


def test_freesurfer_codes_without_a_structure_are_named(tmp_path: Path) -> None:
    """A code that the built-in map doesn't know is listed; a map that extends it lets the case in."""
    source = make_freesurfer(tmp_path / "data", subjects=2)
    codes = (*FREESURFER_CODES, 29)
    save_mgz(source / "bert1" / "mri" / "aparc.DKTatlas+aseg.mgz", label_array(codes))
    assert "unknown label code(s) 29;" in problems_of(source, tmp_path)["bert1"]
    (tmp_path / "map.yaml").write_text("extends: freesurfer\n29: background\n")
    added = add_site(Request("ward", source, tmp_path, labels=str(tmp_path / "map.yaml")))
    assert len(added.site.cases) == 2


def test_bids_codes_without_a_table_are_not_guessed(tmp_path: Path) -> None:
    """Without dseg.tsv and --labels every code is unknown; --labels same takes them as they are."""
    source = make_bids(tmp_path / "data", subjects=1, sessions=1)
    (source / "derivatives" / "manual" / "dseg.tsv").unlink()
    (what,) = problems_of(source, tmp_path).values()
    assert "unknown label code(s) 1, 2, 3" in what
    added = add_site(Request("ward", source, tmp_path, labels="same"))
    assert np.array_equal(label_of(added, 0), label_array())


def test_a_subject_folder_that_is_there_twice_is_named(tmp_path: Path) -> None:
    """A subject linked under a second name is the same person and is listed."""
    source = make_freesurfer(tmp_path / "data", subjects=1)
    (source / "copy").symlink_to(source / "bert0")
    assert "copy" in problems_of(source, tmp_path)


def test_a_name_that_is_there_twice_is_named(tmp_path: Path) -> None:
    """A scan as .nii and as .nii.gz, or one case in both halves of nnU-Net, is listed."""
    source = make_bids(tmp_path / "bids", subjects=1, sessions=1)
    anat = source / "sub-00" / "ses-0" / "anat"
    save_nifti(anat / "sub-00_ses-0_T1w.nii", scan_array(7))
    assert problems_of(source, tmp_path)
    source = make_nnunet(tmp_path / "nnunet", train=1)
    save_nifti(source / "imagesTs" / "Trcase_000_0000.nii.gz", scan_array(8))
    assert "is there twice" in problems_of(source, tmp_path)["Trcase_000"]


def unfetched(path: Path) -> None:
    """Leave a link where a file was, as git-annex does until its content is fetched."""
    path.unlink()
    path.symlink_to("../.git/annex/objects/none")


def test_a_link_that_leads_to_itself_is_a_missing_file(tmp_path: Path) -> None:
    """A scan that is a link in a circle is named as one that isn't there."""
    source = make_freesurfer(tmp_path / "subjects")
    scan = source / "bert0" / "mri" / "orig.mgz"
    scan.unlink()
    scan.symlink_to(scan)
    assert "is a link to a file that isn't on this machine" in problems_of(source, tmp_path)["bert0"]


@pytest.mark.parametrize(
    ("layout", "what"),
    [
        ("bids", "dseg"),
        ("bids", "T1w"),
        ("nnunet", "labelsTr"),
        ("nnunet", "imagesTr"),
        ("freesurfer", "aparc"),
        ("freesurfer", "orig"),
    ],
)
def test_a_link_whose_file_was_not_fetched_is_a_missing_file(
    tmp_path: Path, layout: str, what: str
) -> None:
    """A label map or scan that is a link to nothing is named; its case isn't taken as unlabelled."""
    source = MAKERS[layout](tmp_path / "data")
    found = sorted(path for path in source.rglob("*.*gz") if what in str(path.relative_to(source)))
    unfetched(found[0])
    problems = problems_of(source, tmp_path)
    assert len(problems) == 1
    assert "is a link to a file that isn't on this machine" in next(iter(problems.values()))


@pytest.mark.parametrize(
    ("layout", "place"),
    [
        ("bids", "sub-00"),
        ("bids", "sub-00/ses-0"),
        ("bids", "derivatives/manual"),
        ("bids", "derivatives/manual/sub-00"),
        ("freesurfer", "bert0"),
        ("freesurfer", "bert0/mri"),
    ],
)
def test_a_link_to_a_folder_that_is_not_there_is_named(tmp_path: Path, layout: str, place: str) -> None:
    """A folder that is a link to nothing hides neither scans nor their label maps."""
    source = MAKERS[layout](tmp_path / "data")
    (source / place).rename(tmp_path / "elsewhere")
    (source / place).symlink_to(tmp_path / "unmounted")
    with pytest.raises(SegdistillError, match="is a link to a file that isn't on this machine"):
        add_site(Request("ward", source, tmp_path))
    assert everything(tmp_path) == []


def test_names_that_are_not_utf8_come_in_and_into_the_key(tmp_path: Path) -> None:
    """A scan whose name is in Latin-1 is imported; --exclude and the key write its bytes out."""
    source, key = make_nnunet(tmp_path / "data", train=2), tmp_path / "key.csv"
    for half, end in (("imagesTr", b"_0000.nii.gz"), ("labelsTr", b".nii.gz")):
        folder = os.fsencode(source / half)
        os.rename(folder + b"/Trcase_001" + end, folder + b"/P\xe9ron" + end)  # noqa: PTH104 - bytes
    add_site(Request("ward", source, tmp_path / "a", key=key))
    with key.open(newline="", encoding="utf-8") as stream:
        assert {row["source"] for row in csv.DictReader(stream)} == {"Trcase_000", r"P\xe9ron"}
    for name in (r"P\xe9ron", os.fsdecode(b"P\xe9ron")):
        write_dataset(source, numTraining=None)
        request = Request("ward", source, tmp_path / f"b{len(name)}", exclude=(name,))
        assert len(add_site(request).site.cases) == 1


def test_printed_commands_hold_the_whole_path(tmp_path: Path) -> None:
    """What is printed for a project whose path has spaces means that path when it is pasted."""
    root = tmp_path / "my project; rm -r x"
    source = make_nnunet(tmp_path / "data", train=2)
    words = ["site", "add", "ward", "--from", str(source), "--root", str(root)]
    done = CliRunner().invoke(app, words)
    folder = str(root / SITES / "ward")
    (add,) = [line for line in done.stdout.splitlines() if line.startswith("  dvc add")]
    assert shlex.split(add) == ["dvc", "add", folder]
    again = CliRunner().invoke(app, words)
    assert shlex.split(again.stderr.partition("remove it: ")[2]) == ["rm", "-r", folder]


def test_half_made_sites_are_not_read(tmp_path: Path) -> None:
    """What a killed import leaves is no site; a folder without its manifest is named."""
    source = make_nnunet(tmp_path / "data", train=2)
    folder = add_site(Request("ward", source, tmp_path)).folder
    shutil.copytree(folder, folder.with_name(".partial-k1ll3d"))
    shutil.copytree(folder, folder.with_name(".old-k1ll3d") / "ward")
    assert [path for path, _ in read_sites(tmp_path / SITES)] == [folder]
    shutil.copytree(folder, folder.with_name("torn"))
    unfetched(folder.with_name("torn") / "manifest.json")
    with pytest.raises(SegdistillError, match=r"torn: no manifest\.json.*dvc checkout"):
        next(read_sites(tmp_path / SITES))


def test_a_scan_of_another_real_site_is_named(tmp_path: Path) -> None:
    """A scan that another imported site has already is listed, lest a test case is trained on."""
    add_site(Request("first", make_nnunet(tmp_path / "one", train=3), tmp_path))
    problems = problems_of(make_nnunet(tmp_path / "two", train=2), tmp_path)
    assert set(problems) == {"Trcase_000", "Trcase_001"}
    assert all("of site first" in what for what in problems.values())


def test_simulated_sites_are_not_compared(tmp_path: Path) -> None:
    """A simulated site beside the new one is left unread."""
    folder = tmp_path / SITES / "sim"
    folder.mkdir(parents=True)
    case = Case("sim-001", "sim-s001", "images/gone.nii", None, "test")
    structures = read_protocol("brain_mri").structures
    Site("sim", "brain_mri", True, False, "mindboggle-10", structures, (case,)).write(folder)
    add_site(Request("ward", make_nnunet(tmp_path / "data", train=2), tmp_path))
    assert [site.site for _, site in read_sites(tmp_path / SITES)] == ["sim", "ward"]


# ---- the request ----


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".a", "1a", "a b", "x" * 41])
def test_a_site_name_that_is_no_plain_name_is_refused(tmp_path: Path, name: str) -> None:
    """Names that could leave the folder or break a pseudonym are refused."""
    with pytest.raises(SegdistillError, match="site name"):
        add_site(Request(name, make_nnunet(tmp_path / "data", train=1), tmp_path))


def test_an_existing_site_is_never_touched(tmp_path: Path) -> None:
    """A second import under one name is refused with a hint, and the first stays as it was."""
    source = make_nnunet(tmp_path / "data", train=1)
    add_site(Request("ward", source, tmp_path))
    before = {path: path.read_bytes() for path in everything(tmp_path) if path.is_file()}
    with pytest.raises(SegdistillError, match=r"there already.*: rm -r .*ward$"):
        add_site(Request("ward", make_nnunet(tmp_path / "other", train=2), tmp_path))
    assert before == {path: path.read_bytes() for path in everything(tmp_path) if path.is_file()}


def test_a_site_that_dvc_knows_but_has_not_brought_is_there_too(tmp_path: Path) -> None:
    """A site whose .dvc file is there counts as existing, although its folder is not."""
    (tmp_path / SITES).mkdir(parents=True)
    (tmp_path / SITES / "ward.dvc").write_text("outs: []\n")
    with pytest.raises(SegdistillError, match=r"there already.*: dvc remove .*ward\.dvc$"):
        add_site(Request("ward", make_nnunet(tmp_path / "data", train=1), tmp_path))


def test_the_name_of_a_simulated_site_is_taken(tmp_path: Path) -> None:
    """A name that params.yaml gives to a simulated site is refused, for that task."""
    (tmp_path / "params.yaml").write_text("task: brain_mri\nsites: {ward: {subjects: 3}}\n")
    with pytest.raises(SegdistillError, match="ward is a simulated site"):
        add_site(Request("ward", make_nnunet(tmp_path / "data", train=1), tmp_path))


def test_a_source_without_scans_is_refused(tmp_path: Path) -> None:
    """A folder that has no scans in the stated layout is refused."""
    with pytest.raises(SegdistillError, match="no scans found, read as freesurfer"):
        add_site(Request("ward", tmp_path, tmp_path / "root", layout="freesurfer"))


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fills up in the middle, the message says so and nothing remains."""
    real, written = import_site.write_volume, []

    def fill_up(path: Path, *rest: object) -> None:
        written.append(path)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *rest)

    monkeypatch.setattr(import_site, "write_volume", fill_up)
    with pytest.raises(SegdistillError, match="disk is full"):
        add_site(Request("ward", make_nnunet(tmp_path / "data", train=5), tmp_path))
    assert len(written) == 4
    assert everything(tmp_path) == []


def test_progress_counts_every_scan(tmp_path: Path) -> None:
    """The progress callback is told each scan once, up to all of them."""
    seen: list[tuple[int, int]] = []
    source = make_nnunet(tmp_path / "data", train=3)
    add_site(Request("ward", source, tmp_path), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
