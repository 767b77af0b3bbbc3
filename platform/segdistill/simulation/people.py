"""Simulated people: size, pose and a smooth warp of one anatomy, whatever scans them afterwards.

In the manner of SynthSeg (Billot et al., Medical Image Analysis 2023): labels and image are warped
together. All arithmetic is float64 without BLAS, so a person is the same on every machine.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from segdistill.params import Count, Weight
from segdistill.simulation.anatomy import Anatomy

Array = NDArray[np.float64]

_FLOW_STEPS = 8  # Euler steps along the velocity field; small steps keep the warp invertible
_OPPOSITE = dict(zip("LRAPIS", "RLPASI", strict=True))


_Number = Annotated[int, Field(ge=0)]
_Millimetres = Annotated[float, Field(ge=0.3, le=10)]


@dataclass(frozen=True)
class PeopleKnobs:
    """How much simulated people differ in any modality; the comments in ``params.yaml`` explain each."""

    warp_mm: Weight
    warp_scale_mm: Annotated[float, Field(ge=3)]
    scale_sd: Weight
    rotate_sd_deg: Weight


@dataclass(frozen=True)
class SiteBase:
    """What every simulated site has, whatever its scanner is."""

    subjects: Count
    split: tuple[_Number, _Number, _Number]
    held_out: bool
    voxel_mm: tuple[_Millimetres, _Millimetres, _Millimetres]
    orientation: str

    def __post_init__(self) -> None:
        total = sum(self.split)
        refuse(total != self.subjects, f"split adds up to {total}, subjects is {self.subjects}")
        refuse(self.held_out and self.split[:2] != (0, 0), "a held-out site has test cases only")
        letters = sorted("".join(min(c, _OPPOSITE.get(c, "?")) for c in self.orientation))
        refuse(letters != ["A", "I", "L"], f"orientation {self.orientation!r} isn't axis codes")


def refuse(wrong: bool, message: str) -> None:
    """Raise ValueError, if ``wrong``."""
    if wrong:
        raise ValueError(message)


@dataclass(frozen=True)
class Person:
    """One simulated person's shape, before any scanner.

    Attributes:
        scale: (3,) size per axis relative to the template.
        rotation: (3, 3) body in scanner.
        flow: (3, *lattice) displacement in template mm on the template's lattice.
    """

    scale: Array
    rotation: Array
    flow: Array


@dataclass(frozen=True)
class Template:
    """The anatomy with what all subjects share; made once per site."""

    anatomy: Anatomy

    @property
    def lattice_mm(self) -> float:
        """Distance of the warp's nodes, mm; warps change over much longer lengths."""
        return 3.0

    @cached_property
    def spacing(self) -> float:
        """Voxel size in mm; the anatomy is isotropic and its axes are R, A, S."""
        return float(self.anatomy.affine[0, 0])

    @cached_property
    def lattice_step(self) -> float:
        """Distance of the warp's nodes in template voxels."""
        return max(self.lattice_mm / self.spacing, 1.0)

    @cached_property
    def lattice(self) -> Array:
        """(3, x, y, z) template voxel coordinates of the warp's nodes."""
        shape = [int(np.ceil(n / self.lattice_step)) + 1 for n in self.anatomy.image.shape]
        return np.indices(shape).astype(np.float64) * self.lattice_step

    @cached_property
    def centre(self) -> Array:
        """(3,) template voxel coordinates of the structures' common centre."""
        inside = self.anatomy.labels > 0
        return np.array(
            [np.average(np.arange(inside.shape[a]), weights=_along(inside, a)) for a in range(3)]
        )


def _along(inside: NDArray[np.bool_], axis: int) -> NDArray[np.int64]:
    return np.asarray(inside.sum(axis=tuple(a for a in range(3) if a != axis)))


def gradient(field: Array, mm: float) -> Array:
    """(3, X, Y, Z) slope of a field per mm."""
    return np.stack([np.gradient(field, mm, axis=axis) for axis in range(3)])


def draw_shape(
    template: Template, knobs: PeopleKnobs, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Draw scale (3,), rotation (3, 3) and the velocity (3, *lattice), in mm, of a smooth warp."""
    scale = np.exp(knobs.scale_sd * rng.standard_normal(3))
    rotation = _rotation(np.deg2rad(knobs.rotate_sd_deg) * rng.standard_normal(3))
    velocity = np.stack([smooth_noise(template, knobs.warp_scale_mm, rng) for _ in range(3)])
    velocity *= knobs.warp_mm / np.sqrt(3.0)  # warp_mm is of the shift's length, not of one component
    return scale, rotation, velocity


def smooth_noise(template: Template, scale_mm: float, rng: np.random.Generator) -> Array:
    """(x, y, z) Gaussian noise on the lattice, smoothed over ``scale_mm``, of standard deviation 1."""
    sigma = scale_mm / (template.lattice_step * template.spacing)
    noise = rng.standard_normal(template.lattice.shape[1:])
    # Filtering white noise by a Gaussian leaves a variance of (4 pi sigma^2)^(-3/2) in 3D.
    return np.asarray(
        ndimage.gaussian_filter(noise, sigma, mode="wrap") * (2.0 * np.sqrt(np.pi) * sigma) ** 1.5
    )


def flow(template: Template, velocity: Array) -> Array:
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

    @classmethod
    def around(cls, low: Array, high: Array, voxel_mm: tuple[float, float, float]) -> "Grid":
        """The voxels, at least 8 an axis, that cover the box from ``low`` to ``high``, (3,) RAS mm."""
        voxel = np.array(voxel_mm)
        size = np.maximum(np.ceil((high - low) / voxel), 8).astype(int)
        origin = np.round(low + voxel / 2, 3)  # micrometres: float32 headers hold it exactly enough
        return cls(
            shape=(int(size[0]), int(size[1]), int(size[2])),
            voxel_mm=voxel_mm,
            origin_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
        )

    @property
    def affine(self) -> Array:
        """(4, 4) voxel to RAS mm."""
        affine = np.diag([*self.voxel_mm, 1.0])
        affine[:3, 3] = self.origin_mm
        return affine

    def axes_mm(self) -> tuple[Array, Array, Array]:
        """RAS mm of the voxel centres along each axis, shaped to broadcast to (X, Y, Z)."""
        x, y, z = (
            np.arange(n, dtype=np.float64) * mm + start
            for n, mm, start in zip(self.shape, self.voxel_mm, self.origin_mm, strict=True)
        )
        return x[:, None, None], y[None, :, None], z[None, None, :]


def template_coordinates(template: Template, subject: Person, grid: Grid) -> Array:
    """(3, X, Y, Z) template voxel coordinates of what the subject has at each voxel of the grid."""
    centre_mm = template.anatomy.affine[:3, 3] + template.centre * template.spacing
    voxel = np.indices(grid.shape, sparse=True)
    at = [
        voxel[a] * grid.voxel_mm[a] + (grid.origin_mm[a] - centre_mm[a]) for a in range(3)
    ]  # mm from the body's centre
    found = np.empty((3, *grid.shape))
    for a in range(3):
        turned = sum(subject.rotation[b, a] * at[b] for b in range(3)) / subject.scale[a]
        found[a] = turned / template.spacing + template.centre[a]
    nodes = found / template.lattice_step
    for a, moved in enumerate(subject.flow):
        shift = ndimage.map_coordinates(moved, nodes, order=1, mode="nearest")
        found[a] += shift / template.spacing
    return found


def sample(
    template: Template,
    subject: Person,
    grid: Grid,
    painted: Array,
    labels: NDArray[np.uint8],
    *,
    parts_of: int = 1,
    beyond: Literal["grid-constant", "nearest"] = "grid-constant",
) -> tuple[Array, NDArray[np.uint8]]:
    """What the grid's voxels hold of a painted subject: (X, Y, Z) means and (X, Y, Z) structure codes.

    A voxel averages the points in it, about a template voxel apart (partial volume; thick slices mix
    tissues along the slice), and its label is the structure that most of those points have.

    Args:
        template: what the subject is made from.
        subject: how its anatomy differs.
        grid: the scan's voxels.
        painted: (X, Y, Z) brightness on the template's grid.
        labels: structure codes on the template's grid, or on one ``parts_of`` times as fine.
        parts_of: into how many parts each axis of a template voxel is divided in ``labels``.
        beyond: what labels are outside the template, as SciPy's ``mode``: ``grid-constant`` (none) or
            ``nearest``.
    """
    centre = template_coordinates(template, subject, grid)
    parts = [max(1, round(v / template.spacing)) for v in grid.voxel_mm]
    offsets = [(np.arange(n) + 0.5) / n - 0.5 for n in parts]
    steps = [  # how the template moves from voxel to voxel, along the axes that are divided
        np.stack([np.gradient(c, axis=a) for c in centre]) if parts[a] > 1 else None for a in range(3)
    ]
    image = np.zeros(grid.shape)
    several = max(parts) > 1
    votes = np.zeros((int(labels.max()) + 1, centre[0].size), np.uint8) if several else None
    column = np.arange(centre[0].size)
    codes = np.zeros(grid.shape, np.uint8)
    for share in itertools.product(*offsets):
        at = centre
        for part, step in zip(share, steps, strict=True):
            if step is not None:
                at = at + part * step
        image += ndimage.map_coordinates(painted, at, order=1, mode="nearest")
        if parts_of > 1:
            at = parts_of * at + (parts_of - 1) / 2.0
        codes = ndimage.map_coordinates(labels, at, order=0, mode=beyond)
        if votes is not None:
            votes[codes.ravel(), column] += 1
    image /= len(offsets[0]) * len(offsets[1]) * len(offsets[2])
    return image, codes if votes is None else votes.argmax(axis=0).astype(np.uint8).reshape(grid.shape)


@dataclass(frozen=True)
class Modality:
    """What a scanner of one kind adds to people: its knobs, and how it sees them.

    Attributes:
        people: the class of the knobs of ``cohort`` in the parameters.
        site: the class of the knobs of one of ``sites``; has ``facts``, for the manifest.
        template: the anatomy to what all subjects of a site share.
        subject: (template, people, rng) to one person.
        grid: (template, person, site, rng) to the voxels of a scan.
        scan: (template, person, grid, site, people, rng) to int16 image and uint8 codes, (X, Y, Z) each.
    """

    people: Any
    site: Any
    template: Callable[[Anatomy], Any]
    subject: Callable[..., Any]
    grid: Callable[..., Grid]
    scan: Callable[..., tuple[NDArray[np.int16], NDArray[np.uint8]]]
