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
from segdistill.studies.rows import START
from segdistill.texts import read_yaml_mapping
from segdistill.training.distillation.knobs import DistillationKnobs
from segdistill.training.knobs import TrainingKnobs


@dataclass(frozen=True)
class TeacherKnobs:
    """The ``teacher`` part."""

    steps: Count
    learning_rate: Positive
    start: str | None
    ready: str | None

    def __post_init__(self) -> None:
        if self.start and self.ready:
            raise ValueError("has start and ready: a teacher is trained or imported. Set one to null")

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


#: Knobs of a row that are none of distillation.
_OF_A_ROW = ("taught", "to_plateau", "steps_factor", "learning_rates", "rate_of")


@dataclass(frozen=True)
class Row:
    """A row of the ablation.

    Attributes:
        distillation: what the row's students are taught by.
        taught: whether there is a teacher at all.
        to_plateau: trained until validation is flat; else in the steps, and the time, of 'start'.
        steps_factor: of a row to its plateau: how many times the width's steps it takes at most.
        learning_rates: of a row to its plateau: over the width's; the best on validation is taken.
        rate_of: of another row: the row to its plateau whose learning rate it has.
    """

    distillation: DistillationKnobs
    taught: bool = True
    to_plateau: bool = False
    steps_factor: Positive = 1.0
    learning_rates: tuple[Positive, ...] = (1.0,)
    rate_of: str = START

    @property
    def teaching(self) -> DistillationKnobs | None:
        """What its students are taught by; None without a teacher."""
        return self.distillation if self.taught else None

    @property
    def takes_longer(self) -> bool:
        """Whether a step of it does more than one of a training without a teacher."""
        return self.taught and self.distillation.has_terms


@dataclass(frozen=True)
class AblationKnobs:
    """The ``ablation`` part of studies/params.yaml; each of ``rows`` is a :class:`Row`."""

    seeds: tuple[int, ...]
    widths: Mapping[str, StudentKnobs]
    decay_share: Annotated[float, Field(gt=0, lt=1)]
    patience: Count
    flat: Weight
    validate_steps: Count
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
    """Read and check studies/params.yaml, where a row has what it changes of ``distillation``.

    Raises:
        SegdistillError: the file is missing; or a key is, or is unknown, or its value makes no sense.
    """
    studies = build(Studies, read_yaml_mapping(path), path)
    usual = asdict(studies.ablation.distillation)
    rows: dict[str, Row] = {}
    for name, changes in studies.ablation.rows.items():
        if not isinstance(changes, Mapping):
            raise SegdistillError(f"{path}: ablation.rows.{name} must be what it changes, or {{}}.")
        own = {key: value for key, value in changes.items() if key in _OF_A_ROW}
        own["distillation"] = usual | {key: value for key, value in changes.items() if key not in own}
        rows[name] = build(Row, own, path, "ablation", "rows", name)
    tuned = [name for name, row in rows.items() if row.to_plateau]
    if START not in tuned:
        raise SegdistillError(
            f"{path}: ablation.rows needs {START} with to_plateau: the others take as long as it."
        )
    for name, row in rows.items():
        if row.rate_of not in tuned:
            raise SegdistillError(
                f"{path}: ablation.rows.{name}.rate_of is {row.rate_of}; it should be one of "
                f"{', '.join(tuned)}."
            )
    return replace(studies, ablation=replace(studies.ablation, rows=rows))
