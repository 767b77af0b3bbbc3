"""How much rendered people and scanners differ."""

from dataclasses import dataclass, fields, replace
from typing import Any

Range = tuple[float, float]


@dataclass(frozen=True)
class RenderingKnobs:
    """Ranges and chances of every effect; a range is drawn from evenly, a chance is a share of patches.

    The ``rendering`` part of params.yaml. :meth:`still` has every effect off.

    Attributes:
        share: of the training patches that are rendered, where there are scans, too.
        rotate_sd_deg: of the head about each axis, degrees (standard deviation).
        scale_sd: of the head's size per axis, relative.
        shear_sd: of each axis along each other one, mm per mm.
        flip: chance of left for right; 0 where left and right structures have different names.
        warp_mm: root mean square of the smooth shift, mm.
        warp_step_mm: distance of the warp's nodes, mm; shifts stay below 0.4 of it, and nothing folds.
        ventricle_scale: size of the ventricles, linear factor, drawn evenly in its logarithm.
        grey: brightness of grey matter; white matter is 1.
        fluid: brightness of fluid.
        any_contrast: chance of tissues as bright as they like.
        tissue_sd: of every tissue's brightness about what its range gave, relative.
        side_sd: of left against right, relative.
        patch_mm: size of slow variation within a tissue, mm.
        skull_stripped: chance that what isn't brain is gone.
        strip_mm: how far from the brain stripping cuts, mm; negative: into it.
        strip_ragged_mm: how far that edge strays, mm (standard deviation).
        cut_below: chance that the field of view ends within the head's lower part.
        cut_side: chance of the same for each of the other five sides.
        cut_into_mm: how far into the brain such a cut goes at most, from below and from a side, mm.
        cut_air: chance that what was cut is stored as air; else the scan ends there.
        margin_mm: air beyond the head that is stored, per side, mm.
        bias_sd: of the logarithm of the coils' shading.
        bias_step_mm: distance of the shading's nodes, mm.
        contrast_sd: how contrast differs from place to place, relative.
        gamma_sd: of the logarithm of the exponent of the intensity curve.
        gamma: chance of such a curve.
        blur_mm: point spread beside the voxel's own, mm (standard deviation).
        thick: chance of thick slices, along any axis.
        thick_mm: their thickness and distance, mm.
        noise: standard deviation, of white matter, in a voxel of the plan's grid.
        magnitude: noise as in MR's magnitude images (Rician); false: it is added, as in CT.
    """

    share: float
    rotate_sd_deg: float
    scale_sd: float
    shear_sd: float
    flip: float
    warp_mm: Range
    warp_step_mm: Range
    ventricle_scale: Range
    grey: Range
    fluid: Range
    any_contrast: float
    tissue_sd: float
    side_sd: float
    patch_mm: Range
    skull_stripped: float
    strip_mm: Range
    strip_ragged_mm: Range
    cut_below: float
    cut_side: float
    cut_into_mm: Range
    cut_air: float
    margin_mm: Range
    bias_sd: Range
    bias_step_mm: Range
    contrast_sd: Range
    gamma_sd: float
    gamma: float
    blur_mm: Range
    thick: float
    thick_mm: Range
    noise: Range
    magnitude: bool

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, tuple):
                ordered = len(value) == 2 and (value[0] <= value[1] or entry.name == "cut_into_mm")
                if not ordered:
                    raise ValueError(f"{entry.name} {value} must be two numbers, low to high")
            if entry.name in _CHANCES and not 0 <= value <= 1:
                raise ValueError(f"{entry.name} {value} must be 0 to 1")
        for name in ("ventricle_scale", *_LENGTHS):
            if getattr(self, name)[0] <= 0:
                raise ValueError(f"{name} must be above 0")

    @classmethod
    def still(cls, **others: Any) -> "RenderingKnobs":
        """Every effect off but the named ones."""
        off = {
            entry.name: (0.0, 0.0) if isinstance(getattr(USUAL, entry.name), tuple) else 0.0
            for entry in fields(cls)
            if not isinstance(getattr(USUAL, entry.name), bool)
        }
        usual = {name: getattr(USUAL, name) for name in _LENGTHS}
        fixed = {"ventricle_scale": (1.0, 1.0), "grey": (0.7, 0.7), "fluid": (0.2, 0.2)}
        return replace(USUAL, **(off | usual | fixed | others))


_LENGTHS = ("warp_step_mm", "patch_mm", "bias_step_mm", "thick_mm")
_CHANCES = (
    "share",
    "flip",
    "any_contrast",
    "skull_stripped",
    "cut_below",
    "cut_side",
    "cut_air",
    "gamma",
    "thick",
)

#: Of brain MRI. Scans of val and test are always drawn with these, whatever trainings are.
USUAL = RenderingKnobs(
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
