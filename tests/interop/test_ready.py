"""An imported teacher in the pipeline's place of a trained one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segdistill.files import SegdistillError
from segdistill.interop.exporting import export_nnunet
from segdistill.interop.importing import import_nnunet
from segdistill.interop.ready import ready_network, take_teacher
from segdistill.interop.ready_plan import ready_plan
from segdistill.network.architecture import Architecture, NetworkKnobs
from segdistill.network.model import read_model
from segdistill.network.unet import UNet
from segdistill.sites.manifest import Case, Site
from segdistill.training.distillation.inherit import inherit
from segdistill.training.losses import supervised_loss
from tests.interop.test_interop import FLAT, PLAN, model

KNOBS = NetworkKnobs(
    base_channels=32,
    max_channels=320,
    stages=4,
    stem_stride=2,
    norm="batch",
    min_channels=3,
    deep_supervision=2,
)
SITE = Site(
    "ward",
    "toy",
    simulated=True,
    held_out=False,
    label_protocol="toy",
    structures={1: "one", 2: "two"},
    cases=(Case("ward-001", "s1", "images/a.nii", None, "test"),),
)


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """A teacher with flat kernels, imported."""
    results = export_nnunet(model(tmp_path / "a"), PLAN, tmp_path / "results").folder
    import_nnunet(results, tmp_path / "imported", task="toy", label_protocol="toy")
    return tmp_path / "imported"


def test_students_are_scaled_from_the_imported_teacher(imported: Path, tmp_path: Path) -> None:
    """The copied teacher is whole, and a student is its architecture with fewer channels."""
    plan = ready_plan(imported, [SITE], "toy")
    teacher = take_teacher(imported, plan, tmp_path / "models" / "teacher")
    assert read_model(tmp_path / "models" / "teacher", plan).weights_sha256 == teacher.weights_sha256
    knobs = ready_network(imported, KNOBS)
    assert Architecture.scaled(knobs, 1.0, 3) == FLAT
    assert Architecture.scaled(knobs, 0.5, 3) == replace(FLAT, channels=(3, 3, 4))


def test_a_student_with_flat_kernels_starts_and_is_trained(imported: Path) -> None:
    """Inheriting and the loss at every level work with kernels and strides that differ by axis."""
    teacher = read_model(imported / "teacher", PLAN).network
    torch.manual_seed(0)
    same = UNet(FLAT)
    random = torch.Generator().manual_seed(1)
    image, *more = (torch.randn(1, 1, 16, 24, 8, generator=random) for _ in range(7))
    explained = inherit(same, teacher, more)
    assert min(explained.values()) > 0.99
    label = torch.randint(0, 3, (1, 16, 24, 8))
    same.train()
    supervised_loss(same(image), label, 1.0, 1.0).backward()
    assert all(value.grad is not None for value in same.parameters())


@pytest.mark.parametrize(
    ("site", "task", "says"),
    [
        (SITE, "liver", "--task liver"),
        (replace(SITE, label_protocol="other"), "toy", "--label-protocol other"),
        (replace(SITE, structures={1: "one", 2: "zwei"}), "toy", "rename the labels"),
    ],
)
def test_sites_with_other_labels_are_refused(imported: Path, site: Site, task: str, says: str) -> None:
    """A teacher of another task, protocol or structures is refused with what to do."""
    with pytest.raises(SegdistillError, match=says):
        ready_plan(imported, [site], task)


def test_a_folder_that_nobody_imported_is_named_with_its_remedy(tmp_path: Path) -> None:
    """A folder in teacher.ready that isn't there is told apart from a damaged one."""
    with pytest.raises(SegdistillError, match=r"ready: no imported teacher.*import-nnunet RESULTS"):
        ready_plan(tmp_path / "ready", [SITE], "toy")
