"""What tuning found, as read back: which setting a bundle is served with.

The service reads this before its workers start, so nothing here imports what segmenting needs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segdistill.files import SegdistillError
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.setting import Setting, processor


@dataclass(frozen=True)
class Tolerance:
    """How much Dice a setting may lose against the reference.

    Attributes:
        mean_loss: of the mean over structures; 0.002 is 0.2 points.
        structure_loss: of any single structure.
    """

    mean_loss: float
    structure_loss: float

    def allows(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of the evidence, with ``dice_change`` and ``worst_change``, keeps to it."""
        return bool(
            row["dice_change"] >= -self.mean_loss and row["worst_change"] >= -self.structure_loss
        )


DEFAULT = Tolerance(mean_loss=0.002, structure_loss=0.005)

_TIE = 1.05  # times as long as the fastest: no difference that another measurement would confirm


def best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The fastest row; where others are about as fast, the one of them that loses the least Dice."""
    bound = _TIE * min(float(row["seconds"]) for row in rows)
    about = [row for row in rows if float(row["seconds"]) <= bound]
    return max(about, key=lambda row: (float(row["dice_change"]), -float(row["seconds"])))


def chosen(tuning: Mapping[str, Any], bundle: Bundle, source: str) -> tuple[Setting, str]:
    """The setting to serve with, and a sentence that says why.

    On another processor than the one it was measured on, the choice falls back to the fastest float32
    setting that kept the Dice: float32 is as exact on every processor.

    Args:
        tuning: from :func:`~segdistill.tuning.search.tune`, as read back.
        bundle: the bundle that is served.
        source: names the file in errors.

    Raises:
        SegdistillError: it is the tuning of another bundle, or its choice isn't among its own evidence.
    """
    try:
        tolerance = Tolerance(**tuning["tolerance"])
        rows = [row for row in tuning["rows"] if "refused" not in row and tolerance.allows(row)]
        measured, digest, choice = tuning["processor"], tuning["bundle_digest"], tuning["choice"]
    except (KeyError, TypeError) as error:
        raise SegdistillError(f"{source}: not the result of tuning ({error!r}). Tune again.") from error
    if digest != bundle.digest:
        raise SegdistillError(
            f"{source}: tuned for the bundle {digest[:12]}, not for {bundle.digest[:12]}. Tune again."
        )
    if choice not in [row["setting"] for row in rows]:
        raise SegdistillError(f"{source}: its choice is not among what it measured. Tune again.")
    here = processor()
    if measured == here:
        setting = Setting.from_json(choice, source)
        return setting, f"{setting}: the fastest that kept the reference's Dice on this processor"
    exact = [row for row in rows if row["setting"]["precision"] == "f32"]
    if not exact:
        raise SegdistillError(f"{source}: has no float32 row, which the reference is. Tune again.")
    setting = Setting.from_json(best(exact)["setting"], source)
    return setting, (
        f"{setting}: tuned on {measured['name']}, this is {here['name']}, so float32 it is. "
        "'python -m segdistill.tuning' chooses again"
    )
