"""Every knob, as the stages take them: params.yaml of a task, and that of the studies."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from segdistill.evaluation.knobs import EvaluationKnobs
from segdistill.files import SegdistillError
from segdistill.network.architecture import NetworkKnobs
from segdistill.params import Count, Positive, Share, Weight, build
from segdistill.simulation.rendering.knobs import KNOBS
from segdistill.simulation.simulate import MODALITIES
from segdistill.sites.prepare import PlanKnobs
from segdistill.texts import read_yaml_mapping
from segdistill.training.distillation.knobs import DistillationKnobs
from segdistill.training.knobs import TrainingKnobs


@dataclass(frozen=True)
class TeacherKnobs:
    """The ``teacher`` part."""

    steps: Count
    learning_rate: Positive
    ready: str | None

    @property
    def folder(self) -> Path | None:
        """What 'segdistill import-nnunet' wrote, where a teacher is imported."""
        return Path(self.ready) if self.ready else None


@dataclass(frozen=True)
class StudentKnobs:
    """One of ``students``."""

    width: Annotated[float, Field(gt=0, le=1)]
    steps: Count
    learning_rate: Positive


@dataclass(frozen=True)
class ExportKnobs:
    """The ``export`` part."""

    parity_cases: Count
    parity_min: Share
    calibration_cases: Count


@dataclass(frozen=True)
class RegistryKnobs:
    """The ``registry`` part."""

    alias: str


@dataclass(frozen=True)
class TuningKnobs:
    """The ``tuning`` part."""

    cases: Annotated[int, Field(ge=0)]
    mean_loss: Weight
    structure_loss: Weight
    overlaps: tuple[Annotated[float, Field(ge=0, lt=1)], ...]


@dataclass(frozen=True)
class ServingKnobs:
    """The ``serving`` part."""

    threads: Annotated[int, Field(ge=0)]
    max_body_mb: Positive


@dataclass(frozen=True)
class Params:
    """All knobs of a task; its params.yaml says what each does.

    ``cohort``, every one of ``sites`` and ``rendering`` are the knobs of ``plan.modality``.
    """

    task: str
    seed: Annotated[int, Field(ge=0)]
    cohort: Any
    sites: Mapping[str, Any]
    plan: PlanKnobs
    network: NetworkKnobs
    training: TrainingKnobs
    rendering: Any
    teacher: TeacherKnobs
    distillation: DistillationKnobs
    students: Mapping[str, StudentKnobs]
    export: ExportKnobs
    evaluation: EvaluationKnobs
    registry: RegistryKnobs
    tuning: TuningKnobs
    serving: ServingKnobs

    def student(self, key: str | None) -> StudentKnobs:
        """One of ``students``.

        Raises:
            SegdistillError: there is none of this name.
        """
        if key is None or key not in self.students:
            raise SegdistillError(
                f"no student {key!r} in the parameters, only {', '.join(self.students)}."
            )
        return self.students[key]


def read_params(path: Path) -> Params:
    """Read and check a task's parameters.

    Raises:
        SegdistillError: the file is missing; or a key is, or is unknown, or its value makes no sense.
    """
    params = build(Params, read_yaml_mapping(path), path)
    modality = params.plan.modality
    scanner = MODALITIES[modality]
    return replace(
        params,
        cohort=build(scanner.people, params.cohort, path, "cohort"),
        sites={
            name: build(scanner.site, site, path, "sites", name) for name, site in params.sites.items()
        },
        rendering=build(KNOBS[modality], params.rendering, path, "rendering"),
    )


#: Knob of a row: a row without a teacher beside it may take as long as one with.
STEPS_FACTOR = "steps_factor"


@dataclass(frozen=True)
class Row:
    """A row of the ablation: ``distillation`` is None where there is no teacher at all.

    Attributes:
        distillation: what the row's students are taught by.
        steps_factor: how many times as many steps it takes as the others.
    """

    distillation: DistillationKnobs | None
    steps_factor: Positive = 1.0


@dataclass(frozen=True)
class AblationKnobs:
    """The ``ablation`` part of studies/params.yaml; each of ``rows`` is a :class:`Row`."""

    seeds: tuple[int, ...]
    widths: Mapping[str, StudentKnobs]
    distillation: DistillationKnobs
    rows: Mapping[str, Any]


@dataclass(frozen=True)
class LeaveOneSiteOutKnobs:
    """The ``leave_one_site_out`` part of studies/params.yaml, of which DVC makes stages."""

    sites: tuple[str, ...]
    students: tuple[str, ...]


@dataclass(frozen=True)
class Studies:
    """All knobs of the studies."""

    ablation: AblationKnobs
    leave_one_site_out: LeaveOneSiteOutKnobs


def read_studies(path: Path) -> Studies:
    """Read and check studies/params.yaml, where a row has what it changes of ``distillation``, or null.

    Raises:
        SegdistillError: the file is missing; or a key is, or is unknown, or its value makes no sense.
    """
    studies = build(Studies, read_yaml_mapping(path), path)
    usual = asdict(studies.ablation.distillation)
    rows = {}
    for name, changes in studies.ablation.rows.items():
        own: dict[str, Any] = {"distillation": None}
        if changes is not None:
            own = {"distillation": usual | changes}
            if STEPS_FACTOR in changes:
                own[STEPS_FACTOR] = own["distillation"].pop(STEPS_FACTOR)
        rows[name] = build(Row, own, path, "ablation", "rows", name)
    return replace(studies, ablation=replace(studies.ablation, rows=rows))
