import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss

from segdistill.training.losses import LossWeights, dice_ce, distillation, total_loss


def _logits(seed: int, classes: int = 4, size: int = 6) -> torch.Tensor:
    return torch.randn(2, classes, size, size, size, generator=torch.Generator().manual_seed(seed))


def _label(seed: int, classes: int = 4, size: int = 6) -> torch.Tensor:
    return torch.randint(
        0, classes, (2, size, size, size), generator=torch.Generator().manual_seed(seed)
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6))
def test_dice_ce_is_monais(seed: int, classes: int) -> None:
    """Our one-pass Dice and cross-entropy give MONAI's value and MONAI's gradient."""
    reference = DiceCELoss(
        softmax=True,
        to_onehot_y=True,
        batch=True,
        include_background=False,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
        weight=None,
    )
    label = _label(seed, classes)
    ours, theirs = (_logits(seed, classes).requires_grad_() for _ in range(2))
    a, b = dice_ce(ours, label), reference(theirs, label.unsqueeze(1))
    a.backward()
    b.backward()
    assert a.item() == pytest.approx(b.item(), rel=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), dice=st.floats(0, 2), ce=st.floats(0, 2))
def test_the_derivative_of_dice_ce_is_its_derivative(seed: int, dice: float, ce: float) -> None:
    """What is sent back is the slope of the loss, whatever the weights, and scales with what follows."""
    label = _label(seed, size=3)
    logits = _logits(seed, size=3)

    def loss(shift: float, direction: torch.Tensor) -> float:
        return float(dice_ce(logits + shift * direction, label, dice, ce))

    direction = _logits(seed + 1, size=3)
    leaf = logits.clone().requires_grad_()
    (3 * dice_ce(leaf, label, dice, ce)).backward()
    assert leaf.grad is not None
    slope = (loss(0.02, direction) - loss(-0.02, direction)) / 0.04
    assert (leaf.grad * direction).sum().item() / 3 == pytest.approx(slope, rel=0.02, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 8))
def test_distillation_is_summed_over_classes_and_averaged_over_voxels(
    seed: int, temperature: float
) -> None:
    """The distillation term is T^2 times the textbook KL of one voxel, averaged over voxels only."""
    student, teacher = _logits(seed), _logits(seed + 1)
    p = torch.softmax(teacher.double() / temperature, dim=1)
    q = torch.softmax(student.double() / temperature, dim=1)
    per_voxel = (p * (p.log() - q.log())).sum(dim=1)
    assert distillation(student, teacher, temperature).item() == pytest.approx(
        temperature**2 * per_voxel.mean().item(), rel=1e-3, abs=1e-6
    )


def test_distillation_does_not_weaken_with_more_classes() -> None:
    """Classes that neither network believes in leave the distillation term as it was."""
    student, teacher = _logits(1), _logits(2)
    unlikely = torch.full((2, 20, 6, 6, 6), -60.0)
    more = distillation(torch.cat([student, unlikely], 1), torch.cat([teacher, unlikely], 1), 2.0)
    assert more.item() == pytest.approx(distillation(student, teacher, 2.0).item(), rel=1e-4)


def test_a_student_equal_to_its_teacher_has_no_distillation_loss() -> None:
    """Equal logits cost nothing, and no gradient reaches the teacher."""
    teacher = _logits(3).requires_grad_()
    student = teacher.detach().clone().requires_grad_()
    loss = distillation(student, teacher, 3.0)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert teacher.grad is None


def test_every_level_is_distilled_at_its_own_resolution() -> None:
    """Making the teacher disagree at one coarse level alone raises the loss by that level's share."""
    label = _label(0, size=8)
    levels = [_logits(5, size=8), _logits(6, size=4), _logits(7, size=2)]
    weights = LossWeights(dice=1, ce=1, kd=1, temperature=2)
    same = total_loss(levels, label, weights, levels)
    other = [levels[0], levels[1], _logits(8, size=2)]
    apart = total_loss(levels, label, weights, other)
    share = 0.25 / 1.75
    expected = share * distillation(levels[2], other[2], 2.0).item()
    assert same["distillation"].item() == pytest.approx(0, abs=1e-5)
    assert (apart["loss"] - same["loss"]).item() == pytest.approx(expected, rel=1e-3)


def test_without_a_teacher_the_weight_of_distillation_has_no_effect() -> None:
    """A control's loss is the same whatever the distillation weight says."""
    levels, label = [_logits(1), _logits(2, size=3)], _label(1)
    small = total_loss(levels, label, LossWeights(1, 1, 0, 2))
    large = total_loss(levels, label, LossWeights(1, 1, 9, 5))
    assert small["loss"].item() == large["loss"].item() == small["supervised"].item()
