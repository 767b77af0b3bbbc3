"""The registry room on a real MLflow database: register, promote, resolve, fetch."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow.onnx
import pytest
import yaml
from typer.testing import CliRunner

from pipelines import champion as champion_stage
from pipelines import register as register_stage
from segdistill.cli import app
from segdistill.files import SegdistillError, read_json, write_json
from segdistill.registry.champion import aliases, fetch_bundle, resolve
from segdistill.registry.lineage import read_lineage
from segdistill.registry.promote import promote
from segdistill.registry.register import model_name, register_family
from segdistill.registry.store import RegistryError, end_run, open_store, start_run
from segdistill.registry.weights import trained_model
from segdistill.runtime import bundle as bundles
from segdistill.runtime.bundle import Bundle, BundleError
from tests.onnx_models import threshold_bundle
from tests.small_family import MEMBERS, TASK, make_root


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose family is registered; tests only add to it."""
    root = make_root(tmp_path_factory.mktemp("registered"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        done = register_family(root, TASK)
    assert [entry.name for entry in done] == [name for name, *_ in MEMBERS]
    return root


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another such root, for tests that change what is there."""
    root = make_root(tmp_path_factory.mktemp("spare"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register_family(root, TASK)
    return root


def snapshot(folder: Path) -> dict[str, str]:
    """Digest of every file under a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def stage(module: object, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run a pipeline stage's main as the command line does."""
    monkeypatch.setattr(sys, "argv", ["stage", *map(str, arguments)])
    module.main()  # type: ignore[attr-defined]


def test_every_member_is_a_version_with_what_a_person_compares(root: Path) -> None:
    """Each member is one version, tagged with its role, size, figures and digests."""
    client = open_store(root).client
    versions = {v.tags["name"]: v for v in client.search_model_versions(f"name='{model_name(TASK)}'")}
    assert sorted(versions) == sorted(name for name, *_ in MEMBERS)
    student = versions["student-x4"].tags
    figures = read_json(root / "reports" / TASK / "family.json")[1]
    assert student["role"] == "student"
    for name in ("width", "parameters", "macs"):
        assert float(student[name]) == figures[name]
    for name in (
        "dice",
        "dice_held_out_site",
        "nsd",
        "hd95_mm",
        "retention",
        "cpu_seconds",
        "peak_rss_mb",
    ):
        assert float(student[name]) == pytest.approx(figures[name], abs=1e-4)
    assert student["data_digest"] == read_lineage(root, TASK).data_digest
    assert student["code_digest"] == read_lineage(root, TASK).code == "unknown"  # no git here
    assert student["plan_digest"] == Bundle.read(root / "bundles" / TASK / "student-x4").plan.digest()
    assert student["simulated"] == "true"


def test_the_code_is_named_by_its_commit(tmp_path: Path) -> None:
    """In a git repository it is the commit, marked where tracked code was changed since."""
    root = make_root(tmp_path / "root")
    (root / "platform").mkdir()
    (root / "platform" / "code.py").write_text("1\n")

    def git(*arguments: str) -> str:
        me = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        command = ["git", *me, "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("add", "platform")
    git("commit", "-q", "-m", "code")
    commit = git("rev-parse", "HEAD")
    assert read_lineage(root, TASK).code == commit
    (root / "params.yaml").write_text("task: other\n")
    assert read_lineage(root, TASK).code == commit
    (root / "platform" / "code.py").write_text("2\n")
    assert read_lineage(root, TASK).code == f"{commit}-dirty"


def test_the_run_behind_a_version_holds_its_figures_and_its_data(root: Path) -> None:
    """The run of a version has the metrics to compare in the UI and the sites' DVC hashes as inputs."""
    client = open_store(root).client
    version = client.get_model_version(model_name(TASK), "2")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["dice"] == pytest.approx(0.89)
    assert {data.dataset.name: data.dataset.digest for data in run.inputs.dataset_inputs} == {
        "site_a": "a" * 32 + ".dir",
        "site_e": "e" * 32 + ".dir",
    }
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in model.metrics}["retention"] == pytest.approx(
        0.89 / 0.9
    )


def test_mlflow_itself_can_read_a_version(root: Path) -> None:
    """MLflow's own ONNX loader opens a registered version, so the UI and other tools can use it."""
    open_store(root)
    assert mlflow.onnx.load_model(f"models:/{model_name(TASK)}/2").graph.input[0].name == "scan"


def test_registering_again_adds_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The register stage on an unchanged family adds no version and writes the same receipt."""
    receipts = [tmp_path / "one.json", tmp_path / "two.json"]
    for receipt in receipts:
        stage(register_stage, monkeypatch, "--root", root, "--out", receipt)
    assert receipts[0].read_bytes() == receipts[1].read_bytes()
    assert {name: entry["version"] for name, entry in read_json(receipts[0]).items()} == {
        "teacher": 1,
        "student-x4": 2,
        "control-x4": 3,
    }
    assert "nothing new" in capsys.readouterr().out


def test_new_timings_make_no_version_and_new_figures_do(spare: Path) -> None:
    """A measured time alone adds no version; another Dice of a student adds one for it."""
    path = spare / "reports" / TASK / "family.json"
    rows = read_json(path)
    rows[1]["cpu_seconds"] *= 2
    write_json(path, rows)
    assert not any(entry.new for entry in register_family(spare, TASK))
    rows[1]["dice"] = 0.888
    write_json(path, rows)
    assert [entry.name for entry in register_family(spare, TASK) if entry.new] == ["student-x4"]


def test_the_sealed_bundle_tells_its_origin(root: Path, tmp_path: Path) -> None:
    """A version's bundle holds the exported network, a card, the data's hashes, the teacher's digest."""
    promote(root, TASK, "2", reason="to fetch it", alias="sealed")
    bundle = fetch_bundle(root, resolve(root, TASK, "sealed"), tmp_path / "bundle")
    exported = Bundle.read(root / "bundles" / TASK / "student-x4")
    assert bundle.model.read_bytes() == exported.model.read_bytes()
    assert bundle.provenance["teacher"] == {
        "name": "teacher",
        "bundle_digest": Bundle.read(root / "bundles" / TASK / "teacher").digest,
    }
    assert bundle.provenance["data"][f"data/sites/{TASK}/site_a"] == "a" * 32 + ".dir"
    card = (bundle.folder / "card.md").read_text()
    for said in (
        "made by a program from one averaged anatomy",
        "The 95% interval of its retention on seen sites begins at 0.9879; "
        "`evaluation.margin` asked for more than 0.987.",
        "Research use, not a medical device",
        "| Dice, seen sites | 0.8900 | 0.8600 |",
        "control-x4",
    ):
        assert said in card


def test_fetching_copies_and_leaves_the_store_alone(root: Path, tmp_path: Path) -> None:
    """Fetching a version gives files of their own, and no byte of the store changes."""
    promote(root, TASK, "1", reason="to fetch it", alias="copied")
    before = snapshot(root / "mlartifacts")
    bundle = fetch_bundle(root, resolve(root, TASK, "copied"), tmp_path / "bundle")
    (bundle.folder / "model.onnx").write_bytes(b"changed")
    assert snapshot(root / "mlartifacts") == before


def test_changed_files_in_the_store_are_not_fetched(spare: Path, tmp_path: Path) -> None:
    """A version whose stored network or whole bundle was changed is refused, and nothing is left."""
    promote(spare, TASK, "2", reason="test", alias="changed")
    champion = resolve(spare, TASK, "changed")
    target = tmp_path / "bundle"
    stored = {
        bundles.digest(path.parent): path.parent for path in spare.glob("mlartifacts/**/plan.json")
    }
    student = stored.pop(champion.bundle_digest)
    shutil.copytree(student, tmp_path / "kept")
    (student / "model.onnx").write_bytes(b"x" + (student / "model.onnx").read_bytes()[1:])
    with pytest.raises(BundleError, match=r"model\.onnx"):
        fetch_bundle(spare, champion, target)
    shutil.rmtree(student)
    shutil.copytree(next(iter(stored.values())), student)
    with pytest.raises(RegistryError, match="the version's tag says"):
        fetch_bundle(spare, champion, target)
    shutil.rmtree(student)
    with pytest.raises(RegistryError, match="can't be read"):
        fetch_bundle(spare, champion, target)
    assert not target.exists()
    shutil.copytree(tmp_path / "kept", student)
    assert fetch_bundle(spare, champion, target).digest == champion.bundle_digest


def test_a_promotion_moves_the_alias_and_is_noted(root: Path) -> None:
    """Each promotion sets the alias and keeps who, why and what was before on the version."""
    first = promote(root, TASK, "teacher", reason="to begin with", alias="logged", by="ada")
    second = promote(root, TASK, "v2", reason="a  quarter of\nthe time", alias="logged", by="ada")
    promote(root, TASK, "student-x4", reason="again", alias="logged", by="bob")
    assert (first.previous, second.previous) == (None, 1)
    assert resolve(root, TASK, "logged").name == "student-x4"
    tags = open_store(root).client.get_model_version(model_name(TASK), "2").tags
    log = [json.loads(tags[tag]) for tag in sorted(tags) if tag.startswith("promotion.")]
    mine = [(entry["by"], entry["reason"]) for entry in log if entry["alias"] == "logged"]
    assert mine == [("ada", "a quarter of the time"), ("bob", "again")]


@pytest.mark.parametrize(
    ("which", "reason", "match"),
    [
        ("9", "why not", "v1 teacher, v2 student-x4, v3 control-x4"),
        ("student-x16", "why not", "no version 'student-x16'"),
        ("2", "  ", "needs a reason"),
        ("control-x4", "it is small", "is a control"),
    ],
)
def test_a_promotion_that_makes_no_sense_is_refused(
    root: Path, which: str, reason: str, match: str
) -> None:
    """An unknown version, no reason or a control is refused in words that help, and no alias is set."""
    with pytest.raises(RegistryError, match=match):
        promote(root, TASK, which, reason=reason, alias="refused")
    assert "refused" not in aliases(root, TASK)


def test_a_control_is_promoted_only_when_meant(root: Path) -> None:
    """A control becomes what an alias stands for when the override is given."""
    assert (
        promote(root, TASK, "control-x4", reason="to compare", alias="odd", override=True).version == 3
    )


def test_a_student_that_loses_too_much_is_promoted_only_when_meant(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not shown to be non-inferior, a student is refused; overridden, the log says what was."""
    client = open_store(root).client
    client.set_model_version_tag(model_name(TASK), "2", "non_inferior", "no")
    try:
        with pytest.raises(RegistryError, match="non-inferior"):
            promote(root, TASK, "student-x4", reason="small", alias="worse")
        assert "worse" not in aliases(root, TASK)
        entry = promote(root, TASK, "student-x4", reason="small", alias="worse", override=True)
        assert "non-inferior" in entry.overridden
        tags = client.get_model_version(model_name(TASK), "2").tags
        logged = [json.loads(value) for tag, value in tags.items() if tag.startswith("promotion.")]
        assert any(found["alias"] == "worse" and found["overridden"] for found in logged)
    finally:
        client.set_model_version_tag(model_name(TASK), "2", "non_inferior", "yes")


def test_the_command_promotes_as_the_function_does(root: Path) -> None:
    """'segdistill promote' sets the alias and says what it was before; a mistake is one line, exit 1."""
    run = CliRunner().invoke(
        app, ["promote", "student-x4", "--reason", "best", "--alias", "typed", "--root", str(root)]
    )
    assert run.exit_code == 0, run.output
    assert "typed is now v2 student-x4 (before: none)" in run.output
    assert run.output.endswith("next:\n  dvc repro package\n")
    assert aliases(root, TASK)["typed"] == 2
    wrong = CliRunner().invoke(app, ["promote", "77", "--reason", "best", "--root", str(root)])
    assert wrong.exit_code == 1
    assert "has no version '77'" in wrong.output


def test_before_anybody_promotes_the_receipt_says_so(
    spare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without any alias the champion stage succeeds, writes that there is none and tells what to do."""
    client = open_store(spare).client
    for alias in aliases(spare, TASK):
        client.delete_registered_model_alias(model_name(TASK), alias)
    receipt = tmp_path / "champion.json"
    stage(champion_stage, monkeypatch, "--root", spare, "--out", receipt)
    assert read_json(receipt) == {"version": None}
    told = capsys.readouterr().out
    assert "Aliases > Add" in told
    assert "segdistill promote" in told
    promote(spare, TASK, "1", reason="test", alias="candidate")
    with pytest.raises(RegistryError, match=r"no alias 'champion'; aliases there are: candidate \(v1\)"):
        stage(champion_stage, monkeypatch, "--root", spare, "--out", receipt)
    promote(spare, TASK, "2", reason="test")
    stage(champion_stage, monkeypatch, "--root", spare, "--out", receipt)
    assert read_json(receipt)["version"] == 2


def test_an_empty_registry_says_what_to_run(root: Path) -> None:
    """Resolving before anything is registered names the stage to run."""
    with pytest.raises(RegistryError, match="dvc repro register"):
        resolve(root, "abdomen_ct", "champion")


def test_weights_that_are_not_finite_are_not_registered(tmp_path: Path) -> None:
    """A bundle with a NaN in its network is refused by the tensor's name."""
    root = make_root(tmp_path)
    bundle = root / "bundles" / TASK / "teacher"
    threshold_bundle(
        bundle, (float("nan"),), provenance={"name": "teacher", "role": "teacher", "width": 1.0}
    )
    with pytest.raises(SegdistillError, match=r"model\.onnx: .*bias are NaN or infinite"):
        register_family(root, TASK)


def test_what_cannot_be_traced_is_not_registered(tmp_path: Path) -> None:
    """A bundle without figures, or a site without a DVC hash, is named and nothing is registered."""
    root = make_root(tmp_path)
    rows = read_json(root / "reports" / TASK / "family.json")
    write_json(root / "reports" / TASK / "family.json", rows[:2])
    with pytest.raises(RegistryError, match="no figures for control-x4"):
        register_family(root, TASK)
    write_json(root / "reports" / TASK / "family.json", rows)
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    del lock["stages"]["site@site_e"]
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))
    with pytest.raises(RegistryError, match="dvc add data/sites/brain_mri/site_e"):
        register_family(root, TASK)
    assert not (root / "mlflow.db").exists()


def test_an_imported_site_is_traced_by_its_dvc_file(tmp_path: Path) -> None:
    """A site under 'dvc add' has the hash of the .dvc file beside it."""
    root = make_root(tmp_path)
    (root / "dvc.lock").unlink()
    for site in ("site_a", "site_e"):
        body = {"outs": [{"md5": "b" * 32 + ".dir", "path": site}]}
        (root / "data" / "sites" / TASK / f"{site}.dvc").write_text(yaml.safe_dump(body))
    assert {site.digest for site in read_lineage(root, TASK).sites} == {"b" * 32 + ".dir"}


def test_an_interrupted_run_goes_on_and_a_finished_one_does_not(root: Path) -> None:
    """A run of the same key is continued until it is finished; then a new one starts."""
    store = open_store(root)
    first = start_run(store, "training", params={"steps": 3}, key="k1")
    assert start_run(store, "training", params={"steps": 3}, key="k1") == first
    end_run(store, first)
    assert start_run(store, "training", params={"steps": 3}, key="k1") != first


def test_a_store_that_only_a_server_can_read_is_refused(root: Path) -> None:
    """A direct client refuses an experiment whose files lie behind a server, and says what to set."""
    client = open_store(root).client
    client.create_experiment("by a server", artifact_location="mlflow-artifacts:/1")
    with pytest.raises(RegistryError, match="MLFLOW_TRACKING_URI"):
        open_store(root, experiment="by a server")


def test_a_store_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracking address nobody answers at is named in the error, and no local database is made."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError, match=r"http://127\.0\.0\.1:9: the MLflow store can't be opened"):
        open_store(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_versions_weights_are_those_it_was_exported_from(tmp_path: Path) -> None:
    """The model folder is found by the digest in the bundle; another model of the name is refused."""
    root, name = make_root(tmp_path), "student-x4"
    facts = {"name": name, "role": "student", "width": 0.25, "weights_sha256": "ab" * 32}
    bundle = threshold_bundle(root / "bundles" / TASK / name, (100.0,), provenance=facts)
    register_family(root, TASK)
    folder = root / "models" / TASK / name
    with pytest.raises(RegistryError, match="dvc checkout"):
        trained_model(root, TASK, name)
    write_json(folder / "model.json", {"weights_sha256": "ab" * 32})
    assert trained_model(root, TASK, name) == (folder, bundle.plan)
    write_json(folder / "model.json", {"weights_sha256": "cd" * 32})
    with pytest.raises(RegistryError, match="isn't the model"):
        trained_model(root, TASK, name)
    with pytest.raises(RegistryError, match="no version 'student-x16'"):
        trained_model(root, TASK, "student-x16")
