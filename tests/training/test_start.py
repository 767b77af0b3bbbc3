"""A teacher that goes on from a trained model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segdistill.files import SegdistillError, read_json, write_json
from segdistill.network.model import MODEL_JSON, write_model
from segdistill.network.unet import UNet, own_tensors
from segdistill.runtime.plan import Plan
from segdistill.training.launch import run_here
from tests.training.toy import NETWORK, toy_job


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, UNet]:
    """The folder of a trained model, in one with toy data, and its network."""
    folder = tmp_path_factory.mktemp("trained")
    job = toy_job(folder, steps=4)
    network, _ = run_here(job, folder / "runs")
    plan = Plan.read(Path(job.plan))
    write_model(folder / "model", network, plan, name="teacher", role="teacher", width=1.0, training={})
    return folder / "model", network


def test_a_training_starts_from_the_given_weights(trained: tuple[Path, UNet], tmp_path: Path) -> None:
    """With hardly any learning it ends where the model was, though its own plan is another one."""
    folder, network = trained
    job = toy_job(tmp_path, seed=8, steps=2, learning_rate=1e-9, start=str(folder))
    replace(Plan.read(Path(job.plan)), overlap=0.25).write(Path(job.plan))
    found, expected = own_tensors(run_here(job, tmp_path / "runs")[0]), own_tensors(network)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-7)


def test_a_model_of_another_architecture_is_refused(trained: tuple[Path, UNet], tmp_path: Path) -> None:
    """The message names what differs, and what it is here."""
    network = replace(NETWORK, base_channels=4)
    job = toy_job(tmp_path, start=str(trained[0]), network=network)
    with pytest.raises(SegdistillError, match=r"another architecture: channels .*32\D.*\(here .*16"):
        run_here(job, tmp_path / "runs")


def test_the_start_decides_the_outcome(trained: tuple[Path, UNet], tmp_path: Path) -> None:
    """Other weights, or none, are another training; where they lie doesn't matter."""
    folder = tmp_path / "copy"
    folder.mkdir()
    write_json(folder / MODEL_JSON, read_json(trained[0] / MODEL_JSON))
    digests = [toy_job(tmp_path, start=start).digest() for start in (None, str(trained[0]), str(folder))]
    write_json(folder / MODEL_JSON, {"weights_sha256": "0" * 64})
    digests.append(toy_job(tmp_path, start=str(folder)).digest())
    assert digests[1] == digests[2]
    assert len(set(digests)) == 3
