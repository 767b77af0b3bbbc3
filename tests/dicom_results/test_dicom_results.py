"""What the SEG and the SR of a series say, and which series can't have them."""

import io
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as known_codes
from pydicom.sr.coding import Code
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, generate_uid
from typer.testing import CliRunner

from segdistill.cli import app
from segdistill.dicom_results import (
    DicomResultError,
    Model,
    Results,
    Source,
    make_results,
    read_source,
    structure_codes,
)
from segdistill.dicom_results.texts import plain
from segdistill.files import SegdistillError
from segdistill.runtime.plan import Structure
from segdistill.sites.protocol import PROTOCOLS, read_protocol
from segdistill.texts import read_yaml_mapping
from segdistill.volume import Volume, VolumeError, read_volume, write_label_map
from tests.dicom_readers import complaints, segments, volumes
from tests.dicom_series import SERIES, STUDY, written
from tests.onnx_models import make_plan, threshold_bundle

WHEN = datetime(2026, 1, 2, 3, 4, 5)
MODEL = Model("abdominal_ct student-x4", "3", "ab" * 32)
TASKS = sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))


def task_plan(task: str) -> Any:
    """A plan with a task's structures and label protocol."""
    protocol = read_protocol(task)
    structures = tuple(Structure(code, name) for code, name in protocol.structures.items())
    return make_plan(task=task, structures=structures, label_protocol=protocol.name)


PLAN = task_plan("abdominal_ct")
CODES = structure_codes(PLAN, read_yaml_mapping(PROTOCOLS / "abdominal_ct.yaml"))
FOUND = {"spleen": 4, "kidney_right": 3, "liver": 2}  # voxels


def series(folder: Path, slices: int = 4, change: Any = lambda index, slice_: None) -> Source:
    """A small CT series, and as a result's source."""
    folder.mkdir(exist_ok=True)
    hu = np.random.default_rng(0).integers(-500, 500, (6, 5, slices)).astype(np.int16) // 2 * 2
    written(folder, hu, change=change)
    return read_source(folder)


def label_map(source: Source) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The structures of :data:`FOUND` on a source's grid."""
    labels = np.zeros(source.grid.array.shape, np.uint8)
    code_of = {entry.name: entry.code for entry in PLAN.structures}
    for row, (name, voxels) in enumerate(FOUND.items()):
        labels[:voxels, row, 1] = code_of[name]
    return labels


def results(source: Source, **changes: Any) -> Results:
    """Results of :func:`label_map`."""
    arguments: dict[str, Any] = {
        "labels": label_map(source),
        "volumes_ml": {entry.name: 0.5 * FOUND.get(entry.name, 0) for entry in PLAN.structures},
        "structures": PLAN.structures,
        "codes": CODES,
        "model": MODEL,
        "when": WHEN,
    }
    return make_results(source, **{**arguments, **changes})


def opened(body: bytes | None) -> Dataset:
    """A result's dataset."""
    assert body is not None
    return pydicom.dcmread(io.BytesIO(body))


def test_the_report_has_the_volume_of_every_structure(tmp_path: Path) -> None:
    """As dcmqi reads the SR, each structure has its volume in cm3, those not found 0 and no segment."""
    made = results(series(tmp_path))
    assert complaints(made.sr) == []
    groups = {group["TrackingIdentifier"]: group for group in volumes(made.sr)}
    assert list(groups) == [entry.name for entry in PLAN.structures]
    for name, group in groups.items():
        (item,) = group["measurementItems"]
        assert item["units"]["CodeValue"] == "cm3"
        assert float(item["value"]) == 0.5 * FOUND.get(name, 0)
        assert ("ReferencedSegment" in group) == (name in FOUND)
    seg = opened(made.seg)
    assert groups["spleen"]["segmentationSOPInstanceUID"] == seg.SOPInstanceUID
    assert groups["spleen"]["SourceSeriesForImageSegmentation"] == SERIES
    assert groups["liver"]["Finding"]["CodeMeaning"] == "Liver"


def test_the_segmentation_has_what_was_found_with_code_side_and_colour(tmp_path: Path) -> None:
    """The SEG has the structures that have voxels and no other, each with code, side and colour."""
    made = results(series(tmp_path))
    assert made.seg is not None
    assert complaints(made.seg) == []
    found, _ = segments(made.seg)
    assert [one["SegmentLabel"] for one in found] == ["spleen", "kidney right", "liver"]
    kidney = found[1]
    assert kidney["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == "64033007"
    assert kidney["SegmentedPropertyTypeModifierCodeSequence"]["CodeMeaning"] == "Right"
    assert kidney["recommendedDisplayRGBValue"] == pytest.approx([185, 102, 83], abs=2)
    sr = opened(made.sr)
    sides = [str(item.value) for item in sr.iterall() if item.keyword == "CodeMeaning"]
    assert {"Right", "Left"} <= set(sides)


def test_both_say_which_model_made_them_and_that_it_is_research(tmp_path: Path) -> None:
    """SEG and SR name the algorithm, its version and the bundle's digest, and say 'research use'."""
    made = results(series(tmp_path))
    for body in (made.seg, made.sr):
        said = [str(item.value) for item in opened(body).iterall()]
        assert MODEL.name in said
        assert MODEL.version in said
        assert any(MODEL.bundle_digest in text for text in said)
        assert any("Research use only, not a medical device" in text for text in said)
        assert "RESEARCH" in said
        assert "research use" in opened(body).SeriesDescription
        assert opened(body).StudyInstanceUID == STUDY
    assert opened(made.sr).VerificationFlag == "UNVERIFIED"
    assert opened(made.sr).PreliminaryFlag == "PRELIMINARY"


def test_where_nothing_was_found_there_is_a_report_alone(tmp_path: Path) -> None:
    """No segmentation without a segment; an older one is taken away, and the report says 0."""
    source = series(tmp_path / "series")
    results(source).write(tmp_path / "out")
    made = results(
        source,
        labels=np.zeros(source.grid.array.shape, np.uint8),
        volumes_ml={entry.name: 0.0 for entry in PLAN.structures},
    )
    assert made.seg is None
    assert complaints(made.sr) == []
    assert made.write(tmp_path / "out") == [tmp_path / "out" / "sr.dcm"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sr.dcm"]
    assert {item["measurementItems"][0]["value"] for item in volumes(made.sr)} == {"0.0"}


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    """Made twice, of the same slices under other names in another folder, the files are the same."""
    first = results(series(tmp_path / "a"), kind=kind)
    other = tmp_path / "b"
    other.mkdir()
    for number, path in enumerate(sorted((tmp_path / "a").iterdir(), reverse=True)):
        (other / f"copy{number}").write_bytes(path.read_bytes())
    assert results(read_source(other), kind=kind) == first


def test_a_retry_is_the_same_object_and_all_else_is_another(tmp_path: Path) -> None:
    """UIDs stay with another time; another bundle, another slice or another kind has other ones."""

    def uids(made: Results) -> set[str]:
        found = {opened(body)[name].value for body in (made.seg, made.sr) for name in _UIDS}
        assert len(found) == 4
        assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in found)
        return found

    source = series(tmp_path / "a")
    first = uids(results(source))
    assert uids(results(source, when=WHEN + timedelta(days=1))) == first
    for other in (
        results(source, model=replace(MODEL, bundle_digest="cd" * 32)),
        results(source, kind="LABELMAP"),
        results(series(tmp_path / "b", slices=5)),
    ):
        assert not uids(other) & first


_UIDS = ("SOPInstanceUID", "SeriesInstanceUID")


@pytest.mark.parametrize("task", TASKS)
def test_every_structure_of_a_protocol_has_a_code_of_its_own(task: str) -> None:
    """Each has a code and a colour that no other has; what is called SNOMED CT is what pydicom knows."""
    plan = task_plan(task)
    body = read_yaml_mapping(PROTOCOLS / f"{task}.yaml")
    assert set(body["codes"]) == {entry.name for entry in plan.structures}
    found = structure_codes(plan, body)
    assert len({(code.kind, code.modifier) for code in found.values()}) == len(found)
    assert len({code.colour for code in found.values()}) == len(found)
    terms = {
        str(code.value)
        for group in ("SCT", "cid7151", "cid7140", "cid7150")
        for name in getattr(known_codes, group).dir()
        if (code := getattr(getattr(known_codes, group), name)).scheme_designator == "SCT"
    }
    for code in found.values():
        for term in (code.category, code.kind, *([code.modifier] if code.modifier else [])):
            assert term.scheme_designator in ("SCT", "99SEGDISTILL")
            if term.scheme_designator == "SCT":
                assert term.value in terms | _NOT_IN_DICOM


_NOT_IN_DICOM = {"113276009", "32610002"}  # Intestinal structure, Basal ganglion structure


def test_codes_of_another_protocol_are_not_taken() -> None:
    """A bundle of another label protocol has private codes, made from its structures' names."""
    body = read_yaml_mapping(PROTOCOLS / "abdominal_ct.yaml")
    plan = replace(PLAN, label_protocol="ours")
    found = structure_codes(plan, body)
    assert found == structure_codes(plan)
    assert found["spleen"].kind == Code("SPLEEN", "99SEGDISTILL", "spleen")
    assert len({code.colour for code in found.values()}) == len(found)


@given(names=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=8, unique=True))
def test_any_names_give_codes_that_differ(names: list[str]) -> None:
    """Whatever structures are called, in any script, each has a code of its own that DICOM takes."""
    plan = make_plan(structures=tuple(Structure(code, name) for code, name in enumerate(names, 1)))
    found = structure_codes(plan)
    values = [code.kind.value for code in found.values()]
    assert len(set(values)) == len(names)
    assert all(0 < len(value) <= 16 and plain(value, 16) == value for value in values)
    assert all(plain(code.kind.meaning) == code.kind.meaning != "" for code in found.values())


def test_names_in_any_script_are_written(tmp_path: Path) -> None:
    """Structures with accents, other scripts, backslashes and control characters make sound objects."""
    names = ("noyau caudé", "海馬", "a\\b", "tab\there", "x" * 200)
    plan = make_plan(structures=tuple(Structure(code, name) for code, name in enumerate(names, 1)))
    source = series(tmp_path)
    labels = np.zeros(source.grid.array.shape, np.uint8)
    labels[:5, 0, 0] = np.arange(1, 6)
    made = results(
        source,
        labels=labels,
        volumes_ml=dict.fromkeys(names, 0.1),
        structures=plan.structures,
        codes=structure_codes(plan),
    )
    for body in (made.seg, made.sr):
        assert body is not None
        assert complaints(body) == []
    assert [one.SegmentLabel for one in opened(made.seg).SegmentSequence][:2] == ["noyau caude", "??"]


@pytest.mark.parametrize(
    "section",
    [
        {"spleen": {"category": ["1", "SCT", "a"], "type": ["2", "SCT"], "colour": [50, 0, 0]}},
        {"spleen": {"category": ["1", "SCT", "a"], "type": ["2", "SCT", "b"], "colour": [500, 0, 0]}},
        {"spleen": {"category": ["1", "SCT", "a"], "type": ["2" * 17, "SCT", "b"], "colour": [5, 0, 0]}},
        {"spleen": ["2", "SCT", "b"]},
        ["spleen"],
    ],
)
def test_codes_that_are_none_are_refused(section: Any) -> None:
    """A section that isn't a category, a type and a colour each is refused with the file's name."""
    with pytest.raises(SegdistillError, match=r"our\.yaml: the codes aren't"):
        structure_codes(PLAN, {"protocol": PLAN.label_protocol, "codes": section}, "our.yaml")


def _raw(**elements: tuple[str, bytes]) -> Callable[[int, Dataset], None]:
    """Bytes as a faulty exporter writes them, in every slice."""

    def change(index: int, slice_: Dataset) -> None:
        for name, (vr, value) in elements.items():
            tag = Tag(name)
            slice_[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)

    return change


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        (None, "Müller^Jörg ".encode("latin1")),
        (b"ISO_IR 100", "Müller^Jörg ".encode("latin1")),
        (b"ISO_IR 192", "Müller^Jörg ".encode("latin1")),  # says UTF-8, and isn't
        (b"GB18030 ", "王^小东 ".encode("gb18030")),
        (b"\\ISO 2022 IR 87 ", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B "),
        (b"latin-1 ", "Müller^Jörg ".encode("latin1")),  # no term of DICOM's
    ],
)
def test_the_patient_stays_the_same_to_the_byte(
    tmp_path: Path, character_set: bytes | None, name: bytes
) -> None:
    """Name and character set have the series' bytes, also where these contradict each other."""
    name += b" " * (len(name) % 2)
    elements = {"PatientName": ("PN", name), "PatientID": ("LO", "Nr. 7é".encode("latin1"))}
    if character_set is not None:
        elements["SpecificCharacterSet"] = ("CS", character_set)
    made = results(series(tmp_path, change=_raw(**elements)))
    for body in (made.seg, made.sr):
        assert body is not None
        read = opened(body)
        assert read.get_item("PatientName").value == name
        assert read.get_item("PatientID").value == elements["PatientID"][1]
        assert ("SpecificCharacterSet" in read) == (character_set is not None)
        if character_set is not None:
            assert character_set.rstrip() in body[:4000]
        about = ("(0x0010,", "(0x0008,0x0005)", "Error - Dicom dataset contains invalid data values")
        assert all(any(field in line for field in about) for line in complaints(body))


def test_odd_patient_fields_do_not_stop_a_result(tmp_path: Path) -> None:
    """A sex, dates and ages that DICOM doesn't know, and private elements, are no reason to refuse."""

    def change(index: int, slice_: Dataset) -> None:
        _raw(
            PatientSex=("CS", b"unknown "),
            PatientBirthDate=("DA", b"1.1.1970"),
            StudyDate=("DA", b"yesterday "),
            StudyTime=("TM", b"noon"),
        )(index, slice_)
        slice_.private_block(0x0029, "MAKER", create=True).add_new(1, "OB", b"\xff\0" * 8)

    made = results(series(tmp_path, change=change))
    for body in (made.seg, made.sr):
        assert opened(body).get_item("PatientSex").value == b"unknown "
        assert not [item for item in opened(body).iterall() if item.tag.is_private]


def _without(name: str) -> Callable[[int, Dataset], None]:
    return lambda index, slice_: delattr(slice_, name) if index == 2 else None


def _other(name: str) -> Callable[[int, Dataset], None]:
    return lambda index, slice_: setattr(slice_, name, generate_uid()) if index == 2 else None


def _same_instance(index: int, slice_: Dataset) -> None:
    slice_.SOPInstanceUID = "1.2.3"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without("StudyInstanceUID"), "a slice has no StudyInstanceUID"),
        (_without("FrameOfReferenceUID"), "a slice has no FrameOfReferenceUID"),
        (_without("SOPInstanceUID"), "a slice has no SOPInstanceUID"),
        (_other("StudyInstanceUID"), "differ in StudyInstanceUID"),
        (_other("FrameOfReferenceUID"), "differ in FrameOfReferenceUID"),
        (_same_instance, "two slices have one SOPInstanceUID"),
    ],
)
def test_what_no_result_can_refer_to_is_refused(
    tmp_path: Path, change: Callable[[int, Dataset], None], says: str
) -> None:
    """A series without the UIDs that a result must name, or of two studies, is refused by its folder."""
    with pytest.raises(DicomResultError, match=says) as caught:
        series(tmp_path, change=change)
    assert str(tmp_path) in str(caught.value)
    assert "Nobody" not in str(caught.value)


def _tilt(index: int, slice_: Dataset) -> None:
    slice_.ImagePositionPatient = [-10.0, 20.0 + 0.6 * index, 30.0 + 2.5 * index]


def _gap(index: int, slice_: Dataset) -> None:
    slice_.ImagePositionPatient = [-10.0, 20.0, 30.0 + 2.5 * (index + (index > 2))]


def _copies(index: int, slice_: Dataset) -> None:
    slice_.ImagePositionPatient = [-10.0, 20.0, 30.0 + 2.5 * (index // 2)]


def _phases(index: int, slice_: Dataset) -> None:
    slice_.AcquisitionNumber = 1 + index % 2


def _colour(index: int, slice_: Dataset) -> None:
    slice_.PhotometricInterpretation = "RGB"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_tilt, "a gantry tilted by 13.5 degrees"),
        (_gap, "1 slices are missing"),
        (_copies, "are at one place"),
        (_phases, "2 acquisitions lie between each other"),
        (_colour, "a colour image"),
    ],
)
def test_what_is_no_even_series_has_no_result(
    tmp_path: Path, change: Callable[[int, Dataset], None], says: str
) -> None:
    """Tilted, incomplete, doubled, mixed or colour: refused before a result, in the volume's words."""
    with pytest.raises(VolumeError, match=says):
        series(tmp_path, change=change)


def test_a_truncated_or_a_single_slice_has_no_result(tmp_path: Path) -> None:
    """A series of one slice, or with a file cut in its header, is refused in the volume's words."""
    with pytest.raises(VolumeError, match="a single slice is no volume"):
        series(tmp_path / "one", slices=1)
    series(tmp_path / "cut")
    path = min((tmp_path / "cut").iterdir())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(VolumeError, match=path.name):
        read_source(tmp_path / "cut")


def test_an_object_that_is_no_image_of_dicoms_is_refused(tmp_path: Path) -> None:
    """A maker's private kind of image has no result: its attributes aren't known."""

    def change(index: int, slice_: Dataset) -> None:
        slice_.SOPClassUID = slice_.file_meta.MediaStorageSOPClassUID = "1.3.46.670589.11.0.0.12.1"

    with pytest.raises(DicomResultError, match="no DICOM results can be made for this series") as caught:
        results(series(tmp_path, change=change))
    assert "Nobody" not in str(caught.value)
    assert CTImageStorage not in str(caught.value)


def test_a_label_map_of_another_scan_or_model_is_refused(tmp_path: Path) -> None:
    """Another shape, or a code that no structure has, is refused before anything is written."""
    source = series(tmp_path)
    with pytest.raises(DicomResultError, match=r"\(6, 5, 3\) voxels, the series \(6, 5, 4\)"):
        results(source, labels=np.zeros((6, 5, 3), np.uint8))
    with pytest.raises(DicomResultError, match="the code 99"):
        results(source, labels=np.full(source.grid.array.shape, 99, np.uint8))


@pytest.mark.slow
def test_a_whole_abdomen_is_small_as_a_label_map(tmp_path: Path) -> None:
    """300 slices of 512 x 512 with 11 structures: LABELMAP takes less than 5 MB, BINARY under 60."""

    def large(index: int, slice_: Dataset) -> None:
        slice_.Columns = slice_.Rows = 512  # headers alone are read

    written(tmp_path, np.zeros((2, 2, 300), np.int16), change=large)
    source = read_source(tmp_path)
    labels = np.zeros(source.grid.array.shape, np.uint8)
    generator = np.random.default_rng(0)
    axes = np.ogrid[:512, :512, :300]
    for entry in PLAN.structures:
        centre, radius = generator.uniform((120, 120, 60), (390, 390, 240)), generator.uniform(25, 70, 3)
        parts = [((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radius, strict=True)]
        labels[sum(parts) < 1 + 0.1 * np.sin(axes[0] / 3) * np.cos(axes[1] / 4)] = entry.code
    assert len(np.unique(labels)) == 12
    made = results(source, labels=labels, kind="LABELMAP")
    assert made.seg is not None
    assert len(made.seg) <= 5_000_000
    assert complaints(made.seg) == []
    binary = results(source, labels=labels).seg
    assert binary is not None
    assert len(made.seg) < len(binary) < 60_000_000


def test_the_command_writes_both_files(tmp_path: Path) -> None:
    """From a folder, its label map and the bundle, the command writes what dcmqi and dciodvfy accept."""
    source = series(tmp_path / "series")
    bundle = threshold_bundle(tmp_path / "bundle")
    labels = np.zeros(source.grid.array.shape, np.uint8)
    labels[1:3, 1:3, 1:3] = 1
    scan = read_volume(tmp_path / "series")
    write_label_map(tmp_path / "labels.nii.gz", labels, scan)
    words = ["dicom", str(tmp_path / "series"), str(tmp_path / "labels.nii.gz")]
    words += ["--model", str(bundle.folder), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--at", "2026-01-31T12:00:00"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"seg.dcm", "sr.dcm"}
    seg, sr = ((tmp_path / "out" / name).read_bytes() for name in ("seg.dcm", "sr.dcm"))
    assert complaints(seg) + complaints(sr) == []
    (group,) = volumes(sr)
    assert float(group["measurementItems"][0]["value"]) == pytest.approx(8 * 0.8 * 0.9 * 2.5 / 1000)
    assert opened(sr).ContentDate == "20260131"
    assert bundle.digest in seg.decode("latin1")

    moved = Volume(scan.array, scan.affine @ np.diag([1.0, -1.0, 1.0, 1.0]))
    write_label_map(tmp_path / "labels.nii.gz", labels, moved)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "not on the grid of the series" in done.output
