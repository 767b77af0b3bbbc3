"""One scan after the other: what is done is kept, what fails is named, nothing half-made is left."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segdistill.batch.scans import digest_of, find_scans, names
from segdistill.batch.table import Row, figures, put_row, read_table
from segdistill.files import DiskFullError, SegdistillError, read_json
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.segment import Segmentation, Segmentator, refuse_own_scan
from segdistill.runtime.setting import Setting
from segdistill.shown import shown
from segdistill.tuning.choice import chosen
from segdistill.volume import read_volume, write_label_map

TABLE = "volumes.csv"
_FILES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Job:
    """One scan, and where its results go.

    Attributes:
        scan: a file, or a folder with one DICOM series.
        labels: the label map to write.
        picture: the picture to write; None: none.
    """

    scan: Path
    labels: Path
    picture: Path | None


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        jobs: the scans.
        table: the table of volumes; None: none.
        folder: whether ``-o`` is a folder, so that what is done in it is kept.
    """

    jobs: tuple[Job, ...]
    table: Path | None
    folder: bool


@dataclass(frozen=True)
class Done:
    """What became of one scan.

    Attributes:
        job: the scan, and where its results are.
        outcome: its segmentation; None: it failed.
        error: why there is no label map; empty if there is one.
    """

    job: Job
    outcome: Segmentation | None = None
    error: str = ""


def open_segmentator(bundle: Path, threads: int = 0, tuning: Path | None = None) -> Segmentator:
    """A bundle, ready to segment.

    Args:
        bundle: its folder.
        threads: CPU threads of the network; 0: as many as the process may use.
        tuning: how it is run, see :func:`~segdistill.tuning.choice.chosen`; None: the reference.

    Raises:
        BundleError: the folder holds no bundle, or one that was changed.
        SegdistillError: the tuning is of another bundle, or isn't one.
    """
    sealed = Bundle.read(bundle)
    setting = Setting.reference(sealed.plan, threads)
    if tuning is not None:
        setting, _ = chosen(read_json(tuning), sealed, shown(tuning))
        setting = replace(setting, threads=threads or setting.threads)
    return Segmentator(sealed, setting=setting)


def plan_work(given: Sequence[Path], out: Path, *, pictures: bool | None, table: Path | None) -> Work:
    """Which scans are segmented, and where their results go.

    Args:
        given: files and folders, see :func:`~segdistill.batch.scans.find_scans`.
        out: a label map (``.nii``, ``.nii.gz``) for one scan, or a folder.
        pictures: whether to draw; None: into a folder only.
        table: of one scan; in a folder it is ``volumes.csv``.

    Raises:
        SegdistillError: no scan; several for one label map; results would lie among the scans.
    """
    scans = find_scans(given)
    if out.name.endswith(_FILES):
        if len(scans) > 1:
            raise SegdistillError(
                f"{shown(out)}: one label map, but there are {len(scans)} scans. Name a folder with -o."
            )
        picture = out.with_name(f"{names([out])[0]}.png") if pictures else None
        refuse_own_scan(scans[0], out)
        return Work((Job(scans[0], out, picture),), table, folder=False)
    if out.is_file():
        raise SegdistillError(f"{shown(out)}: neither a folder nor a .nii or .nii.gz. Name one with -o.")
    for scan in scans:
        if out.resolve() in (scan.parent.resolve(), scan.resolve()):
            raise SegdistillError(
                f"{shown(out)}: the scans lie here, and label maps would lie among them. Name another "
                "folder with -o."
            )
    jobs = [
        Job(scan, out / f"{name}.nii.gz", None if pictures is False else out / f"{name}.png")
        for scan, name in zip(scans, names(scans), strict=True)
    ]
    return Work(tuple(jobs), table or out / TABLE, folder=True)


def unfinished(work: Work, segmentator: Segmentator, *, overwrite: bool) -> list[Job]:
    """The scans that this very model hasn't segmented yet.

    One is finished if its label map is there, and its row names the bytes of the scan and of the model.

    Raises:
        SegdistillError: a label map is there that would be replaced, and isn't one of this scan's.
    """
    if overwrite or not work.folder or work.table is None:
        return list(work.jobs)
    rows, digest = read_table(work.table), segmentator.bundle.digest
    return [
        job
        for job in work.jobs
        if not (job.labels.exists() and _finished(job, rows.get(shown(job.labels.name)), digest))
    ]


def _finished(job: Job, row: Row | None, digest: str) -> bool:
    """Whether the row of a label map that is there says that it is of this scan and this model."""
    try:
        same = row is not None and row.scan_digest == digest_of(job.scan)
    except (SegdistillError, OSError):
        same = False  # why, is told when it is segmented
    if row is None or (not same and row.scan != shown(job.scan)):
        whose = f"is of another scan, {row.scan}" if row else "has no row in the table of volumes"
        raise SegdistillError(
            f"{shown(job.labels)}: is there already and {whose}. Name another folder with -o, or "
            "replace it with --overwrite."
        )
    return same and row.bundle_digest == digest and not row.error


def rows_of(work: Work) -> list[Row]:
    """What the table says of the scans, those that were finished before included."""
    rows = read_table(work.table) if work.table else {}
    return [rows[name] for job in work.jobs if (name := shown(job.labels.name)) in rows]


def segment_all(jobs: Sequence[Job], table: Path | None, segmentator: Segmentator) -> Iterator[Done]:
    """Segment scans one by one, and give what became of each.

    The row of a scan is written before its label map gets its name: whatever cuts a run off, a label map
    in the folder has a row. A scan that can't be segmented gets a row with the reason.

    Raises:
        DiskFullError: no space for results; what follows would fail likewise.
        SegdistillError: the table isn't one.
    """
    for job in jobs:
        provenance = segmentator.bundle.provenance
        row = Row(
            labels=shown(job.labels.name),
            scan=shown(job.scan),
            model=str(provenance.get("name", "")),
            bundle_digest=segmentator.bundle.digest,
        )

        def note(row: Row) -> None:
            if table is not None:
                put_row(table, row)

        try:
            done = Done(job, _one(job, segmentator, row, note))
        except DiskFullError:
            raise
        except Exception as error:  # one bad scan must not stop the others, whatever is wrong with it
            done = Done(job, error=_in_words(error, job.scan))
            note(replace(row, facts={"error": done.error}))
        yield done


def _one(job: Job, segmentator: Segmentator, row: Row, note: Callable[[Row], None]) -> Segmentation:
    began = time.perf_counter()
    row = replace(row, scan_digest=digest_of(job.scan))
    scan = read_volume(job.scan)
    outcome = segmentator.segment(scan)
    if job.picture is not None:
        from segdistill.batch.picture import write_picture  # a second to load

        write_picture(job.picture, scan, outcome, segmentator.plan, shown(job.labels.name))
    volumes = {name: f"{ml:.3f}" for name, ml in outcome.volumes_ml.items()}
    seconds = time.perf_counter() - began
    note(replace(row, volumes_ml=volumes, facts=figures(outcome, seconds)))
    write_label_map(job.labels, outcome.labels, scan)
    return outcome


def _in_words(error: Exception, scan: Path) -> str:
    """What is wrong, in one line, without the scan's own name in front."""
    match error:
        case SegdistillError():
            told = str(error)
        case OSError():
            told = f"{error.filename or 'a file'}: {error.strerror or error}."
        case _:
            told = f"a fault that nobody foresaw ({type(error).__name__}: {error}). Report it."
    return shown(" ".join(told.removeprefix(f"{scan}: ").split()))
