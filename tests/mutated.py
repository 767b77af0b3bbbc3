"""Scans with a few bytes changed, the same ones in every run."""

import gzip
from collections.abc import Callable, Iterator

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

Encode = Callable[[bytes], bytes]


def _image(kind: type, dtype: type, byte_order: str = "<") -> bytes:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (8, -5, 12), degrees=True).as_matrix() * (1.6, 1.9, 2.8)
    affine[:3, 3] = 40, -30, -20
    voxels = np.random.default_rng(0).integers(0, 200, (9, 8, 7)).astype(dtype)
    image = kind(voxels, affine)
    if kind is not nib.MGHImage:
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        image = kind(voxels, None, image.header.as_byteswapped(byte_order))
    return bytes(image.to_bytes())


def intact_files() -> dict[str, tuple[bytes, Encode]]:
    """A small scan in every format of one file: its bytes unpacked, and how they're packed."""
    one, two, mgh = nib.Nifti1Image, nib.Nifti2Image, nib.MGHImage
    return {
        "scan.nii": (_image(one, np.int16), bytes),
        "big-endian.nii": (_image(one, np.float32, ">"), bytes),
        "scan-2.nii": (_image(two, np.int16), bytes),
        "scan.nii.gz": (_image(one, np.uint8), gzip.compress),
        "scan-2.nii.gz": (_image(two, np.int16), gzip.compress),
        "scan.mgh": (_image(mgh, np.int16), bytes),
        "scan.mgz": (_image(mgh, np.uint8), gzip.compress),
    }


def mutations(body: bytes, header: int, count: int, seed: int) -> Iterator[bytes]:
    """``count`` damaged or altered versions of ``body``, most of them in its first ``header`` bytes."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        changed = bytearray(body)
        how = rng.random()
        for _ in range(int(rng.integers(1, 5))):
            at = int(rng.integers(header if rng.random() < 0.8 else len(body))) % len(changed)
            if how < 0.45:  # another byte
                changed[at] = int(rng.integers(256))
            elif how < 0.7:  # one bit: 1 becomes 3, a code becomes its neighbour
                changed[at] ^= 1 << int(rng.integers(8))
            elif how < 0.8:  # what stands for NaN, infinity, zero or the largest length
                changed[at : at + 4] = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\x80\0\0")[at % 3]
            elif how < 0.9:  # bytes that went missing or came twice
                if at % 2:
                    del changed[at : at + int(rng.integers(1, 9))]
                else:
                    changed[at:at] = changed[at : at + int(rng.integers(1, 9))]
        yield bytes(changed if how < 0.9 else changed[: int(rng.integers(len(changed)))])


def mutated_files(count: int) -> Iterator[tuple[str, bytes]]:
    """``count`` altered files of every format: where it's packed, half of them altered after packing."""
    for seed, (name, (body, pack)) in enumerate(intact_files().items()):
        within = count if pack is bytes else count // 2
        for altered in mutations(body, 544 if "2" in name else 352, within, seed):
            yield name, pack(altered)
        packed = pack(body)
        for altered in mutations(packed, len(packed), count - within, seed):
            yield name, altered
