"""The plan: all that inference needs to know beside the network, shared by a whole family."""

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from segdistill.files import SegdistillError, json_bytes, read_json, write_json

Foreground = Literal["nonzero", "above_mean", "body"]
Mode = Literal["windows", "whole"]
Region = Literal["foreground", "crop", "filled"]
Convention = Literal["own", "nnunet"]

PLAN = "plan.json"  # its file, in a bundle or beside models
STORED = "stored"


@dataclass(frozen=True)
class Normalisation:
    """How intensities are brought to a common scale, after the crop and before resampling.

    Attributes:
        scheme: ``zscore`` (per scan: mean and standard deviation of its foreground voxels) or ``ct``
            (fixed: clip to ``clip_hu``, then ``mean_hu`` and ``std_hu`` of the training foreground).
        clip_hu: lower and upper bound in HU (0.5 and 99.5 percentile, as nnU-Net), for ``ct``.
        mean_hu: in HU, for ``ct``.
        std_hu: in HU, for ``ct``.
        region: the voxels that ``zscore`` takes its statistics from: ``foreground``; ``crop``, all that
            the crop left; or ``filled``, the foreground with its holes filled, where the voxels outside
            keep their value (nnU-Net's ``use_mask_for_norm`` false and true).
    """

    scheme: Literal["zscore", "ct"]
    clip_hu: tuple[float, float] | None = None
    mean_hu: float | None = None
    std_hu: float | None = None
    region: Region = "foreground"

    @property
    def makes_sense(self) -> bool:
        """Whether every number that is given is finite, the clip rises and the deviation is above 0."""
        low, high = self.clip_hu or (0.0, 1.0)
        mean = 0.0 if self.mean_hu is None else self.mean_hu
        std = 1.0 if self.std_hu is None else self.std_hu
        return -math.inf < low < high < math.inf and math.isfinite(mean) and 0 < std < math.inf


@dataclass(frozen=True)
class Structure:
    """A label class: its code in label maps (1 to 254) and its name."""

    code: int
    name: str


@dataclass(frozen=True)
class Plan:
    """All that inference needs to know, made once from the training split.

    Spatial triples follow the axes of ``orientation``: for ``RAS``, left to right, posterior to
    anterior, inferior to superior.

    Attributes:
        task: e.g. ``brain_mri``.
        modality: ``mri`` or ``ct``.
        orientation: axis codes that scans are brought to, e.g. ``RAS``; or ``stored``: axes stay as the
            file has them, as in nnU-Net.
        spacing_mm: voxel size the network works at, in mm.
        foreground: what counts as content for the crop and for ``zscore``: ``nonzero``,
            ``above_mean`` (voxels above the scan's mean intensity: the head without the air), or
            ``body`` (CT: the largest piece that is no air, without table and arms).
        normalisation: see :class:`Normalisation`.
        patch_size: window size in voxels; also the training patch.
        size_divisor: network inputs must be multiples of this many voxels on every axis.
        mode: ``windows`` (Gaussian-weighted sliding windows) or ``whole`` (one pass).
        overlap: share of a window that the next one covers, in [0, 1).
        structures: the classes in the order of the network's output channels 1..K-1; channel 0 is
            background.
        label_protocol: name of the protocol the labels follow.
        convention: how scans and logits are resampled, windows weighted and small volumes padded:
            ``own``, this platform's way; or ``nnunet``, the way of nnU-Net v2, for plans that were
            imported from it.
    """

    task: str
    modality: Literal["mri", "ct"]
    orientation: str
    spacing_mm: tuple[float, float, float]
    foreground: Foreground
    normalisation: Normalisation
    patch_size: tuple[int, int, int]
    size_divisor: tuple[int, int, int]
    mode: Mode
    overlap: float
    structures: tuple[Structure, ...]
    label_protocol: str
    convention: Convention = "own"

    @property
    def channels_out(self) -> int:
        """Number of network output channels: structures and background."""
        return len(self.structures) + 1

    @property
    def codes(self) -> tuple[int, ...]:
        """Label code of every output channel, background (0) first."""
        return (0, *(structure.code for structure in self.structures))

    def divisible(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The smallest multiples of ``size_divisor`` that hold (X, Y, Z) voxels."""
        x, y, z = (-(-int(n) // step) * step for n, step in zip(shape, self.size_divisor, strict=True))
        return x, y, z

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values, the same ones for equal plans; :meth:`from_json` reads it."""
        body = asdict(self)
        body["spacing_mm"] = [float(size) for size in self.spacing_mm]  # 2 and 2.0 are one spacing
        body["overlap"] = float(self.overlap)
        how = body["normalisation"]
        for name in ("mean_hu", "std_hu"):
            how[name] = None if how[name] is None else float(how[name])
        how["clip_hu"] = None if how["clip_hu"] is None else [float(bound) for bound in how["clip_hu"]]
        for name in ("patch_size", "size_divisor"):
            body[name] = [int(size) for size in body[name]]
        # Left out where they say what plans said before they were there: digests stay.
        if self.convention == "own":
            del body["convention"]
        if self.normalisation.region == "foreground":
            del how["region"]
        return body

    @classmethod
    def from_json(cls, body: dict[str, Any], source: str = "plan") -> "Plan":
        """Build and check a plan from JSON values; ``source`` names it in errors.

        Raises:
            SegdistillError: a field is missing, unknown or makes no sense.
        """
        try:
            normalisation = dict(body["normalisation"])
            if normalisation.get("clip_hu") is not None:
                low, high = normalisation["clip_hu"]
                normalisation["clip_hu"] = (float(low), float(high))
            for name in ("mean_hu", "std_hu"):
                if normalisation.get(name) is not None:
                    normalisation[name] = float(normalisation[name])
            plan = cls(
                **{
                    **body,
                    "normalisation": Normalisation(**normalisation),
                    "spacing_mm": _triple(body["spacing_mm"], float),
                    "patch_size": _triple(body["patch_size"], int),
                    "size_divisor": _triple(body["size_divisor"], int),
                    "overlap": float(body["overlap"]),
                    "structures": tuple(Structure(**entry) for entry in body["structures"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SegdistillError(f"{source}: not a plan ({error!r}). Make it again.") from error
        plan._check(source)
        return plan

    def write(self, path: Path) -> None:
        """Write the plan as JSON, the same bytes for the same plan."""
        self._check(str(path))
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """Read and check a plan file.

        Raises:
            SegdistillError: missing, not JSON or not a plan.
        """
        return cls.from_json(read_json(path), str(path))

    def digest(self) -> str:
        """SHA-256 of the plan file's bytes."""
        return hashlib.sha256(json_bytes(self.to_json())).hexdigest()

    def _check(self, source: str) -> None:
        wrong = None
        if not all(0 < size < 100 for size in self.spacing_mm):
            wrong = f"spacing_mm {self.spacing_mm} is not between 0 and 100 mm"
        elif any(p <= 0 or p % d for p, d in zip(self.patch_size, self.size_divisor, strict=True)):
            wrong = f"patch_size {self.patch_size} is not a multiple of {self.size_divisor}"
        elif not 0 <= self.overlap < 1:
            wrong = f"overlap {self.overlap} is not in [0, 1)"
        elif self.mode not in get_args(Mode):
            wrong = f"mode {self.mode!r} is not one of {get_args(Mode)}"
        elif self.foreground not in get_args(Foreground):
            wrong = f"foreground {self.foreground!r} is not one of {get_args(Foreground)}"
        elif not self.structures or len(set(self.codes)) != self.channels_out:
            wrong = "structures are empty or share a code"
        elif self.normalisation.scheme not in ("zscore", "ct"):
            wrong = f"normalisation {self.normalisation.scheme!r} is not zscore or ct"
        elif self.normalisation.scheme == "ct" and None in (
            self.normalisation.clip_hu,
            self.normalisation.mean_hu,
            self.normalisation.std_hu,
        ):
            wrong = "ct normalisation needs clip_hu, mean_hu and std_hu"
        elif not self.normalisation.makes_sense:
            wrong = (
                f"clip_hu {self.normalisation.clip_hu}, mean_hu {self.normalisation.mean_hu}, std_hu "
                f"{self.normalisation.std_hu}: all must be finite, clip_hu rise and std_hu be above 0"
            )
        elif self.normalisation.region not in get_args(Region):
            wrong = (
                f"normalisation region {self.normalisation.region!r} is not one of {get_args(Region)}"
            )
        elif self.convention not in get_args(Convention):
            wrong = f"convention {self.convention!r} is not one of {get_args(Convention)}"
        elif self.convention == "nnunet" and self.mode != "windows":
            wrong = "nnU-Net's convention goes with windows, not with the whole volume"
        if wrong:
            raise SegdistillError(f"{source}: {wrong}.")


def _triple(values: Any, kind: type) -> Any:
    if len(values) != 3:
        raise ValueError(f"expected three values, got {values}")
    return tuple(kind(value) for value in values)
