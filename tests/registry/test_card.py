"""The model card: whole in the bundle, as long as MLflow takes it in the description."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlRegisteredModelTag

from segdistill.family import read_family
from segdistill.registry.champion import Champion, fetch_bundle
from segdistill.registry.lineage import read_lineage
from segdistill.registry.register import model_name, register_family
from segdistill.registry.seal import DESCRIPTION, seal_with_card, shortened
from segdistill.registry.store import open_store
from segdistill.sites.manifest import Case, Site
from tests.onnx_models import threshold_bundle
from tests.small_family import TASK, make_root


def more_sites(root: Path, count: int) -> list[str]:
    """Add sites with long names, each with a note of its own; gives their paths."""
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    paths = []
    for number in range(count):
        name = f"university_hospital_{number:02d}_of_a_town_with_a_long_name"
        path = f"data/sites/{TASK}/{name}"
        case = Case(f"{name}-001", f"{name}-s1", "images/a.nii", None, "train")
        note = f"SIMULATED: scanner {number}, as the vendor describes it in its data sheet."
        Site(name, TASK, True, False, "test", {1: "structure_1"}, (case,), note).write(root / path)
        lock["stages"][f"site@{name}"] = {
            "cmd": "true",
            "outs": [{"path": path, "md5": f"{number:032d}.dir"}],
        }
        paths.append(path)
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))
    return paths


def test_a_family_of_thirty_sites_fits_a_strict_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 30 more sites the description and every tag fit their columns; the sealed card is whole."""
    root = make_root(tmp_path)
    paths = more_sites(root, 30)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = {entry.name: entry for entry in register_family(root, TASK)}["student-x4"]
    version = open_store(root).client.get_model_version(model_name(TASK), str(done.version))
    champion = Champion(TASK, "", done.version, done.name, done.bundle_digest, "")
    bundle = fetch_bundle(root, champion, tmp_path / "fetched")
    assert SqlModelVersion.__table__.c.description.type.length == DESCRIPTION
    assert len(version.description) <= DESCRIPTION
    assert "not a medical device" in version.description
    assert "*Not shown here: Data. The whole card is the file `bundle/card.md`" in version.description
    for title in ("What it is", "Figures", "Limits", "Where it comes from"):
        assert f"## {title}" in version.description
    strictest = SqlRegisteredModelTag.__table__.c.value.type.length
    assert all(len(value) <= strictest for value in version.tags.values())
    card = (bundle.folder / "card.md").read_text()
    assert len(card) > DESCRIPTION
    assert all(path in card for path in paths)


@settings(max_examples=50)
@given(
    head=st.text(min_size=1, max_size=900),
    sections=st.lists(st.integers(0, 900), max_size=6),
)
def test_a_shortened_card_keeps_whole_sections(head: str, sections: list[int]) -> None:
    """Whatever a card's parts, the result fits; a section is there whole or named as left out."""
    parts = [f"## Part {number}\n{'x' * length}\n\n" for number, length in enumerate(sections)]
    card = f"{head.replace('#', '')}\n{''.join(parts)}"
    short = shortened(card, 1000)
    assert len(short) <= 1000
    if len(card) <= 1000:
        assert short == card
        return
    left_out = short.rpartition("*Not shown here: ")[2]
    for number, part in enumerate(parts):
        assert (part.rstrip() in short) != (f"Part {number}" in left_out)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"git_commit": "1" * 40, "seed": 1}, f"| trained at | git {'1' * 40} |"),
        ({"git_commit": "1" * 40 + "-dirty"}, f"| trained at | git {'1' * 40}-dirty |"),
        ({"git_commit": None}, "| trained at | git commit not recorded |"),
        ({"seed": 1}, "| trained at | git commit not recorded |"),
        ({"imported_from": "nnU-Net v2"}, "| trained | elsewhere, imported from nnU-Net v2 |"),
    ],
)
def test_the_card_tells_training_from_registration(
    tmp_path: Path, training: dict[str, Any], said: str
) -> None:
    """The card and the provenance name the commit of the training beside that of the registration."""
    root, name = make_root(tmp_path), "student-x4"
    facts = {"name": name, "role": "student", "width": 0.25, "training": training}
    source = threshold_bundle(root / "bundles" / TASK / name, (100.0,), provenance=facts)
    member = read_family(root / "reports" / TASK / "family.json")[1]
    lineage = read_lineage(root, TASK)
    sealed = seal_with_card(
        source, tmp_path / "sealed", member, control=None, teacher={}, lineage=lineage
    )
    card = (sealed.folder / "card.md").read_text()
    assert said in card
    assert "| registered at | git unknown |" in card
    assert sealed.provenance["training"] == training
