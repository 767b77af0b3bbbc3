"""The intensities of one slice, decompressed and scaled."""

import numpy as np
import pydicom
from imagecodecs import jpeg8_decode
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
)

from segdistill.volume.dicom.slices import Slice, reason
from segdistill.volume.grid import VolumeError

# The names that pydicom looks for in a module that brings a decoder: 'DECODER_DEPENDENCIES',
# 'is_available' and the function that 'add_plugin' is given.
DECODER_DEPENDENCIES = dict.fromkeys(
    (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1), ("imagecodecs",)
)


def is_available(uid: UID) -> bool:
    """Whether :func:`decode_jpeg` decodes a transfer syntax."""
    return uid in DECODER_DEPENDENCIES


def decode_jpeg(src: bytes, runner: DecodeRunner) -> bytes:
    """Decode a grey frame of lossless or 12-bit JPEG with libjpeg-turbo, a decoder plugin of pydicom's.

    For these, pydicom itself offers code under the GPL, or GDCM, which takes the whole process down on
    some damaged files.

    Raises:
        ValueError: the frame isn't grey, or not of the header's size; seen before it is unpacked.
    """
    dtype = np.dtype(np.uint8 if runner.bits_stored <= 8 else np.uint16)
    runner.set_option("bits_allocated", 8 * dtype.itemsize)
    frame = np.empty((runner.rows, runner.columns), dtype)
    jpeg8_decode(src, out=frame)
    return frame.tobytes()


for _uid in DECODER_DEPENDENCIES:
    get_decoder(_uid).add_plugin("segdistill", (__name__, decode_jpeg.__name__))


def read_pixels(one: Slice) -> NDArray[np.float32]:
    """The slice's values, (rows, columns), with slope and intercept or look-up table applied.

    Raises:
        VolumeError: no pixels, a compression without a decoder, damaged ones, or not of the header's
            size.
    """
    how = "pixels"
    try:
        data = pydicom.dcmread(one.path, force=True)
        how = f"{_named_syntax(data).name} pixels"
        stored = data.pixel_array
        # A native frame shorter than the header says is refused by pydicom, a longer one isn't.
        if not data["PixelData"].is_undefined_length and len(data.PixelData) >= 2 * stored.nbytes:
            raise ValueError(f"{len(data.PixelData)} bytes of pixels, {stored.nbytes} in the header")
        if stored.shape != one.shape:
            raise ValueError(f"{stored.shape} pixels, {one.shape} in the header")
        for name, none in (("RescaleSlope", 1), ("RescaleIntercept", 0)):
            if data.get(name) in (None, ""):
                setattr(data, name, none)  # pydicom scales only where both are given
        return np.asarray(apply_modality_lut(stored, data), np.float32)
    except Exception as error:  # no pixels, no decoder, damaged compression, a scale that is no number
        raise VolumeError(
            f"{one.path}: the {how} can't be decoded ({reason(error)}). Export the series again, "
            "uncompressed (explicit VR little endian)."
        ) from error


def _named_syntax(data: pydicom.FileDataset) -> UID:
    """The transfer syntax; where the file doesn't name one, the uncompressed one it was read in."""
    if "TransferSyntaxUID" not in data.file_meta:
        if data["PixelData"].is_undefined_length:
            raise ValueError("compressed, and no transfer syntax says how")
        implicit, little = data.original_encoding
        if not little:
            raise ValueError("big endian, and no transfer syntax says so")
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return UID(data.file_meta.TransferSyntaxUID)
