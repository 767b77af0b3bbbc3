"""How time and memory grow with the scan, and whether the memory that was predicted is kept to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.families import Contender
from benchmarks.pipelines import compare, ours
from segdistill.runtime.segment import ACTIVATIONS, peak_bytes
from segdistill.runtime.setting import Setting
from segdistill.volume import Volume, write_volume

SHAPES = ((64, 64, 64), (128, 128, 128), (256, 256, 256), (512, 512, 300), (512, 512, 600))
VOXEL_MM = 0.8


def grow(
    member: Contender, setting: Setting, scratch: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Segment made-up scans of growing size, each in a process of its own.

    Returns:
        A row per shape: seconds, CPU seconds, peak memory and the predicted peak, in MB (10^6 bytes).
    """
    rows: list[dict[str, Any]] = []
    activations = float(member.bundle.provenance.get("activations", ACTIVATIONS))
    plan = setting.applied_to(member.bundle.plan)
    base = 0.0
    for shape in SHAPES:
        scan = scratch / "grown.nii.gz"
        affine = make_scan(scan, shape)
        costs = compare([ours(member, "grown", setting)], scan, scratch, 1, say)[0]
        stand_in = Volume(np.broadcast_to(np.float32(0), shape), affine)
        needed = peak_bytes(stand_in, plan, activations, setting.precision) + 4 * stand_in.array.size
        if not rows:  # what the process holds before any scan
            base = costs["peak_rss_mb"] - needed / 1e6
        rows.append(
            {
                "shape": shape,
                "seconds": costs["seconds"],
                "cpu_seconds": costs["cpu_seconds"],
                "peak_rss_mb": costs["peak_rss_mb"],
                "predicted_mb": round(base + needed / 1e6),
            }
        )
        scan.unlink()
    return rows


def make_scan(path: Path, shape: tuple[int, int, int], voxel_mm: float = VOXEL_MM) -> np.ndarray:
    """Write a noisy int16 scan, a textured ball in dark air; returns its affine."""
    random = np.random.default_rng(7)
    tile = random.normal(500, 100, (61, 67, 71)).astype(np.int16)
    texture = np.tile(tile, [-(-n // m) for n, m in zip(shape, tile.shape, strict=True)])
    scan = np.zeros(shape, np.int16, order="F")
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) ** 2 for n in shape)
    for plane in range(shape[2]):
        inside = x[:, None] + y + z[plane] < 0.7
        scan[:, :, plane] = np.where(inside, texture[: shape[0], : shape[1], plane], 20)
    affine = np.diag([voxel_mm] * 3 + [1.0])
    write_volume(path, scan, affine)
    return affine
