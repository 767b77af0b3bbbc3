"""How far a label map is to be trusted: how sure the network was, and whether volumes are plausible.

The figure is the Dice that a structure would have if the network's probabilities were right: with p the
probability of a structure and L the voxels that it was given, 2 sum(p in L) / (voxels of L + sum(p)).
It falls where the network hesitates about a border, and where it suspects more of a structure than it
labels. How it goes with the real Dice is measured, see ``segdistill.evaluation.quality``.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segdistill.runtime.bundle import Bundle, BundleError

Verdict = Literal["good", "check"]

FIELD = "quality"  # of the provenance: the limits

# Where the background is so many times as probable as any structure, a voxel says nothing of structures.
_FAR = math.log(100)
# Every so many voxels across, of the two axes after the first: a quarter of all is plenty for a mean.
_STRIDE = 2


@dataclass(frozen=True)
class Limits:
    """What a scan that the model is for keeps to; it lies in the bundle's provenance.

    Attributes:
        confidence: least mean of the structures' confidence, in [0, 1].
        lowest: least confidence of any single structure, in [0, 1].
        volumes_ml: by structure, the smallest and the largest plausible volume, ml.
    """

    confidence: float
    lowest: float
    volumes_ml: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, bundle: Bundle) -> "Limits | None":
        """The limits of a bundle; None where it has none.

        Raises:
            BundleError: they are no limits, or of structures that the bundle doesn't have.
        """
        body = bundle.provenance.get(FIELD)
        if body is None:
            return None
        names = {structure.name for structure in bundle.plan.structures}
        try:
            ranges = {
                str(name): (float(low), float(high)) for name, (low, high) in body["volumes_ml"].items()
            }
            limits = cls(float(body["confidence"]), float(body["lowest"]), ranges)
            sound = (
                set(body) == set(asdict(limits))
                and 0 <= limits.confidence <= 1
                and 0 <= limits.lowest <= 1
                and all(0 <= low <= high < math.inf for low, high in ranges.values())
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{bundle.folder}: its limits of quality can't be read ({error!r})."
            ) from error
        if not sound or not set(ranges) <= names:
            raise BundleError(
                f"{bundle.folder}: its limits of quality make no sense, or are of other structures than "
                "the plan's. Measure them again (docs/segment.md)."
            )
        return limits

    def to_json(self) -> dict[str, Any]:
        """The limits as plain JSON values, as the provenance holds them."""
        ranges = {name: list(pair) for name, pair in self.volumes_ml.items()}
        return {"confidence": self.confidence, "lowest": self.lowest, "volumes_ml": ranges}


@dataclass(frozen=True)
class Quality:
    """How far one label map is to be trusted.

    Attributes:
        confidence: mean over the structures that were found, in [0, 1]; 0 where none was.
        by_structure: confidence of each structure that was found, by name.
        verdict: ``check``: a person should look before anybody uses the label map. ``good``: no reason
            for that was seen. None: the bundle has no limits.
        reasons: why it should be checked, a sentence each.
    """

    confidence: float
    by_structure: Mapping[str, float]
    verdict: Verdict | None
    reasons: tuple[str, ...]

    @property
    def lowest(self) -> tuple[str, float] | None:
        """The structure with the lowest confidence, and that; None where nothing was found."""
        return min(self.by_structure.items(), key=lambda entry: entry[1], default=None)

    def __str__(self) -> str:
        """For people: ``good, confidence 0.93 (lowest: csf 0.81)``, then why it is to be checked."""
        verdict = f"{self.verdict}, " if self.verdict else ""
        lowest = f" (lowest: {self.lowest[0]} {self.lowest[1]:.2f})" if self.lowest else ""
        return "; ".join([f"{verdict}confidence {self.confidence:.2f}{lowest}", *self.reasons])

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, confidence with four decimals."""
        return {
            "confidence": round(self.confidence, 4),
            "by_structure": {name: round(value, 4) for name, value in self.by_structure.items()},
            "verdict": self.verdict,
            "reasons": list(self.reasons),
        }


class Gauge:
    """The confidence of every structure, as logits pass by."""

    def __init__(self, channels: int) -> None:
        """Begin one scan.

        Args:
            channels: of the network's output, the background included.
        """
        self._given = np.zeros(channels)  # voxels that a channel was given
        self._sure = np.zeros(channels)  # the sum of its probability in them
        self._all = np.zeros(channels)  # and everywhere

    def add(self, logits: NDArray[np.float32]) -> None:
        """Take in (K, n, y, z) logits on the plan's grid, each plane once; they stay as they are."""
        seen = logits[:, :, ::_STRIDE, ::_STRIDE]
        near = seen[1:].max(axis=0) > seen[0] - _FAR
        share = seen[:, near]
        winner = share.argmax(axis=0)
        share -= np.take_along_axis(share, winner[None], 0)
        np.exp(share, out=share)
        share /= share.sum(axis=0)
        size = len(share)
        self._all += share.sum(axis=1, dtype=np.float64)
        self._given += np.bincount(winner, minlength=size)
        best = np.take_along_axis(share, winner[None], 0)[0]
        self._sure += np.bincount(winner, best, minlength=size)

    def confidence(self) -> NDArray[np.float64]:
        """(K,) confidence of every channel, in [0, 1]; NaN where it was given no voxel."""
        some = self._given > 0
        result = np.full(len(some), np.nan)
        np.divide(2 * self._sure, self._given + self._all, out=result, where=some)
        return result


def judge(
    confidence: Mapping[str, float], volumes_ml: Mapping[str, float], limits: Limits | None
) -> Quality:
    """Put the figures of one scan together, and hold them against the limits.

    Args:
        confidence: of each structure, by name; NaN where it wasn't found.
        volumes_ml: of each structure, ml.
        limits: of the bundle; None: no verdict.
    """
    found = {name: float(value) for name, value in confidence.items() if not math.isnan(value)}
    mean = sum(found.values()) / len(found) if found else 0.0
    if limits is None:
        return Quality(mean, found, None, ())
    reasons = []
    if mean < limits.confidence:
        reasons.append(f"the mean confidence is {mean:.2f}, below {limits.confidence:.2f}")
    reasons += [
        f"the confidence of {name} is {value:.2f}, below {limits.lowest:.2f}"
        for name, value in found.items()
        if value < limits.lowest
    ]
    for name, (low, high) in limits.volumes_ml.items():
        if not low <= volumes_ml[name] <= high:
            reasons.append(f"{name} has {volumes_ml[name]:.1f} ml, expected are {low:.1f} to {high:.1f}")
    return Quality(mean, found, "check" if reasons else "good", tuple(reasons))
