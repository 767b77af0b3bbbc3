"""Simulated subjects and sites: one anatomy, warped per person and scanned per site.

In the manner of SynthSeg (Billot et al., Medical Image Analysis 2023): labels and image are warped
together, tissues get means of their own, and an acquisition is imitated step by step. Every subject has
a random generator of its own, seeded by (seed, site, index), and all arithmetic is float64, rounded to
integers at the end, so a subject is the same bytes on every machine and whatever else is made beside it.
"""

import itertools
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage, special

from segdistill.cohort.anatomy import Anatomy
from segdistill.cohort.head import Surroundings, draw_head, lengthen
from segdistill.cohort.manifest import Case, Site, Split
from segdistill.files import SegdistillError, atomic_folder
from segdistill.runtime.cpus import usable_cpus
from segdistill.volume import write_volume

Array = NDArray[np.float64]

NOTE = (
    "SIMULATED: subjects and scanner are made by a program from one averaged anatomy (MNI152 with "
    "CerebrA labels). Good for trying the platform, no evidence about real patients."
)

_NECK_LIMIT = 85.0  # mm of neck that the lengthened template has, tilted heads allowed for
_LATTICE_MM = 3.0  # nodes of the warp; warps change over much longer lengths
_FLOW_STEPS = 8  # Euler steps along the velocity field; small steps keep the warp invertible
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
class CohortKnobs:
    """How much simulated people differ; the comments in ``params.yaml`` say what each value does."""

    warp_mm: float
    warp_scale_mm: float
    scale_sd: float
    rotate_sd_deg: float
    ventricle_scale: tuple[float, float]
    cortex_shift_mm: float
    tissue_sd: float
    contrast_sd: float

    @classmethod
    def from_params(cls, values: Mapping[str, Any], source: str) -> "CohortKnobs":
        """Take the values of ``cohort`` from ``params.yaml``; ``source`` names them in errors."""
        knobs = cls(**_known(cls, values, source))
        low, high = knobs.ventricle_scale
        _refuse(not 0 < low <= high, source, f"ventricle_scale {[low, high]} must be 0 < low <= high")
        _refuse(
            knobs.warp_scale_mm < _LATTICE_MM, source, f"warp_scale_mm must be at least {_LATTICE_MM}"
        )
        return knobs


@dataclass(frozen=True)
class SiteKnobs:
    """One site's people and scanner; the comments in ``params.yaml`` say what each value does."""

    subjects: int
    split: tuple[int, int, int]
    held_out: bool
    voxel_mm: tuple[float, float, float]
    orientation: str
    contrast: float
    gamma: float
    bias: float
    noise: float
    blur_mm: float
    skull: bool
    crop_mm: float
    neck_mm: tuple[float, float]
    trim_mm: float

    @classmethod
    def from_params(cls, values: Mapping[str, Any], source: str) -> "SiteKnobs":
        """Take the values of ``sites.<name>`` from ``params.yaml``; ``source`` names them in errors."""
        knobs = cls(**_known(cls, values, source))
        total = sum(knobs.split)
        _refuse(
            total != knobs.subjects, source, f"split adds up to {total}, subjects is {knobs.subjects}"
        )
        _refuse(
            knobs.held_out and knobs.split[:2] != (0, 0), source, "a held-out site has test cases only"
        )
        _refuse(not all(0.3 <= v <= 10 for v in knobs.voxel_mm), source, "voxel_mm must be 0.3 to 10 mm")
        low, high = knobs.neck_mm
        _refuse(
            not 0 <= low <= high <= _NECK_LIMIT,
            source,
            f"neck_mm {[low, high]} must be 0 <= low <= high <= {_NECK_LIMIT:g}",
        )
        letters = sorted("".join(min(c, _OPPOSITE.get(c, "?")) for c in knobs.orientation))
        _refuse(
            letters != ["A", "I", "L"], source, f"orientation {knobs.orientation!r} isn't axis codes"
        )
        return knobs


_OPPOSITE = dict(zip("LRAPIS", "RLPASI", strict=True))


def _known(cls: type, values: Mapping[str, Any], source: str) -> dict[str, Any]:
    names = {entry.name for entry in fields(cls)}
    _refuse(set(values) != names, source, f"expected exactly the keys {', '.join(sorted(names))}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _refuse(wrong: bool, source: str, message: str) -> None:
    if wrong:
        raise SegdistillError(f"{source}: {message}.")


@dataclass(frozen=True)
class Subject:
    """One simulated person, before any scanner.

    Attributes:
        scale: (3,) head size per axis relative to the template.
        rotation: (3, 3) head in scanner.
        flow: (3, *lattice) displacement in template mm on the template's lattice.
        labels: (X, Y, Z) uint8 template labels with this person's cortex thickness.
        ventricle_scale: linear factor drawn for the ventricles.
        cortex_shift_mm: shift drawn for the grey-white border.
    """

    scale: Array
    rotation: Array
    flow: Array
    labels: NDArray[np.uint8]
    ventricle_scale: float
    cortex_shift_mm: float


@dataclass(frozen=True)
class Template:
    """The anatomy with what all subjects share; made once per site.

    Attributes:
        anatomy: one head with its structures.
        below_mm: how much of it was added below by ``lengthen``; a scan may or may not reach it.
        front_mm: how much was added in front.
    """

    anatomy: Anatomy
    below_mm: float = 0.0
    front_mm: float = 0.0

    @classmethod
    def with_neck(cls, anatomy: Anatomy) -> "Template":
        """The template with room for a neck and a nose."""
        longer = lengthen(anatomy)
        grown = np.subtract(longer.image.shape, anatomy.image.shape) * float(anatomy.affine[0, 0])
        return cls(longer, below_mm=float(grown[2]), front_mm=float(grown[1]))

    @cached_property
    def around(self) -> Surroundings:
        """The head around the brain."""
        return Surroundings(self.anatomy)

    @cached_property
    def spacing(self) -> float:
        """Voxel size in mm; the anatomy is isotropic and its axes are R, A, S."""
        return float(self.anatomy.affine[0, 0])

    @cached_property
    def lattice_step(self) -> float:
        """Distance of the warp's nodes in template voxels."""
        return max(_LATTICE_MM / self.spacing, 1.0)

    @cached_property
    def lattice(self) -> Array:
        """(3, x, y, z) template voxel coordinates of the warp's nodes."""
        shape = [int(np.ceil(n / self.lattice_step)) + 1 for n in self.anatomy.image.shape]
        return np.indices(shape).astype(np.float64) * self.lattice_step

    @cached_property
    def centre(self) -> Array:
        """(3,) template voxel coordinates of the brain's centre."""
        inside = self.anatomy.labels > 0
        return np.array(
            [np.average(np.arange(inside.shape[a]), weights=_along(inside, a)) for a in range(3)]
        )

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
        push = _gradient(signed, mm) * np.exp(-np.clip(signed - _WALL_MM, 0.0, None) / _FALLOFF_MM)
        inward = _gradient(inside.astype(np.float64), mm)
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


def _gradient(field: Array, mm: float) -> Array:
    """(3, X, Y, Z) slope of a field per mm."""
    return np.stack([np.gradient(field, mm, axis=axis) for axis in range(3)])


def _along(inside: NDArray[np.bool_], axis: int) -> NDArray[np.int64]:
    return np.asarray(inside.sum(axis=tuple(a for a in range(3) if a != axis)))


def draw_subject(template: Template, knobs: CohortKnobs, rng: np.random.Generator) -> Subject:
    """Draw one person: head size and pose, a smooth warp, ventricles and cortex."""
    scale = np.exp(knobs.scale_sd * rng.standard_normal(3))
    rotation = _rotation(np.deg2rad(knobs.rotate_sd_deg) * rng.standard_normal(3))
    velocity = np.stack([_smooth_noise(template, knobs.warp_scale_mm, rng) for _ in range(3)])
    velocity *= knobs.warp_mm / np.sqrt(3.0)  # warp_mm is of the shift's length, not of one component
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
    return Subject(scale, rotation, _flow(template, velocity), labels, ventricle_scale, cortex_shift)


def _smooth_noise(template: Template, scale_mm: float, rng: np.random.Generator) -> Array:
    """(x, y, z) Gaussian noise on the lattice, smoothed over ``scale_mm``, of standard deviation 1."""
    sigma = scale_mm / (template.lattice_step * template.spacing)
    noise = rng.standard_normal(template.lattice.shape[1:])
    # Filtering white noise by a Gaussian leaves a variance of (4 pi sigma^2)^(-3/2) in 3D.
    return np.asarray(
        ndimage.gaussian_filter(noise, sigma, mode="wrap") * (2.0 * np.sqrt(np.pi) * sigma) ** 1.5
    )


def _flow(template: Template, velocity: Array) -> Array:
    """(3, x, y, z) mm: displacement after flowing along a stationary velocity (mm) for unit time."""
    if not velocity.any():
        return np.zeros_like(velocity)
    here = template.lattice / template.lattice_step
    moved = here.copy()
    to_nodes = 1.0 / (_FLOW_STEPS * template.lattice_step * template.spacing)
    for _ in range(_FLOW_STEPS):
        step = [ndimage.map_coordinates(v, moved, order=1, mode="nearest") for v in velocity]
        moved += np.stack(step) * to_nodes
    return np.asarray((moved - here) * template.lattice_step * template.spacing)


def _rotation(angles: Array) -> Array:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        one = np.eye(3)
        i, j = [a for a in range(3) if a != axis]
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        matrix = np.einsum("ij,jk->ik", matrix, one)  # einsum: no BLAS, the same sum everywhere
    return matrix


@dataclass(frozen=True)
class Grid:
    """A scan's voxels: RAS axes, ``voxel_mm`` apart, ``origin_mm`` the centre of voxel (0, 0, 0)."""

    shape: tuple[int, int, int]
    voxel_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    @property
    def affine(self) -> Array:
        """(4, 4) voxel to RAS mm."""
        affine = np.diag([*self.voxel_mm, 1.0])
        affine[:3, 3] = self.origin_mm
        return affine


def scan_grid(template: Template, subject: Subject, site: SiteKnobs, rng: np.random.Generator) -> Grid:
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
    voxel = np.array(site.voxel_mm)
    size = np.maximum(np.ceil((high - low) / voxel), 8).astype(int)
    origin = np.round(low + voxel / 2, 3)  # micrometres: float32 headers hold it exactly enough
    return Grid(
        shape=(int(size[0]), int(size[1]), int(size[2])),
        voxel_mm=site.voxel_mm,
        origin_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
    )


def template_coordinates(template: Template, subject: Subject, grid: Grid) -> Array:
    """(3, X, Y, Z) template voxel coordinates of what the subject has at each voxel of the grid."""
    centre_mm = template.anatomy.affine[:3, 3] + template.centre * template.spacing
    voxel = np.indices(grid.shape, sparse=True)
    at = [
        voxel[a] * grid.voxel_mm[a] + (grid.origin_mm[a] - centre_mm[a]) for a in range(3)
    ]  # mm from the brain's centre
    found = np.empty((3, *grid.shape))
    for a in range(3):
        turned = sum(subject.rotation[b, a] * at[b] for b in range(3)) / subject.scale[a]
        found[a] = turned / template.spacing + template.centre[a]
    nodes = found / template.lattice_step
    for a, flow in enumerate(subject.flow):
        shift = ndimage.map_coordinates(flow, nodes, order=1, mode="nearest")
        found[a] += shift / template.spacing
    return found


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
    template: Template,
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
    template: Template,
    subject: Subject,
    grid: Grid,
    site: SiteKnobs,
    cohort: CohortKnobs,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Scan a subject: (X, Y, Z) int16 image and (X, Y, Z) uint8 structure codes on the grid.

    A voxel averages the points of about 1 mm in it (partial volume; thick slices mix tissues along the
    slice), and its label is the structure that most of those points have.
    """
    painted = paint(template, subject, site, cohort, rng)
    centre = template_coordinates(template, subject, grid)
    parts = [max(1, round(v / template.spacing)) for v in grid.voxel_mm]
    offsets = [(np.arange(n) + 0.5) / n - 0.5 for n in parts]
    steps = [  # how the template moves from voxel to voxel, along the axes that are divided
        np.stack([np.gradient(c, axis=a) for c in centre]) if parts[a] > 1 else None for a in range(3)
    ]
    image = np.zeros(grid.shape)
    several = max(parts) > 1
    votes = np.zeros((len(_MEANS), centre[0].size), np.uint8) if several else None
    column = np.arange(centre[0].size)
    codes = np.zeros(grid.shape, np.uint8)
    for share in itertools.product(*offsets):
        at = centre
        for part, step in zip(share, steps, strict=True):
            if step is not None:
                at = at + part * step
        image += ndimage.map_coordinates(painted, at, order=1, mode="nearest")
        codes = ndimage.map_coordinates(subject.labels, at, order=0, mode="grid-constant")
        if votes is not None:
            votes[codes.ravel(), column] += 1
    image /= len(offsets[0]) * len(offsets[1]) * len(offsets[2])
    labels = codes if votes is None else votes.argmax(axis=0).astype(np.uint8).reshape(grid.shape)

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


def simulate_site(
    anatomy: Anatomy,
    name: str,
    site: SiteKnobs,
    cohort: CohortKnobs,
    *,
    task: str,
    seed: int,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Site:
    """Simulate one site and write ``out/{manifest.json, images/CASE.nii, labels/CASE.nii}``.

    Args:
        anatomy: what all subjects are made from.
        name: the site's name; cases are called ``NAME-001`` and so on.
        site: its people and scanner.
        cohort: how people differ.
        task: name of the task, for the manifest.
        seed: with the site's name and the subject's number it decides everything random.
        out: folder to write; it appears whole or not at all.
        progress: called with (subjects done, subjects) after each.

    Returns:
        The site as in its manifest.

    Raises:
        SegdistillError: the disk is full.
    """
    template = Template.with_neck(anatomy)
    names: tuple[Split, ...] = get_args(Split)
    splits: list[Split] = [split for split, n in zip(names, site.split, strict=True) for _ in range(n)]

    def person(index: int, folder: Path) -> Case:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), index])
        subject = draw_subject(template, cohort, rng)
        grid = scan_grid(template, subject, site, rng)
        image, labels = scan(template, subject, grid, site, cohort, rng)
        case = f"{name}-{index:03d}"
        for kind, array in (("images", image), ("labels", labels)):
            _write(folder / kind / f"{case}.nii", array, grid, site.orientation)
        return Case(
            case=case,
            subject=case,
            image=f"images/{case}.nii",
            label=f"labels/{case}.nii",
            split=splits[index - 1],
            scanner={"simulated": True, "voxel_mm": list(site.voxel_mm), "skull": site.skull}
            | {"orientation": site.orientation},
        )

    with atomic_folder(out) as folder:
        (folder / "images").mkdir()
        (folder / "labels").mkdir()
        cases = []
        with ThreadPoolExecutor(usable_cpus()) as pool:  # the heavy steps let go of the GIL
            waiting = [pool.submit(person, index, folder) for index in range(1, len(splits) + 1)]
            try:
                for done, future in enumerate(waiting, start=1):
                    cases.append(future.result())
                    if progress:
                        progress(done, len(splits))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        made = Site(
            site=name,
            task=task,
            simulated=True,
            held_out=site.held_out,
            label_protocol=anatomy.label_protocol,
            structures=dict(anatomy.structures),
            cases=tuple(cases),
            note=NOTE,
        )
        made.write(folder)
    return made


def _write(path: Path, array: NDArray[Any], grid: Grid, orientation: str) -> None:
    """Write an array given on RAS axes with its axes stored in the site's own order."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    back = inv_ornt_aff(turn, array.shape)
    affine = np.einsum("ij,jk->ik", grid.affine, back)  # einsum: no BLAS
    write_volume(path, apply_orientation(array, turn), affine)
