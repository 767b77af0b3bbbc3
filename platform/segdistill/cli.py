"""The ``segdistill`` command. Subcommands import their rooms when they run: --help stays quick."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from segdistill.files import SegdistillError
from segdistill.shown import command, repro, shown


class _Commands(TyperGroup):
    """Commands that tell what the user can mend in plain words on stderr, with exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SegdistillError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
        except BrokenPipeError:  # whoever reads our output has gone; Click ends quietly
            raise
        except OSError as error:  # what the system refuses, e.g. a folder that may not be written
            where = f"{shown(error.filename)}: " if error.filename else ""
            typer.echo(f"error: {where}{error.strerror or error}.", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    # A traceback with local variables could show names of patients' files.
    pretty_exceptions_enable=False,
)
site = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(site, name="site", help="Sites: scans of one hospital with their label maps.")


@app.callback()
def main() -> None:
    """Distil 3D segmentation teachers into students for CPUs. Research use, not a medical device."""


@site.callback()
def sites() -> None:
    """Sites: scans of one hospital with their label maps."""


@site.command("add")
def site_add(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the new site; its cases become NAME-001, ...")
    ],
    source: Annotated[Path, typer.Option("--from", metavar="FOLDER", help="The data; it is only read.")],
    layout: Annotated[
        Literal["auto", "bids", "nnunet", "freesurfer", "labelmaps"],
        typer.Option(help="How FOLDER is laid out."),
    ] = "auto",
    task: Annotated[str, typer.Option(help="The task that the labels are for.")] = "brain_mri",
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="MAP",
            help="What the codes mean: 'freesurfer', 'same', or a YAML file of lines like "
            "'17: thalamus' (docs/sites.md).",
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="TRAIN,VAL,TEST", help="Shares, by subject.")
    ] = "0.7,0.1,0.2",
    seed: Annotated[int, typer.Option(min=0, help="Of the split and of the pseudonyms' order.")] = 0,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Keep the whole site out of training: all cases are test.")
    ] = False,
    require_labels: Annotated[
        bool, typer.Option("--require-labels", help="Refuse scans without a label map.")
    ] = False,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="CASE", help="Leave out a case or subject; repeatable.")
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Its first group, found in a case's name, is the subject."),
    ] = None,
    suffix: Annotated[str, typer.Option(help="BIDS: suffix of the scans.")] = "T1w",
    derivative: Annotated[
        str | None, typer.Option(help="BIDS: folder under derivatives with the label maps.")
    ] = None,
    desc: Annotated[str | None, typer.Option(help="BIDS: 'desc' of the label maps.")] = None,
    image: Annotated[
        str | None,
        typer.Option(help="FreeSurfer: orig.mgz or norm.mgz; else the first that all have."),
    ] = None,
    segmentation: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="FreeSurfer, FastSurfer: the label map in every subject's mri; "
            "by default aparc.DKTatlas+aseg.mgz.",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write whose pseudonym is whose, outside the project folder."),
    ] = None,
    scans: Annotated[
        int,
        typer.Option(min=1, help="labelmaps: scans that are rendered of every person of val and test."),
    ] = 4,
    note: Annotated[str, typer.Option(help="What a reader must know about this data.")] = "",
    root: Annotated[Path, typer.Option(help="The project's folder.")] = Path(),
) -> None:
    """Import real scans, or label maps without scans, into data/sites/TASK/NAME.

    Scans may lie as BIDS, nnU-Net raw or FreeSurfer; label maps are NIfTI or MGZ files in one folder
    (--layout labelmaps), and scans of them are rendered while training. Everything is checked on the way
    in; what is wrong is listed case by case, and then nothing is written.
    """
    from segdistill.sites.imports.layout import Pick
    from segdistill.sites.imports.site import Request, add_site
    from segdistill.sites.imports.split import read_fractions

    request = Request(
        name=name,
        source=source,
        root=root,
        task=task,
        layout=None if layout == "auto" else layout,
        pick=Pick(suffix, derivative, desc, image, segmentation),
        labels=labels,
        fractions=read_fractions(split),
        seed=seed,
        held_out=held_out,
        require_labels=require_labels,
        exclude=tuple(exclude or ()),
        subject=subject,
        key=key,
        note=note,
        scans=scans,
    )
    with _ended_politely():
        render = None
        if layout == "labelmaps":
            from segdistill.simulation.rendering.whole import renderer

            render = renderer(task)
        added = add_site(request, _progress, render)
    cases = added.site.cases
    parts = ("train", "val", "test")
    counts = ", ".join(f"{part} {sum(case.split == part for case in cases)}" for part in parts)
    subjects = {case.subject for case in cases}
    unlabelled = sum(case.label is None for case in cases)
    unseen = sum(case.image is None for case in cases)
    kinds = f"{len(cases) - unseen} scans"
    if unseen:
        kinds = f"{unseen} label maps to render while training and {len(cases) - unseen} rendered scans"
    typer.echo(
        f"site {name}: {kinds} of {len(subjects)} subjects ({counts}), "
        f"{unlabelled} without a label map, in {shown(added.folder)}"
    )
    if added.missing:
        typer.echo(f"note: no label map has {', '.join(added.missing)}")
    if key:
        typer.echo(f"key: {shown(key)} (names patients; keep it where the source data is kept)")
    typer.echo(f"next:\n  {command('dvc', 'add', added.folder)}")
    typer.echo("  dvc push    # if you have set up a DVC remote")


@contextmanager
def _ended_politely() -> Iterator[None]:
    """Let a scheduler's SIGTERM, like Ctrl-C, unwind the stack, so that nothing half-made remains."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _progress(done: int, total: int) -> None:
    typer.echo(f"\r{done}/{total} scans", nl=done == total, err=True)


@app.command()
def segment(
    scans: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCAN",
            help="NIfTI or MGZ files, folders with one DICOM series each, or folders of such scans.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            metavar="LABELS",
            help="A label map, .nii.gz or .nii, or a folder for several.",
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="A model's bundle; by default the one that came with the repository."
        ),
    ] = None,
    task: Annotated[str, typer.Option(help="Which of those that came with it.")] = "brain_mri",
    volumes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The table of volumes (CSV); of a folder, volumes.csv in it."),
    ] = None,
    pictures: Annotated[
        bool | None,
        typer.Option(
            "--pictures/--no-pictures",
            help="Whether to draw each result as a PNG beside it; by default into a folder only.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also segment what is finished, and replace it.")
    ] = False,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads of the network; 0: all that may be used.")
    ] = 0,
    tuning: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="How it runs fastest here, from 'python -m segdistill.tuning'."
        ),
    ] = None,
) -> None:
    """Segment scans: label maps, a table of volumes, and pictures to look at.

    Into a folder it can be interrupted: started again, it goes on with what isn't finished. A scan that
    can't be segmented is named at the end, and the others are done.
    """
    from segdistill.batch.run import open_segmentator, plan_work, rows_of, segment_all, unfinished
    from segdistill.released import released_bundle

    work = plan_work(scans, out, pictures=pictures, table=volumes)
    segmentator = open_segmentator(model or released_bundle(task), threads, tuning)
    todo = unfinished(work, segmentator, overwrite=overwrite)
    kept = len(work.jobs) - len(todo)
    with _ended_politely():
        from tqdm import tqdm

        results = segment_all(todo, work.table, segmentator)
        bar = tqdm(
            results, "segmenting", len(work.jobs), initial=kept, unit="scan", disable=not work.folder
        )
        done = list(bar)
    if not work.folder:
        for name, ml in done[0].outcome.volumes_ml.items() if done[0].outcome else ():
            typer.echo(f"{name}: {ml:.2f} ml")
        if done[0].outcome:
            typer.echo(f"{shown(out)}: {done[0].outcome.quality}")
    else:
        rows = rows_of(work)
        check = [row for row in rows if row.to_check]
        count = sum(not row.error for row in rows)
        typer.echo(
            f"{shown(out)}: {count} label maps, {kept} of them from before; {len(check)} to check"
        )
        for row in check:
            typer.echo(f"check {row.labels}: {row.to_check}")
    if work.table:
        typer.echo(f"table: {shown(work.table)}")
    failed = [one for one in done if one.error]
    for one in failed:
        typer.echo(f"error: {shown(one.job.scan)}: {one.error}", err=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def promote(
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="Its number, or a member's name for the newest.")
    ],
    reason: Annotated[str, typer.Option(help="Why; kept with the version.")],
    task: Annotated[str, typer.Option(help="The task.")] = "brain_mri",
    alias: Annotated[str, typer.Option(help="The alias to set.")] = "champion",
    by: Annotated[str | None, typer.Option(help="Who promotes; by default who is logged in.")] = None,
    override: Annotated[
        bool, typer.Option("--override", help="Promote against the evidence; logged.")
    ] = False,
    root: Annotated[Path, typer.Option(help="The repository's root.")] = Path(),
) -> None:
    """Choose the version that is served, and note why.

    Sets an alias on a version in the registry, as MLflow's page does.
    """
    from segdistill.registry.promote import promote as set_alias

    done = set_alias(root, task, version, reason=reason, alias=alias, by=by, override=override)
    before = "none" if done.previous is None else f"v{done.previous}"
    if done.overridden:
        typer.echo(f"overridden: it {done.overridden}")
    typer.echo(f"{done.alias} is now v{done.version} {done.name} (before: {before})")
    typer.echo(f"next:\n  {repro(root, task, 'package')}")


@app.command("register-released")
def register_released_model(
    task: Annotated[str, typer.Option(help="The task.")] = "brain_mri",
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Its bundle; by default the one that came with the repository."
        ),
    ] = None,
    root: Annotated[Path, typer.Option(help="The repository's root.")] = Path(),
) -> None:
    """Register the model that came with the repository, as a version to promote like any other."""
    from segdistill.registry.register import model_name
    from segdistill.registry.released import register_released
    from segdistill.released import released_bundle

    done = register_released(root, task, model or released_bundle(task))
    state = "new" if done.new else "was registered already"
    typer.echo(f"{model_name(task)} v{done.version} {done.name}: {state}, bundle {done.bundle_digest}")
    promoting = command("segdistill", "promote", str(done.version), "--task", task)
    typer.echo(f"next:\n  {promoting} --reason '...'")
    typer.echo("  then docs/registry.md, 'The released model', to serve it without a training")


@app.command("import-nnunet")
def import_nnunet_model(
    results: Annotated[
        Path,
        typer.Argument(
            help="nnU-Net's results folder: plans.json, dataset.json, fold_X/.", metavar="FOLDER"
        ),
    ],
    out: Annotated[Path, typer.Option(help="The new folder for plan.json and teacher/.")],
    fold: Annotated[str, typer.Option(help="A fold's number, or all.")] = "0",
    checkpoint: Annotated[
        str, typer.Option(help="Name of the checkpoint in the fold's folder.")
    ] = "checkpoint_final.pth",
    task: Annotated[str | None, typer.Option(help="The task; by default the dataset's name.")] = None,
    label_protocol: Annotated[
        str | None, typer.Option(help="The label protocol; by default the dataset's name.")
    ] = None,
    orientation: Annotated[
        str | None,
        typer.Option(
            metavar="CODES",
            help="How the training scans were stored, e.g. LPS: scans are turned to that. "
            "By default they stay as stored, as nnU-Net leaves them.",
        ),
    ] = None,
) -> None:
    """Make a teacher of an nnU-Net v2 model.

    The model is a PlainConvUNet; the teacher computes the same function.
    """
    from segdistill.interop.importing import import_nnunet

    done = import_nnunet(
        results,
        out,
        fold=fold,
        checkpoint=checkpoint,
        task=task,
        label_protocol=label_protocol,
        orientation=orientation,
    )
    typer.echo(f"{shown(done.teacher)}: {done.parameters:,} parameters, {done.network}")
    typer.echo(f"{shown(done.plan)}: the plan it needs, with nnU-Net's preprocessing")
    typer.echo("next: docs/nnunet.md, 'Distil from it'")


@app.command("export-nnunet")
def export_nnunet_model(
    model: Annotated[
        str,
        typer.Argument(
            metavar="VERSION",
            help="A model's folder (models/TASK/NAME), or a registered version: its number, or a "
            "member's name for the newest.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The new results folder.")],
    plan: Annotated[
        Path | None, typer.Option(help="Its plan.json; by default the one beside the model's folder.")
    ] = None,
    task: Annotated[str, typer.Option(help="The task of a registered version.")] = "brain_mri",
    root: Annotated[Path, typer.Option(help="The repository's root.")] = Path(),
) -> None:
    """Write a model for nnU-Net v2.

    It becomes a results folder that nnUNetv2_predict runs unchanged.
    """
    from segdistill.interop.exporting import export_nnunet
    from segdistill.network.model import read_model
    from segdistill.runtime.plan import Plan

    folder = Path(model)
    if folder.is_dir():
        known = Plan.read(plan or folder.resolve().parent / "plan.json")
    else:
        from segdistill.registry.weights import trained_model

        folder, known = trained_model(root, task, model)
    done = export_nnunet(read_model(folder, known), known, out)
    run = command(
        "nnUNetv2_predict_from_modelfolder", "-m", done.folder, "-f", "0", "-i", "IN", "-o", "OUT"
    )
    typer.echo(f"{shown(done.folder)}: run {run}")
    if done.renumbered:
        typer.echo("note: nnU-Net numbers the labels 1, 2, 3, ... in the plan's order, see dataset.json")
    for difference in done.differences:
        typer.echo(f"note: close, not exact: {difference}")


@app.command("dicom")
def dicom_results(
    series: Annotated[Path, typer.Argument(metavar="SERIES", help="Folder with the DICOM series.")],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Its label map, .nii or .nii.gz.")],
    model: Annotated[
        Path, typer.Option(metavar="BUNDLE", help="Folder of the bundle that made the label map.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where seg.dcm and sr.dcm go.")],
    version: Annotated[
        str | None, typer.Option(help="The model's version; by default the start of its digest.")
    ] = None,
    labelmap: Annotated[
        bool, typer.Option("--labelmap", help="A LABELMAP segmentation, small, in place of BINARY.")
    ] = False,
    at: Annotated[
        datetime | None,
        typer.Option(metavar="TIME", help="Date and time of the content, 2026-01-31T12:00:00; or now."),
    ] = None,
) -> None:
    """Write a label map of a DICOM series as DICOM SEG, its volumes as SR."""
    from segdistill.dicom_results.files import results_of_files
    from segdistill.runtime.bundle import Bundle
    from segdistill.sites.protocol import PROTOCOLS

    results = results_of_files(
        series,
        labels,
        Bundle.read(model),
        PROTOCOLS,
        version=version,
        when=at or datetime.now().astimezone(),
        kind="LABELMAP" if labelmap else "BINARY",
    )
    for path in results.write(out):
        typer.echo(f"{shown(path)}: {path.stat().st_size:,} bytes")
    if results.seg is None:
        typer.echo("note: no structure was found, so there is no segmentation")


if __name__ == "__main__":
    app()
