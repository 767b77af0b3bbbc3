"""From the source's label codes to the task's."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segdistill.files import SegdistillError
from segdistill.overlap import IGNORED
from segdistill.sites.imports.labels import CodeMap, choose_labels, codes_in
from segdistill.sites.protocol import read_protocol

BRAIN = read_protocol("brain_mri")


def test_names_of_the_structures_are_understood_however_written() -> None:
    """Without a choice, the source's own names are matched; case, spaces and hyphens don't matter."""
    names = {0: "Background", 3: "Basal Ganglia", 9: "CSF", 4: "brainstem-ventral-dc", 5: "tumour"}
    label_map = choose_labels(None, BRAIN).code_map(names)
    assert label_map.codes == {0: 0, 3: 6, 9: 1, 4: 8}
    assert label_map.unknown(np.array([0, 3, 5, 77])) == ["5 (tumour)", "77"]


def test_codes_are_never_guessed_without_names() -> None:
    """A source that doesn't name its codes, read without a choice, has only background known."""
    assert choose_labels(None, BRAIN).code_map(None).codes == {0: 0}


def test_same_takes_the_tasks_codes() -> None:
    """The choice 'same' leaves the task's own codes and 255, ignored, as they are, and no others."""
    assert choose_labels("same", BRAIN).code_map(None).codes == {
        code: code for code in (*range(11), IGNORED)
    }


def test_apply_maps_every_voxel_to_uint8() -> None:
    """Large codes become the task's, voxel by voxel, in a map of the same shape."""
    labels = np.array([[[0, 1002], [2035, 85]], [[10, 49], [24, 0]]], dtype=np.int32)
    mapped = choose_labels("freesurfer", BRAIN).code_map(None).apply(labels)
    assert mapped.dtype == np.uint8
    assert mapped.tolist() == [[[0, 3], [3, 0]], [[5, 5], [1, 0]]]


@given(
    arrays(
        np.int32,
        st.tuples(*[st.integers(1, 4)] * 3),
        elements=st.sampled_from([-(2**31), -3, 0, 7, 2035, 2**31 - 1]),
    )
)
def test_apply_agrees_with_the_map_for_any_codes(labels: np.ndarray) -> None:
    """Whatever the range of the codes, each voxel gets what the map says, and all codes are seen."""
    codes = {code: place for place, code in enumerate([0, -(2**31), -3, 7, 2035, 2**31 - 1])}
    mapped = CodeMap(codes, {}).apply(labels)
    assert mapped.ravel().tolist() == [codes[code] for code in labels.ravel().tolist()]
    assert codes_in(labels) == set(labels.ravel().tolist())


def test_a_map_file_goes_by_code_and_by_name(tmp_path: Path) -> None:
    """A user's file may name codes or names, sent to structures or background."""
    path = tmp_path / "map.yaml"
    path.write_text("41: thalamus\nLeft-Caudate: basal_ganglia\n7: background\n")
    label_map = choose_labels(str(path), BRAIN).code_map({50: "left caudate", 41: "other"})
    assert label_map.codes == {0: 0, 41: 5, 7: 0, 50: 6}


def test_a_map_file_extends_a_built_in_map(tmp_path: Path) -> None:
    """'extends' starts from a built-in map, and the file's own lines win."""
    path = tmp_path / "map.yaml"
    path.write_text("extends: freesurfer\n29: background\n24: ventricles\n")
    codes = choose_labels(str(path), BRAIN).code_map(None).codes
    assert codes == BRAIN.freesurfer | {29: 0, 24: 2}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("1: spleen", "'spleen' is no structure of brain_mri. Use one of: csf"),
        ("1: [csf]", "is no structure"),
        ("extends: other\n1: csf", "no built-in map"),
        ("- csf", "give lines of"),
        ("", "give lines of"),
        ("a: [", "not a YAML file"),
    ],
)
def test_a_wrong_map_file_is_refused(tmp_path: Path, text: str, wrong: str) -> None:
    """A map file that can't be followed is refused with the file and what is wrong."""
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(SegdistillError, match=wrong) as caught:
        choose_labels(str(path), BRAIN)
    assert str(path) in str(caught.value)


def test_a_missing_map_file_names_the_built_in_maps() -> None:
    """A choice that is neither a file nor a map is refused with the maps there are."""
    with pytest.raises(SegdistillError, match=r"no built-in map \(freesurfer, same\)"):
        choose_labels("nowhere.yaml", BRAIN)


@pytest.mark.parametrize("text", ["1: csf\n'1': thalamus\n", "A b: csf\na-b: thalamus\n", "no: csf\n"])
def test_a_map_file_that_can_be_read_two_ways_is_refused(tmp_path: Path, text: str) -> None:
    """One code or name with two structures, and a name that YAML takes for a truth, are refused."""
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(SegdistillError, match=r"map\.yaml: "):
        choose_labels(str(tmp_path / "map.yaml"), read_protocol("brain_mri"))


def test_a_code_may_be_quoted(tmp_path: Path) -> None:
    """A code in quotes is still a code."""
    (tmp_path / "map.yaml").write_text("'29': csf\n")
    assert choose_labels(str(tmp_path / "map.yaml"), read_protocol("brain_mri")).by_code == {29: 1}


def test_what_a_source_cannot_tell_is_ignored(tmp_path: Path) -> None:
    """A map file, and a source's own table, may say 'ignore'; nnU-Net's label of that name is one."""
    path = tmp_path / "map.yaml"
    path.write_text("extends: freesurfer\n30: ignore\n")
    assert choose_labels(str(path), BRAIN).code_map(None).codes[30] == IGNORED
    assert choose_labels(None, BRAIN).code_map({12: "ignore"}).codes == {0: 0, 12: IGNORED}
