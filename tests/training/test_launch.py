"""Whose checkpoints a training goes on from, and whose it removes."""

from pathlib import Path

import pytest

from segdistill.files import SegdistillError
from segdistill.training.launch import _own_folder, _why, run_here
from tests.training.toy import toy_job


def test_a_training_removes_what_others_of_its_name_left(tmp_path: Path) -> None:
    """A changed job of the same name takes the old one's place; other names and tasks keep theirs."""
    runs = tmp_path / "runs" / "toy"
    kept = [
        tmp_path / "runs" / "other_task" / "teacher" / ("0" * 16),
        runs / "teacher-wide" / ("0" * 16),
    ]
    stale = runs / "teacher" / ("0" * 16)
    for folder in (*kept, stale):
        folder.mkdir(parents=True)
    run_here(toy_job(tmp_path, steps=1), runs)
    assert not stale.exists()
    assert all(folder.exists() for folder in kept)


def test_a_running_training_keeps_its_checkpoints(tmp_path: Path) -> None:
    """While one trains, another of the same name and task stops with a message and removes nothing."""
    with _own_folder(toy_job(tmp_path), tmp_path / "runs") as folder:
        with pytest.raises(SegdistillError, match=r"teacher: a training of this name is running"):
            run_here(toy_job(tmp_path, seed=8, steps=1), tmp_path / "runs")
        assert folder.is_dir()
    run_here(toy_job(tmp_path, seed=8, steps=1), tmp_path / "runs")


def test_a_stopped_training_keeps_its_checkpoints(tmp_path: Path) -> None:
    """What a training wrote before it was stopped is there for the next run of the same job."""
    job = toy_job(tmp_path)
    with pytest.raises(KeyboardInterrupt), _own_folder(job, tmp_path / "runs") as folder:
        raise KeyboardInterrupt
    with _own_folder(job, tmp_path / "runs") as again:
        assert again == folder


def test_a_failed_worker_is_told_in_one_line(tmp_path: Path) -> None:
    """What this library said in a worker arrives as it was said; anything else with the job's name."""
    job = toy_job(tmp_path)
    ours = "Training failed due to worker errors:\n  File x\nsegdistill.files.SegdistillError: no."
    assert _why(job, RuntimeError(ours)) == "no."
    theirs = "Training failed\n  File x\nMemoryError: 3 GB\n"
    assert _why(job, RuntimeError(theirs)) == "teacher: the training failed for good: MemoryError: 3 GB"
