"""The head around the brain: skull, scalp, face and neck, drawn anew for every person.

The template ends just below the brainstem and its face is a blur of 152 people, so a network could learn
its few textures as "not brain". Here the outline, the layers and the brightness of all that isn't brain
are drawn per person, in the manner of SynthSeg (Billot et al., Medical Image Analysis 2023): nothing but
the brain itself, and its place, stays the same. All places are MNI mm: right, anterior, superior.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segdistill.simulation.anatomy import Anatomy

Array = NDArray[np.float64]

BELOW_MM = 90.0  # how far a lengthened head reaches below the template
FRONT_MM = 24.0  # and in front of it, where the nose goes

_COARSE_MM = 2.0  # the outline is made at this size
_NODES_MM = 5.0  # nodes of the noise inside the head
_SKIN_ABOVE = 18.0  # template units: brighter is head, darker is air around it

# Centres and radii in mm. They are a plan of an adult's head, and every person jitters them.
_FACE = ((0.0, 42.0, -70.0), (60.0, 52.0, 62.0))
_JAW = ((0.0, 48.0, -108.0), (44.0, 44.0, 28.0))
_NOSE = ((0.0, 96.0, -52.0), (14.0, 16.0, 24.0))
_NECK_Y, _NECK_RADII, _NECK_TOP = -28.0, (58.0, 58.0), -52.0
_SHOULDERS = -135.0  # the neck widens below this
_CORD_Y, _CORD_Z = -46.0, -76.0  # where the template's brainstem ends
_SINUSES = (  # air in most people: sphenoid, nose, maxillary left and right, frontal, mouth, ear cells
    ((0.0, 28.0, -34.0), (11.0, 11.0, 9.0)),
    ((0.0, 66.0, -46.0), (9.0, 24.0, 18.0)),
    ((26.0, 58.0, -52.0), (11.0, 14.0, 13.0)),
    ((-26.0, 58.0, -52.0), (11.0, 14.0, 13.0)),
    ((0.0, 78.0, -8.0), (14.0, 5.0, 9.0)),
    ((0.0, 56.0, -86.0), (16.0, 22.0, 4.0)),
    ((54.0, -28.0, -42.0), (8.0, 12.0, 12.0)),
    ((-54.0, -28.0, -42.0), (8.0, 12.0, 12.0)),
)
_EYES = (((32.0, 68.0, -36.0), 12.0), ((-32.0, 68.0, -36.0), 12.0))


def lengthen(anatomy: Anatomy, below_mm: float = BELOW_MM, front_mm: float = FRONT_MM) -> Anatomy:
    """The anatomy on a larger grid: empty voxels (label 0) added below and in front, in place in mm."""
    spacing = float(anatomy.affine[0, 0])
    below, front = round(below_mm / spacing), round(front_mm / spacing)
    pad = ((0, 0), (0, front), (below, 0))
    affine = anatomy.affine.copy()
    affine[2, 3] -= below * spacing
    return replace(
        anatomy, image=np.pad(anatomy.image, pad), labels=np.pad(anatomy.labels, pad), affine=affine
    )


@dataclass(frozen=True)
class Surroundings:
    """Where the head is around the brain; made once per site.

    ``where``, ``depth`` and ``beyond`` list the voxels that may be head and aren't brain: their places
    in the flat grid, mm inside the mean outline (negative outside), and mm from the brain.
    """

    anatomy: Anatomy

    @cached_property
    def spacing(self) -> float:
        """Voxel size, mm."""
        return float(self.anatomy.affine[0, 0])

    @cached_property
    def _distances(self) -> tuple[Array, Array]:
        """(X, Y, Z) mm inside the mean outline and (X, Y, Z) mm outside the brain."""
        step = max(1, round(_COARSE_MM / self.spacing))
        image = self.anatomy.image[::step, ::step, ::step]
        brain = self.anatomy.labels[::step, ::step, ::step] > 0
        mm = self.spacing * step
        origin = self.anatomy.affine[:3, 3]
        x, y, z = (
            np.expand_dims(origin[a] + mm * np.arange(n), [b for b in range(3) if b != a])
            for a, n in enumerate(image.shape)
        )
        head = ndimage.gaussian_filter(image, 1.0) > _SKIN_ABOVE
        for centre, radii in (_FACE, _JAW, _NOSE):
            head |= _inside(x, y, z, centre, radii) > 0
        wide = 1.0 + 0.02 * np.clip(_SHOULDERS - z, 0.0, None)
        rx, ry = _NECK_RADII
        neck = (x / (rx * wide)) ** 2 + ((y - _NECK_Y) / (ry * np.sqrt(wide))) ** 2 < 1.0
        head |= neck & (z < _NECK_TOP)
        head = np.stack([ndimage.binary_fill_holes(s) for s in np.moveaxis(head, 2, 0)], axis=2) | brain
        below = np.pad(head, ((1, 1), (1, 1), (0, 1)))  # the bottom slice isn't a border
        below = np.concatenate([below[:, :, :1]] * 8 + [below], axis=2)
        signed = ndimage.distance_transform_edt(below) - ndimage.distance_transform_edt(~below)
        signed = ndimage.gaussian_filter(signed[1:-1, 1:-1, 8:-1] * mm, 1.5)
        beyond = ndimage.distance_transform_edt(~brain) * mm
        shape = self.anatomy.image.shape
        return _enlarge(signed, shape, step), _enlarge(beyond, shape, step)

    @cached_property
    def where(self) -> NDArray[np.intp]:
        """(N,) flat places of the voxels that may be head and aren't brain."""
        outside = (self.anatomy.labels == 0) & (self._distances[0] > -14.0)
        return np.flatnonzero(outside)

    @cached_property
    def depth(self) -> Array:
        """(N,) mm inside the mean outline."""
        return np.asarray(self._distances[0].ravel()[self.where])

    @cached_property
    def beyond(self) -> Array:
        """(N,) mm from the brain."""
        return np.asarray(self._distances[1].ravel()[self.where])

    @cached_property
    def places(self) -> tuple[Array, Array, Array]:
        """Three (N,): right, anterior, superior, MNI mm."""
        at = np.unravel_index(self.where, self.anatomy.labels.shape)
        origin = self.anatomy.affine[:3, 3]
        x, y, z = (origin[a] + self.spacing * at[a] for a in range(3))
        return x, y, z

    @cached_property
    def template(self) -> Array:
        """(N,) the template's own brightness there, as a share of white matter."""
        return np.asarray(self.anatomy.image.ravel()[self.where] / 87.0)

    def noise(self, scale_mm: float, rng: np.random.Generator) -> Array:
        """(N,) smooth Gaussian noise over ``scale_mm``, standard deviation about 1."""
        step = max(1, round(_NODES_MM / self.spacing))
        shape = self.anatomy.labels.shape
        nodes = rng.standard_normal([-(-n // step) + 1 for n in shape])
        sigma = scale_mm / (step * self.spacing)
        nodes = ndimage.gaussian_filter(nodes, sigma, mode="wrap")
        return np.asarray(_enlarge(nodes / nodes.std(), shape, step).ravel()[self.where])


def _inside(
    x: Array, y: Array, z: Array, centre: Sequence[float] | Array, radii: Sequence[float] | Array
) -> Array:
    """About how many mm a point is inside an ellipsoid (negative outside)."""
    square = sum(((v - c) / r) ** 2 for v, c, r in zip((x, y, z), centre, radii, strict=True))
    return np.asarray((1.0 - np.sqrt(square)) * min(radii))


def _enlarge(coarse: Array, shape: tuple[int, ...], step: int) -> Array:
    """Linear interpolation of nodes ``step`` voxels apart to a grid, axis by axis."""
    for axis, size in enumerate(shape):
        at = np.arange(size) / step
        low = np.minimum(at.astype(int), coarse.shape[axis] - 1)
        high = np.minimum(low + 1, coarse.shape[axis] - 1)
        share = np.expand_dims(at - low, [a for a in range(3) if a != axis])
        coarse = coarse.take(low, axis) * (1.0 - share) + coarse.take(high, axis) * share
    return coarse


def draw_head(around: Surroundings, rng: np.random.Generator) -> Array:
    """(X, Y, Z) one person's head as shares of white matter's brightness, 0 in air and in the brain.

    From the outside in: skin, bright fat, then muscle with streaks and patches of any brightness, with
    bones, airways and the spine in it; around the brain fluid, and a skull of random width with marrow.
    """
    u = rng.uniform
    x, y, z = around.places
    wobble, streaks, patches = (around.noise(mm, rng) for mm in (22.0, 5.0, 12.0))
    low = np.clip((-45.0 - z) / 40.0, 0.0, 1.0)  # 0 beside the brain, 1 in the neck
    depth = around.depth + (0.8 + 3.0 * low) * wobble + u(-8.0, 6.0) * low + u(-1.0, 1.0)
    fat, muscle = u(0.7, 1.5), u(0.3, 0.75)
    value = muscle * (1.0 + u(0.05, 0.2) * streaks)
    _set(value, streaks > u(0.8, 1.6), fat * u(0.6, 1.0))
    for _ in range(4):  # patches that mean nothing: glands, vessels, tongue, or anything else
        start = u(-2.0, 1.6)
        _set(value, (patches > start) & (patches < start + u(0.2, 0.8)), u(0.1, 1.3))
    if rng.random() < 0.6:  # now and then some of the template's own face shows, its brightness bent
        share, power = u(0.2, 0.8), u(0.5, 2.0)
        own = np.clip(around.template, 0.0, 1.5) ** power * u(0.6, 1.4)
        value = np.where(around.template > 0.12, value * (1.0 - share) + share * own, value)
    _spine(value, x, y, z, rng)
    _face(value, x, y, z, fat, rng)
    _skull(value, around.beyond + 0.6 * wobble, z, rng)
    width = u(1.0, 5.0) + u(0.0, 9.0) * low
    under = depth < u(1.2, 2.2) + np.maximum(width + 0.8 * patches, 0.3)
    _set(value, under, fat * (1.0 + 0.08 * streaks))
    skin = u(1.0, 2.2)
    _set(value, depth < skin, u(0.3, 0.9))
    value *= np.clip(depth / 0.8, 0.0, 1.0)  # into air within a voxel
    if rng.random() < 0.3:  # a coat of low signal instead of a bright rim: fat suppressed
        _set(value, value > u(0.8, 1.2), u(0.2, 0.6))
    head = np.zeros(around.anatomy.labels.size)
    head[around.where] = np.clip(value, 0.0, 1.6)
    return head.reshape(around.anatomy.labels.shape)


def _set(value: Array, inside: NDArray[np.bool_], to: float | Array) -> None:
    np.copyto(value, to, where=inside)


def _spine(value: Array, x: Array, y: Array, z: Array, rng: np.random.Generator) -> None:
    """Vertebrae with discs, the canal with the cord in it, and the windpipe."""
    u = rng.uniform
    lean, middle = u(-0.2, 0.25), u(-2.0, 2.0)
    sx = x - middle
    sy = y - _CORD_Y - lean * (z - _CORD_Z)
    below = z < _CORD_Z + 2.0
    period, phase = u(15.0, 19.0), u(0.0, 19.0)
    disc = np.mod(z + phase, period) < u(3.0, 5.0)
    body = below & ((sx / u(11.0, 15.0)) ** 2 + ((sy - 20.0) / u(9.0, 12.0)) ** 2 < 1.0)
    _set(value, body, u(0.35, 1.1))
    _set(value, body & disc, u(0.2, 0.7))
    arch = below & (np.abs(sx) < u(8.0, 20.0)) & (sy < -9.0) & (sy > -u(18.0, 32.0)) & ~disc
    _set(value, arch, u(0.1, 0.9))
    radius = sx**2 + sy**2
    _set(value, below & (radius < u(9.0, 12.5) ** 2), u(0.05, 0.35))
    _set(value, below & ((sx / u(5.0, 7.5)) ** 2 + (sy / u(4.0, 6.0)) ** 2 < 1.0), u(0.7, 1.05))
    pipe = (sx / u(5.0, 11.0)) ** 2 + ((sy - u(40.0, 48.0)) / u(4.0, 9.0)) ** 2 < 1.0
    _set(value, pipe & (z < -u(45.0, 80.0)), u(0.0, 0.05))


def _face(value: Array, x: Array, y: Array, z: Array, fat: float, rng: np.random.Generator) -> None:
    """Eyes in fat, jaws with teeth, and the air of sinuses, nose and mouth, most of the time."""
    u = rng.uniform
    jaw = _inside(x, y, z, (0.0, 44.0, u(-112.0, -96.0)), (40.0, 42.0, 13.0))
    _set(value, (jaw > 0.0) & (jaw < 5.0), u(0.05, 0.3))
    _set(value, (jaw > 1.5) & (jaw < 3.5), u(0.4, 1.2))
    for centre, radius in _EYES:
        at = np.array(centre) + 2.5 * rng.standard_normal(3)
        ball = _inside(x, y, z, at, (radius, radius, radius))
        _set(value, (ball > -u(4.0, 8.0)) & (y < at[1] + 8.0), fat)
        _set(value, ball > 0.0, u(0.1, 0.4))
    for centre, radii in _SINUSES:
        at = np.array(centre) + 3.0 * rng.standard_normal(3)
        size = np.array(radii) * u(0.5, 1.3)
        if rng.random() < 0.8:
            _set(value, _inside(x, y, z, at, size) > 0.0, u(0.0, 0.06))


def _skull(value: Array, beyond: Array, z: Array, rng: np.random.Generator) -> None:
    """Fluid and dura next to the brain, then two dark tables of bone with marrow between them."""
    u = rng.uniform
    dura, inner, outer = u(0.5, 2.2), u(1.0, 2.0), u(1.0, 2.2)
    marrow = u(0.5, 5.0) * np.clip((z + 60.0) / 60.0, 0.3, 1.0)
    end = dura + inner + marrow + outer
    _set(value, beyond < end, u(0.02, 0.2))
    _set(value, (beyond > dura + inner) & (beyond < dura + inner + marrow), u(0.2, 1.1))
    _set(value, beyond < dura, u(0.1, 0.5))
