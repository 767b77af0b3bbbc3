from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segdistill.files import SegdistillError
from segdistill.overlap import IGNORED
from segdistill.params import build
from segdistill.training.distillation.context import PLACES, context_loss, places_by_class
from segdistill.training.distillation.knobs import DistillationKnobs
from segdistill.training.distillation.logit import logit_loss, softened
from segdistill.training.distillation.region import region_loss, standardised
from segdistill.training.distillation.teaching import Teaching
from tests.training.toy import DISTILLATION


def _values(seed: int, channels: int = 4, size: int = 6) -> torch.Tensor:
    return torch.randn(2, channels, size, size, size, generator=torch.Generator().manual_seed(seed))


def _label(seed: int, classes: int = 4, size: int = 6) -> torch.Tensor:
    return torch.randint(
        0, classes, (2, size, size, size), generator=torch.Generator().manual_seed(seed)
    )


def _logit_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    return logit_loss(student, softened(teacher, temperature), temperature)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 8))
def test_the_logit_term_is_summed_over_classes_and_averaged_over_voxels(
    seed: int, temperature: float
) -> None:
    """Value and gradient are those of T^2 times the textbook KL, averaged over voxels only."""
    student, teacher = _values(seed).requires_grad_(), _values(seed + 1)
    twin = student.detach().double().requires_grad_()
    p = torch.softmax(teacher.double() / temperature, dim=1)
    q = torch.softmax(twin / temperature, dim=1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum(dim=1).mean()
    expected.backward()
    ours = _logit_loss(student, teacher, temperature)
    (3 * ours).backward()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-5)
    assert student.grad is not None
    assert twin.grad is not None
    torch.testing.assert_close(student.grad.double(), 3 * twin.grad, rtol=1e-3, atol=1e-7)


def test_the_logit_term_does_not_weaken_with_more_classes() -> None:
    """Classes that neither network believes in leave the term as it was."""
    student, teacher = _values(1), _values(2)
    unlikely = torch.full((2, 20, 6, 6, 6), -60.0)
    more = _logit_loss(torch.cat([student, unlikely], 1), torch.cat([teacher, unlikely], 1), 2.0)
    assert more.item() == pytest.approx(_logit_loss(student, teacher, 2.0).item(), rel=1e-4)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn() -> None:
    """Equal logits and equal features cost nothing, and no gradient reaches the teacher."""
    teacher = _values(3).requires_grad_()
    student = teacher.detach().clone().requires_grad_()
    places = torch.arange(50)
    loss = _logit_loss(student, teacher, 3.0) + context_loss(student, teacher, places)
    loss = loss + region_loss(standardised(student), teacher, _label(0), 4)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert teacher.grad is None


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 60))
def test_a_small_region_counts_as_a_large_one(size: int) -> None:
    """The same error costs the same in a structure of a few voxels as in all the rest together."""
    label = torch.zeros(1, 6, 6, 6, dtype=torch.int64)
    label.view(-1)[:size] = 1
    teacher = _values(4)[:1]
    right = standardised(teacher)
    costs = [
        region_loss(right + (label == region).float().unsqueeze(1), teacher, label, 3).item()
        for region in (0, 1)
    ]
    assert costs == pytest.approx([0.5, 0.5], rel=1e-4)


def test_affinities_are_of_directions_not_of_channels() -> None:
    """A student whose features are the teacher's, turned and scaled, has learned all."""
    teacher = _values(5)
    turn = torch.linalg.qr(torch.randn(9, 4, generator=torch.Generator().manual_seed(1)))[0]
    student = 2.5 * torch.einsum("oc,bcxyz->boxyz", turn, teacher)
    places = places_by_class(_label(2), 4, torch.Generator().manual_seed(0))
    assert context_loss(student, teacher, places).item() < 1e-8
    assert context_loss(_values(6), teacher, places).item() > 0.01


def test_every_class_present_is_drawn_as_often() -> None:
    """The places have as many voxels of a rare class as of a common one, while there are enough."""
    label = torch.zeros(2, 8, 8, 8, dtype=torch.int64)
    label[0, 0, :5, :8] = 1
    label[1, 0, 0, :3] = 2
    places = places_by_class(label, 4, torch.Generator().manual_seed(3))
    assert label.view(-1)[places].bincount(minlength=4).tolist() == [PLACES, PLACES, 3, 0]
    assert len(places.unique()) == len(places)


def test_projections_are_all_that_distillation_trains_beside_the_student() -> None:
    """With logits alone there is nothing to train; each feature term has a projection per level."""
    student, teacher = (4, 8), (16, 32)

    def parameters(**weights: float) -> int:
        knobs = replace(DISTILLATION, **weights)
        return sum(value.numel() for value in Teaching(knobs, student, teacher).parameters())

    one = (4 + 1) * 16 + (8 + 1) * 32
    assert parameters() == 0
    assert parameters(region_weight=1.0) == one
    assert parameters(region_weight=1.0, context_weight=1.0) == 2 * one


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teaching": "stored", "region_weight": 1.0}, "set teaching to live"),
        ({"teaching": "loud"}, r"distillation\.teaching is \"loud\"; it should be 'stored' or 'live'"),
        ({"temperature": 0.0}, r"distillation\.temperature is 0\.0; it should be greater than 0"),
        (
            {"warm_up_steps": -1},
            r"distillation\.warm_up_steps is -1; it should be greater than or equal to 0",
        ),
        ({"logit_weight": -1.0}, r"distillation\.logit_weight is -1\.0"),
        ({"kd_weight": 1.0}, r"distillation\.kd_weight is no knob"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(change: dict[str, object], said: str) -> None:
    """The error names the file, the knob and what to write."""
    with pytest.raises(SegdistillError, match=said) as error:
        build(DistillationKnobs, asdict(DISTILLATION) | change, "params.yaml", "distillation")
    assert "params.yaml: distillation" in str(error.value)


def test_ignored_voxels_are_no_region_and_no_place() -> None:
    """The region term is that of the other voxels, and no affinity is taken of an ignored one."""
    student, teacher = torch.randn(1, 4, 6, 6, 6), torch.randn(1, 4, 6, 6, 6)
    label = torch.randint(0, 3, (1, 6, 6, 6))
    label[:, 3:] = IGNORED
    value = region_loss(student, teacher, label, 3)
    changed = student.clone()
    changed[:, :, 3:] += 5.0
    assert region_loss(changed, teacher, label, 3).item() == pytest.approx(value.item())
    places = places_by_class(label, 3, torch.Generator().manual_seed(0))
    assert (label.reshape(-1)[places] < 3).all()
