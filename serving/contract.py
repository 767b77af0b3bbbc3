"""What is served: the record that packaging leaves, and the sealed bundle it names.

In a checkout where nothing is packaged, it is the bundle that came with the repository, if there is one.
"""

import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdistill.files import SegdistillError, read_json, subfolders
from segdistill.released import released_bundles
from segdistill.runtime.bundle import Bundle, digest
from segdistill.runtime.setting import Setting
from segdistill.texts import read_yaml_mapping
from segdistill.tuning.choice import chosen

if TYPE_CHECKING:
    from segdistill.dicom_results import StructureCode

RECORD = "served.json"
TUNING = "tuning.json"
PROTOCOL = "protocol.yaml"
# BentoML adds a file of its own to a model; the sealed bundle lies beside it.
BUNDLE = "bundle"
HERE = Path(__file__).resolve().parent
AGAIN = "Package it again with 'dvc repro --force --single-item package'."
# Of a released bundle, which no task's parameters come with: those of params.yaml.
RELEASED_MAX_BODY_MB = 512.0


@dataclass(frozen=True)
class Served:
    """Exactly one version, and how it is served.

    Attributes:
        task: the task.
        alias: the alias it was promoted to; ``released`` for a bundle that came with the repository.
        version: its number in the registry; None for a bundle that came with the repository.
        name: the family member it is.
        bundle_digest: digest of its sealed bundle.
        model: its exact tag in the BentoML store; of a released bundle, its folder from the root.
        threads: CPU threads of the network; 0: as many as the process may use.
        max_body_mb: largest upload, MB.
    """

    task: str
    alias: str
    version: int | None
    name: str
    bundle_digest: str
    model: str
    threads: int
    max_body_mb: float

    @property
    def numbered(self) -> str:
        """The version for people and headers: its number, or ``released``."""
        return "released" if self.version is None else str(self.version)

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return asdict(self)


def bento_home(root: Path) -> Path:
    """The BentoML store that belongs to a root: its ``bentos`` folder, unless BENTOML_HOME is set."""
    return Path(os.environ.get("BENTOML_HOME") or root / "bentos").expanduser().resolve()


def find_served() -> tuple[Served, Path]:
    """The record of what is served and the folder of its bundle.

    In a bento, the record lies beside this file. In the source tree it is the receipt of the last
    packaging; where nothing is packaged, the bundle in ``released/TASK``. With several tasks,
    SEGDISTILL_TASK names the one to serve.

    Raises:
        SegdistillError: nothing is packaged, or what was packaged is gone.
    """
    if (HERE / RECORD).exists():
        import bentoml

        served = _read(HERE / RECORD)
        try:
            return served, Path(bentoml.models.get(served.model).path) / BUNDLE
        except bentoml.exceptions.NotFound as error:
            raise SegdistillError(
                f"The model {served.model} of this bento isn't in the BentoML store. "
                "Import the bento again."
            ) from error
    root = HERE.parent
    receipt = _receipt(root)
    if receipt is None:
        return _released(root)
    served = _read(receipt)
    tag, _, version = served.model.partition(":")
    folder = bento_home(root) / "models" / tag / version / BUNDLE
    if not folder.is_dir():
        raise SegdistillError(f"{folder}: the packaged model is gone. {AGAIN}")
    return served, folder


def find_setting(served: Served, bundle: Bundle) -> tuple[Setting, str]:
    """How the bundle is run, and a sentence that says why.

    The tuning lies beside the record; SEGDISTILL_TUNING names another, made on the machine that serves.

    Raises:
        SegdistillError: it is of another bundle, or isn't one.
    """
    reference = Setting.reference(bundle.plan, served.threads)
    named = os.environ.get("SEGDISTILL_TUNING")
    beside = (
        HERE / TUNING if (HERE / RECORD).exists() else HERE.parent / "registry" / served.task / TUNING
    )
    path = Path(named) if named else beside
    # A tuning that lies there, in a checkout, is of what was promoted.
    if not named and (served.version is None or not path.is_file()):
        return reference, f"{reference}: the reference; nothing was tuned"
    tuning = read_json(path)
    if isinstance(tuning, dict) and tuning.get("choice", 0) is None:
        return reference, f"{reference}: the reference; nothing was tuned"
    setting, why = chosen(tuning, bundle, str(path))
    if served.threads:
        setting = replace(setting, threads=served.threads)
    return setting, why


def find_codes(served: Served, bundle: Bundle) -> "dict[str, StructureCode]":
    """The code and colour of every structure in DICOM results, by name.

    A bento carries the task's label protocol beside its record. Where a task has none, or the bundle is
    of another protocol, codes are made from the structures' names.

    Raises:
        SegdistillError: the protocol's codes aren't codes.
    """
    from segdistill.dicom_results import structure_codes  # highdicom, which not every answer needs

    path = HERE / PROTOCOL
    if not (HERE / RECORD).exists():
        path = HERE.parent / "platform" / "segdistill" / "sites" / "protocols" / f"{served.task}.yaml"
    return structure_codes(bundle.plan, read_yaml_mapping(path) if path.is_file() else None, str(path))


def verified(served: Served, folder: Path) -> Bundle:
    """Read the bundle and check that it is the one that was promoted, to the last byte.

    Raises:
        BundleError: a file of the bundle doesn't have the digest its provenance states.
        SegdistillError: it is another bundle.
    """
    bundle = Bundle.read(folder)
    digest = bundle.digest
    if digest != served.bundle_digest:
        raise SegdistillError(
            f"{folder}: the bundle's digest is {digest[:12]}, promoted was {served.bundle_digest[:12]} "
            f"({served.name} v{served.numbered}). It is not served. {AGAIN}"
        )
    return bundle


def _receipt(root: Path) -> Path | None:
    """The receipt of what is packaged; None where nothing is."""
    found = {path.name: path / "bento.json" for path in subfolders(root / "registry")}
    packaged = _wanted(
        {task: path for task, path in found.items() if path.is_file() and read_json(path).get("bento")}
    )
    if len(packaged) > 1:
        raise SegdistillError(
            f"Several tasks are packaged ({', '.join(packaged)}): set SEGDISTILL_TASK to one."
        )
    return next(iter(packaged.values()), None)


def _released(root: Path) -> tuple[Served, Path]:
    """The bundle that came with the repository, as it is served while nothing is packaged."""
    found = _wanted(released_bundles(root))
    if not found:
        raise SegdistillError(
            "Nothing is packaged yet. Promote a version ('segdistill promote VERSION --reason ...', or "
            "the alias 'champion' in the MLflow UI), then run 'dvc repro package'."
        )
    if len(found) > 1:
        raise SegdistillError(
            f"Several tasks are released ({', '.join(found)}): set SEGDISTILL_TASK to one."
        )
    task, folder = next(iter(found.items()))
    name = Bundle.read(folder).provenance.get("name", task)
    where = folder.relative_to(root).as_posix()
    return (
        Served(task, "released", None, name, digest(folder), where, 0, RELEASED_MAX_BODY_MB),
        folder,
    )


def _wanted(tasks: dict[str, Path]) -> dict[str, Path]:
    """Of these tasks, the one that SEGDISTILL_TASK names; all of them where it names none."""
    wanted = os.environ.get("SEGDISTILL_TASK")
    return {task: path for task, path in tasks.items() if wanted in (None, "", task)}


def _read(path: Path) -> Served:
    body = read_json(path)
    try:
        return Served(**{entry.name: body[entry.name] for entry in fields(Served)})
    except (KeyError, TypeError) as error:
        raise SegdistillError(f"{path}: not a record of what is served ({error!r}). {AGAIN}") from error
