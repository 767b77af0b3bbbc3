"""Slices compressed without loss, in every way that archives store."""

from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

Change = Callable[[int, Dataset], None]


def packed(uid: UID, encode: Callable[[NDArray[Any]], bytes]) -> Change:
    """Put another encoder's frame in the place of the pixels."""

    def change(index: int, slice_: Dataset) -> None:
        dtype = "<i2" if slice_.PixelRepresentation else "<u2"
        stored = np.frombuffer(slice_.PixelData, dtype).reshape(slice_.Rows, slice_.Columns)
        slice_.PixelData = encapsulate([encode(stored)])
        slice_["PixelData"].VR = "OB"
        slice_["PixelData"].is_undefined_length = True
        slice_.file_meta.TransferSyntaxUID = uid

    return change


def compressed(uid: UID, **options: Any) -> Change:
    """Let pydicom compress the pixels."""
    return lambda index, slice_: slice_.compress(uid, generate_instance_uid=False, **options)


def jpeg(**options: Any) -> Callable[[NDArray[Any]], bytes]:
    """An encoder of JPEG, which knows no sign: signed values are their low bits."""
    return lambda stored: imagecodecs.jpeg8_encode(
        stored.view("u2") & (0xFFF if stored.dtype.kind == "i" else 0xFFFF), **options
    )


def jpeg_2000(stored: NDArray[Any]) -> bytes:
    """A frame of JPEG 2000 without loss."""
    return imagecodecs.jpeg2k_encode(stored, level=0, reversible=True, codecformat="J2K")


EXACT = {
    "RLE": compressed(RLELossless),
    "JPEG-LS": compressed(JPEGLSLossless),
    "JPEG 2000 lossless": packed(JPEG2000Lossless, jpeg_2000),
    "JPEG 2000": packed(JPEG2000, jpeg_2000),
    "JPEG lossless": packed(JPEGLossless, jpeg(lossless=True, bitspersample=16, predictor=4)),
    "JPEG lossless SV1": packed(JPEGLosslessSV1, jpeg(lossless=True, bitspersample=16)),
}
