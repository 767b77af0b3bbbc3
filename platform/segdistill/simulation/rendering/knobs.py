"""How much rendered people and scanners differ: what every modality has, and MR and CT of their own."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from segdistill.simulation.hounsfield import Phase

Range = tuple[float, float]


@dataclass(frozen=True)
class RenderingKnobs:
    """Ranges and chances of the effects that every modality has.

    A range is drawn from evenly, a chance is a share of patches. The ``rendering`` part of params.yaml
    holds these and the modality's own. :meth:`still` has every effect off.

    Attributes:
        share: of the training patches that are rendered, where there are scans, too.
        rotate_sd_deg: of the body about each axis, degrees (standard deviation).
        scale_sd: of the body's size per axis, relative.
        shear_sd: of each axis along each other one, mm per mm.
        flip: chance of left for right; 0 where left and right structures have different names.
        warp_mm: root mean square of the smooth shift, mm.
        warp_step_mm: distance of the warp's nodes, mm; shifts stay below 0.4 of it, and nothing folds.
        patch_mm: size of slow variation within a tissue, mm.
        margin_mm: air beyond the body that is stored, per side, mm.
        blur_mm: point spread beside the voxel's own, mm (standard deviation).
        thick: chance of thick slices, along any axis; in CT axial ones.
        thick_mm: their thickness and distance, mm.
        noise: standard deviation in a voxel of the plan's grid; white matter is 1 in MR, HU in CT.
    """

    _LENGTHS: ClassVar[tuple[str, ...]] = ("warp_step_mm", "patch_mm", "thick_mm")
    _CHANCES: ClassVar[tuple[str, ...]] = ("share", "flip", "thick")
    #: Pairs that are no range.
    _PAIRS: ClassVar[tuple[str, ...]] = ()
    #: What knobs are that change nothing, beside 0.
    _STILL: ClassVar[dict[str, Any]] = {}

    share: float
    rotate_sd_deg: float
    scale_sd: float
    shear_sd: float
    flip: float
    warp_mm: Range
    warp_step_mm: Range
    patch_mm: Range
    margin_mm: Range
    blur_mm: Range
    thick: float
    thick_mm: Range
    noise: Range

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, tuple):
                ordered = len(value) == 2 and (value[0] <= value[1] or entry.name in self._PAIRS)
                if not ordered:
                    raise ValueError(f"{entry.name} {value} must be two numbers, low to high")
            if entry.name in self._CHANCES and not 0 <= value <= 1:
                raise ValueError(f"{entry.name} {value} must be 0 to 1")
            if isinstance(value, float) and value < 0:
                raise ValueError(f"{entry.name} {value} must not be negative")
        for name in self._LENGTHS:
            if getattr(self, name)[0] <= 0:
                raise ValueError(f"{name} must be above 0")

    def still(self, **others: Any) -> Self:
        """Every effect off but the named ones."""
        off = {
            entry.name: (0.0, 0.0) if isinstance(value, tuple) else 0.0
            for entry in fields(self)
            if entry.name not in self._LENGTHS
            and isinstance(value := getattr(self, entry.name), tuple | float)
        }
        return replace(self, **(off | self._STILL | others))


@dataclass(frozen=True)
class MRIKnobs(RenderingKnobs):
    """Those of a head in MR.

    Attributes:
        ventricle_scale: size of the ventricles, linear factor, drawn evenly in its logarithm.
        grey: brightness of grey matter; white matter is 1.
        fluid: brightness of fluid.
        any_contrast: chance of tissues as bright as they like.
        tissue_sd: of every tissue's brightness about what its range gave, relative.
        side_sd: of left against right, relative.
        skull_stripped: chance that what isn't brain is gone.
        strip_mm: how far from the brain stripping cuts, mm; negative: into it.
        strip_ragged_mm: how far that edge strays, mm (standard deviation).
        cut_below: chance that the field of view ends within the head's lower part.
        cut_side: chance of the same for each of the other five sides.
        cut_into_mm: how far into the brain such a cut goes at most, from below and from a side, mm.
        cut_air: chance that what was cut is stored as air; else the scan ends there.
        bias_sd: of the logarithm of the coils' shading.
        bias_step_mm: distance of the shading's nodes, mm.
        contrast_sd: how contrast differs from place to place, relative.
        gamma_sd: of the logarithm of the exponent of the intensity curve.
        gamma: chance of such a curve.
        magnitude: noise as in MR's magnitude images (Rician); false: it is added.
    """

    _LENGTHS = (*RenderingKnobs._LENGTHS, "bias_step_mm", "ventricle_scale")
    _CHANCES = (
        *RenderingKnobs._CHANCES,
        "any_contrast",
        "skull_stripped",
        "cut_below",
        "cut_side",
        "cut_air",
        "gamma",
    )
    _PAIRS = ("cut_into_mm",)
    _STILL: ClassVar[dict[str, Any]] = {
        "ventricle_scale": (1.0, 1.0),
        "grey": (0.7, 0.7),
        "fluid": (0.2, 0.2),
    }

    ventricle_scale: Range
    grey: Range
    fluid: Range
    any_contrast: float
    tissue_sd: float
    side_sd: float
    skull_stripped: float
    strip_mm: Range
    strip_ragged_mm: Range
    cut_below: float
    cut_side: float
    cut_into_mm: Range
    cut_air: float
    bias_sd: Range
    bias_step_mm: Range
    contrast_sd: Range
    gamma_sd: float
    gamma: float
    magnitude: bool


@dataclass(frozen=True)
class CTKnobs(RenderingKnobs):
    """Those of a trunk in CT.

    Attributes:
        fat_scale: thickness of the fat under the skin, factor, drawn evenly in its logarithm.
        phase: of the contrast; ``mixed``: each patch one of the three.
        organ_sd_hu: of every organ's own brightness, HU.
        enhancement_sd: of how strongly contrast shows, relative.
        oral_contrast: chance that contrast was drunk.
        arms: chance that arms lie beside the body, where the map has them.
        crop_mm: what of the body is cut from below and from above, at most, mm; 0, 0: it is all there.
        short: chance of a few slices only, from anywhere in what is left.
        short_mm: how much of the body such a scan holds, mm.
        table: chance of a table below.
        table_dip_mm: how much higher the table is 250 mm from its middle, mm.
    """

    _LENGTHS = (*RenderingKnobs._LENGTHS, "fat_scale", "short_mm")
    _CHANCES = (*RenderingKnobs._CHANCES, "oral_contrast", "arms", "short", "table")
    _PAIRS = ("crop_mm",)
    _STILL: ClassVar[dict[str, Any]] = {"fat_scale": (1.0, 1.0), "arms": 1.0}

    fat_scale: Range
    phase: Phase
    organ_sd_hu: float
    enhancement_sd: float
    oral_contrast: float
    arms: float
    crop_mm: Range
    short: float
    short_mm: Range
    table: float
    table_dip_mm: Range


#: By the plan's modality.
KNOBS: Mapping[str, type[RenderingKnobs]] = {"mri": MRIKnobs, "ct": CTKnobs}

#: Of brain MRI. Scans of val and test are always drawn with these, whatever trainings are.
USUAL = MRIKnobs(
    share=0.75,
    rotate_sd_deg=8.0,
    scale_sd=0.07,
    shear_sd=0.03,
    flip=0.5,
    warp_mm=(0.0, 4.5),
    warp_step_mm=(24.0, 48.0),
    ventricle_scale=(0.7, 1.6),
    grey=(0.45, 0.9),
    fluid=(0.03, 0.4),
    any_contrast=0.1,
    tissue_sd=0.02,
    side_sd=0.01,
    patch_mm=(6.0, 20.0),
    skull_stripped=0.3,
    strip_mm=(-0.5, 5.0),
    strip_ragged_mm=(0.0, 1.5),
    cut_below=0.4,
    cut_side=0.08,
    cut_into_mm=(10.0, 5.0),
    cut_air=0.5,
    margin_mm=(0.0, 40.0),
    bias_sd=(0.0, 0.3),
    bias_step_mm=(50.0, 120.0),
    contrast_sd=(0.0, 0.15),
    gamma_sd=0.2,
    gamma=0.4,
    blur_mm=(0.5, 1.3),
    thick=0.3,
    thick_mm=(2.5, 7.0),
    noise=(0.0, 0.08),
    magnitude=True,
)

#: Of abdominal CT, likewise.
USUAL_CT = CTKnobs(
    share=0.5,
    rotate_sd_deg=3.0,
    scale_sd=0.08,
    shear_sd=0.02,
    flip=0.0,
    warp_mm=(0.0, 9.0),
    warp_step_mm=(40.0, 80.0),
    patch_mm=(8.0, 25.0),
    margin_mm=(10.0, 40.0),
    blur_mm=(0.5, 1.2),
    thick=0.4,
    thick_mm=(3.0, 8.0),
    noise=(3.0, 25.0),
    fat_scale=(0.5, 1.8),
    phase="mixed",
    organ_sd_hu=6.0,
    enhancement_sd=0.2,
    oral_contrast=0.3,
    arms=0.3,
    crop_mm=(200.0, 300.0),
    short=0.25,
    short_mm=(40.0, 160.0),
    table=0.9,
    table_dip_mm=(0.0, 80.0),
)
