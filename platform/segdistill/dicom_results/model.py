"""Which model made the results, as DICOM says it."""

from dataclasses import dataclass

from highdicom import AlgorithmIdentificationSequence
from highdicom.sr import AlgorithmIdentification
from pydicom.sr.codedict import codes

from segdistill.dicom_results.texts import plain
from segdistill.runtime.bundle import Bundle

MANUFACTURER = "segdistill"
RESEARCH_USE = "Research use only, not a medical device"
_DIGEST = "bundle_sha256"


@dataclass(frozen=True)
class Model:
    """The version that segmented.

    Attributes:
        name: the family member and its task, e.g. ``brain_mri student-x4``.
        version: its number in the registry, or another word that tells versions apart.
        bundle_digest: 64 hexadecimal digits, see :func:`segdistill.runtime.bundle.digest`.
    """

    name: str
    version: str
    bundle_digest: str

    @classmethod
    def of(cls, bundle: Bundle, version: str | None = None) -> "Model":
        """The model of a bundle; without a version of the registry, its digest tells versions apart."""
        name = str(bundle.provenance.get("name", "model"))
        return cls(f"{bundle.plan.task} {name}", version or bundle.digest[:12], bundle.digest)

    def for_segments(self) -> AlgorithmIdentificationSequence:
        """The algorithm of a segment (PS3.3, table 10-19)."""
        return AlgorithmIdentificationSequence(
            name=plain(self.name),
            family=codes.cid7162.ArtificialIntelligence,
            version=plain(self.version),
            source=MANUFACTURER,
            parameters={_DIGEST: self.bundle_digest},
        )

    def for_measurements(self) -> AlgorithmIdentification:
        """The algorithm of a group of measurements (PS3.16, TID 4019)."""
        return AlgorithmIdentification(
            name=plain(self.name),
            version=plain(self.version),
            parameters=[f"{_DIGEST}={self.bundle_digest}"],
        )
