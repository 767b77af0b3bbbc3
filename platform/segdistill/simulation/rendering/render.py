"""A patch of a drawn person's scan, normalised as the served scan would have been."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from segdistill.files import SegdistillError
from segdistill.overlap import IGNORED
from segdistill.runtime.plan import Plan
from segdistill.simulation.rendering.contrast import Contrast
from segdistill.simulation.rendering.knobs import RenderingKnobs
from segdistill.simulation.rendering.labelmap import BORDER, LabelMap
from segdistill.simulation.rendering.modality import RENDERINGS
from segdistill.simulation.rendering.scanner import Look, look_up, scan
from segdistill.simulation.rendering.scene import Array, Positions, Scene, Triple

_SCOUT_MM = 12.0  # between the voxels of the coarse look at the whole scan


@dataclass(frozen=True, eq=False)
class Rendered:
    """A rendered patch.

    Attributes:
        image: (1, X, Y, Z) float32, normalised.
        label: (X, Y, Z) uint8, the plan's channels, or ``overlap.IGNORED``.
    """

    image: Tensor
    label: Tensor


def render(
    source: LabelMap,
    plan: Plan,
    knobs: RenderingKnobs,
    random: np.random.Generator,
    *,
    patch_size: tuple[int, int, int] | None,
    foreground_share: float = 0.0,
    contrast: Contrast | None = None,
    alone: bool = False,
) -> Rendered:
    """Draw a person's scan and render a patch of it, or all of it.

    The label is the code that most of a voxel's parts have. What differs from rendering the whole scan
    first and preprocessing it: a voxel's parts lie along the map's axes, not the scanner's; point spread
    and slices end at the patch's border; and the normalisation comes from a coarse look at the scan.

    Args:
        source: the person, on the device that renders.
        plan: gives the grid, the channels, the normalisation and the modality.
        knobs: how much everything may differ; the modality's.
        random: where all randomness comes from: its state decides the result, on one kind of device.
        patch_size: voxels; a scan that is smaller goes on beyond its border, evenly on both sides, its
            outermost voxels repeated. None: all that inference would crop the scan to, about, made up
            behind to a multiple of the plan's ``size_divisor``.
        foreground_share: chance that the patch is centred about a voxel of a structure, each structure
            equally often; the warp, which moves it by a few mm, is left out of that.
        contrast: how bright every code is; None: as usual in the plan's modality.
        alone: the patch is no larger than the scan, and what ``size_divisor`` asks is made up behind.

    Raises:
        SegdistillError: the plan's grid is too coarse for the map, or its normalisation can't be had.
    """
    _check(source, plan)
    how = RENDERINGS[plan.modality]
    scene = how.scene(source, knobs, contrast or how.contrast, random)
    positions = _place(source, scene, plan, patch_size, foreground_share, random, alone=alone)
    scale = served_scale(source, scene, plan, random)
    image, codes = scan(source, scene, Look(positions, plan.spacing_mm), random)
    label = look_up(np.array(source.channels(plan), np.uint8), codes)
    return Rendered(scale(image)[None], label)


def _check(source: LabelMap, plan: Plan) -> None:
    if max(plan.spacing_mm) > BORDER * source.voxel_mm:
        raise SegdistillError(
            f"the plan's grid of {plan.spacing_mm} mm is too coarse for a label map of "
            f"{source.voxel_mm:g} mm; voxels may be {BORDER} times as large. Resample the label map."
        )
    if plan.normalisation.scheme == "zscore" and (
        plan.normalisation.region == "filled" or plan.foreground == "body"
    ):
        raise SegdistillError(
            f"plan: label maps can't be rendered for normalisation {plan.normalisation} with foreground "
            f"{plan.foreground}. Use zscore of above_mean or nonzero, or ct."
        )


def _place(
    source: LabelMap,
    scene: Scene,
    plan: Plan,
    patch_size: tuple[int, int, int] | None,
    foreground_share: float,
    random: np.random.Generator,
    *,
    alone: bool,
) -> Positions:
    """Where the voxels lie along each axis, scanner mm."""
    spacing = np.array(plan.spacing_mm)
    low = scene.content.low
    voxels = np.maximum(np.floor((scene.content.high - low) / spacing + 0.5), 1).astype(int)
    whole = np.array(plan.divisible(tuple(voxels)))
    size = whole if patch_size is None else np.array(patch_size)
    if alone:
        size = np.minimum(size, whole)
    room = voxels - size
    start = random.uniform(0.0, np.maximum(room, 0.0))
    if patch_size is not None and random.random() < foreground_share:
        centre = _centre(source, scene, random)
        if centre is not None:
            jitter = random.uniform(-size / 4, size / 4)
            start = np.clip((centre - low) / spacing + jitter - size / 2, 0, np.maximum(room, 0))
    if patch_size is not None and not alone:
        start = np.where(room < 0, room // 2, start)
    x, y, z = (
        low[axis]
        + spacing[axis] * np.clip(start[axis] + np.arange(size[axis]) + 0.5, 0.5, voxels[axis] - 0.5)
        for axis in range(3)
    )
    return x, y, z


def _centre(source: LabelMap, scene: Scene, random: np.random.Generator) -> Array | None:
    """(3,) scanner mm of a voxel of a structure that is seen; None: there is none."""
    code = source.places[:, 0].numpy()
    for structure in random.permutation(sorted({*source.structure} - {0, IGNORED})):
        at = scene.to_scanner(source, source.places[:, 1:].numpy()[code == structure])
        at = at[((at > scene.seen.low) & (at < scene.seen.high)).all(axis=1)]
        if len(at):
            return np.asarray(at[random.integers(len(at))])
    return None


@dataclass(frozen=True)
class Scale:
    """What normalises a scan: (image - mean) / deviation, clipped before."""

    mean: Tensor | float
    deviation: Tensor | float
    clip: tuple[float, float] | None = None

    def __call__(self, image: Tensor) -> Tensor:
        """The image, normalised."""
        if self.clip is not None:
            image = image.clamp(*self.clip)
        return (image - self.mean) / self.deviation


def served_scale(source: LabelMap, scene: Scene, plan: Plan, random: np.random.Generator) -> Scale:
    """What ``runtime.preprocess`` would do to the whole scan, from a coarse look at all of it."""
    how = plan.normalisation
    if how.scheme == "ct":
        assert how.clip_hu and how.mean_hu is not None and how.std_hu is not None  # noqa: S101, PT018
        return Scale(how.mean_hu, max(how.std_hu, 1e-8), how.clip_hu)
    x, y, z = (_evenly(*ends) for ends in zip(scene.stored.low, scene.stored.high, strict=True))
    look = Look((x, y, z), _seen_as(scene, plan.spacing_mm))
    plain = replace(scene, blur_mm=0.0, thick=None, growth=0.0)
    scout, _ = scan(source, plain, look, random)
    if how.region == "crop":
        inside = torch.ones_like(scout)
    else:
        inside = (scout > scout.mean() if plan.foreground == "above_mean" else scout != 0).float()
    count = inside.sum().clamp_min(1.0)
    mean = (scout * inside).sum() / count
    deviation = ((scout - mean).square() * inside).sum().div(count).sqrt()
    return Scale(mean, deviation.clamp_min(1e-8))


def _evenly(low: float, high: float) -> Array:
    """(N,) places from ``low`` to ``high``, about ``_SCOUT_MM`` apart."""
    count = max(1, round((high - low) / _SCOUT_MM))
    return low + (high - low) * (np.arange(count) + 0.5) / count


def _seen_as(scene: Scene, spacing_mm: Triple) -> Triple:
    """Edges, mm, of the voxel whose parts are as far apart as what one voxel of the scan mixes.

    Parts of a voxel of edge w have a variance of w^2 / 20 along each axis. Point spread comes on top;
    thick slices t have that of their profile, t^2 / 12, and of interpolation between them, t^2 / 6.
    """
    x, y, z = (
        np.sqrt(
            5.0 * scene.thick[1] ** 2
            if scene.thick is not None and scene.thick[0] == axis
            else mm**2 + 20.0 * scene.blur_mm**2
        )
        for axis, mm in enumerate(spacing_mm)
    )
    return x, y, z
