"""The packaged service over real HTTP: good scans, bad ones, and good ones after bad ones."""

import gzip
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest

from segdistill.files import read_json
from segdistill.volume import read_label_map, read_volume, same_grid
from tests.live_server import BIN, ROOT, Live, free_port, serve, strangers, watched
from tests.onnx_models import ball_file
from tests.small_family import TASK

pytestmark = pytest.mark.slow
PATIENT = "DOE_JANE_19800101"


@pytest.fixture(scope="module")
def root(packaged: Path) -> Path:
    """A packaged root with the service's sources, as a checkout has them."""
    shutil.copytree(ROOT / "serving", packaged / "serving", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "bentofile.yaml", packaged)
    return packaged


@pytest.fixture(scope="module")
def live(root: Path) -> Iterator[Live]:
    """A bare 'bentoml serve' in the root, with temporary files of its own."""
    port = free_port()
    (root / "tmp").mkdir()
    env = watched(root, TMPDIR=str(root / "tmp"))
    command = [str(BIN / "bentoml"), "serve", "--port", str(port)]
    with serve(command, port, "/readyz", root, env, root / "serve.log") as live:
        yield live


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An oblique anisotropic scan named as scanners name them."""
    path = tmp_path_factory.mktemp("scan") / f"{PATIENT}.nii.gz"
    affine = np.array([[0.0, -1.9, 0.3, 40], [1.6, 0.1, 0, -30], [0, 0.2, 2.8, -20], [0, 0, 0, 1]])
    ball_file(path, affine=affine)
    return path


def send(live: Live, where: str, body: bytes, name: str = "scan.nii.gz") -> httpx.Response:
    """Post a file to the service."""
    return httpx.post(f"{live.url}{where}", files={"scan": (name, body)}, timeout=60)


def test_a_label_map_comes_back_on_the_same_grid(
    live: Live, root: Path, scan: Path, tmp_path: Path
) -> None:
    """/segment gives a label map on the scan's grid, with the model and the volumes in its headers."""
    answer = send(live, "/segment", scan.read_bytes(), scan.name)
    assert answer.status_code == 200
    (tmp_path / "labels.nii.gz").write_bytes(answer.content)
    labels, volume = read_label_map(tmp_path / "labels.nii.gz"), read_volume(scan)
    assert same_grid(labels, volume)
    np.testing.assert_array_equal(labels.array == 1, volume.array > 100)
    receipt = read_json(root / "registry" / TASK / "bento.json")
    assert answer.headers["x-segdistill-version"] == str(receipt["version"])
    assert answer.headers["x-segdistill-digest"] == receipt["bundle_digest"]
    voxel_ml = abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    told = json.loads(answer.headers["x-segdistill-volumes-ml"])
    assert told["structure_1"] == pytest.approx((volume.array > 100).sum() * voxel_ml, abs=2e-3)


def test_volumes_come_as_json_with_the_model_that_measured_them(
    live: Live, root: Path, scan: Path
) -> None:
    """/volumes gives ml per structure, the version and the digests, and the same volumes as /segment."""
    body = send(live, "/volumes", scan.read_bytes()).json()
    other = send(live, "/segment", scan.read_bytes()).headers["x-segdistill-volumes-ml"]
    assert body["volumes_ml"] == json.loads(other)
    receipt = read_json(root / "registry" / TASK / "bento.json")
    assert body["model"]["version"] == receipt["version"]
    assert body["model"]["bundle_digest"] == receipt["bundle_digest"]
    assert len(body["model"]["plan_digest"]) == 64
    assert body["model"]["setting"] == read_json(root / "registry" / TASK / "tuning.json")["choice"] | {
        "threads": receipt["threads"]
    }


def test_an_uncompressed_scan_gives_the_same(live: Live, scan: Path) -> None:
    """A .nii gives the same volumes as the .nii.gz of the same scan, whatever its name says."""
    plain = gzip.decompress(scan.read_bytes())
    for name in ("scan.nii", "scan", "scan.nii.gz"):
        body = send(live, "/volumes", plain, name).json()
        assert body["volumes_ml"] == send(live, "/volumes", scan.read_bytes()).json()["volumes_ml"]


def _nifti(array: np.ndarray) -> bytes:
    return bytes(nib.Nifti1Image(array, np.diag([2.0, 2, 2, 1])).to_bytes())


def _bad() -> dict[str, tuple[bytes, str]]:
    ramp = np.arange(4096, dtype=np.float32).reshape(16, 16, 16)
    nan = ramp.copy()
    nan[3, 3, 3] = np.nan
    return {
        "not a NIfTI": (b"\x89PNG\r\n" + b"0" * 500, "not a NIfTI"),
        "truncated gzip": (gzip.compress(_nifti(ramp))[:-900], "truncated"),
        "4D": (_nifti(np.stack([ramp, ramp], axis=-1)), "4 axes"),
        "NaN": (_nifti(nan), "NaN"),
        "empty": (_nifti(np.zeros((16, 16, 16), np.float32)), "empty"),
    }


@pytest.mark.parametrize("case", sorted(_bad()))
def test_a_bad_scan_is_told_what_is_wrong_and_a_good_one_passes_after_it(
    live: Live, scan: Path, case: str
) -> None:
    """A bad scan gets 400 and a message without paths or the patient's name; the next scan is served."""
    body, told = _bad()[case]
    for where in ("/segment", "/volumes"):
        answer = send(live, where, body, f"{PATIENT}.nii.gz")
        assert answer.status_code == 400, answer.text
        message = answer.json()["error"]
        assert told in message
        assert message.startswith("scan")
        assert PATIENT not in message
        assert "/" not in message.replace("NIfTI/MGZ", "")
    assert send(live, "/volumes", scan.read_bytes()).status_code == 200


def test_an_address_is_never_fetched(live: Live) -> None:
    """An address in the file field, or as a body, is refused and nobody connects to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/scan.nii.gz"
        tries = [
            httpx.post(f"{live.url}/segment", files={"scan": (None, address)}),
            httpx.post(f"{live.url}/segment", data={"scan": address}),
            httpx.post(f"{live.url}/segment", json=address),
            httpx.post(f"{live.url}/segment", content=address, headers={"content-type": "text/plain"}),
        ]
        assert [answer.status_code for answer in tries] == [400, 415, 415, 415]
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_body_over_the_limit_is_refused_announced_or_not(live: Live, scan: Path) -> None:
    """More than the limit gets 413, with a length and in chunks; the next scan is served."""
    large = b"0" * 1_200_000
    assert send(live, "/segment", large).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield b'--xyz\r\nContent-Disposition: form-data; name="scan"; filename="a.nii"\r\n\r\n'
        for start in range(0, len(large), 50_000):
            yield large[start : start + 50_000]
        yield b"\r\n--xyz--\r\n"

    kind = {"content-type": "multipart/form-data; boundary=xyz"}
    answer = httpx.post(f"{live.url}/segment", content=chunks(), headers=kind, timeout=30)
    assert answer.status_code == 413
    assert send(live, "/volumes", scan.read_bytes()).status_code == 200


def test_health_metrics_and_openapi_are_there(live: Live, scan: Path) -> None:
    """Liveness, readiness and metrics answer, and OpenAPI describes both endpoints."""
    send(live, "/volumes", scan.read_bytes())
    assert httpx.get(f"{live.url}/livez").status_code == 200
    assert httpx.get(f"{live.url}/readyz").status_code == 200
    assert 'endpoint="/volumes"' in httpx.get(f"{live.url}/metrics").text
    described = httpx.get(f"{live.url}/docs.json").json()
    assert {"/segment", "/volumes"} <= set(described["paths"])
    assert "not a medical device" in described["info"]["description"]


def test_a_port_in_use_is_told_in_one_line(live: Live, root: Path) -> None:
    """A second server on the port ends with one line that names the port and what to do."""
    port = live.url.rpartition(":")[2]
    done = subprocess.run(
        [str(BIN / "bentoml"), "serve", "--port", port],
        cwd=root, env=watched(root), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert f"127.0.0.1:{port}: this port is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_of_the_patient_is_left(live: Live, root: Path, scan: Path) -> None:
    """After good and bad scans, no log line and no temporary file holds the file's name or its bytes."""
    send(live, "/segment", scan.read_bytes(), scan.name)
    send(live, "/segment", b"bad", scan.name)
    assert PATIENT not in live.log.read_text()
    assert [path for path in (root / "tmp").rglob("*") if path.is_file() and PATIENT in path.name] == []

    def scans() -> list[Path]:
        return [path for path in (root / "tmp").rglob("*") if path.is_file() and "nii" in path.name]

    deadline = time.monotonic() + 10  # BentoML clears up after the answer is sent
    while scans() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert scans() == []


def test_nobody_else_is_talked_to(live: Live, root: Path, scan: Path) -> None:
    """With no switch set outside, packaging and serving connect to and look up no other machine."""
    send(live, "/segment", scan.read_bytes())
    assert strangers(root) == set()
    subprocess.run(
        [sys.executable, "-c", "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
         ".connect(('192.0.2.1', 9))"],
        env=watched(root / "control"), check=False,
    )  # fmt: skip
    assert strangers(root / "control") == {"192.0.2.1"}


def test_a_tampered_bundle_is_not_served(root: Path, tmp_path: Path) -> None:
    """With one byte of the packaged network changed, the server ends before it listens and says why."""
    shutil.copytree(root, tmp_path / "root", ignore=shutil.ignore_patterns("tmp", "mlartifacts"))
    copy = tmp_path / "root"
    network = next(copy.glob("bentos/models/**/model.onnx"))
    body = bytearray(network.read_bytes())
    body[-1] ^= 1
    network.write_bytes(bytes(body))
    done = subprocess.run(
        [str(BIN / "bentoml"), "serve", "--port", str(free_port())],
        cwd=copy, env=watched(copy), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "model.onnx: its digest isn't the sealed one" in done.stderr
    assert "Traceback" not in done.stderr
