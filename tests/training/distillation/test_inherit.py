from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from segdistill.network.architecture import Architecture, Norm
from segdistill.network.unet import UNet
from segdistill.training.distillation.inherit import inherit, representatives
from tests.training.toy import NETWORK


def _network(width: float, norm: Norm, stem_stride: int = 2, seed: int = 0) -> UNet:
    knobs = replace(NETWORK, stem_stride=stem_stride, norm=norm)
    torch.manual_seed(seed)
    network = UNet(Architecture.scaled(knobs, width, channels_out=3))
    for name, value in network.named_parameters():  # not the values that a norm starts with
        if "norm" in name:
            value.data += 0.3 * torch.randn_like(value)
    return network


def _images(count: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    shapes = [
        functional.avg_pool3d(torch.randn(2, 1, 36, 36, 36, generator=random), 5, 1)
        for _ in range(count)
    ]
    return [8 * shape for shape in shapes]


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_a_student_as_wide_as_its_teacher_becomes_its_teacher(norm: Norm, stem_stride: int) -> None:
    """With room for every channel, every level's logits are the teacher's, on images never seen too."""
    teacher, student = (_network(1.0, norm, stem_stride, seed) for seed in (0, 1))
    if norm == "batch":
        for image in _images(3):
            teacher(image)
    *fitted, other = _images(9)
    explained = inherit(student, teacher, fitted)
    assert min(explained.values()) > 0.999
    teacher.eval()
    student.eval()
    with torch.no_grad():
        for ours, theirs in zip(student.levels(other), teacher.levels(other), strict=True):
            assert (ours - theirs).std() < 0.05 * theirs.std()


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_narrow_student_starts_near_its_teacher(norm: Norm) -> None:
    """Half as wide, it explains most of the teacher's logits; its random start explains none of them."""
    teacher, student = _network(1.0, norm), _network(0.5, norm, seed=1)
    if norm == "batch":
        for image in _images(3):
            teacher(image)
    *fitted, other = _images(9)

    def unexplained() -> float:
        teacher.eval()
        student.eval()
        with torch.no_grad():
            ours, theirs = student(other), teacher(other)
        return float((ours - theirs).square().mean() / theirs.var())

    before = unexplained()
    inherit(student, teacher, fitted)
    assert unexplained() < 0.6 < before


def test_training_mode_is_left_as_it_was() -> None:
    """Inheriting neither trains the teacher nor switches either network's mode."""
    teacher, student = _network(1.0, "batch"), _network(0.5, "batch")
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    student.train()
    teacher.eval()
    inherit(student, teacher, _images(1))
    assert student.training
    assert not teacher.training
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())


def test_representatives_stand_for_the_others() -> None:
    """Of channels that are copies and sums of three, three are chosen that span them all."""
    random = torch.Generator().manual_seed(0)
    own = torch.randn(500, 3, generator=random)
    features = torch.stack(
        [own[:, 0], 2 * own[:, 0], own[:, 1], own[:, 1] + own[:, 2], own[:, 2], -own[:, 2]], dim=1
    )
    chosen = representatives(features, 3)
    assert torch.linalg.matrix_rank(features[:, chosen]) == 3
