"""The intensities of slices, decompressed and scaled."""

from collections.abc import Iterator, Sequence
from io import BytesIO

import jpeg_ls
import numpy as np
import pydicom
from imagecodecs import jpeg8_decode
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
)

from segdistill.volume.dicom.slices import Slice, frame_header
from segdistill.volume.grid import VolumeError, reason

_JPEG = (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
# The names that pydicom looks for in a module that brings a decoder: this, 'is_available' and the
# function that 'add_plugin' is given.
DECODER_DEPENDENCIES = {
    **dict.fromkeys(_JPEG, ("imagecodecs",)),
    **dict.fromkeys(JPEGLSTransferSyntaxes, ("pyjpegls",)),
}
# Which plugin decodes what; left to choose, pydicom takes GDCM first where that is installed.
_PLUGINS = {
    **dict.fromkeys((JPEGBaseline8Bit, JPEG2000, JPEG2000Lossless), "pillow"),
    **dict.fromkeys(DECODER_DEPENDENCIES, "segdistill"),
}


def is_available(uid: UID) -> bool:
    """Whether a decoder of this module decodes a transfer syntax."""
    return uid in DECODER_DEPENDENCIES


def decode_jpeg(src: bytes, runner: DecodeRunner) -> bytes:
    """Decode a grey frame of lossless or 12-bit JPEG with libjpeg-turbo.

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


def decode_jpeg_ls(src: bytes, runner: DecodeRunner) -> bytes:
    """Decode a grey frame of JPEG-LS with CharLS, as pydicom does, and compare its size too.

    Raises:
        ValueError: the frame isn't of the header's size.
    """
    frame, found = jpeg_ls.decode_pixel_data(src)
    _check_size((found["height"], found["width"]), (runner.rows, runner.columns))
    runner.set_option("bits_allocated", 8 if found["bits_per_sample"] <= 8 else 16)
    return bytes(frame)


for _uid in DECODER_DEPENDENCIES:
    _decode = decode_jpeg if _uid in _JPEG else decode_jpeg_ls
    get_decoder(_uid).add_plugin("segdistill", (__name__, _decode.__name__))


def read_pixels(slices: Sequence[Slice]) -> Iterator[NDArray[np.float32]]:
    """The values of a file's slices, each (rows, columns), with slope and intercept or table applied.

    Args:
        slices: all of one file, in the order in which their values are wanted.

    Raises:
        VolumeError: no pixels, a compression without a decoder, damaged ones, or not of the header's
            size.
    """
    path = slices[0].path
    how, again = "pixels", "Export or copy it again."
    try:
        data = pydicom.dcmread(path, force=True)
        syntax = _named_syntax(data)
        how = f"{syntax.name} pixels"
        if syntax.is_compressed:
            again = "Export the series again, uncompressed (explicit VR little endian)."
        if syntax in (JPEG2000, JPEG2000Lossless):
            for one in slices:
                body = get_frame(data.PixelData, one.frame or 0, number_of_frames=len(slices))
                with Image.open(BytesIO(body)) as frame:
                    _check_size((frame.height, frame.width), one.shape)
        data.pixel_array_options(decoding_plugin=_PLUGINS.get(syntax, ""))
        stored = data.pixel_array
        # A native frame shorter than the header says is refused by pydicom, a longer one isn't.
        if not data["PixelData"].is_undefined_length and len(data.PixelData) >= 2 * stored.nbytes:
            raise ValueError(f"{len(data.PixelData)} bytes of pixels, {stored.nbytes} in the header")
        for one in slices:
            # Of one frame, pydicom leaves the frames' axis out.
            values = stored if len(slices) == 1 else stored[one.frame]
            _check_size(values.shape, one.shape)
            header = frame_header(data, one.frame)
            for name, none in (("RescaleSlope", 1), ("RescaleIntercept", 0)):
                if header.get(name) in (None, ""):
                    setattr(header, name, none)  # pydicom scales only where both are given
            yield np.asarray(apply_modality_lut(values, header), np.float32)
    except Exception as error:  # no pixels, no decoder, damaged compression, a scale that is no number
        raise VolumeError(f"{path}: the {how} can't be decoded ({reason(error)}). {again}") from error


def _check_size(found: tuple[int, ...], expected: tuple[int, int]) -> None:
    if found != expected:
        raise ValueError(f"{found} pixels, {expected} in the header")


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
