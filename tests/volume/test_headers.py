import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nibabel.freesurfer import mghformat
from scipy.spatial.transform import Rotation

from segdistill.volume import VolumeError, read_label_map, read_volume, stored_shape, write_label_map
from segdistill.volume.header import HEADER_BYTES, Header, parse_header, parsing

SHAPE = (24, 20, 16)
FIELDS = ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "xyzt_units")
ANGLES = st.tuples(*[st.sampled_from([0.0, 90.0, 180.0]) | st.floats(-180, 180)] * 3)
TILTS = st.sampled_from([0.0, 1e-5, 1e-3, 0.02, 0.1]) | st.floats(0, 1)
SIZES = st.tuples(*[st.floats(0.3, 6)] * 3)


def affine_of(
    angles, tilt=0.0, sizes=(1.0, 1.0, 1.0), mirrored=False, offset=(0.0, 0.0, 0.0)
) -> np.ndarray:
    """Turned by three angles in degrees and a small tilt about (1, 1, 1), with voxel sizes in mm."""
    turn = Rotation.from_euler("xyz", angles, degrees=True)
    turn *= Rotation.from_rotvec(np.radians(tilt) * np.ones(3) / np.sqrt(3))
    affine = np.eye(4)
    affine[:3, :3] = turn.as_matrix() * sizes * [-1.0 if mirrored else 1.0, 1, 1]
    affine[:3, 3] = offset
    return affine


def nifti_header(qform=None, sform=None, codes=(1, 1), shape=SHAPE, kind=nib.Nifti1Header, **fields):
    """A header with both forms; the fields are set to raw values, as a faulty exporter would."""
    header = kind()
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    qform = np.eye(4) if qform is None else qform
    header.set_sform(qform if sform is None else sform)
    header.set_qform(qform)
    header["qform_code"], header["sform_code"] = codes
    header["vox_offset"] = len(header.binaryblock) + 4
    for name, value in fields.items():
        header[name] = value
    return header


def mgh_start(affine=None, **fields) -> bytes:
    """The first bytes of an MGH file, its fields set to raw values."""
    body = nib.MGHImage(np.zeros(SHAPE, np.int16), np.eye(4) if affine is None else affine).to_bytes()
    raw = np.frombuffer(body, mghformat.header_dtype, 1).copy()
    for name, value in fields.items():
        raw[name] = value
    return raw.tobytes() + body[raw.nbytes : HEADER_BYTES]


def refused(start: bytes, *words: str) -> str:
    """Check that a header is refused, naming the file and saying ``words``."""
    with pytest.raises(VolumeError) as caught:
        parse_header(start, "scan.nii")
    message = str(caught.value)
    assert message.startswith("scan.nii: ")
    for word in words:
        assert word in message, message
    return message


def farthest(one: np.ndarray, other: np.ndarray, shape=SHAPE) -> float:
    """How far two affines put a voxel apart along an axis at most, in voxels of the first."""
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    corners[:, :3] *= np.array(shape) - 1
    apart = (other - one)[:3] @ corners.T
    return float(np.abs(np.linalg.inv(one[:3, :3]) @ apart).max())


@settings(max_examples=150, deadline=None)
@example((0, 0, 90), 0, (1, 5, 0.375), True, (0, 0, 0), (1, 0), (256, 256, 180), nib.Nifti1Header)
@example((0, 0, 180), 0.03, (1, 1, 1), False, (0, 0, 0), (1, 1), (512, 512, 90), nib.Nifti1Header)
@given(
    ANGLES,
    TILTS,
    SIZES,
    st.booleans(),
    st.tuples(*[st.floats(-900, 900)] * 3),
    st.sampled_from([(1, 0), (0, 2), (1, 1), (3, 4)]),
    st.sampled_from([(256, 256, 180), (512, 512, 90), SHAPE]),
    st.sampled_from([nib.Nifti1Header, nib.Nifti2Header]),
)
def test_what_a_writer_stores_twice_is_no_contradiction(
    angles, tilt, sizes, mirrored, offset, codes, shape, kind
):
    """Rounding never makes the forms contradict each other, nor moves the scan, not near a half turn."""
    truth = affine_of(angles, tilt, sizes, mirrored, offset)
    header = nifti_header(truth, codes=codes, shape=shape, kind=kind)
    header.set_xyzt_units("mm")
    found = parse_header(header.binaryblock, "scan.nii")
    assert found.shape == shape
    if codes[1]:
        assert farthest(truth, found.affine, shape) <= 0.01
    else:  # the place is known no better than the qform's three numbers say
        np.testing.assert_allclose(found.affine, header.get_qform(), rtol=1e-6, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(ANGLES, TILTS, SIZES, st.booleans(), st.tuples(*[st.floats(-3, 3)] * 3), st.floats(-0.1, 0.1))
def test_forms_that_put_voxels_elsewhere_are_refused(angles, tilt, sizes, mirrored, shift, grown):
    """A scan is refused if, and only if, its forms or voxel sizes move a voxel by a quarter."""
    qform = affine_of(angles, tilt, sizes, mirrored)
    sform = qform.copy()
    sform[:3, 3] += shift
    sform[:3, 0] *= 1 + grown
    header = nifti_header(qform, sform)
    resized = sform.copy()
    resized[:3, 0] /= 1 + grown
    apart = max(farthest(sform, qform), farthest(sform, resized))
    if apart > 0.26:
        refused(header.binaryblock, "contradicts itself", "mm apart")
    elif apart < 0.24:
        np.testing.assert_allclose(parse_header(header.binaryblock, "x").affine, header.get_sform())


def test_the_message_says_how_far_the_forms_are_apart():
    """A scan whose sform and qform differ is refused with the difference in mm and both orientations."""
    moved = np.eye(4)
    moved[1, 3] = 7.5
    refused(nifti_header(np.eye(4), moved).binaryblock, "sform and the qform", "7.5 mm", "axis 2")
    left = np.diag([-1.0, 1, 1, 1])
    refused(nifti_header(left, np.eye(4)).binaryblock, "axes RAS and LAS", "46 mm")


def test_voxel_sizes_that_the_sform_denies_are_refused():
    """An sform of 1 mm beside voxels of 0.5 mm is refused with both sizes, whatever the qform's code."""
    half = np.diag([0.5, 0.5, 0.5, 1])
    for codes in ((0, 2), (1, 2)):
        header = nifti_header(half, np.eye(4), codes)
        refused(header.binaryblock, "pixdim", "voxel size 1 x 1 x 1 and 0.5 x 0.5 x 0.5 mm")


def test_absurd_voxel_sizes_are_refused_in_words():
    """A voxel size too small to have a direction is a contradiction as well, not an error of ours."""
    header = nifti_header(kind=nib.Nifti2Header, pixdim=[1, 1, 1, 1e-300, 1, 1, 1, 1])
    refused(header.binaryblock, "contradicts itself", "voxel size 1 x 1 x 1 and 1 x 1 x ")


def test_forms_without_a_code_do_not_count():
    """A form with code 0 holds leftovers: only the other one decides."""
    other = affine_of((0, 0, 90), offset=(5, 6, 7))
    for codes, expected in (((1, 0), np.eye(4)), ((0, 1), other)):
        header = nifti_header(np.eye(4), other, codes)
        np.testing.assert_allclose(parse_header(header.binaryblock, "x").affine, expected, atol=1e-6)
    leftovers = nifti_header(codes=(0, 1), quatern_b=3.0, qoffset_x=np.nan)
    assert parse_header(leftovers.binaryblock, "x").shape == SHAPE


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"qform_code": 0, "sform_code": 0}, ("no orientation", "left and right are unknown", "DICOM")),
        ({"sform_code": 9}, ("sform_code is 9", "0 to 5")),
        ({"qform_code": -1}, ("qform_code is -1", "Repair")),
        ({"srow_x": 0, "srow_y": 0, "srow_z": 0}, ("voxel size 0 x 0 x 0 mm", "repair")),
        ({"quatern_b": 1.2}, ("no rotation", "1.2, 0, 0")),
        ({"quatern_b": np.nan}, ("no rotation", "nan")),
        ({"qoffset_y": np.inf}, ("affine", "not numbers")),
        ({"pixdim": [0.5, 1, 1, 1, 1, 1, 1, 1]}, ("pixdim[0] is 0.5", "left")),
        ({"pixdim": [np.nan, 1, 1, 1, 1, 1, 1, 1]}, ("pixdim[0] is nan", "left")),
        ({"pixdim": [1, 1, -1, 1, 1, 1, 1, 1]}, ("voxel size 1 x -1 x 1 mm", "Repair")),
        ({"pixdim": [1, 1, np.inf, 1, 1, 1, 1, 1]}, ("voxel size 1 x inf x 1 mm", "Repair")),
        ({"xyzt_units": 1}, ("metres", "voxel size 1 x 1 x 1", "mm")),
        ({"xyzt_units": 3 | 8}, ("micrometres", "Convert it to mm")),
        ({"xyzt_units": 5}, ("unknown unit (5)", "Convert it to mm")),
        ({"vox_offset": 0}, ("byte 0", "352")),
        ({"vox_offset": 348}, ("byte 348", "352")),
        ({"vox_offset": np.nan}, ("byte nan", "352")),
        ({"dim": [9, 24, 20, 16, 1, 1, 1, 1]}, ("9 axes", "1 to 7")),
        ({"dim": [0, 24, 20, 16, 1, 1, 1, 1]}, ("0 axes", "1 to 7")),
        ({"dim": [3, 24, -20, 16, 1, 1, 1, 1]}, ("empty", "-20")),
        ({"datatype": 9999}, ("data type 9999", "again")),
        ({"scl_slope": 1, "scl_inter": np.nan}, ("the header can't be read", "intercept nan")),
    ],
    ids=str,
)
def test_a_header_that_leaves_something_open_is_refused(fields, words):
    """What the result depends on is clear from the header, or the scan is refused with the reason."""
    refused(nifti_header(**fields).binaryblock, *words)


@pytest.mark.parametrize(
    "fields",
    [
        {"xyzt_units": 0},
        {"xyzt_units": 2 | 8},
        {"pixdim": [0, 1, 1, 1, 0, 0, 0, 0]},
        {"bitpix": 8},
        {"vox_offset": 353},
        {"dim": [4, *SHAPE, 1, 0, 0, 0]},
        {"scl_slope": np.inf},
        {"sform_code": 5},
    ],
    ids=str,
)
def test_odd_headers_that_mean_one_thing_are_read(fields):
    """A header that is odd in what nothing depends on, or that all programs read alike, is read."""
    found = parse_header(nifti_header(**fields).binaryblock, "x")
    assert (found.shape, found.dtype, found.slope) == (SHAPE, np.dtype(np.int16), 1.0)
    np.testing.assert_array_equal(found.affine, np.eye(4))


def test_a_quaternion_of_a_half_turn_may_be_rounded_beyond_one():
    """Three numbers whose squares add up to a little over 1 are a half turn."""
    header = nifti_header(codes=(1, 0), quatern_b=0, quatern_c=0, quatern_d=np.float32(1.0000002))
    np.testing.assert_allclose(
        parse_header(header.binaryblock, "x").affine, np.diag([-1.0, -1, 1, 1]), atol=1e-5
    )


def test_the_label_map_has_the_odd_header_of_its_scan(tmp_path):
    """Fields that count as something else, such as pixdim[0] of 0, come back to the bit, not mended."""
    header = nifti_header(np.diag([1, 1, 2.0, 1]), pixdim=[0, 1, 1, 2, 0, 0, 0, 0], sform_code=5)
    voxels = np.random.default_rng(0).integers(0, 9, SHAPE).astype("<i2")
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + voxels.tobytes("F")))
    scan = read_volume(path)
    np.testing.assert_array_equal(scan.array, voxels)
    write_label_map(tmp_path / "labels.nii", np.ones(SHAPE, np.uint8), scan)
    raw = nib.Nifti1Header((tmp_path / "labels.nii").read_bytes()[:348], check=False)
    for name in FIELDS:
        assert raw[name].tobytes() == header[name].tobytes(), name


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"goodRASFlag": 0}, ("no orientation", "goodRASFlag", "left and right")),
        ({"goodRASFlag": -1}, ("no orientation",)),
        ({"type": 7}, ("data type 7", "again")),
        ({"delta": [1, 0, 1]}, ("voxel size 1 x 0 x 1 mm", "Repair")),
        ({"delta": [1, -1, 1]}, ("voxel size 1 x -1 x 1 mm", "Repair")),
        ({"delta": [1, np.nan, 1]}, ("voxel size 1 x nan x 1 mm", "Repair")),
        ({"Mdc": np.diag([2.0, 1, 1])}, ("contradicts itself", "voxel size 2 x 1 x 1 and 1 x 1 x 1 mm")),
        ({"Mdc": 0}, ("voxel size 0 x 0 x 0 mm", "repair")),
        ({"Pxyz_c": np.inf}, ("affine", "not numbers")),
        ({"dims": [24, 0, 16, 1]}, ("empty", "again")),
        ({"dims": [24, 20, -16, 1]}, ("empty", "again")),
        ({"dims": [24, 20, 16, 5]}, ("4 axes", "Split")),
    ],
    ids=str,
)
def test_an_mgh_header_that_makes_no_sense_is_refused(fields, words):
    """MGH headers are held to the same: sizes, directions, a known data type, and an orientation."""
    assert parse_header(mgh_start(), "x").shape == SHAPE
    refused(mgh_start(**fields), *words)


def read_or_refused(start: bytes) -> Header | str:
    """What a header says, or the words of its refusal."""
    try:
        return parse_header(start, "scan.nii")
    except VolumeError as error:
        return str(error)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["nifti1", "nifti2", "mgh"]), st.data())
def test_whatever_the_bytes_a_header_is_read_or_refused(kind, data):
    """A header with a few bytes changed gives a sound grid or a refusal, never another error."""
    start = bytearray(
        mgh_start(affine_of((10, 20, 30)))
        if kind == "mgh"
        else nifti_header(
            affine_of((10, 20, 30)), kind=nib.Nifti1Header if kind == "nifti1" else nib.Nifti2Header
        ).binaryblock
    )
    for _ in range(data.draw(st.integers(1, 6))):
        start[data.draw(st.integers(0, len(start) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.sampled_from([len(start), len(start) // 2]))
    found = read_or_refused(bytes(start[:length]))
    if isinstance(found, str):
        assert found.startswith("scan.nii: ")
        assert "()" not in found
    else:
        assert len(found.shape) == 3
        assert np.isfinite(found.affine).all()
        assert np.linalg.matrix_rank(found.affine[:3, :3]) == 3


@pytest.mark.parametrize("name", ["scan.nii", "scan.mgz"])
def test_voxels_that_do_not_fit_the_header_are_refused(tmp_path, name):
    """Fewer voxels than the header says, plain or compressed, are refused with the numbers of bytes."""
    body = (
        nib.Nifti1Image(np.ones(SHAPE, np.int16), np.eye(4))
        if name == "scan.nii"
        else nib.MGHImage(np.ones(SHAPE, np.int16), np.eye(4))
    ).to_bytes()[:5000]
    path = tmp_path / name
    path.write_bytes(gzip.compress(body) if name.endswith("mgz") else body)
    with pytest.raises(VolumeError, match=r"truncated.*\b(15360|5000) bytes"):
        read_volume(path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError(), "the header can't be read (ValueError)"),
        (ValueError("two\n lines"), "the header can't be read (two lines)"),
        (KeyError(7), "the header can't be read (7)"),
        (EOFError(), "the file is truncated."),
        (gzip.BadGzipFile("CRC"), "the compressed data is damaged, CRC."),
    ],
)
def test_a_reason_is_one_line_and_never_empty(error, said):
    """A library's exception becomes a refusal in one line, with its text or, without one, its name."""
    with pytest.raises(VolumeError) as caught, parsing("scan.nii", "the header can't be read"):
        raise error
    assert str(caught.value).startswith(f"scan.nii: {said}")
    assert "\n" not in str(caught.value)


def test_too_little_memory_is_not_the_files_fault():
    """A MemoryError stays one, for the caller to tell from a bad file."""
    with pytest.raises(MemoryError), parsing("scan.nii", "the voxels can't be read"):
        raise MemoryError


def test_a_file_that_may_not_be_read_is_said_so(tmp_path):
    """A file that the system doesn't open is refused with the system's reason."""
    link = tmp_path / "scan.nii"
    link.symlink_to(link)  # a loop: not even root opens it
    with pytest.raises(VolumeError, match=r"scan\.nii: can't be opened \(Too many levels.*permissions"):
        read_volume(link)


def test_the_shape_is_known_without_the_voxels(tmp_path):
    """The stored shape comes from the header alone, trailing axes of one left out."""
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti_header(shape=(*SHAPE, 1)).binaryblock)
    assert stored_shape(path) == SHAPE


def label_file(path: Path, codes: np.ndarray, stored, slope=1.0, inter=0.0) -> Path:
    """A label map whose codes are stored as multiples of a slope."""
    header = nifti_header(scl_slope=slope, scl_inter=inter)
    header.set_data_dtype(stored)
    numbers = (codes - inter) / slope
    raw = (np.rint(numbers) if np.dtype(stored).kind in "iu" else numbers).astype(stored)
    path.write_bytes(header.binaryblock + bytes(4) + raw.tobytes("F"))
    return path


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2035), min_size=1, max_size=12, unique=True), st.integers(0, 2))
def test_codes_that_scaling_rounded_are_whole_again(tmp_path_factory, codes, way):
    """Codes stored scaled to int16, as image tools do, or as float32 come back as they were."""
    path = tmp_path_factory.mktemp("labels") / "labels.nii"
    array = np.resize([0, *codes], SHAPE)
    if way == 0:
        label_file(path, array, np.int16, float(np.float32(array.max() / 32767 or 1)), 0.0)
    elif way == 1:
        image = nib.Nifti1Image(array.astype(np.float64), np.eye(4))
        image.header.set_data_dtype(np.int16)
        image.to_filename(path)
    else:
        label_file(path, array * np.float32(1 + 5e-7), np.float32)
    np.testing.assert_array_equal(read_label_map(path).array, array)


@pytest.mark.parametrize(
    ("codes", "stored", "slope"),
    [
        ([0, 1, 1.5], np.float32, 1.0),
        ([0, 1, 2.01], np.float32, 1.0),
        ([0, 1, 2, 2.04], np.int16, 0.04),
        ([0, 1.5, 3], np.uint8, 1.5),
        ([0, 8, 15.7], np.uint8, 15.7 / 2),
        ([0, np.nan], np.float32, 1.0),
        ([0, np.inf], np.float32, 1.0),
    ],
    ids=str,
)
def test_codes_that_are_really_fractional_are_refused(tmp_path, codes, stored, slope):
    """A code that no rounding explains is refused with the code and what to give instead."""
    path = label_file(tmp_path / "labels.nii", np.resize(codes, SHAPE), stored, slope)
    with pytest.raises(VolumeError, match=r"whole numbers, this file has .* Give the label map"):
        read_label_map(path)
