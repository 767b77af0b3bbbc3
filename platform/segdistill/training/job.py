"""What one training is: everything the loop needs, as plain values that travel to any worker."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdistill.files import json_bytes, read_json, sha256_of
from segdistill.network.architecture import NetworkKnobs
from segdistill.params import build
from segdistill.runtime.plan import Plan
from segdistill.simulation.rendering.knobs import KNOBS, RenderingKnobs
from segdistill.training.distillation.knobs import DistillationKnobs
from segdistill.training.knobs import TrainingKnobs

if TYPE_CHECKING:
    from segdistill.network.model import Role


@dataclass(frozen=True)
class Job:
    """One training of a teacher, student or control.

    Paths are absolute: Ray's workers run in folders of their own.

    Attributes:
        name: e.g. ``student-x4``.
        role: ``teacher``, ``student`` or ``control``.
        width: channel multiplier.
        steps: optimiser steps, at most.
        learning_rate: peak of the schedule.
        seed: start of all randomness.
        plan: path of plan.json.
        data: folder of prepared cases.
        teacher: folder of the teacher's model, for a student; else None.
        soft_labels: folder of the teacher's soft labels, for a student; else None.
        start: folder of the model whose weights it starts from; None for random ones.
        network: what the architecture is scaled from.
        training: how it is trained.
        rendering: how scans are drawn from label maps, by knobs of the plan's modality.
        distillation: how a student is taught; None without a teacher.
        tracking: ``{"uri": ..., "run_id": ...}`` of the MLflow run that follows along, or empty.
    """

    name: str
    role: "Role"
    width: float
    steps: int
    learning_rate: float
    seed: int
    plan: str
    data: str
    teacher: str | None
    soft_labels: str | None
    start: str | None
    network: NetworkKnobs
    training: TrainingKnobs
    rendering: RenderingKnobs
    distillation: DistillationKnobs | None
    tracking: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The job as plain values; :meth:`from_json` reads them."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Job":
        """The job of which :meth:`to_json` gave the values.

        Raises:
            SegdistillError: knobs that are none, or no plan where it says.
        """
        rendering = KNOBS[Plan.read(Path(body["plan"])).modality]
        taught = body["distillation"]
        knobs = {
            "network": build(NetworkKnobs, body["network"], "job", "network"),
            "training": build(TrainingKnobs, body["training"], "job", "training"),
            "rendering": build(rendering, body["rendering"], "job", "rendering"),
            "distillation": taught and build(DistillationKnobs, taught, "job", "distillation"),
        }
        return cls(**{**body, **knobs})

    def digest(self) -> str:
        """Digest of all that decides the outcome: knobs, plan, data, teacher and this library's code.

        A run of the same digest may go on from its checkpoint; one of another must not.
        """
        from segdistill.network.model import (
            MODEL_JSON,
        )  # seconds of imports, which Ray's own actors do without

        data = Path(self.data)
        source = Path(__file__).resolve().parents[1]
        rooms = ("network", "training", "simulation/rendering")
        code = [path for room in rooms for path in (source / room).rglob("*.py")]
        code.append(source / "simulation" / "hounsfield.py")
        if self.teacher is None:  # how students are taught is no matter of teachers and controls
            code = [path for path in code if path.parent.name != "distillation"]
        body = self.to_json() | {
            "tracking": None,
            "plan": Plan.read(Path(self.plan)).digest(),
            "data": [sha256_of(path) for path in sorted(data.iterdir())],
            "teacher": self.teacher and read_json(Path(self.teacher) / MODEL_JSON)["weights_sha256"],
            "start": self.start and read_json(Path(self.start) / MODEL_JSON)["weights_sha256"],
            "soft_labels": self.soft_labels and read_json(Path(self.soft_labels) / "index.json"),
            "code": [sha256_of(path) for path in sorted(code)],
        }
        return hashlib.sha256(json_bytes(body)).hexdigest()
