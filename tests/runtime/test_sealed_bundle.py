import json
import os
import subprocess
import sys

import pytest

from segdistill.files import SegdistillError, sha256_of
from segdistill.runtime.bundle import Bundle, BundleError, digest, seal, write_bundle
from segdistill.runtime.plan import Normalisation, Plan
from tests.onnx_models import make_plan, threshold_bundle, threshold_model


@pytest.fixture
def folder(tmp_path):
    """The folder of a sealed bundle."""
    return threshold_bundle(tmp_path / "bundle").folder


def refused(folder, *words):
    """Check that the bundle is refused, saying ``words`` and what to do."""
    with pytest.raises(BundleError) as caught:
        Bundle.read(folder)
    for word in (*words, "from the registry again"):
        assert word in str(caught.value)


def relist(folder, change):
    """Change the list of files in the provenance."""
    body = json.loads((folder / "provenance.json").read_text())
    change(body["files"])
    (folder / "provenance.json").write_text(json.dumps(body))


def test_round_trip(folder):
    """A bundle is read back with its plan, its provenance and digests of every file."""
    bundle = Bundle.read(folder)
    assert bundle.plan == make_plan(1)
    assert bundle.provenance["name"] == "student-x4"
    assert bundle.provenance["format"] == 1
    assert bundle.provenance["plan_sha256"] == bundle.plan.digest()
    assert bundle.provenance["files"] == {
        name: sha256_of(folder / name) for name in ("model.onnx", "plan.json")
    }
    assert bundle.digest == digest(folder) == sha256_of(folder / "provenance.json")


def test_same_bundle_same_digest(tmp_path):
    """Two bundles of the same network, plan and facts have the same digest."""
    one, other = (threshold_bundle(tmp_path / name) for name in ("one", "other"))
    assert one.digest == other.digest
    assert threshold_bundle(tmp_path / "third", [7.0]).digest != one.digest


@pytest.mark.parametrize("name", ["model.onnx", "plan.json"])
def test_tampered_file(folder, name):
    """One changed byte in the network or the plan is noticed and the file named."""
    body = bytearray((folder / name).read_bytes())
    body[len(body) // 2] ^= 1
    (folder / name).write_bytes(bytes(body))
    refused(folder, name, "changed")


@pytest.mark.parametrize("name", ["model.onnx", "plan.json", "provenance.json"])
def test_missing_file(folder, name):
    """A missing file is named."""
    (folder / name).unlink()
    refused(folder, name)


def test_unlisted_file(folder):
    """A file that was added later is refused, even a harmless-looking one."""
    (folder / "hook.py").write_text("print()")
    refused(folder, "hook.py", "not listed")


def test_unlisted_folder(folder):
    """A folder that was added later is refused."""
    (folder / "more").mkdir()
    refused(folder, "more", "not listed")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "..", ".hidden", "provenance.json", ""]
)
def test_names_outside_the_folder(folder, name):
    """A listed name that could lead out of the folder is refused before any file is opened."""
    (folder.parent / "secret").write_text("secret")
    relist(folder, lambda files: files.update({name: sha256_of(folder.parent / "secret")}))
    refused(folder, "provenance.json", repr(name))


def linked(folder):
    """Move the files of a bundle elsewhere and leave links to them, read-only, as DVC does."""
    cache = folder.parent / "cache"
    cache.mkdir()
    for path in folder.iterdir():
        path.chmod(0o444)
        path.rename(cache / path.name)
        path.symlink_to(cache / path.name)
    return cache


def test_links_to_the_sealed_bytes(folder, tmp_path):
    """A bundle of links is read where the bytes are the sealed ones, and copied as plain files."""
    before = digest(folder)
    linked(folder)
    bundle = Bundle.read(folder)
    assert bundle.digest == before
    sealed = seal(folder, tmp_path / "registered", {}, {})
    assert not any(path.is_symlink() for path in sealed.folder.iterdir())
    assert (sealed.folder / "model.onnx").stat().st_mode & 0o200  # a copy of one's own


def test_links_to_other_bytes(folder):
    """A link to other bytes is noticed as a changed file is, and a link to nothing as a missing one."""
    cache = linked(folder)
    (cache / "model.onnx").unlink()
    refused(folder, "model.onnx", "no such file")
    (cache / "model.onnx").write_bytes(b"other")
    refused(folder, "model.onnx", "changed")


def test_writing_over_links(folder):
    """A bundle that is written anew in place of links leaves what they point to as it was."""
    cache = linked(folder)
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    threshold_bundle(folder, [7.0])
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["symlink", "hardlink", "copy"])
def test_every_type_of_cache_that_dvc_has(tmp_path, kind):
    """Bundles that DVC keeps as links into its cache are read, and written anew past the cache."""

    def dvc(*words):
        env = {**os.environ, "DVC_NO_ANALYTICS": "1"}
        subprocess.run([sys.executable, "-m", "dvc", *words], cwd=tmp_path, env=env, check=True)

    dvc("init", "--no-scm", "--quiet")
    dvc("config", "cache.type", kind)
    threshold_bundle(tmp_path / "bundles" / "a")
    dvc("add", "--quiet", "bundles")
    assert (tmp_path / "bundles" / "a" / "model.onnx").is_symlink() == (kind == "symlink")
    before = Bundle.read(tmp_path / "bundles" / "a").digest
    assert threshold_bundle(tmp_path / "bundles" / "a", [7.0]).digest != before
    dvc("checkout", "--quiet", "--force")
    assert Bundle.read(tmp_path / "bundles" / "a").digest == before


@pytest.mark.parametrize("name", ["model.onnx", "plan.json"])
def test_list_without_a_needed_file(folder, name):
    """A provenance that doesn't list the network or the plan is refused."""
    relist(folder, lambda files: files.pop(name))
    refused(folder, "doesn't list", name)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 2, "files": {}}', '{"format": 1, "files": 3}'])
def test_not_a_provenance(folder, text):
    """A provenance of another form or format is refused."""
    (folder / "provenance.json").write_text(text)
    refused(folder, "provenance.json", "format 1")


def test_provenance_not_json(folder):
    """A provenance that isn't JSON is named."""
    (folder / "provenance.json").write_text("{")
    with pytest.raises(SegdistillError, match=r"provenance\.json.*JSON"):
        Bundle.read(folder)


def test_reseal_with_a_card(folder, tmp_path):
    """A copy with a card and more facts is a whole bundle of its own; the source stays."""
    before = digest(folder)
    bundle = seal(folder, tmp_path / "registered", {"card.md": b"# Card"}, {"dice": 0.87})
    assert (bundle.folder / "card.md").read_bytes() == b"# Card"
    assert sorted(bundle.provenance["files"]) == ["card.md", "model.onnx", "plan.json"]
    assert bundle.provenance["dice"] == 0.87
    assert bundle.provenance["git_commit"] == "0" * 40
    assert digest(folder) == before != bundle.digest
    again = seal(bundle.folder, tmp_path / "again", {"card.md": b"# New card"}, {})
    assert (again.folder / "card.md").read_bytes() == b"# New card"
    assert Bundle.read(again.folder).provenance["dice"] == 0.87


@pytest.mark.parametrize("name", ["model.onnx", "plan.json", "provenance.json", "../card.md"])
def test_reseal_keeps_its_own_files(folder, tmp_path, name):
    """Extra files can't replace the network, the plan or the seal, or lie elsewhere."""
    with pytest.raises(BundleError, match="target"):
        seal(folder, tmp_path / "target", {name: b"x"}, {})
    assert not (tmp_path / "target").exists()
    assert not (tmp_path / "card.md").exists()


def test_reseal_verifies_its_source(folder, tmp_path):
    """A tampered bundle can't be sealed anew."""
    (folder / "plan.json").write_text("{}")
    with pytest.raises(BundleError, match=r"plan\.json.*changed"):
        seal(folder, tmp_path / "target", {"card.md": b""}, {})


def test_plan_of_another_family(tmp_path):
    """A network that was trained with another plan can't be sealed with this one."""
    model = threshold_model(tmp_path / "net.onnx", [1.0])
    with pytest.raises(BundleError, match=r"plan abc.*Export"):
        write_bundle(tmp_path / "bundle", model, make_plan(1), {"plan_sha256": "abc"})
    assert not (tmp_path / "bundle").exists()


def test_failure_keeps_the_old_bundle(folder):
    """When writing a bundle fails, the older one in its place stays whole."""
    before = digest(folder)
    with pytest.raises(FileNotFoundError):
        write_bundle(folder, folder.parent / "none.onnx", make_plan(1), {})
    assert digest(folder) == before
    assert Bundle.read(folder)
    assert [entry.name for entry in folder.parent.iterdir()] == ["bundle"]


def test_equal_plans_have_one_digest(tmp_path):
    """Whole numbers given as 2 or 2.0 make the same plan file, and reading it changes nothing."""
    ct = {"scheme": "ct", "mean_hu": 50, "std_hu": 100, "clip_hu": (-150, 250)}
    one = make_plan(1, spacing_mm=(2, 2, 2), overlap=0, normalisation=Normalisation(**ct))
    exact = {**ct, "mean_hu": 50.0, "std_hu": 100.0, "clip_hu": (-150.0, 250.0)}
    other = make_plan(1, spacing_mm=(2.0, 2.0, 2.0), overlap=0.0, normalisation=Normalisation(**exact))
    assert one.digest() == other.digest()
    one.write(tmp_path / "plan.json")
    assert (
        Plan.read(tmp_path / "plan.json").digest() == one.digest() == sha256_of(tmp_path / "plan.json")
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spacing_mm": [0, 2, 2]}, "spacing_mm"),
        ({"spacing_mm": [2, 2]}, "three values"),
        ({"patch_size": [30, 32, 32]}, "multiple"),
        ({"overlap": 1.0}, "overlap"),
        ({"mode": "tiles"}, "mode"),
        ({"foreground": "all"}, "foreground"),
        ({"structures": []}, "structures"),
        ({"structures": [{"code": 1, "name": "a"}, {"code": 1, "name": "b"}]}, "structures"),
        ({"normalisation": {"scheme": "ct"}}, "clip_hu"),
        ({"normalisation": {"scheme": "none"}}, "none"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_plan_that_makes_no_sense(tmp_path, change, words):
    """A plan with an impossible field is refused, naming the file and the field."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**make_plan(1).to_json(), **change}))
    with pytest.raises(SegdistillError, match=rf"plan\.json.*{words}"):
        Plan.read(path)
