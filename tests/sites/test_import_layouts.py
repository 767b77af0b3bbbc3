"""Finding the scans of a BIDS dataset, an nnU-Net raw dataset and a FreeSurfer subjects folder."""

from pathlib import Path

import pytest
from import_layouts import (
    label_array,
    make_bids,
    make_freesurfer,
    make_nnunet,
    save_mgz,
    save_nifti,
    scan_array,
    write_dataset,
)

from segdistill.files import SegdistillError
from segdistill.sites.imports.bids import find_bids
from segdistill.sites.imports.freesurfer import find_freesurfer
from segdistill.sites.imports.layout import Pick, detect_layout, find_scans
from segdistill.sites.imports.nnunet import find_nnunet
from segdistill.sites.imports.scan import Found, without

MAKERS = {"bids": make_bids, "nnunet": make_nnunet, "freesurfer": make_freesurfer}


def whats(found: Found) -> dict[str, str]:
    """The problems, by case."""
    return {problem.case: problem.what for problem in found.problems}


@pytest.mark.parametrize("layout", MAKERS)
def test_a_layout_is_told_from_its_files(tmp_path: Path, layout: str) -> None:
    """Each layout is recognised, and read without a problem."""
    source = MAKERS[layout](tmp_path / "data")
    assert detect_layout(source) == layout
    found = find_scans(source, layout, Pick())
    assert found.scans
    assert all(scan.label for scan in found.scans)
    assert not found.problems


def test_two_layouts_in_one_folder_are_not_guessed(tmp_path: Path) -> None:
    """A folder that fits two layouts asks for --layout."""
    make_bids(make_nnunet(tmp_path, train=1), subjects=1)
    with pytest.raises(SegdistillError, match="bids and nnunet; say which with --layout"):
        detect_layout(tmp_path)


def test_an_unknown_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    """A folder that fits none says what each layout would have had."""
    with pytest.raises(SegdistillError, match=r"no known layout.*dataset\.json"):
        detect_layout(tmp_path)


@pytest.mark.parametrize("layout", MAKERS)
def test_a_missing_source_is_named(tmp_path: Path, layout: str) -> None:
    """A source folder that isn't there is named, with and without a stated layout."""
    with pytest.raises(SegdistillError, match="no such folder"):
        detect_layout(tmp_path / "gone")
    with pytest.raises(SegdistillError, match="no such folder"):
        find_scans(tmp_path / "gone", layout, Pick())


# ---- nnU-Net ----


def test_nnunet_test_scans_are_found_with_and_without_labels(tmp_path: Path) -> None:
    """ImagesTs become test cases, labelled only where labelsTs has a map."""
    source = make_nnunet(tmp_path, train=2, test=2)
    (source / "labelsTs" / "Tscase_001.nii.gz").unlink()
    by_name = {scan.source: scan for scan in find_nnunet(source).scans}
    assert {name: scan.split for name, scan in by_name.items()} == {
        "Trcase_000": None,
        "Trcase_001": None,
        "Tscase_000": "test",
        "Tscase_001": "test",
    }
    assert by_name["Tscase_000"].label
    assert by_name["Tscase_001"].label is None


def test_nnunet_version_1_labels_are_read(tmp_path: Path) -> None:
    """The older code-to-name labels and 'modality' mean the same as the newer form."""
    source = make_nnunet(tmp_path, train=1)
    labels = {"0": "background", "1": "csf"}
    write_dataset(source, labels=labels, modality={"0": "MRI"}, channel_names=None, file_ending=None)
    (scan,) = find_nnunet(source).scans
    assert scan.names == {0: "background", 1: "csf"}


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_names": ["T1"]},
        {"channel_names": "T1"},
        {"overwrite_image_reader_writer": "SimpleITKIO"},
        {"labels": {"background": "0", "csf": "1"}},
        {"labels": {"background": 0.0, "csf": [1]}},
        {"numTraining": "1"},
        {"numTraining": 1.0},
    ],
)
def test_nnunet_variants_that_are_clear_are_read(tmp_path: Path, changes: dict[str, object]) -> None:
    """Lists for objects and text for numbers mean the same wherever only one meaning is possible."""
    source = make_nnunet(tmp_path, train=1)
    write_dataset(source, **({"labels": {"background": 0, "csf": 1}} | changes))
    found = find_nnunet(source)
    assert not found.problems
    assert found.scans[0].names == {0: "background", 1: "csf"}


@pytest.mark.parametrize("count", ["2", 2.0, "many", True])
def test_nnunet_a_count_that_is_not_that_of_the_scans_is_a_problem(
    tmp_path: Path, count: object
) -> None:
    """However numTraining is written, it must be the number of training scans."""
    source = make_nnunet(tmp_path, train=1)
    write_dataset(source, numTraining=count)
    assert list(whats(find_nnunet(source))) == ["dataset.json"]


def test_nnunet_region_labels_name_no_code(tmp_path: Path) -> None:
    """A region of several codes leaves their single codes unnamed."""
    source = make_nnunet(tmp_path, train=1)
    write_dataset(source, labels={"background": 0, "whole": [1, 2], "csf": 2})
    assert find_nnunet(source).scans[0].names == {0: "background", 2: "csf"}


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"channel_names": {"0": "T1", "1": "T2"}}, r"2 channels \(T1, T2\)"),
        ({"file_ending": ".nrrd"}, r"file_ending '\.nrrd'"),
        ({"labels": None}, "no labels"),
        ({"labels": {"x": "y"}}, "is no code and name"),
        ({"labels": {"1": "2"}}, "is no code and name"),
        ({"labels": {"csf": True}}, "is no code and name"),
        ({"labels": {"csf": []}}, "is no code and name"),
        ({"labels": {"csf": 1, "thalamus": "1"}}, "code 1 has two names"),
        ({"channel_names": ["T1", "T2"]}, r"2 channels \(T1, T2\)"),
        ({"dataset": {"case": {"images": ["a.nii.gz"]}}}, "lists its files under 'dataset'"),
        ({"labels": {"csf": 1, "ventricles": 1}}, "code 1 has two names"),
    ],
)
def test_nnunet_dataset_json_that_cannot_be_followed_is_refused(
    tmp_path: Path, changes: dict[str, object], wrong: str
) -> None:
    """Several channels, other file formats and labels without sense are refused, naming dataset.json."""
    source = make_nnunet(tmp_path, train=1)
    write_dataset(source, **changes)
    with pytest.raises(SegdistillError, match=wrong) as caught:
        find_nnunet(source)
    assert "dataset.json" in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{", None])
def test_nnunet_without_a_readable_dataset_json_is_refused(tmp_path: Path, text: str | None) -> None:
    """A dataset.json that is missing, damaged or no object is named."""
    source = make_nnunet(tmp_path, train=1)
    (source / "dataset.json").unlink()
    if text is not None:
        (source / "dataset.json").write_text(text)
    with pytest.raises(SegdistillError, match=r"dataset\.json"):
        find_nnunet(source)


def test_nnunet_lists_files_that_fit_nothing(tmp_path: Path) -> None:
    """Wrongly named scans, labels without a scan and a wrong count are each listed."""
    source = make_nnunet(tmp_path, train=2)
    save_nifti(source / "imagesTr" / "other.nii.gz", scan_array(50))
    save_nifti(source / "imagesTr" / "third_0000.nii", scan_array(51))
    save_nifti(source / "labelsTr" / "fourth.nii.gz", label_array())
    write_dataset(source, numTraining=5)
    assert whats(find_nnunet(source)) == {
        "imagesTr/other.nii.gz": "is not named CASE_0000.nii.gz; scans of one channel are read",
        "imagesTr/third_0000.nii": "does not end in .nii.gz, its file_ending",
        "labelsTr/fourth.nii.gz": "has no scan in imagesTr",
        "dataset.json": "says numTraining 5, but imagesTr has 2 usable scan(s)",
    }


# ---- BIDS ----


def test_bids_sessions_share_their_subject_and_labels_come_from_derivatives(tmp_path: Path) -> None:
    """Every session is a scan of its subject, with its own label map and the table's names."""
    found = find_bids(make_bids(tmp_path, subjects=2, sessions=2))
    assert [scan.subject for scan in found.scans] == ["sub-00", "sub-00", "sub-01", "sub-01"]
    for scan in found.scans:
        assert scan.label.name == scan.image.name.replace("T1w", "dseg")
        assert scan.names[6] == "basal_ganglia"


def test_bids_keeps_only_harmless_scanner_facts(tmp_path: Path) -> None:
    """Of a sidecar only numbers of the acquisition are kept: no names, no institution."""
    found = find_bids(make_bids(tmp_path, subjects=1, sessions=1))
    assert found.scans[0].scanner == {"field_strength_t": 3}


def test_bids_without_sessions_and_derivatives(tmp_path: Path) -> None:
    """Scans straight under the subject, of another suffix, are found without labels."""
    save_nifti(tmp_path / "sub-a" / "anat" / "sub-a_T2w.nii", scan_array(1))
    (scan,) = find_bids(tmp_path, suffix="T2w").scans
    assert (scan.source, scan.label) == ("sub-a/anat/sub-a_T2w", None)


def test_bids_several_label_maps_ask_for_a_choice(tmp_path: Path) -> None:
    """Two label maps for one scan are listed; --derivative or --desc settles it."""
    make_bids(tmp_path, subjects=1, sessions=1)
    other = tmp_path / "derivatives" / "auto" / "sub-00" / "ses-0" / "anat"
    save_nifti(other / "sub-00_ses-0_desc-aseg_dseg.nii.gz", label_array())
    problem = whats(find_bids(tmp_path))["sub-00/ses-0/anat/sub-00_ses-0_T1w"]
    assert problem.startswith("2 label maps")
    for choice in ({"derivative": "auto"}, {"desc": "aseg"}):
        found = find_bids(tmp_path, **choice)
        assert not found.problems
        assert found.scans[0].label.parent == other


def test_bids_label_of_one_run_goes_to_that_run(tmp_path: Path) -> None:
    """A label map that names its run belongs to that run alone; one that doesn't is not guessed."""
    anat = tmp_path / "sub-a" / "anat"
    labels = tmp_path / "derivatives" / "m" / "sub-a" / "anat"
    for run in (1, 2):
        save_nifti(anat / f"sub-a_run-{run}_T1w.nii.gz", scan_array(run))
    named = save_nifti(labels / "sub-a_run-2_desc-manual_dseg.nii.gz", label_array())
    found = find_bids(tmp_path)
    assert [scan.label for scan in found.scans] == [None, named]
    named.rename(labels / "sub-a_dseg.nii.gz")
    assert all("fits 2 scans" in what for what in whats(find_bids(tmp_path)).values())
    assert len(find_bids(tmp_path).problems) == 2


def test_bids_files_in_a_template_space_are_left_alone(tmp_path: Path) -> None:
    """Scans and label maps resampled to a template are not the subject's own and are not taken."""
    make_bids(tmp_path, subjects=1, sessions=1)
    anat = tmp_path / "derivatives" / "manual" / "sub-00" / "ses-0" / "anat"
    save_nifti(anat / "sub-00_ses-0_space-MNI152NLin6Asym_dseg.nii.gz", label_array())
    found = find_bids(tmp_path)
    assert not found.problems
    assert found.scans[0].label == anat / "sub-00_ses-0_dseg.nii.gz"


def test_a_derivative_dataset_can_be_the_source_itself(tmp_path: Path) -> None:
    """In a derivative dataset scans and label maps lie side by side, and the nearest table counts."""
    anat = tmp_path / "sub-a" / "anat"
    save_nifti(anat / "sub-a_desc-preproc_T1w.nii.gz", scan_array(1))
    save_nifti(anat / "sub-a_desc-aseg_dseg.nii.gz", label_array())
    (tmp_path / "desc-aseg_dseg.tsv").write_text("index\tname\n1\tcsf\n")
    (tmp_path / "desc-other_dseg.tsv").write_text("index\tname\n1\tthalamus\n")
    (scan,) = find_bids(tmp_path).scans
    assert scan.names == {1: "csf"}


def test_bids_lists_subjects_without_a_scan_and_labels_without_one(tmp_path: Path) -> None:
    """A subject without a scan and a label map that fits no scan are each listed."""
    make_bids(tmp_path, subjects=1, sessions=1)
    (tmp_path / "sub-07" / "anat").mkdir(parents=True)
    stray = tmp_path / "derivatives" / "manual" / "sub-99" / "anat" / "sub-99_dseg.nii.gz"
    save_nifti(stray, label_array())
    assert whats(find_bids(tmp_path)) == {
        "sub-07": "has no anat/*_T1w.nii or .nii.gz",
        "derivatives/manual/sub-99/anat/sub-99_dseg": "is a label map that fits no T1w scan",
    }


def test_bids_refuses_an_unknown_derivative_and_a_broken_table(tmp_path: Path) -> None:
    """A derivative that isn't there and a dseg.tsv without its columns are named."""
    make_bids(tmp_path, subjects=1)
    with pytest.raises(SegdistillError, match="gone: no such folder for --derivative"):
        find_bids(tmp_path, derivative="gone")
    (tmp_path / "derivatives" / "manual" / "dseg.tsv").write_text("code\tname\n1\tcsf\n")
    with pytest.raises(SegdistillError, match=r"dseg\.tsv: expected tab-separated columns"):
        find_bids(tmp_path)


@pytest.mark.parametrize("name", ["sub-02", "sub-01_ses-2", "run-1"])
def test_bids_folder_and_file_name_must_agree(tmp_path: Path, name: str) -> None:
    """A scan or label map whose name says another subject or session than its folder is a problem."""
    save_nifti(tmp_path / "sub-01" / "anat" / f"{name}_T1w.nii", scan_array(1))
    labels = tmp_path / "derivatives" / "m"
    save_nifti(labels / "sub-02" / "anat" / "sub-01_dseg.nii", label_array())
    found = find_bids(tmp_path)
    assert not found.scans
    assert all("its name says" in what for what in whats(found).values())


@pytest.mark.parametrize("codes", ["1\tcsf\n1\tthalamus\n", "1\tcsf\n1.0\tthalamus\n", "one\tcsf\n"])
def test_bids_one_code_with_two_names_is_refused(tmp_path: Path, codes: str) -> None:
    """A table that names a code twice, or a code that is no number, is refused and not guessed."""
    make_bids(tmp_path, subjects=1)
    (tmp_path / "derivatives" / "manual" / "dseg.tsv").write_text(f"index\tname\n{codes}")
    with pytest.raises(SegdistillError, match=r"dseg\.tsv: index (1 has two names|'one' is no)"):
        find_bids(tmp_path)


def test_bids_two_tables_for_one_map_are_not_guessed(tmp_path: Path) -> None:
    """Two tables that fit a label map equally well are both named."""
    save_nifti(tmp_path / "sub-a" / "anat" / "sub-a_T1w.nii", scan_array(1))
    save_nifti(tmp_path / "sub-a" / "anat" / "sub-a_desc-x_seg-y_dseg.nii", label_array())
    for name in ("desc-x", "seg-y"):
        (tmp_path / f"{name}_dseg.tsv").write_text("index\tname\n1\tcsf\n")
    with pytest.raises(SegdistillError, match=r"desc-x_dseg\.tsv and seg-y_dseg\.tsv"):
        find_bids(tmp_path)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ('{"FlipAngle": NaN, "EchoTime": 0.003}', {"echo_time_s": 0.003}),
        ('{"EchoTime": 1e999, "FlipAngle": "9"}', {}),
        ('[{"EchoTime": 0.003}]', None),
        ('{"EchoTime": 0.003, "EchoTime": 0.005}', None),
    ],
)
def test_bids_sidecars_give_numbers_or_a_problem(
    tmp_path: Path, text: str, facts: dict[str, float] | None
) -> None:
    """A value that is no finite number is left out; a sidecar that is no object is a problem."""
    image = save_nifti(tmp_path / "sub-a" / "anat" / "sub-a_T1w.nii", scan_array(1))
    image.with_suffix(".json").write_text(text)
    found = find_bids(tmp_path)
    assert [scan.scanner for scan in found.scans] == ([] if facts is None else [facts])
    assert list(whats(found)) == (["sub-a/anat/sub-a_T1w"] if facts is None else [])


def test_hidden_files_are_nobodys_scans(tmp_path: Path) -> None:
    """What macOS and interrupted copies leave beside scans isn't taken for one, in any layout."""
    for layout, make in MAKERS.items():
        source = make(tmp_path / layout)
        before = find_scans(source, layout, Pick())
        for path in list(source.rglob("*.*gz")):
            path.with_name(f"._{path.name}").write_bytes(b"Mac OS X")
        save_mgz(source / ".partial-x" / "mri" / "orig.mgz", scan_array(1))
        assert find_scans(source, layout, Pick()) == before


# ---- FreeSurfer ----


def test_freesurfer_templates_are_nobodys_scans(tmp_path: Path) -> None:
    """Fsaverage is left out, and every subject's parcellation is its label map."""
    found = find_freesurfer(make_freesurfer(tmp_path, subjects=2))
    assert [scan.subject for scan in found.scans] == ["bert0", "bert1"]
    assert {scan.label.name for scan in found.scans} == {"aparc.DKTatlas+aseg.mgz"}


def test_freesurfer_takes_the_first_image_that_all_subjects_have(tmp_path: Path) -> None:
    """One subject without orig.mgz makes the whole site use norm.mgz, so that no site is mixed."""
    make_freesurfer(tmp_path, subjects=2)
    for number in range(2):
        save_mgz(tmp_path / f"bert{number}" / "mri" / "norm.mgz", scan_array(number + 10))
    assert {scan.image.name for scan in find_freesurfer(tmp_path).scans} == {"orig.mgz"}
    assert {scan.image.name for scan in find_freesurfer(tmp_path, "norm.mgz").scans} == {"norm.mgz"}
    (tmp_path / "bert1" / "mri" / "orig.mgz").unlink()
    assert {scan.image.name for scan in find_freesurfer(tmp_path).scans} == {"norm.mgz"}
    assert whats(find_freesurfer(tmp_path, "orig.mgz")) == {"bert1": "has no mri/orig.mgz"}


def test_freesurfer_sessions_in_folder_names_share_a_subject(tmp_path: Path) -> None:
    """Folders named sub-X_ses-Y are scans of one subject."""
    for name in ("sub-1_ses-a", "sub-1_ses-b", "sub-2"):
        save_mgz(tmp_path / name / "mri" / "orig.mgz", scan_array(len(name)))
    subjects = [scan.subject for scan in find_freesurfer(tmp_path).scans]
    assert subjects == ["sub-1", "sub-1", "sub-2"]


def test_freesurfer_lists_unfinished_and_longitudinal_runs(tmp_path: Path) -> None:
    """A run that hasn't finished and a longitudinal repeat are each listed."""
    make_freesurfer(tmp_path, subjects=2)
    (tmp_path / "bert0" / "scripts").mkdir()
    (tmp_path / "bert0" / "scripts" / "IsRunning.lh+rh").touch()
    save_mgz(tmp_path / "bert1.long.base" / "mri" / "orig.mgz", scan_array(7))
    problems = whats(find_freesurfer(tmp_path))
    assert "has not finished" in problems["bert0"]
    assert "longitudinal" in problems["bert1.long.base"]


def test_fastsurfers_maps_are_said_and_taken_on_request(tmp_path: Path) -> None:
    """A subject with other maps than the one asked for is a problem; --segmentation takes them."""
    fast = "aparc.DKTatlas+aseg.deep.mgz"
    make_freesurfer(tmp_path, subjects=2)
    for number in range(2):
        mri = tmp_path / f"bert{number}" / "mri"
        (mri / "aparc.DKTatlas+aseg.mgz").rename(mri / fast)
    found = find_freesurfer(tmp_path)
    assert not found.scans
    assert len(whats(found)) == 2
    for what in whats(found).values():
        assert f"{fast} of FastSurfer; say with --segmentation" in what
    found = find_freesurfer(tmp_path, segmentation=fast)
    assert {scan.label.name for scan in found.scans} == {fast}
    assert not found.problems
    with pytest.raises(SegdistillError, match="no subject"):
        find_freesurfer(tmp_path, segmentation="aseg.deep.mgz")


@pytest.mark.parametrize(
    ("logs", "bare"),
    [
        (["recon-all.error", "recon-all.log"], False),
        (["recon-all.log"], False),
        (["deep-seg.log"], False),
        (["recon-all.log", "recon-all.done"], True),
        ([], True),
    ],
)
def test_freesurfer_failed_runs_are_no_bare_scans(tmp_path: Path, logs: list[str], bare: bool) -> None:
    """A run that failed or stopped before its map is a problem; a scan nobody segmented isn't."""
    make_freesurfer(tmp_path, subjects=1)
    (tmp_path / "bert0" / "mri" / "aparc.DKTatlas+aseg.mgz").unlink()
    for name in logs:
        (tmp_path / "bert0" / "scripts").mkdir(exist_ok=True)
        (tmp_path / "bert0" / "scripts" / name).touch()
    found = find_freesurfer(tmp_path)
    assert [scan.label for scan in found.scans] == ([None] if bare else [])
    assert list(whats(found)) == ([] if bare else ["bert0"])


def test_freesurfer_a_failed_rerun_is_not_taken_with_its_old_map(tmp_path: Path) -> None:
    """A failed run is a problem even where an older map lies beside the scan."""
    make_freesurfer(tmp_path, subjects=1)
    (tmp_path / "bert0" / "scripts").mkdir()
    (tmp_path / "bert0" / "scripts" / "recon-all.error").touch()
    assert "recon-all failed" in whats(find_freesurfer(tmp_path))["bert0"]


def test_freesurfer_refuses_another_image(tmp_path: Path) -> None:
    """Only orig.mgz and norm.mgz are scans."""
    with pytest.raises(SegdistillError, match=r"orig\.mgz or norm\.mgz"):
        find_freesurfer(make_freesurfer(tmp_path, subjects=1), "wm.mgz")


# ---- leaving out ----


def test_exclude_leaves_out_cases_subjects_and_their_problems(tmp_path: Path) -> None:
    """--exclude takes the name of a case, of a subject, or of a problem, and no other name."""
    make_bids(tmp_path, subjects=3, sessions=2)
    (tmp_path / "sub-07" / "anat").mkdir(parents=True)
    found = find_bids(tmp_path)
    left = without(found, ["sub-00", "sub-01/ses-1/anat/sub-01_ses-1_T1w", "sub-07"])
    assert [scan.image.name for scan in left.scans] == [
        "sub-01_ses-0_T1w.nii.gz",
        "sub-02_ses-0_T1w.nii.gz",
        "sub-02_ses-1_T1w.nii.gz",
    ]
    assert not left.problems
    with pytest.raises(SegdistillError, match="sub-8: no such case"):
        without(found, ["sub-8"])
