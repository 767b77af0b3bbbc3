"""The segdistill command, as a user runs it."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from segdistill.cli import app

COMMAND = [sys.executable, "-m", "segdistill.cli"]


def run(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in ``folder`` and wait for it."""
    return subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


def make_subjects(source: Path, count: int = 5) -> Path:
    """A FreeSurfer subjects folder with all ten structures in every subject."""
    for number in range(count):
        mri = source / f"patient{number}" / "mri"
        mri.mkdir(parents=True)
        scan = np.random.default_rng(number).integers(1, 200, (16, 16, 16), dtype=np.uint8)
        labels = np.zeros(scan.shape, np.int32)
        labels[:10] = np.array([24, 4, 1002, 2, 10, 11, 17, 16, 8, 7])[:, None, None]
        nib.save(nib.MGHImage(scan, np.eye(4)), mri / "orig.mgz")
        nib.save(nib.MGHImage(labels, np.eye(4)), mri / "aparc.DKTatlas+aseg.mgz")
    return source


def test_help_is_quick_because_no_room_is_imported() -> None:
    """Help of the command and of a subcommand imports no numerical or training library."""
    code = (
        "import sys; from typer.testing import CliRunner; from segdistill.cli import app\n"
        "for words in (['--help'], ['site', 'add', '--help']):\n"
        "    result = CliRunner().invoke(app, words)\n"
        "    assert result.exit_code == 0, result.output\n"
        "    assert 'Usage' in result.output\n"
        "print(sorted({'numpy', 'torch', 'nibabel', 'mlflow', 'ray', 'monai'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_installed_command_is_this_one() -> None:
    """The console script 'segdistill' runs and says that this is for research use."""
    script = shutil.which("segdistill", path=Path(sys.executable).parent)
    assert script
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert "Research use, not a" in done.stdout
    assert "site" in done.stdout


def test_site_add_says_what_it_made_and_what_comes_next(tmp_path: Path) -> None:
    """An import ends with the counts, the folder and the two DVC commands, and names no patient."""
    source = make_subjects(tmp_path / "subjects")
    done = run("site", "add", "ward", "--from", source, "--split", "0.6,0.2,0.2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "site ward: 5 scans of 5 subjects (train 3, val 1, test 1), 0 without" in done.stdout
    assert done.stdout.endswith(
        "next:\n  dvc add data/sites/brain_mri/ward\n  dvc push    # if you have set up a DVC remote\n"
    )
    assert "5/5 scans" in done.stderr
    assert "patient" not in done.stdout + done.stderr
    assert (tmp_path / "data/sites/brain_mri/ward/manifest.json").is_file()


def test_site_add_tells_of_the_key_and_of_missing_structures(tmp_path: Path) -> None:
    """The key's place is printed when one was asked for, and structures without a voxel are named."""
    source = make_subjects(tmp_path / "subjects", count=2)
    (tmp_path / "map.yaml").write_text("extends: freesurfer\n24: background\n")
    (tmp_path / "root").mkdir()
    words = ("--labels", "../map.yaml", "--key", "../key.csv", "--held-out")
    done = run("site", "add", "ward", "--from", source, *words, folder=tmp_path / "root")
    assert done.returncode == 0, done.stderr
    assert "(train 0, val 0, test 2)" in done.stdout
    assert "note: no label map has csf" in done.stdout
    assert "key: ../key.csv" in done.stdout
    assert "patient1" in (tmp_path / "key.csv").read_text()


def test_what_is_wrong_is_told_without_a_traceback(tmp_path: Path) -> None:
    """Problems go to stderr case by case with exit code 1, and no site is there."""
    source = make_subjects(tmp_path / "subjects", count=3)
    for number in (0, 2):
        (source / f"patient{number}" / "mri" / "orig.mgz").write_bytes(b"no image")
    done = run("site", "add", "ward", "--from", source, folder=tmp_path)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "2 problem(s), nothing was imported" in done.stderr
    assert "  patient0: " in done.stderr
    assert "  patient2: " in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "data/sites/brain_mri").iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [["--split", "1,2"], ["--task", "liver"], ["--labels", "gone.yaml"], ["--image", "T1.mgz"]],
)
def test_wrong_options_are_told_in_plain_words(tmp_path: Path, words: list[str]) -> None:
    """An option that makes no sense is one line on stderr and exit code 1."""
    source = make_subjects(tmp_path / "subjects", count=1)
    arguments = ["site", "add", "ward", "--from", str(source), "--root", str(tmp_path), *words]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_what_the_system_refuses_is_told_in_one_line(tmp_path: Path) -> None:
    """A place that can't be written is one line that names it and exit code 1, not a traceback."""
    source = make_subjects(tmp_path / "subjects", count=1)
    root = tmp_path / "root"
    root.mkdir()
    (root / "data").write_text("a file where the folder of the sites belongs")
    words = ["site", "add", "ward", "--from", str(source), "--held-out", "--root", str(root)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {root}/data")
    assert "Not a directory" in done.stderr


def _open_once_read(pipe: Path) -> int:
    """Open a pipe for writing as soon as somebody has it open for reading; the reader then waits."""
    give_up = time.monotonic() + 60
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert time.monotonic() < give_up, "nobody reads the scan"
            time.sleep(0.02)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_an_import_that_is_stopped_leaves_nothing(tmp_path: Path, end: signal.Signals) -> None:
    """A polite end in the middle of an import removes what was written so far."""
    anat = tmp_path / "data-in" / "sub-1" / "anat"
    anat.mkdir(parents=True)
    os.mkfifo(anat / "sub-1_T1w.nii")  # reading it waits for ever
    sites = tmp_path / "data/sites/brain_mri"
    words = ("site", "add", "ward", "--from", "data-in")
    with subprocess.Popen([*COMMAND, *words], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        try:
            writer = _open_once_read(anat / "sub-1_T1w.nii")
            assert list(sites.glob(".partial-*"))
            process.send_signal(end)
            assert process.wait(timeout=30) not in (0, -signal.SIGKILL)
            os.close(writer)
        finally:
            process.kill()
    assert list(sites.iterdir()) == []


@pytest.mark.slow
def test_the_printed_commands_version_the_site(tmp_path: Path) -> None:
    """The printed 'dvc add' and 'dvc push' store the site, and 'dvc pull' brings it back."""
    dvc = [sys.executable, "-m", "dvc"]

    def go(*words: str) -> None:
        subprocess.run([*dvc, *words], cwd=tmp_path, check=True, capture_output=True)

    go("init", "--no-scm")
    go("remote", "add", "-d", "store", str(tmp_path / "remote"))
    make_subjects(tmp_path / "subjects", count=2)
    done = run("site", "add", "ward", "--from", "subjects", folder=tmp_path)
    commands = [
        shlex.split(line, comments=True) for line in done.stdout.split("next:\n")[1].splitlines()
    ]
    for program, *words in commands:
        assert program == "dvc"
        go(*words)
    site = tmp_path / "data/sites/brain_mri/ward"
    manifest = (site / "manifest.json").read_bytes()
    shutil.rmtree(site)
    shutil.rmtree(tmp_path / ".dvc" / "cache")
    go("pull")
    assert (site / "manifest.json").read_bytes() == manifest
    assert len(list(site.glob("*/*.nii.gz"))) == 4
