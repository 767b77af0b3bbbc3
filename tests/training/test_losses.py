import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss

from segdistill.overlap import IGNORED
from segdistill.training.losses import at_level, dice_ce, supervised_loss


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


def test_every_level_counts_half_of_the_finer_one() -> None:
    """The loss of a pyramid is the mean of its levels' losses, weighted 4 to 2 to 1."""
    label = _label(0, size=8)
    levels = [_logits(5, size=8), _logits(6, size=4), _logits(7, size=2)]
    own = [dice_ce(logits, at_level(label, logits)).item() for logits in levels]
    expected = (4 * own[0] + 2 * own[1] + own[2]) / 7
    assert supervised_loss(levels, label, 1.0, 1.0).item() == pytest.approx(expected, rel=1e-5)
    assert at_level(label, levels[2]).shape == (2, 2, 2, 2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_ignored_voxels_are_as_if_they_were_not_there(seed: int, share: float) -> None:
    """Value and slope are those of the other voxels alone, and the ignored ones have no slope."""
    label, logits = _label(seed), _logits(seed)
    ignored = torch.rand(label.shape, generator=torch.Generator().manual_seed(seed)) < share
    leaf = logits.clone().requires_grad_()
    value = dice_ce(leaf, label.masked_fill(ignored, IGNORED), 0.7, 1.3)
    value.backward()
    assert leaf.grad is not None
    slope = leaf.grad.movedim(1, -1)
    assert not slope[ignored].any()
    if ignored.all():
        assert value.item() == pytest.approx(0.0, abs=1e-6)
        return
    rest = logits.movedim(1, -1)[~ignored].T[None, :, :, None, None].clone().requires_grad_()
    expected = dice_ce(rest, label[~ignored][None, :, None, None], 0.7, 1.3)
    expected.backward()
    assert rest.grad is not None
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(slope[~ignored], rest.grad[0, :, :, 0, 0].T, rtol=1e-4, atol=1e-7)


def test_a_coarser_level_ignores_what_it_takes_of_the_ignored() -> None:
    """A pyramid of a label that is ignored but for one structure is trained on that alone."""
    label = torch.full((1, 8, 8, 8), IGNORED)
    label[:, 4:] = 2
    levels = [_logits(5, size=8)[:1], _logits(6, size=4)[:1]]
    loss = supervised_loss([one.requires_grad_() for one in levels], label, 1.0, 1.0)
    loss.backward()
    for one in levels:
        assert one.grad is not None
        assert not one.grad[:, :, : one.shape[2] // 2].any()
        assert one.grad[:, :, one.shape[2] // 2 :].all()
