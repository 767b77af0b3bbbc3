"""A simulated CT scanner and what differs between the people in it: habitus, contrast, bowel content.

Everything is in Hounsfield units (HU). One patient's CT is what all subjects are made from.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segdistill.files import SegdistillError
from segdistill.params import Share, Weight
from segdistill.simulation.hounsfield import (
    AIR,
    ENHANCEMENT,
    FAT,
    ORAL_CONTRAST,
    TABLE_SHELL,
    Phase,
    organ_hu,
    table_hu,
)
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

_BONE = "bone"
_HOLLOW = ("stomach", "small_bowel", "colon")

_SOFT_FROM, _SOFT_TO = -70.0, 0.0  # HU between which a voxel is counted more and more as soft tissue
_ALIKE = 45.0  # HU: neighbours within it are averaged with a voxel, so that edges stay
_OWN = 0.5  # share of the patient's own variation within an organ that is kept
_OWN_LIMIT = 60.0  # HU beyond which it is another tissue (fat, stone, gas) and kept as it is
_DENSEST = 1300.0  # HU; the patient's hip prosthesis is denser, and bone isn't
_CORTEX_MM = 7.0  # thickness of the kidney's outer layer
_WALL_MM = 3.5  # of stomach and bowel; what lies deeper is content
_MARGIN_MM = 12.0  # of the patient's first and last slices never scanned: nothing is known beyond them
_FAT_REACH_MM = 60.0  # how far from the trunk's muscle the layer of fat is stretched
_WATER = 0.019  # attenuation of water per mm at about 70 keV
_USUAL_MM = 300.0  # water-equivalent diameter for which a site's noise is stated


@dataclass(frozen=True)
class CohortKnobs(PeopleKnobs):
    """How much people differ; the comments in the task's parameters say what each value does."""

    fat_scale: tuple[float, float]
    organ_sd_hu: Weight
    enhancement_sd: Weight

    def __post_init__(self) -> None:
        low, high = self.fat_scale
        refuse(not 0 < low <= high, f"fat_scale {[low, high]} must be 0 < low <= high")


@dataclass(frozen=True)
class SiteKnobs(SiteBase):
    """One site's people and scanner; the comments in the task's parameters say what each value does."""

    phase: Phase
    oral_contrast: Share
    noise_hu: Weight
    kernel_mm: Weight
    crop_mm: tuple[Weight, Weight]
    short: Share
    short_mm: tuple[float, float]
    margin_mm: Weight
    table_dip_mm: Weight
    arms: Share

    def __post_init__(self) -> None:
        super().__post_init__()
        least, most = self.short_mm
        refuse(not 0 < least <= most, f"short_mm {[least, most]} must be 0 < from <= to")

    def facts(self) -> dict[str, Any]:
        """What a manifest says of the scanner."""
        return {"phase": self.phase, "kernel_mm": self.kernel_mm, "noise_hu": self.noise_hu}


@dataclass(frozen=True)
class Patient(Person):
    """One person with what a CT shows of them.

    Attributes:
        fat_scale: thickness of the layer of fat under the skin relative to the template's.
    """

    fat_scale: float


@dataclass(frozen=True)
class Torso(Template):
    """The anatomy of a trunk with what all subjects share."""

    @property
    def lattice_mm(self) -> float:
        """Distance of the warp's nodes, mm: a trunk is larger than a head, and its warps are longer."""
        return 6.0

    @cached_property
    def tissue(self) -> dict[str, NDArray[np.bool_]]:
        """(X, Y, Z) mask of every tissue that the anatomy has."""
        there = set(np.unique(self.tissue_map).tolist())
        named = self.anatomy.tissues.items()
        return {name: self.tissue_map == code for code, name in named if code in there}

    @cached_property
    def tissue_map(self) -> NDArray[np.uint8]:
        """(X, Y, Z) tissue codes of the anatomy; 0 where it names none.

        Raises:
            SegdistillError: the anatomy has none.
        """
        if self.anatomy.tissue_map is None:
            raise SegdistillError("this anatomy has no tissue map. Run 'dvc repro anatomy' again.")
        return self.anatomy.tissue_map

    @cached_property
    def body(self) -> NDArray[np.bool_]:
        """(X, Y, Z) the body without the table: the largest thick piece with the gas in it.

        Outermost voxels in plane count as air, so that a hip which the scan cut off ends there.
        """
        dense = self.anatomy.image > -300.0
        thick = ndimage.binary_opening(dense, np.ones((5, 5, 1), bool))
        pieces, _ = ndimage.label(thick)
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        largest = ndimage.binary_dilation(pieces == sizes.argmax(), np.ones((5, 5, 1), bool)) & dense
        largest[[0, -1]] = largest[:, [0, -1]] = False
        return np.stack(
            [ndimage.binary_fill_holes(largest[:, :, z]) for z in range(largest.shape[2])], axis=2
        )

    @cached_property
    def clean(self) -> Array:
        """(X, Y, Z) HU of the body in air, the scan's own noise averaged away between edges."""
        image = np.where(self.body, np.clip(self.anatomy.image, -1024.0, _DENSEST), AIR)
        for _ in range(2):
            image = _average_alike(image, _ALIKE)
        return image

    @cached_property
    def soft(self) -> Array:
        """(X, Y, Z) in [0, 1]: how much of a voxel is soft tissue (or bone), not fat or gas."""
        return np.clip((self.clean - _SOFT_FROM) / (_SOFT_TO - _SOFT_FROM), 0.0, 1.0)

    @cached_property
    def core(self) -> NDArray[np.bool_]:
        """(X, Y, Z) all that lies under the layer of fat: the trunk out to its muscles."""
        lean = (self.clean > -30.0) & ndimage.binary_erosion(self.body, np.ones((5, 5, 1), bool))
        return under_fat(lean)

    @cached_property
    def fat_push(self) -> Array:
        """(3, x, y, z) mm on the lattice: outward velocity for ln(thickness of the fat) to grow by 1.

        A point at the depth d outside the trunk's muscle moves with d: what flows so stretches by the
        same factor everywhere, and the skin goes with it.
        """
        return fat_push(self.core, self.spacing, self.lattice)

    @cached_property
    def box(self) -> tuple[Array, Array]:
        """First and last voxel (3,) each of the core, and how much fat lies beyond, (2, 3) mm."""
        inner, outer = _box(self.core), _box(self.body)
        return inner, np.abs(outer - inner) * self.spacing

    @cached_property
    def content(self) -> dict[str, NDArray[np.bool_]]:
        """(X, Y, Z) what lies inside the wall of each hollow organ."""
        inner = {
            name: ndimage.distance_transform_edt(self.tissue[name]) * self.spacing > _WALL_MM
            for name in _HOLLOW
            if name in self.tissue
        }
        return {name: mask for name, mask in inner.items() if mask.any()}

    @cached_property
    def emptied(self) -> Array:
        """(X, Y, Z) HU as :attr:`clean`, without the gas that the patient had in stomach and bowel."""
        image = self.clean.copy()
        hollow = np.zeros(image.shape, bool)
        for name in _HOLLOW:
            hollow |= self.tissue.get(name, np.zeros(image.shape, bool))
        gassy = image < -150.0
        image[hollow & gassy] = ENHANCEMENT["colon"][0]
        # What of the gas spread into the voxels beside the organ is fat there.
        image[ndimage.binary_dilation(hollow, iterations=2) & ~hollow & gassy & self.body] = FAT
        return image

    @cached_property
    def cortex(self) -> NDArray[np.bool_]:
        """(X, Y, Z) the kidneys' outer layer."""
        kidney = self.tissue["kidney"]
        return kidney & (ndimage.distance_transform_edt(kidney) * self.spacing <= _CORTEX_MM)

    @cached_property
    def fine_labels(self) -> NDArray[np.uint8]:
        """(2X, 2Y, 2Z) structure codes in eight parts of each voxel.

        Each structure's mask is interpolated and the largest wins; the nearest of the anatomy's own 3 mm
        voxels would leave steps that a finer scan shows.
        """
        labels = self.anatomy.labels
        size = tuple(2 * n for n in labels.shape)
        fine, most = np.zeros(size, np.uint8), np.zeros(size, np.float32)
        for code in (0, *sorted(self.anatomy.structures)):
            share = _in_parts((labels == code).astype(np.float32))
            better = share > most
            fine[better], most[better] = code, share[better]
        return fine


def under_fat(lean: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """:attr:`Torso.core` of what is neither fat nor skin, (X, Y, Z) on voxels of about 3 mm."""
    solid = ndimage.binary_opening(lean, np.ones((3, 3, 1), bool))
    closed = ndimage.binary_closing(solid, np.ones((9, 9, 1), bool))
    filled = np.stack(
        [ndimage.binary_fill_holes(closed[:, :, z]) for z in range(closed.shape[2])], axis=2
    )
    return np.asarray(ndimage.binary_opening(filled, np.ones((5, 5, 1), bool)))


def fat_push(core: NDArray[np.bool_], spacing: float, nodes: Array) -> Array:
    """:attr:`Torso.fat_push` of what lies under the fat, (X, Y, Z), at nodes (3, x, y, z), voxels."""
    depth = ndimage.distance_transform_edt(~core) * spacing
    smooth = ndimage.gaussian_filter(np.minimum(depth, _FAT_REACH_MM), 6.0 / spacing)
    push = gradient(smooth, spacing) * np.minimum(depth, _FAT_REACH_MM)
    return np.stack(
        [np.asarray(ndimage.map_coordinates(p, nodes, order=1, mode="nearest")) for p in push]
    )


def _in_parts(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(2X, 2Y, 2Z): (X, Y, Z) values interpolated a quarter of a voxel before and behind each."""
    for axis in range(3):
        here = np.moveaxis(values, axis, 0)
        out = np.empty((2 * len(here), *here.shape[1:]), np.float32)
        out[::2] = 0.75 * here + 0.25 * np.concatenate([here[:1], here[:-1]])
        out[1::2] = 0.75 * here + 0.25 * np.concatenate([here[1:], here[-1:]])
        values = np.moveaxis(out, 0, axis)
    return values


def _average_alike(image: Array, alike: float) -> Array:
    """(X, Y, Z): each voxel as the mean of those of its 27 neighbours within ``alike`` of it."""
    padded = np.pad(image, 1, mode="edge")
    total, count = np.zeros_like(image), np.zeros_like(image)
    nx, ny, nz = image.shape
    for x in range(3):
        for y in range(3):
            for z in range(3):
                other = padded[x : x + nx, y : y + ny, z : z + nz]
                near = np.abs(other - image) < alike
                total += np.where(near, other, 0.0)
                count += near
    return total / count


def _box(mask: NDArray[np.bool_]) -> Array:
    """(2, 3) first and last index of a mask along each axis."""
    at = [np.flatnonzero(mask.any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
    return np.array([[a[0] for a in at], [a[-1] for a in at]], dtype=np.float64)


def draw_subject(template: Torso, knobs: CohortKnobs, rng: np.random.Generator) -> Patient:
    """Draw one person: size and pose, a smooth warp, and how fat they are."""
    scale, rotation, velocity = draw_shape(template, knobs, rng)
    low, high = np.log(knobs.fat_scale)
    fat_scale = float(np.exp(rng.uniform(low, high)))
    # A point outside must look up what lies deeper in, hence the minus.
    velocity -= np.log(fat_scale) * template.fat_push
    return Patient(scale, rotation, flow(template, velocity), fat_scale)


def scan_grid(template: Torso, subject: Patient, site: SiteKnobs, rng: np.random.Generator) -> Grid:
    """The field of view: the body with ``margin_mm`` around it, cut by up to ``crop_mm`` at each end.

    A share ``short`` of the scans is a slab only, ``short_mm`` thick, from anywhere in the trunk.
    """
    affine = template.anatomy.affine
    centre = affine[:3, 3] + template.centre * template.spacing
    core, fat = template.box
    size_mm = template.spacing * subject.scale
    # As thick as the fat gets, it never gets so thick that the scanner's 500 mm don't hold the body.
    grown = fat * min(subject.fat_scale, 2.0)
    low = centre + (core[0] - template.centre) * size_mm - grown[0] - site.margin_mm
    high = centre + (core[1] - template.centre) * size_mm + grown[1] + site.margin_mm
    ends = np.array([0.0, template.anatomy.image.shape[2] - 1.0])
    low[2], high[2] = centre[2] + (ends - template.centre[2]) * size_mm[2]
    below, above = np.array(site.crop_mm) * rng.random(2)
    low[2] += _MARGIN_MM + below
    high[2] -= _MARGIN_MM + above
    if rng.random() < site.short:
        length = rng.uniform(*site.short_mm)
        low[2] += rng.random() * max(0.0, float(high[2] - low[2]) - length)
        high[2] = min(high[2], low[2] + length)
    low[:2] += 4.0 * rng.standard_normal(2)
    if rng.random() < site.arms:
        reach = rng.uniform(30.0, 110.0, 2)  # the field of view holds the arms, or cuts them
        low[0] -= reach[0]
        high[0] += reach[1]
    return Grid.around(low, high, site.voxel_mm)


def paint(template: Torso, site: SiteKnobs, cohort: CohortKnobs, rng: np.random.Generator) -> Array:
    """(X, Y, Z) HU of a person's tissues on the template's grid."""
    hu = organ_hu(site.phase, cohort.organ_sd_hu, cohort.enhancement_sd, rng)
    image = template.emptied.copy()
    for name, mean in hu.items():
        if name not in template.tissue:
            continue
        inside = template.tissue[name]
        usual = float(np.median(template.emptied[inside]))
        own = template.emptied[inside] - usual
        kept = np.where(np.abs(own) < _OWN_LIMIT, _OWN * own, own)
        image[inside] = usual + kept + template.soft[inside] * (mean - usual)
    if hu["cortex"]:
        image[template.cortex] += (template.soft * hu["cortex"])[template.cortex]
    bone = template.tissue.get(_BONE)
    if bone is not None:
        dense = bone & (template.emptied > 100.0)
        image[dense] *= np.exp(0.15 * np.clip(rng.standard_normal(), -2.0, 2.0))
    loose = (template.tissue_map == 0) & (template.emptied > -30.0)
    image[loose] += (hu["muscle"] - ENHANCEMENT["muscle"][0]) + 5.0 * rng.standard_normal()
    _fill(image, template, site, rng)
    return image


def _fill(image: Array, template: Torso, site: SiteKnobs, rng: np.random.Generator) -> None:
    """Fill stomach and bowel: gas in front, where it rises to, then fluid, food, stool or contrast."""
    front = np.arange(image.shape[1])[None, :, None] * template.spacing
    contrast = rng.uniform(*ORAL_CONTRAST) if rng.random() < site.oral_contrast else None
    patches = _patches(image.shape, 18.0 / template.spacing, rng)
    crumbs = _patches(image.shape, 4.0 / template.spacing, rng)
    if "stomach" in template.content:
        inside = template.content["stomach"]
        level = np.quantile(np.broadcast_to(front, image.shape)[inside], rng.uniform(0.35, 1.0))
        food = rng.uniform(5.0, 45.0) if contrast is None else contrast
        image[inside] = (food + 12.0 * crumbs * rng.random())[inside]
        image[inside & (front > level)] = AIR + 30.0
    for name, gas_from, rough in (("small_bowel", 2.6, 8.0), ("colon", 0.2, 45.0)):
        if name not in template.content:
            continue
        inside = template.content[name]
        middle = np.mean(np.broadcast_to(front, image.shape)[inside])
        risen = patches + (front - middle) / 45.0
        filled = rng.uniform(5.0, 35.0) + rough * crumbs
        if contrast is not None:
            filled = np.where(patches < rng.uniform(-0.5, 1.0), contrast + 0.5 * filled, filled)
        filled = np.where(crumbs > 2.0, filled - 8.0 * rough, filled)  # gas bubbles in stool
        gas = risen > gas_from + rng.uniform(-0.4, 1.0)
        image[inside] = np.where(gas, AIR + 40.0, filled)[inside]


def _patches(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> Array:
    """(X, Y, Z) smooth noise of mean 0 and standard deviation 1, ``sigma`` in voxels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return np.asarray(noise / noise.std())


def scan(
    template: Torso,
    subject: Patient,
    grid: Grid,
    site: SiteKnobs,
    cohort: CohortKnobs,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Scan a subject: (X, Y, Z) int16 HU and (X, Y, Z) uint8 structure codes on the grid."""
    painted = paint(template, site, cohort, rng)
    image, labels = sample(
        template, subject, grid, painted, template.fine_labels, parts_of=2, beyond="nearest"
    )
    image = _around(image, grid, site, rng)
    in_plane = [site.kernel_mm / grid.voxel_mm[0], site.kernel_mm / grid.voxel_mm[1], 0.0]
    image = ndimage.gaussian_filter(image, in_plane) if site.kernel_mm else image
    if site.noise_hu:
        image += site.noise_hu * _quantum_noise(image, grid, site.kernel_mm, rng)
    return np.rint(np.clip(image, -1024, 3071)).astype(np.int16), labels


def _around(image: Array, grid: Grid, site: SiteKnobs, rng: np.random.Generator) -> Array:
    """Lay the body on a table, and put arms beside it where the field of view leaves room for them."""
    x, y, _ = grid.axes_mm()
    body = image > -300.0
    columns = np.flatnonzero(body.any(axis=(1, 2)))
    left, right = float(x[columns[0], 0, 0]), float(x[columns[-1], 0, 0])
    middle = (left + right) / 2.0
    # The table's surface rises to dip at 250 mm from the middle; it touches the body from below.
    rise = site.table_dip_mm * ((x - middle) / 250.0) ** 2
    lowest = np.where(body.any(axis=1), np.take(y[0, :, 0], body.argmax(axis=1)), np.inf)[:, None, :]
    surface = float((lowest - rise).min()) - rng.uniform(4.0, 15.0) + rise
    shell = rng.uniform(*TABLE_SHELL)
    table = table_hu(x - middle, y, surface, shell, grid.voxel_mm[1])
    image = np.where(body | (image > -950.0), image, np.maximum(image, table))
    if site.arms and (left - x[0, 0, 0] > 30.0 or x[-1, 0, 0] - right > 30.0):
        for side, sign in ((left, -1.0), (right, 1.0)):
            image = np.maximum(image, _arm(grid, side, sign, surface, rng))
    return image


def _arm(grid: Grid, side: float, sign: float, surface: Array, rng: np.random.Generator) -> Array:
    """(X, Y, Z) HU of an arm beside the body, lying on the table: skin, fat, muscle, bone, marrow."""
    x, y, z = grid.axes_mm()
    radius = rng.uniform(36.0, 50.0)
    along = (z - float(z.mean())) * rng.uniform(-0.08, 0.08)
    at_x = side + sign * (radius + rng.uniform(2.0, 20.0)) + along
    at_y = np.max(surface) + radius + rng.uniform(5.0, 40.0)
    away = np.sqrt((x - at_x) ** 2 + (1.15 * (y - at_y)) ** 2)
    arm = np.full(grid.shape, AIR)
    for share, hu in ((1.0, 20.0), (0.95, FAT), (0.78, 55.0), (0.27, 950.0), (0.17, 60.0)):
        inside = np.clip((share * radius - away) / grid.voxel_mm[0] + 0.5, 0.0, 1.0)
        arm = arm + (hu - arm) * inside
    return arm


def _quantum_noise(image: Array, grid: Grid, kernel_mm: float, rng: np.random.Generator) -> Array:
    """(X, Y, Z) noise of standard deviation about 1, correlated in plane, more in thicker slices.

    The dose is adapted to half of what a slice attenuates, as tube current modulation does, so noise
    grows by exp(water * diameter / 4), not / 2. Filtered backprojection lets through no slow noise.
    """
    white = rng.standard_normal(image.shape)
    fine = max(kernel_mm, 0.6)
    sigma = [fine / grid.voxel_mm[0], fine / grid.voxel_mm[1], 0.0]
    noise = ndimage.gaussian_filter(white, sigma)
    noise -= ndimage.gaussian_filter(white, [3.0 * s for s in sigma])
    noise /= noise.std()
    pixel = grid.voxel_mm[0] * grid.voxel_mm[1]
    area = (np.clip(image / 1000.0 + 1.0, 0.0, None).sum(axis=(0, 1))) * pixel
    diameter = 2.0 * np.sqrt(area / np.pi)  # water-equivalent, AAPM report 220
    return np.asarray(noise * np.exp(_WATER * (diameter - _USUAL_MM) / 4.0))


CT = Modality(CohortKnobs, SiteKnobs, Torso, draw_subject, scan_grid, scan)
