"""What reading and writing .nii.gz costs with zlib, and with ISA-L, which the platform uses."""

import statistics
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isal import isal_zlib


def pack_and_unpack(scan: Path, labels: Path) -> list[dict[str, Any]]:
    """Unpack a scan and pack a label map with either library.

    Returns:
        Rows: what, library, level, kB and CPU milliseconds (medians of seven).
    """
    packed = scan.read_bytes()
    body = isal_zlib.decompress(labels.read_bytes(), 31)
    rows: list[dict[str, Any]] = []
    for name, library, levels in (("zlib", zlib, (1, 2, 6, 9)), ("ISA-L", isal_zlib, (0, 1, 2, 3))):

        def unpack(library: Any = library) -> bytes:
            return bytes(library.decompress(packed, 31))

        rows.append({"what": "unpack a scan", "library": name, "level": None, **_measure(unpack)})
        for level in levels:

            def pack(library: Any = library, level: int = level) -> bytes:
                packer = library.compressobj(level, zlib.DEFLATED, 31)
                return bytes(packer.compress(body) + packer.flush())

            rows.append({"what": "pack labels", "library": name, "level": level, **_measure(pack)})
    return rows


def _measure(work: Callable[[], bytes]) -> dict[str, float]:
    spent = []
    for _ in range(7):
        began = time.process_time()
        made = work()
        spent.append(time.process_time() - began)
    return {"kB": round(len(made) / 1e3, 1), "cpu_ms": round(1e3 * statistics.median(spent), 1)}
