"""A label map that can be rendered is made from a segmentation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from segdistill.files import SegdistillError
from segdistill.simulation.rendering.labelmap import BORDER, DEPTH_MM, LabelMap
from segdistill.simulation.rendering.making import make_label_map
from segdistill.simulation.rendering.tissues import read_tissues
from segdistill.volume import Volume
from tests.simulation.rendering_heads import PROTOCOL, TISSUES, head, person, plan


def _tissue_of(source: LabelMap, name: str) -> list[int]:
    kinds = [source.tissues[tissue].name for tissue in source.tissue]
    return [code for code, kind in enumerate(kinds) if kind == name]


def test_every_code_keeps_its_structure_and_its_voxels() -> None:
    """Compact codes say what the source's codes said, voxel for voxel."""
    codes, source = head(), person()
    inner = tuple(slice(BORDER, -BORDER) for _ in range(3))
    around = source.codes.numpy().copy()
    around[inner] = 0
    assert not around.any()
    wanted = np.vectorize(lambda code: PROTOCOL.freesurfer.get(code, 0))(codes)
    assert np.array_equal(np.array(source.structure)[source.codes.numpy()[inner]], wanted)
    assert sum(source.counts) == source.codes.numel()
    assert len(set(source.codes.unique().tolist())) == len(np.unique(codes))


def test_the_plan_says_which_channel_a_structure_is() -> None:
    """Channels follow the plan's order; what it doesn't have is background."""
    source = person()
    few = plan(structures=[{"code": 4, "name": "white"}, {"code": 3, "name": "grey"}])
    white, grey = _tissue_of(source, "white_matter"), _tissue_of(source, "cortex")
    channels = source.channels(few)
    assert len(white) == len(grey) == 2  # left and right
    assert {channels[code] for code in white} == {1}
    assert {channels[code] for code in grey} == {2}
    assert sum(channels) == 1 + 1 + 2 + 2


@pytest.mark.parametrize("axes", ["RAS", "LIA", "PSR"])
def test_axes_in_any_order_give_the_same_map(axes: str) -> None:
    """A segmentation stored in other axes is turned to right, anterior, superior."""
    codes = head()
    stored = np.diag([4.0, 4.0, 4.0, 1.0])
    if axes != "RAS":
        import nibabel as nib

        turn = nib.orientations.ornt_transform(
            io_orientation(stored), nib.orientations.axcodes2ornt(tuple(axes))
        )
        stored = stored @ inv_ornt_aff(turn, codes.shape)
        codes = apply_orientation(codes, turn)
    made = make_label_map(Volume(codes, stored), PROTOCOL.freesurfer, TISSUES)
    assert torch.equal(made.codes, person().codes)


def test_parcels_of_the_cortex_are_one_tissue() -> None:
    """Codes that look alike become one compact code, whatever their number."""
    codes = head()
    cortex = np.flatnonzero(codes == 3)
    codes.reshape(-1)[cortex[::2]] = 1007
    assert torch.equal(person(codes).codes, person().codes)


def test_an_unknown_code_is_a_tissue_of_its_own() -> None:
    """A code that no tissue lists gets any brightness, and is background unless it is mapped."""
    unknown = person().tissues[person().tissue[_tissue_of(person(), "unknown 999")[0]]]
    assert unknown.between == ("air", "white")
    assert not unknown.brain
    mapped = make_label_map(
        Volume(head(), np.diag([4.0, 4.0, 4.0, 1.0])), {**PROTOCOL.freesurfer, 999: 5}, TISSUES
    )
    code = _tissue_of(mapped, "unknown 999")[0]
    assert mapped.structure[code] == 5
    assert mapped.tissues[mapped.tissue[code]].brain


def test_depth_is_the_distance_to_the_brain() -> None:
    """Depth grows by a millimetre a millimetre outside, and is negative well inside."""
    codes = np.zeros((9, 9, 40), np.int32)
    codes[..., :20] = 2
    codes[..., 20:] = 24
    source = person(codes, voxel_mm=1.0)
    line = source.depth[BORDER + 4, BORDER + 4, BORDER + 10 : -BORDER].numpy() * DEPTH_MM
    assert np.allclose(line[10:26], np.arange(16) + 0.5)
    assert (line[:8] < 0).all()


def test_a_map_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Written and read again, a map is the same, and its arrays stay on the disk."""
    source = person()
    source.write(tmp_path / "someone")
    again = LabelMap.read(tmp_path / "someone")
    for name in ("codes", "depth", "push", "places"):
        assert torch.equal(getattr(again, name), getattr(source, name))
    for name in (
        "structure",
        "tissue",
        "tissues",
        "counts",
        "centre",
        "content",
        "kept",
        "core",
        "voxel_mm",
    ):
        assert getattr(again, name) == getattr(source, name)


def test_a_broken_map_is_named(tmp_path: Path) -> None:
    """A map with an array missing is refused with its file and what to do."""
    person().write(tmp_path / "someone")
    (tmp_path / "someone.depth.npy").unlink()
    with pytest.raises(SegdistillError, match=r"someone\.map\.json.*prepare"):
        LabelMap.read(tmp_path / "someone")


@pytest.mark.parametrize(
    ("codes", "voxels", "says"),
    [
        (head(), (4.0, 4.0, 5.0), "cubes"),
        (np.zeros((8, 8, 8), np.int32), (1.0, 1.0, 1.0), "nothing but air"),
        (np.arange(1000, dtype=np.int32).reshape(10, 10, 10) + 5000, (1.0, 1.0, 1.0), "256"),
    ],
)
def test_what_makes_no_map_is_refused(
    codes: np.ndarray, voxels: tuple[float, float, float], says: str
) -> None:
    """Voxels that aren't cubes, air alone and too many codes are named."""
    with pytest.raises(SegdistillError, match=says):
        make_label_map(Volume(codes, np.diag([*voxels, 1.0])), PROTOCOL.freesurfer, TISSUES)


def test_every_structure_that_freesurfer_gives_has_a_tissue() -> None:
    """Each of FreeSurfer's codes in the protocol has a tissue, which lies in the brain or around it."""
    for code, structure in PROTOCOL.freesurfer.items():
        if structure:
            name, _ = TISSUES.part_of[code]
            assert TISSUES.tissues[name].brain == (name != "fluid"), (code, structure)


_ONE = """
modality: mri
grain: [0, 0]
patches: [0, 0]
tissues:
  a: {{between: {}, bright: {}, codes: {}}}
"""
_AGAIN = "  b: {between: [air, white], bright: [0, 1], codes: [0]}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modality: mri\ngrain: [0, 0]\n", "tissues"),
        (
            _ONE.format("[air, dark]", "[0, 1]", "[0]"),
            "takes two of",
        ),
        (
            _ONE.format("[air, white]", "[1, 0]", "[0]"),
            "low to high",
        ),
        (
            _ONE.format("[air, white]", "[0, 1]", "[0]") + _AGAIN,
            "twice",
        ),
    ],
)
def test_a_list_of_tissues_that_contradicts_itself_is_refused(
    tmp_path: Path, text: str, says: str
) -> None:
    """A mistake in the file is named with the file."""
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(SegdistillError, match=rf"odd\.yaml.*({says})"):
        read_tissues("odd", tmp_path)
    with pytest.raises(SegdistillError, match="Known: odd"):
        read_tissues("even", tmp_path)
