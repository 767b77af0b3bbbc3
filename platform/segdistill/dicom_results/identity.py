"""UIDs that the same input gives again, so that a retry makes the same object."""

import uuid
from dataclasses import dataclass

# Of no meaning, but fixed: it keeps these UIDs apart from what others derive in the same way.
_NAMESPACE = uuid.UUID("6f1d3b0a-52a5-5c0e-9b7e-0f6a3d1c8e47")


@dataclass(frozen=True)
class Identity:
    """What the UIDs of a result are derived from.

    Attributes:
        series: SeriesInstanceUID of what was segmented.
        instances: SOPInstanceUID of each of its files, in any order.
        bundle_digest: of the bundle that segmented it.
    """

    series: str
    instances: frozenset[str]
    bundle_digest: str

    def uid(self, kind: str) -> str:
        """A UID of the form 2.25 (DICOM PS3.5, B.2) from a UUID of version 5 (RFC 9562, 5.5).

        Args:
            kind: what it identifies, e.g. ``SEG BINARY``.
        """
        parts = (self.series, *sorted(self.instances), self.bundle_digest, kind)
        return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int}"

    def tracking(self, structure: str) -> str:
        """By which the segment of a structure and its measurements in the report are known as one."""
        return self.uid(f"structure {structure}")

    @property
    def device(self) -> str:
        """The UID of the bundle as a device, the same for all series."""
        return f"2.25.{uuid.uuid5(_NAMESPACE, self.bundle_digest).int}"
