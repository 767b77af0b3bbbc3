"""What a drawn scanner sees of a drawn person, wherever one looks.

The order is a scanner's: tissues and what varies within them, coils, point spread and slices, noise;
then what is done to a stored scan: stripped, cut.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segdistill.simulation.rendering.labelmap import DEPTH_MM, LabelMap
from segdistill.simulation.rendering.scene import Array, Positions, Scene, Triple
from segdistill.simulation.rendering.smooth import SPLINE_SD, Smooth, along, bell, linear, slices

# A voxel's middle and four parts of it, in quarters of its edges: every other corner of a cube. An odd
# number of votes mostly has a winner, so that these five find the label more often than the cube's eight
# (93% against 89% of the voxels that hold more than one code) and mix tissues as well.
_PARTS = ((0, 0, 0), (1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))

_NODE_MM = 8.0  # places in the map are worked out on nodes so far apart, and linearly in between
_ROW = 2**22  # normal numbers that are drawn once
_RAGGED_MM = 8.0  # over which the edge of skull stripping strays


@dataclass(frozen=True, eq=False)
class Look:
    """What is looked at.

    Attributes:
        positions: of the voxels along each axis, scanner mm.
        voxel_mm: their edges.
    """

    positions: Positions
    voxel_mm: Triple


@functools.cache
def _row(device: torch.device) -> Tensor:
    """A row of normal numbers, the same ones always."""
    return torch.randn(_ROW, generator=torch.Generator().manual_seed(0)).to(device)


def _normal(shape: torch.Size, random: np.random.Generator, device: torch.device) -> Tensor:
    """(X, Y, Z) normal numbers.

    On a CPU, drawing a number takes as long as all that is done with it. So a volume is a window, at a
    random place, of one long row: any two have next to nothing in common, voxel for voxel.
    """
    row = _row(device)
    if shape.numel() > len(row) // 2:
        row = row.repeat(-(-2 * shape.numel() // len(row)))
    start = int(random.integers(len(row) - shape.numel()))
    return row[start:][: shape.numel()].view(shape)


def scan(
    source: LabelMap, scene: Scene, look: Look, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """(X, Y, Z) float32 image and (X, Y, Z) uint8 compact codes of what is looked at."""
    device = source.codes.device
    positions, voxel_mm = look.positions, look.voxel_mm
    at, shading = _fields(source, scene, positions, device)
    image, codes, middle = _tissue(source, scene, at, look)
    image = _textured(image, codes, scene, positions, random)
    if scene.table is not None:
        below = scene.table.hu(positions[0], positions[1], voxel_mm[1]).to(device)
        mean = scene.brightness.mean
        image = torch.where(look_up(mean == mean[0], codes), torch.maximum(image, below), image)
    if shading is not None:
        gain, contrast = shading
        image = image * torch.addcmul(gain, contrast, image)
    if scene.gamma != 1.0:
        image = image.clamp_min(0.0).pow(scene.gamma)
    image = _acquired(image, scene, voxel_mm, random)
    for keep in _kept(source, scene, positions, middle, random):
        void = scene.void
        image = image * keep if void == 0.0 else (image - void) * keep + void
        codes = codes * keep.to(torch.uint8)
    return image, codes


def _kept(
    source: LabelMap, scene: Scene, positions: Positions, middle: Tensor, random: np.random.Generator
) -> Iterator[Tensor]:
    """Float32 that broadcast to (X, Y, Z), 0 where something is taken away, its label with it."""
    device = source.codes.device
    shape = [len(at) for at in positions]
    if scene.strip_mm is not None:
        depth = source.depth.view(-1).index_select(0, middle).view(shape).float()
        edge = _drawn(positions, _RAGGED_MM, random, device)
        edge = edge * (scene.ragged_mm / DEPTH_MM) + scene.strip_mm / DEPTH_MM
        yield (edge > depth).float()
    for axis, (at, low, high) in enumerate(zip(positions, scene.seen.low, scene.seen.high, strict=True)):
        inside = (at > low) & (at < high)
        if not inside.all():
            along_axis = torch.from_numpy(inside).to(device).float()
            yield along_axis.view([-1 if a == axis else 1 for a in range(3)])


def _fields(
    source: LabelMap, scene: Scene, positions: Positions, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """(3, X, Y, Z) places in the map, voxels, and (2, X, Y, Z) what gain and contrast do.

    With gain g, contrast c and pivot m, brightness I becomes I (g + c (I - m)): fat, dark and bright
    tissue drift apart or together from place to place, while I = m keeps to the gain.
    """
    nodes: list[Array] = []
    weights: list[Tensor | None] = []
    for at in positions:
        apart = max(_NODE_MM, 2.0 * float(np.ptp(at)) / len(at))
        count = 1 + int(np.ceil(np.ptp(at) / apart))
        if count >= len(at):
            nodes.append(at)
            weights.append(None)
        else:
            nodes.append(at.min() + apart * np.arange(count))
            weights.append(linear((at - at.min()) / apart, count).to(device))
    x, y, z = nodes
    fields = scene.in_map(source, (x, y, z))
    if scene.shading is not None:
        gain, contrast = scene.shading.at(nodes)
        fields = torch.cat([fields, torch.stack([gain.exp() - contrast * scene.pivot, contrast])])
    fields = along(fields.to(device), weights)
    return fields[:3], fields[3:] if scene.shading is not None else None


def _tissue(source: LabelMap, scene: Scene, at: Tensor, look: Look) -> tuple[Tensor, Tensor, Tensor]:
    """Mean brightness of every voxel's parts, the code that most of them have, and the middle's place.

    Parts lie along the map's axes: a place is rounded once per axis and not once per part. The code is
    found in one pass (Boyer and Moore 1981), which is right wherever more than half of the parts agree;
    elsewhere it is one of those that are there.

    Args:
        source: the map.
        scene: its brightness.
        at: (3, X, Y, Z) the voxels' middles, in map voxels; changed in place.
        look: the voxels and their parts.

    Returns:
        (X, Y, Z) float32, (X, Y, Z) uint8 compact codes, (X * Y * Z,) int32 places in the flat map.
    """
    shape = source.codes.shape
    quarter = np.linalg.norm(scene.matrix * np.array(look.voxel_mm), axis=1) / 4.0  # map voxels
    rounded = []
    for axis, (place, size, mm) in enumerate(zip(at, shape, quarter.tolist(), strict=True)):
        place.clamp_(mm, size - 1 - mm)  # beyond the map is its border of air
        steps = {part[axis] for part in _PARTS}
        rounded.append({step: (place + (step * mm + 0.5)).int() for step in steps})
    flat = source.codes.view(-1)
    mean = _to(scene.brightness.mean, flat.device)
    places = []
    for x, y, z in _PARTS:
        row = torch.add(rounded[1][y], rounded[0][x], alpha=shape[1])
        places.append(torch.add(rounded[2][z], row, alpha=shape[2]).view(-1))
    codes = flat.index_select(0, places[0])
    image = mean.index_select(0, codes.int())
    lead = torch.ones_like(codes, dtype=torch.int8)
    for place in places[1:]:
        part = flat.index_select(0, place)
        image += mean.index_select(0, part.int())
        lead.add_((part == codes).view(torch.int8), alpha=2).sub_(1)
        # All bits set where the lead is lost. torch.where would take ten times as long for this.
        lost = (lead >> 7).view(torch.uint8)
        codes = codes ^ ((codes ^ part) & lost)
        lead.abs_()
    grid = at.shape[1:]
    return (image / len(_PARTS)).view(grid), codes.view(grid), places[0]


def _textured(
    image: Tensor,
    codes: Tensor,
    scene: Scene,
    positions: Positions,
    random: np.random.Generator,
) -> Tensor:
    """What varies within a tissue: from voxel to voxel, and slowly."""
    device = image.device
    bright = scene.brightness
    if bright.grain.any():
        image = torch.addcmul(image, look_up(bright.grain, codes), _normal(image.shape, random, device))
    if bright.patches.any():
        slow = _drawn(positions, scene.patch_mm, random, device)
        image = torch.addcmul(image, look_up(bright.patches, codes), slow)
    return image


def _acquired(
    image: Tensor,
    scene: Scene,
    spacing_mm: Triple,
    random: np.random.Generator,
) -> Tensor:
    """Point spread, slices and noise; thick slices are interpolated back to the grid, noise and all."""
    device = image.device
    there = [bell(count, scene.blur_mm / mm) for count, mm in zip(image.shape, spacing_mm, strict=True)]
    back: list[Tensor | None] = [None, None, None]
    if scene.thick is not None and scene.thick[1] > spacing_mm[scene.thick[0]]:
        axis, mm = scene.thick
        there[axis], back[axis] = slices(image.shape[axis], mm / spacing_mm[axis])
    image = along(image[None], [None if m is None else m.to(device) for m in there])[0]
    if scene.noise > 0.0:
        image = torch.add(image, _normal(image.shape, random, device), alpha=scene.noise)
        if scene.magnitude:
            imaginary = _normal(image.shape, random, device)
            image = torch.addcmul(image * image, imaginary, imaginary, value=scene.noise**2).sqrt_()
    elif scene.magnitude:
        image = image.abs()
    return along(image[None], [None if m is None else m.to(device) for m in back])[0]


def _drawn(
    positions: Positions, step_mm: float, random: np.random.Generator, device: torch.device
) -> Tensor:
    """(X, Y, Z) a smooth field of standard deviation 1, drawn for these positions alone."""
    low, high = (np.array([pick(at) for at in positions]) for pick in (np.min, np.max))
    shape = [len(at) for at in positions]
    if step_mm <= min((high - low) / np.maximum(np.array(shape) - 1, 1)):
        return torch.from_numpy(random.standard_normal(shape, np.float32)).to(device)
    return Smooth.drawn(1, low, high, step_mm, random).at(positions, device)[0] / SPLINE_SD


def look_up(table: NDArray[Any], codes: Tensor) -> Tensor:
    """(X, Y, Z) what a table (C,) says of compact codes."""
    return _to(table, codes.device).index_select(0, codes.view(-1).int()).view(codes.shape)


def _to(table: NDArray[Any], device: torch.device) -> Tensor:
    array = table.astype(np.float32) if table.dtype == np.float64 else table
    return torch.from_numpy(array).to(device)
