"""The phases of a training, and the rule that begins the decay."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segdistill.network.unet import UNet, own_tensors
from segdistill.runtime.plan import Plan
from segdistill.training import loop
from segdistill.training.job import Job
from segdistill.training.launch import KEPT, run_here
from segdistill.training.schedule import Schedule, flat_at
from segdistill.training.session import LocalSession
from tests.training.toy import TRAINING, toy_job

#: Looks every 5 steps; the second look never beats the first by a whole Dice.
FLAT_AT_10 = replace(TRAINING, validate_steps=5, patience=1, flat=1.0, decay_share=0.5)
NEVER_FLAT = replace(FLAT_AT_10, patience=1000)


def _curve(dice: list[float], every: int = 5) -> list[dict[str, Any]]:
    return [{"step": every * (n + 1), "val_dice": value} for n, value in enumerate(dice)]


def _same(a: UNet, b: UNet) -> bool:
    ours, theirs = own_tensors(a), own_tensors(b)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_decay_right_after_the_warm_up_is_one_cycle() -> None:
    """With a decay of all the rest, the rate rises in a line and falls along one cosine to nearly 0."""
    schedule = Schedule.of(replace(TRAINING, warm_up_steps=10), 200, [])
    rates = [schedule.rate(step, 0.01) for step in range(200)]
    assert rates[:10] == pytest.approx([0.001 * n for n in range(1, 11)])
    cosine = [0.005 * (1 + math.cos(math.pi * (n - 10) / 190)) for n in range(10, 200)]
    assert rates[10:] == pytest.approx([max(1e-5, rate) for rate in cosine])


def test_between_warm_up_and_decay_the_rate_is_constant() -> None:
    """The peak is held until the share of the decay begins."""
    schedule = Schedule.of(replace(TRAINING, warm_up_steps=10, decay_share=0.2), 100, [])
    rates = [schedule.rate(step, 0.01) for step in range(100)]
    assert rates[9:81] == [0.01] * 72
    assert all(a > b for a, b in pairwise(rates[80:]))
    phases = [schedule.phase(step) for step in (0, 9, 10, 79, 80, 99)]
    assert phases == ["warm-up"] * 2 + ["constant"] * 2 + ["decay"] * 2


@given(
    dice=st.lists(st.floats(0, 1), max_size=12),
    patience=st.integers(1, 4),
    flat=st.floats(0, 0.1),
)
def test_the_rule_speaks_where_the_last_validations_brought_nothing(
    dice: list[float], patience: int, flat: float
) -> None:
    """It is the first validation at which the best of the last few isn't above the best before them."""

    def nothing_new(count: int) -> bool:
        before, after = dice[: count - patience], dice[count - patience : count]
        return bool(before) and max(after) - max(before) <= flat

    counts = [n for n in range(patience + 1, len(dice) + 1) if nothing_new(n)]
    knobs = replace(TRAINING, patience=patience, flat=flat)
    found = flat_at(knobs, _curve(dice))
    assert found is None or found % 5 == 0
    # max(a) - max(b) <= flat and max(a) <= max(b) + flat may differ in the last bit
    if found is not None and found != 5 * counts[0] if counts else found is not None:
        edge = (found or 5 * counts[0]) // 5
        assert max(dice[edge - patience : edge]) - max(dice[: edge - patience]) == pytest.approx(flat)


@given(
    steps=st.integers(2, 3000),
    warm_up=st.integers(1, 400),
    decay=st.floats(0.01, 0.99),
    every=st.integers(1, 400),
    dice=st.lists(st.floats(0, 1), max_size=12),
)
def test_phases_follow_one_another_within_the_steps(
    steps: int, warm_up: int, decay: float, every: int, dice: list[float]
) -> None:
    """Whatever validation says, no training is longer than its steps, and none skips its decay."""
    knobs = replace(
        TRAINING, warm_up_steps=warm_up, decay_share=decay, patience=2, flat=0.1, validate_steps=every
    )
    found = Schedule.of(knobs, steps, _curve(dice, every))
    assert 0 < found.warm_up_until <= found.constant_until <= found.steps <= steps
    if found.flat:
        assert found.constant_until < found.steps
    assert all(0 < found.rate(step, 1.0) <= 1 for step in range(0, found.steps, 1 + steps // 50))


def test_a_flat_validation_begins_the_decay(tmp_path: Path) -> None:
    """The decay takes its share of what comes of it, and the curve says where each phase ended."""
    _, history = run_here(toy_job(tmp_path, steps=100, training=FLAT_AT_10), tmp_path / "runs")
    ends = {row["phase"]: row["step"] for row in history}
    assert ends == {"warm-up": 1, "constant": 10, "decay": 20}
    assert not list((tmp_path / "runs" / "teacher").glob("*/"))
    assert Schedule.of(FLAT_AT_10, 100, history).record() == {
        "warm_up_until": 1,
        "constant_until": 10,
        "steps": 20,
        "why": "validation was flat",
    }


class _StoppedError(Exception):
    pass


class _PowerCut(LocalSession):
    """A session that dies right after a checkpoint."""

    def __init__(self, folder: Path, after: int) -> None:
        super().__init__(folder)
        self._after = after

    def report(self, metrics: Mapping[str, Any], checkpoint: Path, *, keep: bool = False) -> None:
        super().report(metrics, checkpoint, keep=keep)
        if metrics["step"] == self._after:
            raise _StoppedError


@pytest.mark.parametrize("after", [6, 10, 14])
def test_a_stopped_training_takes_the_same_decisions(tmp_path: Path, after: int) -> None:
    """Stopped before, at or after the validation that ends the constant phase, nothing changes."""
    knobs = replace(FLAT_AT_10, checkpoint_steps=2, full_share=0.25)
    job = toy_job(tmp_path, steps=100, training=knobs)
    straight, expected = run_here(job, tmp_path / "straight")
    folder = tmp_path / "stopped"
    folder.mkdir()
    with pytest.raises(_StoppedError):
        loop.train(job, _PowerCut(folder, after))
    session = LocalSession(folder)
    loop.train(job, session)
    latest = session.latest()
    assert latest is not None
    network, history = loop.finished(latest, job)
    assert _same(straight, network)
    told = [(row["step"], row["phase"], row["val_dice"]) for row in history]
    assert told == [(row["step"], row["phase"], row["val_dice"]) for row in expected]


def _run(job: Job, runs: Path, capsys: pytest.CaptureFixture[str]) -> tuple[UNet, str]:
    network, _ = run_here(job, runs)
    return network, capsys.readouterr().out


def test_more_steps_go_on_from_the_constant_phase(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the steps ended it a larger maximum goes on, to the weights of a training of its own."""
    few, more = (toy_job(tmp_path, steps=steps, training=NEVER_FLAT) for steps in (20, 40))
    straight, _ = _run(more, tmp_path / "straight", capsys)
    _run(few, tmp_path / "runs", capsys)
    assert len(list((tmp_path / "runs" / "teacher").glob(f"*/{KEPT}"))) == 1
    longer, said = _run(more, tmp_path / "runs", capsys)
    assert "goes on after step 10 of 40" in said
    assert _same(straight, longer)
    # That run's own lies past where one of fewer steps decays.
    again, said = _run(few, tmp_path / "runs", capsys)
    assert "goes on" not in said
    assert _same(again, run_here(few, tmp_path / "apart")[0])


def test_another_job_does_not_go_on_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With anything but the steps changed a training starts anew and removes what was kept."""
    _run(toy_job(tmp_path, steps=20, training=NEVER_FLAT), tmp_path / "runs", capsys)
    other = toy_job(tmp_path, steps=20, training=TRAINING)
    assert "goes on" not in _run(other, tmp_path / "runs", capsys)[1]
    assert not list((tmp_path / "runs" / "teacher").glob("*/"))


def test_validation_sees_no_more_at_once_than_training_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While patches are small it goes in windows of their size, afterwards as the plan says."""
    seen = []
    real = loop.validate

    def validate(network: UNet, cases: Any, plan: Plan) -> float:
        seen.append((plan.mode, plan.patch_size))
        return real(network, cases, plan)

    monkeypatch.setattr(loop, "validate", validate)
    job = toy_job(tmp_path, training=replace(TRAINING, full_share=0.5, validate_steps=5))
    replace(Plan.read(Path(job.plan)), mode="whole").write(Path(job.plan))
    run_here(job, tmp_path / "runs")
    assert seen == [("windows", (8, 8, 8))] * 2 + [("whole", (16, 16, 16))] * 2
