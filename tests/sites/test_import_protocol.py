"""The label protocol of a task."""

from pathlib import Path

import pytest

from segdistill.files import SegdistillError
from segdistill.sites.protocol import PROTOCOLS, read_protocol


def test_brain_protocol_has_the_ten_structures_in_order() -> None:
    """The brain task has structures 1 to 10 under the protocol's name."""
    protocol = read_protocol("brain_mri")
    assert protocol.name == "mindboggle-10"
    assert list(protocol.structures) == list(range(1, 11))
    assert protocol.structures[1] == "csf"
    assert protocol.structures[10] == "cerebellar_white_matter"


@pytest.mark.parametrize(
    ("code", "structure"),
    [
        (24, "csf"),
        (43, "ventricles"),
        (63, "ventricles"),
        (2035, "cortical_grey_matter"),
        (3, "cortical_grey_matter"),
        (41, "cerebral_white_matter"),
        (253, "cerebral_white_matter"),
        (49, "thalamus"),
        (58, "basal_ganglia"),
        (54, "hippocampus_amygdala"),
        (60, "brainstem_ventral_dc"),
        (47, "cerebellar_grey_matter"),
        (46, "cerebellar_white_matter"),
        (85, "background"),
    ],
)
def test_freesurfer_codes_go_to_their_structures(code: int, structure: str) -> None:
    """FreeSurfer's codes of both sides map to the structure that their colour table names."""
    protocol = read_protocol("brain_mri")
    assert protocol.freesurfer[code] == protocol.code_of(structure)


def test_every_structure_can_come_from_freesurfer_and_undetermined_codes_cannot() -> None:
    """Each structure has a FreeSurfer code, and 'undetermined' (29, 61) has none."""
    protocol = read_protocol("brain_mri")
    assert set(protocol.freesurfer.values()) == {0, *protocol.structures}
    assert not {29, 61} & set(protocol.freesurfer)


def test_unknown_task_names_the_known_ones() -> None:
    """A task without a protocol is refused with the tasks there are."""
    with pytest.raises(SegdistillError, match=r"no label protocol for task 'liver'.*brain_mri"):
        read_protocol("liver")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("task: t\nprotocol: p\n", "not a label protocol"),
        ("task: t\nprotocol: p\nstructures: {1: a, 2: a}\n", "must exist, differ"),
        ("task: t\nprotocol: p\nstructures: {}\n", "must exist, differ"),
        ("task: t\nprotocol: p\nstructures: {300: a}\n", "1 to 254"),
        ("task: t\nprotocol: p\nstructures: {255: a}\n", "1 to 254"),
        ("task: t\nprotocol: p\nstructures: {1: ignore}\n", "not be background or ignore"),
        ("task: u\nprotocol: p\nstructures: {1: a}\n", "1 to 254 and the task"),
        ("task: t\nprotocol: p\nstructures: {1: a}\nmaps: {x: {b: 3}}\n", "not a label protocol"),
        (
            "task: t\nprotocol: p\nstructures: {1: a, 2: b}\nmaps: {x: {a: 3, b: 2-4}}\n",
            "two structures",
        ),
        ("task: [", "not a YAML file"),
    ],
)
def test_a_protocol_that_contradicts_itself_is_refused(tmp_path: Path, text: str, wrong: str) -> None:
    """A wrong protocol file is refused with what is wrong in it."""
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(SegdistillError, match=wrong):
        read_protocol("t", tmp_path)


def test_a_new_task_is_a_new_file(tmp_path: Path) -> None:
    """A protocol file alone makes a task, ranges and nested lists included."""
    (tmp_path / "t.yaml").write_text(
        "task: t\nprotocol: p\nstructures: {7: a}\nmaps: {x: {a: [1, [2, 3], 5-6], background: 0}}\n"
    )
    assert read_protocol("t", tmp_path).maps == {"x": {0: 0, 1: 7, 2: 7, 3: 7, 5: 7, 6: 7}}
    assert PROTOCOLS.is_dir()
