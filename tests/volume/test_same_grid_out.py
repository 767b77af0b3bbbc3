import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from segdistill.volume import (
    Volume,
    VolumeError,
    grid_difference,
    read_label_map,
    read_volume,
    reoriented,
    same_grid,
    write_label_map,
    write_volume,
)

GRID = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
PRIVATE = {
    "descrip": b"Doe^Jane",
    "aux_file": b"jane.par",
    "intent_name": b"jane",
    "db_name": b"jane 1970",
}
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [5, -3, 7], degrees=True).as_matrix() * [-1.67, 1.67, 3]
OBLIQUE[:3, 3] = [81.5, -90.25, -40.125]


def scan_file(path: Path, kind=nib.Nifti1Image, shape=(9, 8, 7), codes=(2, 1), order="<") -> Path:
    """Write an oblique scan that says who the patient is wherever a header can."""
    random = np.random.default_rng(5)
    header = kind.header_class(endianness=order)
    image = kind(random.integers(0, 500, shape).astype(np.int16), OBLIQUE, header)
    image.set_qform(OBLIQUE, code=codes[0])
    # A second opinion on where the scan is, off by less than what counts.
    image.set_sform(OBLIQUE + 0.2 * np.eye(4, k=3), code=codes[1])
    image.header.set_xyzt_units("mm", "sec")
    for field, text in PRIVATE.items():
        if field in image.header:  # NIfTI-2 has no db_name
            image.header[field] = text
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe, born 1970"))
    nib.save(image, path)
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 0), (0, 4), (2, 1)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_grid_kept_to_the_bit(tmp_path, kind, codes, order):
    """Shape, sizes, units, qform, sform and both codes of the label map are the scan's own."""
    source = scan_file(tmp_path / "scan.nii.gz", kind, codes=codes, order=order)
    scan = read_volume(source)
    labels = np.random.default_rng(1).integers(0, 11, scan.array.shape).astype(np.uint8)
    write_label_map(tmp_path / "label.nii.gz", labels, scan)
    before, after = nib.load(source), nib.load(tmp_path / "label.nii.gz")
    assert type(after) is kind
    for field in GRID:
        assert before.header[field].tobytes() == after.header[field].tobytes(), field
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.header.get_xyzt_units() == ("mm", "sec")
    assert after.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(after.dataobj), labels)
    np.testing.assert_array_equal(read_label_map(tmp_path / "label.nii.gz").affine, scan.affine)


def test_no_private_text(tmp_path):
    """No free-text field and no extension of the scan reaches the label map."""
    scan = read_volume(scan_file(tmp_path / "scan.nii"))
    write_label_map(tmp_path / "label.nii", np.zeros(scan.array.shape, np.uint8), scan)
    body = (tmp_path / "label.nii").read_bytes().lower()
    assert b"jane" in (tmp_path / "scan.nii").read_bytes().lower()
    assert b"jane" not in body
    assert b"doe" not in body
    assert len(body) == 352 + scan.array.size


def test_trailing_axis_of_one(tmp_path):
    """A series of one volume is read as 3D and its label map has the series' four axes."""
    scan = read_volume(scan_file(tmp_path / "scan.nii.gz", shape=(9, 8, 7, 1)))
    assert scan.array.shape == (9, 8, 7)
    labels = np.random.default_rng(1).integers(0, 3, (9, 8, 7)).astype(np.uint8)
    write_label_map(tmp_path / "label.nii.gz", labels, scan)
    after = nib.load(tmp_path / "label.nii.gz")
    assert after.shape == (9, 8, 7, 1)
    np.testing.assert_array_equal(np.asanyarray(after.dataobj)[..., 0], labels)


def test_scaled_intensities(tmp_path):
    """Slope and intercept of the scan are applied on reading and don't touch the label codes."""
    stored = np.random.default_rng(2).integers(0, 900, (9, 8, 7)).astype(np.int16)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(2.5, -1024)
    image.to_filename(tmp_path / "scan.nii")
    raw = nib.load(tmp_path / "scan.nii")
    scan = read_volume(tmp_path / "scan.nii")
    assert scan.array.dtype == np.float32
    np.testing.assert_allclose(scan.array, raw.get_fdata(), rtol=1e-6)
    write_label_map(tmp_path / "label.nii", np.full((9, 8, 7), 3, np.uint8), scan)
    assert np.unique(read_label_map(tmp_path / "label.nii").array).tolist() == [3]


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_volume_outlives_its_file(tmp_path, name):
    """A scan that was read keeps its voxels when the file is emptied and removed."""
    scan = read_volume(scan_file(tmp_path / name))
    before = scan.array.copy()
    (tmp_path / name).write_bytes(b"")
    (tmp_path / name).unlink()
    np.testing.assert_array_equal(scan.array, before)


def test_mgz_scan(tmp_path):
    """The label map of a FreeSurfer scan is a NIfTI file at the same place."""
    image = nib.MGHImage(np.random.default_rng(0).random((9, 8, 7), np.float32), OBLIQUE)
    nib.save(image, tmp_path / "orig.mgz")
    scan = read_volume(tmp_path / "orig.mgz")
    np.testing.assert_allclose(scan.array, image.get_fdata(), rtol=1e-6)
    write_label_map(tmp_path / "label.nii.gz", np.ones((9, 8, 7), np.uint8), scan)
    assert same_grid(scan, read_label_map(tmp_path / "label.nii.gz"))


def test_same_bytes_each_time(tmp_path):
    """The same voxels give the same file, whatever its name and the time."""
    scan = read_volume(scan_file(tmp_path / "scan.nii.gz"))
    labels = np.random.default_rng(1).integers(0, 3, scan.array.shape).astype(np.uint8)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_label_map(tmp_path / name, labels, scan)
    one, other = (tmp_path / "a.nii.gz").read_bytes(), (tmp_path / "b.nii.gz").read_bytes()
    assert one == other
    assert one[4:8] == b"\0\0\0\0"
    assert not one[3] & 8  # no file name
    write_label_map(tmp_path / "c.nii", labels, scan)
    assert gzip.decompress(one) == (tmp_path / "c.nii").read_bytes()


def test_wrong_labels_leave_the_old_file(tmp_path):
    """Labels of another shape, dtype or file ending are refused and an older file stays."""
    scan = read_volume(scan_file(tmp_path / "scan.nii.gz"))
    path = tmp_path / "label.nii.gz"
    write_label_map(path, np.ones(scan.array.shape, np.uint8), scan)
    before = path.read_bytes()
    for wrong in (np.ones((2, 2, 2), np.uint8), np.ones(scan.array.shape, np.int16)):
        with pytest.raises(VolumeError, match=r"label\.nii\.gz.*again"):
            write_label_map(path, wrong, scan)
    with pytest.raises(VolumeError, match=r"label\.png.*[Rr]ename"):
        write_label_map(tmp_path / "label.png", np.ones(scan.array.shape, np.uint8), scan)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["label.nii.gz", "scan.nii.gz"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_new_volume_round_trip(tmp_path, dtype, name):
    """A new volume is read back with the same values, spacing and orientation."""
    array = (np.random.default_rng(0).random((6, 5, 4)) * 200).astype(dtype)
    write_volume(tmp_path / name, array, OBLIQUE)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, array.astype(np.float32))
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(volume.spacing_mm, np.linalg.norm(OBLIQUE[:3, :3], axis=0), atol=1e-5)
    assert volume.orientation == "LAS"


@pytest.mark.parametrize(
    ("stored", "codes", "read"),
    [
        (np.float32, [0, 2, 10], np.uint8),
        (np.int16, [0, 2, 10], np.uint8),
        (np.int32, [0, 255], np.uint8),
        (np.int32, [0, 2035], np.int16),
        (np.float64, [0, 100000], np.int32),
        (np.int16, [-1, 3], np.int16),
        (np.uint8, [0], np.uint8),
    ],
)
def test_label_codes_in_the_smallest_type(tmp_path, stored, codes, read):
    """Codes stored in any type are read as they are, in the smallest type that holds them."""
    array = np.resize(codes, (6, 5, 4)).astype(stored)
    write_volume(tmp_path / "label.nii.gz", array, np.eye(4))
    labels = read_label_map(tmp_path / "label.nii.gz").array
    assert labels.dtype == read
    np.testing.assert_array_equal(labels, array)


def test_same_grid_allows_a_quarter_of_a_voxel_at_the_far_end():
    """Grids are the same with one shape and every voxel at the same place, but for 0.25 voxels."""
    array = np.zeros((200, 8, 8))
    a = Volume(array, np.diag([1.0, 0.5, 2.0, 1.0]))
    near, far = a.affine.copy(), a.affine.copy()
    near[1, 0], far[1, 0] = 0.12 / 199, 0.13 / 199  # mm at the far end; the voxel is 0.5 mm there
    assert same_grid(a, Volume(array + 1, a.affine))
    assert same_grid(a, Volume(array, near))
    assert not same_grid(a, Volume(array, far))
    assert not same_grid(a, Volume(array[:-1], a.affine))


def test_the_difference_of_two_grids_is_said_in_mm_and_voxels():
    """What a user reads is the difference: shapes, mm, voxels, axis, orientation and voxel size."""
    a = Volume(np.zeros((10, 8, 6)), np.diag([1.0, 1.0, 3.0, 1.0]))
    moved = a.affine.copy()
    moved[2, 3] = 1.5
    said = grid_difference(a, Volume(a.array, moved))
    assert "1.5 mm" in said
    assert "0.5 voxels along axis 3" in said
    assert "axes" not in said
    assert "voxel size" not in said
    turned = Volume(a.array, np.diag([-1.0, 1.0, 2.5, 1.0]))
    said = grid_difference(a, turned)
    assert "axes RAS and LAS" in said
    assert "voxel size 1 x 1 x 3 and 1 x 1 x 2.5 mm" in said
    assert (
        grid_difference(a, Volume(np.zeros((10, 8, 7)), a.affine)) == "shape (10, 8, 6) and (10, 8, 7)"
    )


def test_a_sheared_volume_is_written_without_a_qform(tmp_path):
    """An affine that a qform can't hold goes into the sform alone, so the file can be read again."""
    sheared = np.diag([1.0, 1.0, 2.0, 1.0])
    sheared[1, 2] = 0.3
    for affine, code in ((sheared, 0), (OBLIQUE, 1)):
        write_volume(tmp_path / "v.nii", np.arange(120.0).reshape(6, 5, 4), affine)
        assert int(nib.load(tmp_path / "v.nii").header["qform_code"]) == code
        np.testing.assert_allclose(read_volume(tmp_path / "v.nii").affine, affine, atol=1e-5)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSR", "LAI"])
def test_turned_axes_leave_every_voxel_where_it_is(orientation):
    """In another axis order each value stays at its place, and turning back gives the array again."""
    array = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    scan = Volume(array, np.diag([2.0, 3.0, 4.0, 1.0]) + np.eye(4, k=3) * 7)
    other = reoriented(scan, orientation)
    assert other.orientation == orientation
    assert np.array_equal(reoriented(other, "RAS").array, array)
    for voxel in ((0, 0, 0), (3, 1, 5)):
        there = np.argwhere(other.array == array[voxel])[0]
        assert other.affine @ [*there, 1] == pytest.approx(scan.affine @ [*voxel, 1])
