"""A simulated MR scanner (T1) and what differs between the brains in it: ventricles, cortex, brightness.

In the manner of SynthSeg (Billot et al., Medical Image Analysis 2023): tissues get means of their own,
and an acquisition is imitated step by step.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from segdistill.params import Positive, Weight
from segdistill.simulation.anatomy import Anatomy
from segdistill.simulation.head import Surroundings, draw_head, lengthen
from segdistill.simulation.people import (
    Array,
    Grid,
    Modality,
    PeopleKnobs,
    Person,
    SiteBase,
    Template,
    draw_shape,
    flow,
    gradient,
    refuse,
    sample,
)

_NECK_LIMIT = 85.0  # mm of neck that the lengthened template has, tilted heads allowed for
_WALL_MM = 4.0  # the ventricles' wall moves as a whole this far from it
_FALLOFF_MM = 12.0  # how far around a ventricle its neighbours give way
_RESIDUAL = 0.35  # share of the template's own variation that is kept within a structure
_PIVOT = 76.0  # template units between grey and white matter, where 'contrast' turns about
_WHITE = 87.0  # template units of white matter
_FLUID = (0.1, 0.4)  # CSF and ventricles in a person's scan, as a share of white matter
_CSF, _VENTRICLES, _GM, _WM = 1, 2, 3, 4

# Mean T1 intensity by structure code, template units, as in the cores of the template's structures.
# _RESIDUAL keeps what differs within one, e.g. the pallidum brighter than the caudate.
_MEANS = np.array([0.0, 20.0, 18.0, 62.0, 89.0, 75.0, 69.0, 64.0, 82.0, 61.0, 88.0])
# Spread of a person's mean about it in units of "tissue_sd": deep structures differ more (iron, age).
_SPREAD = np.array([0.0, 0.3, 0.3, 0.4, 0.3, 1.0, 1.0, 0.7, 1.0, 0.6, 0.5])


@dataclass(frozen=True)
class CohortKnobs(PeopleKnobs):
    """How much simulated people differ; the comments in ``params.yaml`` say what each value does."""

    ventricle_scale: tuple[float, float]
    cortex_shift_mm: Weight
    tissue_sd: Weight
    contrast_sd: Weight

    def __post_init__(self) -> None:
        low, high = self.ventricle_scale
        refuse(not 0 < low <= high, f"ventricle_scale {[low, high]} must be 0 < low <= high")


@dataclass(frozen=True)
class SiteKnobs(SiteBase):
    """One site's people and scanner; the comments in ``params.yaml`` say what each value does."""

    contrast: Positive
    gamma: Positive
    bias: Weight
    noise: Weight
    blur_mm: Weight
    skull: bool
    crop_mm: Weight
    neck_mm: tuple[float, float]
    trim_mm: Weight

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.neck_mm
        refuse(
            not 0 <= low <= high <= _NECK_LIMIT,
            f"neck_mm {[low, high]} must be 0 <= low <= high <= {_NECK_LIMIT:g}",
        )

    def facts(self) -> dict[str, Any]:
        """What a manifest says of the scanner."""
        return {"skull": self.skull}


@dataclass(frozen=True)
class Subject(Person):
    """One simulated person with their brain.

    Attributes:
        labels: (X, Y, Z) uint8 template labels with this person's cortex thickness.
        ventricle_scale: linear factor drawn for the ventricles.
        cortex_shift_mm: shift drawn for the grey-white border.
    """

    labels: NDArray[np.uint8]
    ventricle_scale: float
    cortex_shift_mm: float


@dataclass(frozen=True)
class Head(Template):
    """The anatomy of a head with what all subjects share; made once per site.

    Attributes:
        below_mm: how much of it was added below by ``lengthen``; a scan may or may not reach it.
        front_mm: how much was added in front.
    """

    below_mm: float = 0.0
    front_mm: float = 0.0

    @classmethod
    def with_neck(cls, anatomy: Anatomy) -> "Head":
        """The template with room for a neck and a nose."""
        longer = lengthen(anatomy)
        grown = np.subtract(longer.image.shape, anatomy.image.shape) * float(anatomy.affine[0, 0])
        return cls(longer, below_mm=float(grown[2]), front_mm=float(grown[1]))

    @cached_property
    def around(self) -> Surroundings:
        """The head around the brain."""
        return Surroundings(self.anatomy)

    @cached_property
    def ventricle_push(self) -> Array:
        """(3, x, y, z) mm on the lattice: outward velocity for the ventricles' ln(size) to grow by 1.

        A body of volume V that keeps its shape grows by dV = 3 V ds / s, and by the flux of the velocity
        through its wall; setting both equal gives the speed. It fades around the ventricles, so that
        their neighbours give way, which costs far growth a little: 1.7 comes out as 1.5.
        """
        step = max(1, round(2.0 / self.spacing))
        inside = self.anatomy.labels[::step, ::step, ::step] == _VENTRICLES
        mm = self.spacing * step
        signed = ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside)
        signed = ndimage.gaussian_filter(signed * mm, 3.0 / mm)
        push = gradient(signed, mm) * np.exp(-np.clip(signed - _WALL_MM, 0.0, None) / _FALLOFF_MM)
        inward = gradient(inside.astype(np.float64), mm)
        flux = -float((push * inward).sum()) * mm**3
        push *= 3.0 * float(inside.sum()) * mm**3 / max(flux, 1.0)
        nodes = self.lattice / step
        return np.stack(
            [np.asarray(ndimage.map_coordinates(p, nodes, order=1, mode="nearest")) for p in push]
        )

    @cached_property
    def depth_limit(self) -> float:
        """How far from the grey-white border, in mm, the depth below is known."""
        return 2.4 * max(self.spacing, 1.0)

    @cached_property
    def white_depth(self) -> Array:
        """(X, Y, Z) mm from the grey-white border, positive in white matter.

        With both tissues blurred by s, white / (white + grey) is the normal distribution function of
        depth / s at a flat border; its inverse gives the depth without a distance transform.
        """
        sigma = self.depth_limit / 2.0
        grey, white = (
            ndimage.gaussian_filter(
                (self.anatomy.labels == code).astype(np.float64), sigma / self.spacing
            )
            for code in (_GM, _WM)
        )
        share = np.where(grey + white > 1e-3, white / np.maximum(grey + white, 1e-3), 0.5)
        return np.asarray(sigma * special.ndtri(np.clip(share, 0.02, 0.98)))

    @cached_property
    def residual(self) -> Array:
        """(X, Y, Z) the template's variation about its structures' own means, template units."""
        labels, image = self.anatomy.labels, self.anatomy.image
        means = np.asarray(ndimage.mean(image, labels, np.arange(len(_MEANS))))
        return np.clip(image - means[labels], -12.0, 12.0)


def draw_subject(template: Head, knobs: CohortKnobs, rng: np.random.Generator) -> Subject:
    """Draw one person: head size and pose, a smooth warp, ventricles and cortex."""
    scale, rotation, velocity = draw_shape(template, knobs, rng)
    ventricle_scale = float(rng.uniform(*knobs.ventricle_scale))
    # A point outside the wall must look up what lies deeper in, hence the minus.
    velocity -= np.log(ventricle_scale) * template.ventricle_push
    cortex_shift = float(knobs.cortex_shift_mm * np.clip(rng.standard_normal(), -2.0, 2.0))
    labels = template.anatomy.labels.copy()
    between = (template.white_depth - cortex_shift) * np.sign(cortex_shift) < 0.0
    near = np.abs(template.white_depth) < template.depth_limit
    if cortex_shift > 0.0:
        labels[(labels == _WM) & between & near] = _GM
    elif cortex_shift < 0.0:
        labels[(labels == _GM) & between & near] = _WM
    return Subject(scale, rotation, flow(template, velocity), labels, ventricle_scale, cortex_shift)


def scan_grid(template: Head, subject: Subject, site: SiteKnobs, rng: np.random.Generator) -> Grid:
    """The field of view: the head, a little off centre.

    It reaches ``neck_mm`` below the template and is cut from below by up to ``crop_mm``; at the other
    five sides up to ``trim_mm`` are cut off or, as often, air is added.
    """
    affine, shape = template.anatomy.affine, template.anatomy.image.shape
    centre = affine[:3, 3] + template.centre * template.spacing
    size_mm = template.spacing * subject.scale
    low = centre - (template.centre + 0.5) * size_mm + 2.0 * rng.standard_normal(3)
    high = low + np.array(shape) * size_mm
    low[2] += site.crop_mm * rng.random()
    high[1] -= template.front_mm * subject.scale[1] * rng.random()
    low[2] += template.below_mm * subject.scale[2]
    low[2] -= min(rng.uniform(*site.neck_mm), template.below_mm * subject.scale[2])
    cut = site.trim_mm * rng.uniform(-1.0, 1.0, 5)
    low[:2] += cut[:2]
    high -= cut[2:]
    return Grid.around(low, high, site.voxel_mm)


def tissue_means(site: SiteKnobs, cohort: CohortKnobs, rng: np.random.Generator) -> Array:
    """(structures + 1,) a person's mean brightness by structure code at this site, template units.

    ``contrast`` stretches brain tissue about a point between grey and white matter; fluid is drawn as a
    share of white matter, and every structure has a mean of its own about the template's.
    """
    contrast = site.contrast * np.exp(cohort.contrast_sd * rng.standard_normal())
    own = cohort.tissue_sd * _SPREAD * np.clip(rng.standard_normal(len(_MEANS)), -2.5, 2.5)
    means = _PIVOT + contrast * (_MEANS - _PIVOT) + own
    fluid = rng.uniform(*_FLUID)
    means[[_CSF, _VENTRICLES]] = means[_WM] * fluid * np.array([1.0, rng.uniform(0.8, 1.05)])
    means[_GM] = np.clip(means[_GM], 0.55 * means[_WM], 0.88 * means[_WM])
    return np.asarray(means)


def paint(
    template: Head,
    subject: Subject,
    site: SiteKnobs,
    cohort: CohortKnobs,
    rng: np.random.Generator,
) -> Array:
    """(X, Y, Z) on the template's grid: how bright the subject's tissues are at this site.

    Template units, white matter about 87. ``gamma`` bends the curve; the head around the brain differs
    from person to person.
    """
    means = tissue_means(site, cohort, rng)
    residual = _RESIDUAL * rng.uniform(0.6, 1.4) * site.contrast
    tissue = _WHITE * draw_head(template.around, rng) if site.skull else np.zeros(subject.labels.shape)
    inside = subject.labels > 0
    tissue[inside] = np.clip(
        means[subject.labels[inside]] + residual * template.residual[inside], 2.0, None
    )
    gamma = site.gamma * np.exp(0.03 * rng.standard_normal())
    bright = tissue > 0.0
    tissue[bright] = _WHITE * (tissue[bright] / _WHITE) ** gamma
    return tissue


def scan(
    template: Head,
    subject: Subject,
    grid: Grid,
    site: SiteKnobs,
    cohort: CohortKnobs,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Scan a subject: (X, Y, Z) int16 image and (X, Y, Z) uint8 structure codes on the grid."""
    painted = paint(template, subject, site, cohort, rng)
    image, labels = sample(template, subject, grid, painted, subject.labels)

    if site.blur_mm:
        in_plane = [site.blur_mm / grid.voxel_mm[0], site.blur_mm / grid.voxel_mm[1], 0.0]
        image = ndimage.gaussian_filter(image, in_plane)
    image *= np.exp(site.bias * _shading(grid.shape, rng))
    sigma = site.noise * _WHITE
    real = image + sigma * rng.standard_normal(grid.shape)
    image = np.sqrt(real**2 + (sigma * rng.standard_normal(grid.shape)) ** 2)  # Rician magnitude
    if not site.skull:
        # A real skull stripper leaves a little, or takes a little, around the brain.
        brain = ndimage.gaussian_filter((labels > 0).astype(np.float64), 1.0)
        image = np.where(brain > rng.uniform(0.25, 0.5), image, 0.0)
    gain = rng.uniform(4.0, 12.0)  # MR units are arbitrary
    return np.rint(np.clip(gain * image, 0, 32767)).astype(np.int16), labels


def _shading(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """(X, Y, Z) smooth field of mean 0 and standard deviation 1: cubic through 4^3 random values."""
    coarse = rng.standard_normal((4, 4, 4))
    at = np.meshgrid(*[np.linspace(0.0, 3.0, n) for n in shape], indexing="ij")
    field = ndimage.map_coordinates(coarse, at, order=3, mode="nearest")
    return np.asarray((field - field.mean()) / field.std())


MRI = Modality(CohortKnobs, SiteKnobs, Head.with_neck, draw_subject, scan_grid, scan)
