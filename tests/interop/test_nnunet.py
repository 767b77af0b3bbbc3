"""Both ways, against nnU-Net itself: its network, its preprocessing, its predictor, its checkpoint."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from segdistill.cli import app
from segdistill.network.model import TorchBackend, read_model, write_model
from segdistill.network.unet import UNet
from segdistill.runtime.plan import Plan
from segdistill.runtime.preprocess import preprocess
from segdistill.runtime.restore import restore
from segdistill.runtime.windows import pad, predict
from segdistill.training.distillation.inherit import inherit
from segdistill.volume import read_volume
from tests.interop.environment import NotInstallableError, nnunet_python, run_nnunet
from tests.interop.scans import DATASET, THICK, THIN, small_plans, write_scan

pytestmark = [pytest.mark.nnunet, pytest.mark.timeout(1800)]

CUBE, FLAT = [3, 3, 3], [1, 3, 3]
# Axes in the order of nnU-Net's network; the first plans turn them once more.
PLANS = {
    "thin": small_plans(
        [2.0, 2.0, 2.0],
        [CUBE] * 4,
        [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        [32, 40, 24],
        transpose=(1, 2, 0),
    ),
    "thick": small_plans(
        [4.0, 1.3, 1.2],
        [FLAT, FLAT, CUBE, CUBE],
        [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
        [16, 48, 56],
        masked=True,
    ),
}
SCANS = {
    "thin": (THIN, "RAS"),
    "turned": ((1.7, 1.9, 2.2), "LIP"),
    "thick": (THICK, "RAS"),
    "sagittal": ((1.4, 1.2, 5.0), "ASL"),
}


@dataclass(frozen=True)
class Compared:
    """What both sides made of the same models and scans, by model and scan."""

    logits: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    theirs: dict[tuple[str, str], NDArray[np.uint8]]
    ours: dict[tuple[str, str], NDArray[np.uint8]]
    truth: dict[str, NDArray[np.uint8]]


def _labels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(nib.load(path).dataobj).astype(np.uint8)


def _segment(network: UNet, plan: Plan, scan: Path) -> NDArray[np.uint8]:
    prepared = preprocess(read_volume(scan), plan)
    logits = predict(prepared.array, plan, TorchBackend(network))
    return restore([logits], prepared.geometry, plan)


def _command(*words: str | Path) -> None:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output


def _student(teacher: UNet, plan: Plan, scans: list[Path]) -> UNet:
    """Half as wide, fitted to its teacher's features on the middles of scans."""
    torch.manual_seed(0)
    half = tuple(count // 2 for count in teacher.architecture.channels)
    student = UNet(replace(teacher.architecture, channels=half))
    images = []
    for scan in scans:
        array = pad(preprocess(read_volume(scan), plan).array, plan.patch_size, plan.convention)
        middle = tuple(
            slice((n - size) // 2, (n - size) // 2 + size)
            for n, size in zip(array.shape[1:], plan.patch_size, strict=True)
        )
        images.append(torch.from_numpy(array[(slice(None), *middle)])[None])
    inherit(student, teacher, images)
    return student


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Train with nnU-Net, import, predict with both; export, predict with both again."""
    try:
        python = nnunet_python()
    except NotInstallableError as error:
        pytest.skip(str(error))
    root = tmp_path_factory.mktemp("nnunet")
    trained = []
    for name, spacing in (("thin", THIN), ("thick", THICK)):
        for seed in range(2):
            files = [root / "train" / f"{name}{seed}{what}.nii.gz" for what in ("", "_label")]
            write_scan(*files, seed=seed, spacing=spacing)
            trained.append((name, *files))
    for number, (name, (spacing, codes)) in enumerate(SCANS.items()):
        scan, truth = root / "scans" / f"{name}_0000.nii.gz", root / "truth" / f"{name}.nii.gz"
        write_scan(scan, truth, seed=10 + number, spacing=spacing, codes=codes)
    jobs: list[dict[str, Any]] = []
    arrays = {}
    for name, plans in PLANS.items():
        cases = [{"image": str(i), "label": str(t)} for key, i, t in trained if key == name]
        made = {"do": "make", "seed": 1, "plans": plans, "dataset": DATASET, "cases": cases, "steps": 40}
        shape = plans["configurations"]["3d_fullres"]["patch_size"]
        arrays[name] = np.random.default_rng(0).normal(size=(1, 1, *shape)).astype(np.float32)
        np.save(root / f"{name}.npy", arrays[name])
        asked = {"array": str(root / f"{name}.npy"), "out": str(root / f"{name}-logits.npy")}
        scans = {"scans": str(root / "scans"), "out": str(root / f"{name}-labels")}
        asked = {"do": "logits", **asked}
        scans = {"do": "predict", **scans}
        jobs += [{"model": str(root / name), **job} for job in (made, asked, scans)]
    (root / "jobs.json").write_text(json.dumps(jobs))
    run_nnunet(python, root / "jobs.json", root)

    models, logits = {}, {}
    for name in PLANS:
        _command("import-nnunet", root / name, "--out", root / "ours" / name)
        plan = Plan.read(root / "ours" / name / "plan.json")
        models[name] = (root / "ours" / name / "teacher", plan)
        turn = PLANS[name]["transpose_forward"]
        # nnU-Net's axis k is axis turn[k] of (z, y, x); ours are (x, y, z).
        back = [2 + turn.index(2 - axis) for axis in range(3)]
        forth = [2 + (2 - axis) for axis in turn]
        backend = TorchBackend(read_model(*models[name]).network)
        mine = backend(np.ascontiguousarray(arrays[name].transpose(0, 1, *back)))
        logits[name] = (mine.transpose(0, 1, *forth), np.load(root / f"{name}-logits.npy"))

    # The way back: the imported models, and a student on the imported plan and on one of our own.
    teacher, plan = read_model(*models["thin"]).network, models["thin"][1]
    student = _student(teacher, plan, [path for key, path, _ in trained if key == "thin"])
    own = replace(plan, orientation="RAS", foreground="above_mean", convention="own")
    own = replace(own, normalisation=replace(plan.normalisation, region="foreground"))
    for name, its in (("student", plan), ("own", own)):
        folder = root / "ours" / name / "student-x2"
        record = {"teacher": "teacher"}
        write_model(folder, student, its, name=folder.name, role="student", width=0.5, training=record)
        its.write(folder.parent / "plan.json")
        models[name] = (folder, its)
    jobs = []
    for name, (folder, _) in models.items():
        _command("export-nnunet", folder, "--out", root / "back" / name)
        where = {"scans": str(root / "scans"), "out": str(root / f"{name}-back")}
        jobs.append({"do": "predict", "model": str(root / "back" / name), **where})
    (root / "jobs.json").write_text(json.dumps(jobs))
    run_nnunet(python, root / "jobs.json", root)

    theirs, ours = {}, {}
    for name, (folder, plan) in models.items():
        network = read_model(folder, plan).network
        for scan in SCANS:
            path = root / "scans" / f"{scan}_0000.nii.gz"
            ours[name, scan] = _segment(network, plan, path)
            if name == "own":
                ours["own, uncropped", scan] = _segment(
                    network, replace(plan, foreground="nonzero"), path
                )
            theirs[f"{name}-back", scan] = _labels(root / f"{name}-back" / f"{scan}.nii.gz")
            if name in PLANS:
                theirs[name, scan] = _labels(root / f"{name}-labels" / f"{scan}.nii.gz")
    truth = {scan: _labels(root / "truth" / f"{scan}.nii.gz") for scan in SCANS}
    shares = {
        f"{name} {scan}": [
            float(np.mean(labels == theirs[other, scan]))
            for other in (name, f"{name.partition(',')[0]}-back")
            if (other, scan) in theirs
        ]
        for (name, scan), labels in ours.items()
    }
    print(json.dumps(shares, indent=1))  # noqa: T201 - docs/nnunet.md quotes it
    return Compared(logits, theirs, ours, truth)


@pytest.mark.parametrize("name", PLANS)
def test_the_imported_network_is_nnunets(compared: Compared, name: str) -> None:
    """On the same array the imported network gives nnU-Net's logits, but for the rounding of sums."""
    ours, theirs = compared.logits[name]
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 2e-6 * np.abs(theirs).max()


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("name", PLANS)
def test_labels_are_those_of_nnunets_predictor(compared: Compared, name: str, scan: str) -> None:
    """Of a scan's voxels at least 99.9% get nnU-Net's label, resampling included."""
    ours, theirs = compared.ours[name, scan], compared.theirs[name, scan]
    assert np.mean(ours == theirs) >= 0.999
    assert len(np.unique(ours)) >= 4  # nothing is proved where all is background


@pytest.mark.parametrize("name", PLANS)
def test_the_models_found_the_structures(compared: Compared, name: str) -> None:
    """The models that are compared have learned something: most of a scan like theirs is right."""
    truth = compared.truth[name]
    assert np.mean((compared.theirs[name, name] == truth)[truth > 0]) > 0.7


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("name", PLANS)
def test_there_and_back_is_the_same_model(compared: Compared, name: str, scan: str) -> None:
    """Imported and exported again, nnU-Net predicts the same labels as with its own folder."""
    same = compared.theirs[name, scan] == compared.theirs[f"{name}-back", scan]
    assert np.mean(same) >= 0.999


@pytest.mark.parametrize("scan", SCANS)
def test_nnunet_runs_a_student(compared: Compared, scan: str) -> None:
    """A student on an imported plan, exported, is labelled by nnU-Net as by this runtime."""
    ours, theirs = compared.ours["student", scan], compared.theirs["student-back", scan]
    assert np.mean(ours == theirs) >= 0.999


@pytest.mark.parametrize("scan", SCANS)
def test_a_plan_of_our_own_is_close(compared: Compared, scan: str) -> None:
    """With this platform's own preprocessing, nnU-Net's labels of an export are close, and not exact."""
    ours, theirs = compared.ours["own", scan], compared.theirs["own-back", scan]
    assert np.mean(ours == theirs) >= 0.97


@pytest.mark.parametrize("scan", SCANS)
def test_what_sets_a_plan_of_our_own_apart_is_its_crop(compared: Compared, scan: str) -> None:
    """nnU-Net labels an export of an own plan as this runtime does without the crop to the head.

    Not exactly: padding, z-score and the filter against aliasing are left. And the crop does matter, so
    that nothing passes here which would pass with any plan.
    """
    cropped, theirs = compared.ours["own", scan], compared.theirs["own-back", scan]
    uncropped = compared.ours["own, uncropped", scan]
    assert np.mean(uncropped == theirs) >= 0.99
    assert np.mean(uncropped != theirs) < np.mean(cropped != theirs) / 2
