"""One drawn person in one drawn scanner: numbers and coarse fields, nothing per voxel.

A scene has mm of its own: the scanner's, axes right, anterior, superior, the brain's centre at 0.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segdistill.simulation.hounsfield import TABLE_SHELL, table_hu
from segdistill.simulation.rendering.contrast import Brightness, Contrast
from segdistill.simulation.rendering.knobs import CTKnobs, MRIKnobs, RenderingKnobs
from segdistill.simulation.rendering.labelmap import LabelMap
from segdistill.simulation.rendering.smooth import SPLINE_SD, Smooth

Array = NDArray[np.float64]
Positions = tuple[Array, Array, Array]
Triple = tuple[float, float, float]

_FOLDS = (
    0.4  # of the nodes' distance: a cubic B-spline with smaller shifts never folds (Choi and Lee 2000)
)
_GROWTH_STEPS = 2
_MARGIN_MM = 10.0  # preprocess keeps so much around the content
_CUT = 0.45  # of a trunk's length that is cut from either end, at most
_ENDS_MM = 15.0  # of a trunk's first and last slices never scanned: nothing is known beyond them
_DIP_AT_MM = 250.0  # from a table's middle, where its dip is measured
_GAP_MM = (-4.0, 12.0)  # between the body's box and the table


@dataclass(frozen=True, eq=False)
class Box:
    """A box of the scanner's space: (3,) mm to (3,) mm."""

    low: Array
    high: Array

    def and_(self, other: "Box") -> "Box":
        """What both hold."""
        return Box(np.maximum(self.low, other.low), np.minimum(self.high, other.high))

    def wider(self, mm: float) -> "Box":
        """So many mm more on every side."""
        return Box(self.low - mm, self.high + mm)


@dataclass(frozen=True)
class Table:
    """What a body lies on in CT.

    Attributes:
        middle_mm: where it is lowest, along the first axis.
        top_mm: its surface there, along the second.
        dip_mm: how much higher it is 250 mm from the middle.
        shell: HU of its upper shell.
    """

    middle_mm: float
    top_mm: float
    dip_mm: float
    shell: float

    def hu(self, x: Array, y: Array, voxel_mm: float) -> Tensor:
        """(X, Y, 1) float32 HU at positions (X,) and (Y,) of voxels with the edge ``voxel_mm``."""
        across = (x - self.middle_mm)[:, None]
        surface = self.top_mm + self.dip_mm * (across / _DIP_AT_MM) ** 2
        hu = table_hu(across, y[None], surface, self.shell, voxel_mm)
        return torch.from_numpy(hu.astype(np.float32))[..., None]


@dataclass(frozen=True, eq=False)
class Scene:
    """What one draw decided.

    Attributes:
        matrix: (3, 3) scanner mm to map voxels, about the brain's centre.
        warp: (3, ...) shift in map voxels, on top; None: there is none.
        growth: logarithm of the size of what grows.
        brightness: of every code.
        patch_mm: size of slow variation within a tissue.
        stored: what of space the scan holds.
        seen: what of it isn't cut away; beyond is air.
        content: what inference crops the scan to, about.
        strip_mm: distance from the brain at which all beyond is taken away; None: the head is there.
        ragged_mm: how far that edge strays.
        shading: (2, ...) logarithm of the gain, and contrast; None: both are 0.
        pivot: the brightness that the contrast leaves as it is.
        gamma: exponent of the intensity curve.
        blur_mm: point spread beside the voxel's own, standard deviation.
        thick: axis and thickness in mm of the slices; None: they are the grid's.
        noise: standard deviation.
        magnitude: Rician noise.
        table: what the body lies on; None: nothing.
    """

    matrix: Array
    warp: Smooth | None
    growth: float
    brightness: Brightness
    patch_mm: float
    stored: Box
    seen: Box
    content: Box
    strip_mm: float | None
    ragged_mm: float
    shading: Smooth | None
    pivot: float
    gamma: float
    blur_mm: float
    thick: tuple[int, float] | None
    noise: float
    magnitude: bool
    table: Table | None = None

    @property
    def void(self) -> float:
        """What is stored where there is nothing: 0, or in CT, air."""
        return 0.0 if self.magnitude else float(self.brightness.mean[0])

    def in_map(self, source: LabelMap, positions: Positions) -> Tensor:
        """(3, X, Y, Z) float32 map voxels of where positions (X,), (Y,), (Z,), in mm, cross."""
        found = np.zeros((3, *(len(at) for at in positions)), np.float32)
        x, y, z = positions
        for axis, row in enumerate(self.matrix):
            found[axis] = (
                (row[0] * x + source.centre[axis])[:, None, None] + (row[1] * y)[:, None] + row[2] * z
            )
        at = torch.from_numpy(found)
        if self.warp is not None:
            at += self.warp.at(positions)
        return self._grown(source, at)

    def _grown(self, source: LabelMap, at: Tensor) -> Tensor:
        """The place that moves to ``at`` when the map's push grows: backwards along it."""
        last = torch.tensor(source.push.shape[1:])[:, None] - 1
        if self.growth == 0.0 or last.min() < 0:
            return at
        push = source.push.reshape(3, -1)
        strides = torch.tensor([[source.push[0, 0].numel()], [source.push.shape[3]], [1]])
        step = self.growth / (_GROWTH_STEPS * source.voxel_mm)
        moved = at.reshape(3, -1)
        for _ in range(_GROWTH_STEPS):
            node = (moved / source.push_step + 0.5).long().clamp_(min=0).minimum(last)
            moved = moved - step * push.index_select(1, (node * strides).sum(dim=0))
        return moved.view(at.shape)

    def to_scanner(self, source: LabelMap, places: Array) -> Array:
        """(N, 3) scanner mm of map voxels (N, 3), leaving out the warp, which is a few mm."""
        return np.asarray(np.linalg.solve(self.matrix, (places - source.centre).T).T)


def draw_head(
    source: LabelMap, knobs: MRIKnobs, contrast: Contrast, random: np.random.Generator
) -> Scene:
    """Draw a person's head and an MR scanner."""
    pose, scale = _pose(knobs, random)
    head, brain = (_box(source, extent, scale) for extent in (source.content, source.kept))
    stripped = random.random() < knobs.skull_stripped
    seen, stored = _field_of_view(head, brain, knobs, random)
    if stripped:
        head = brain
    space = head.wider(20.0)
    warp = _warp(source, space, knobs, random)
    bias, bias_step = random.uniform(*knobs.bias_sd), random.uniform(*knobs.bias_step_mm)
    local = random.uniform(*knobs.contrast_sd)
    shading = None
    if bias > 0.0 or local > 0.0:
        shading = Smooth.drawn(2, space.low, space.high, bias_step, random)
        shading.nodes.mul_(torch.tensor([bias, local])[:, None, None, None] / SPLINE_SD)
    return Scene(
        matrix=pose / source.voxel_mm,
        warp=warp,
        growth=random.uniform(*np.log(knobs.ventricle_scale)),
        brightness=contrast(source, knobs, random),
        patch_mm=random.uniform(*knobs.patch_mm),
        stored=stored,
        seen=seen,
        content=head.wider(_MARGIN_MM).and_(stored),
        strip_mm=random.uniform(*knobs.strip_mm) if stripped else None,
        ragged_mm=random.uniform(*knobs.strip_ragged_mm),
        shading=shading,
        pivot=random.uniform(0.4, 0.9),
        gamma=float(np.exp(knobs.gamma_sd * random.standard_normal()))
        if random.random() < knobs.gamma
        else 1.0,
        blur_mm=random.uniform(*knobs.blur_mm),
        thick=(int(random.integers(3)), random.uniform(*knobs.thick_mm))
        if random.random() < knobs.thick
        else None,
        noise=random.uniform(*knobs.noise),
        magnitude=knobs.magnitude,
    )


def draw_trunk(
    source: LabelMap, knobs: CTKnobs, contrast: Contrast, random: np.random.Generator
) -> Scene:
    """Draw a person's trunk and a CT scanner.

    Its field of view holds the body from side to side, and along the body what :class:`CTKnobs` leave.
    """
    pose, scale = _pose(knobs, random)
    growth = random.uniform(*np.log(knobs.fat_scale))
    all_of_it, trunk, core = (
        _box(source, extent, scale) for extent in (source.content, source.kept, source.core)
    )
    grown = np.expm1(growth) * np.array([1.0, 1.0, 0.0])
    below, above = grown * (trunk.low - core.low), grown * (trunk.high - core.high)
    arms = random.random() < knobs.arms
    body = all_of_it if arms else trunk
    body = Box(body.low + below, body.high + above)
    margins = random.uniform(*knobs.margin_mm, (2, 3))
    stored = Box(body.low - margins[0], body.high + margins[1])
    cut = np.array(knobs.crop_mm) * random.random(2)
    if any(knobs.crop_mm):
        cut = np.minimum(cut + _ENDS_MM, _CUT * (body.high[2] - body.low[2]))
        stored.low[2], stored.high[2] = body.low[2] + cut[0], body.high[2] - cut[1]
    if random.random() < knobs.short:
        length = random.uniform(*knobs.short_mm)
        stored.low[2] += random.random() * max(0.0, stored.high[2] - stored.low[2] - length)
        stored.high[2] = min(stored.high[2], stored.low[2] + length)
    table = None
    if random.random() < knobs.table:
        table = Table(
            middle_mm=random.normal(0.0, 8.0),
            top_mm=trunk.low[1] + below[1] - random.uniform(*_GAP_MM),
            dip_mm=random.uniform(*knobs.table_dip_mm),
            shell=random.uniform(*TABLE_SHELL),
        )
    look = contrast(source, knobs, random)
    return Scene(
        matrix=pose / source.voxel_mm,
        warp=_warp(source, stored.wider(20.0), knobs, random),
        growth=growth,
        brightness=look if arms else _raised(look, source),
        patch_mm=random.uniform(*knobs.patch_mm),
        stored=stored,
        seen=stored,
        content=body.wider(_MARGIN_MM).and_(stored),
        strip_mm=None,
        ragged_mm=0.0,
        shading=None,
        pivot=0.0,
        gamma=1.0,
        blur_mm=random.uniform(*knobs.blur_mm),
        thick=(2, random.uniform(*knobs.thick_mm)) if random.random() < knobs.thick else None,
        noise=random.uniform(*knobs.noise),
        magnitude=False,
        table=table,
    )


def _raised(look: Brightness, source: LabelMap) -> Brightness:
    """The same with air where arms are: they are held above the head."""
    arm = np.array([source.tissues[tissue].arm for tissue in source.tissue])
    return Brightness(
        np.where(arm, look.mean[0], look.mean),
        np.where(arm, 0.0, look.grain),
        np.where(arm, 0.0, look.patches),
    )


def _warp(
    source: LabelMap, space: Box, knobs: RenderingKnobs, random: np.random.Generator
) -> Smooth | None:
    """The shift of a drawn person over a box, in map voxels."""
    warp_mm, warp_step = random.uniform(*knobs.warp_mm), random.uniform(*knobs.warp_step_mm)
    if warp_mm <= 0.0:
        return None
    warp = Smooth.drawn(3, space.low, space.high, warp_step, random)
    sd = warp_mm / (np.sqrt(3.0) * SPLINE_SD)
    warp.nodes.mul_(sd).clamp_(-_FOLDS * warp_step, _FOLDS * warp_step).div_(source.voxel_mm)
    return warp


def _pose(knobs: RenderingKnobs, random: np.random.Generator) -> tuple[Array, Array]:
    """(3, 3) scanner mm to body mm, and (3,) the body's size per axis, negative where it is mirrored."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(knobs.rotate_sd_deg) * _few(random, 3)):
        one = np.eye(3)
        i, j = (a for a in range(3) if a != axis)
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    shear = np.eye(3)
    shear[~np.eye(3, dtype=bool)] = knobs.shear_sd * _few(random, 6)
    scale = np.exp(knobs.scale_sd * _few(random, 3))
    if random.random() < knobs.flip:
        scale[0] = -scale[0]
    return (turn @ shear) / scale[:, None], scale


def _few(random: np.random.Generator, count: int) -> Array:
    """Normal numbers, none beyond 2.5."""
    return np.clip(random.standard_normal(count), -2.5, 2.5)


def _box(source: LabelMap, extent: tuple[tuple[int, int], ...], scale: Array) -> Box:
    """Where an upright body's part of the map lies in the scanner."""
    edges = (np.array(extent).T - 0.5 - np.array(source.centre)) * source.voxel_mm * scale
    return Box(edges.min(axis=0), edges.max(axis=0))


def _field_of_view(
    head: Box, brain: Box, knobs: MRIKnobs, random: np.random.Generator
) -> tuple[Box, Box]:
    """What is seen of the head, and what is stored."""
    below, beside = knobs.cut_into_mm
    margins = random.uniform(*knobs.margin_mm, (2, 3))
    stored = Box(head.low - margins[0], head.high + margins[1])
    seen = Box(stored.low.copy(), stored.high.copy())
    for axis in range(3):
        for edges, outer, inner, sign in (
            (seen.low, head.low, brain.low, 1.0),
            (seen.high, head.high, brain.high, -1.0),
        ):
            lower = axis == 2 and sign > 0
            if random.random() < (knobs.cut_below if lower else knobs.cut_side):
                last = inner[axis] + sign * (below if lower else beside)
                edges[axis] = random.uniform(*sorted((outer[axis], last)))
    return seen, stored if random.random() < knobs.cut_air else seen
