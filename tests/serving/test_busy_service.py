"""The real service at its limits: too many requests, too slow, too little memory, closed addresses."""

import contextlib
import os
import resource
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.live_server import BIN, ROOT, Live, free_port, serve, watched
from tests.onnx_models import ball_file
from tests.serving.test_gate import CLOSED, FORM, form

pytestmark = pytest.mark.slow
TIMEOUT_S = 6


@pytest.fixture(scope="module")
def live(packaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The service with a short timeout and one place, set as an administrator would."""
    root = tmp_path_factory.mktemp("busy") / "root"
    shutil.copytree(packaged, root, ignore=shutil.ignore_patterns("serving", "tmp", "mlartifacts"))
    shutil.copytree(ROOT / "serving", root / "serving", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "bentofile.yaml", root)
    (root / "bentoml.yaml").write_text(
        "services:\n  segdistill-brain-mri:\n"
        f"    traffic: {{timeout: {TIMEOUT_S}, max_concurrency: 1}}\n"
    )
    (root / "tmp").mkdir()
    env = watched(root, TMPDIR=str(root / "tmp"), BENTOML_CONFIG=str(root / "bentoml.yaml"))
    port = free_port()
    command = [str(BIN / "bentoml"), "serve", "--port", str(port)]
    with serve(command, port, "/readyz", root, env, root / "serve.log") as live:
        yield live


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small scan."""
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    ball_file(path)
    return path.read_bytes()


def send(live: Live, body: bytes) -> httpx.Response:
    """Post a file for its volumes."""
    return httpx.post(f"{live.url}/volumes", files={"scan": ("scan.nii.gz", body)}, timeout=60)


def served_again(live: Live, scan: bytes) -> None:
    """Wait until the next scan is served."""
    deadline = time.monotonic() + 60
    while (answer := send(live, scan)).status_code in (429, 504) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert answer.status_code == 200, answer.text


@contextlib.contextmanager
def half_an_upload(live: Live, scan: bytes) -> Iterator[socket.socket]:
    """A client that has sent a part of its scan, and goes on no further."""
    url = httpx.URL(live.url)
    body = form(("scan", "a.nii.gz", scan))
    head = (
        f"POST /volumes HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: {FORM['content-type']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port or 80), timeout=60) as client:
        client.sendall(head.encode() + body[: len(body) // 2])
        time.sleep(0.5)
        yield client


def test_one_too_many_is_told_to_come_back(live: Live, scan: bytes) -> None:
    """While every place is taken, one more gets 429; health still answers, and the next is served."""
    with half_an_upload(live, scan):
        answer = send(live, scan)
        assert answer.status_code == 429
        assert list(answer.json()) == ["error"]
        assert httpx.get(f"{live.url}/readyz").status_code == 200
    served_again(live, scan)


def test_what_takes_too_long_is_ended(live: Live, scan: bytes) -> None:
    """A request that isn't done within the time gets 504, and the next is served."""
    with half_an_upload(live, scan) as client:
        told = client.recv(65536)
    assert told.startswith(b"HTTP/1.1 504")
    assert b'"error"' in told
    served_again(live, scan)


def test_too_little_memory_is_the_service_s_fault(live: Live, scan: bytes, tmp_path: Path) -> None:
    """Where memory runs out in the middle, the answer is 503, and with memory there, it goes on."""
    ball_file(tmp_path / "large.nii.gz", shape=(260, 260, 260))
    large = (tmp_path / "large.nii.gz").read_bytes()
    worker = _worker(live)
    size = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(worker, resource.RLIMIT_AS, (size + 40_000_000, resource.RLIM_INFINITY))
    try:
        answer = send(live, large)
    finally:
        resource.prlimit(worker, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    assert answer.status_code == 503, answer.text
    assert "memory" in answer.json()["error"]
    assert "/" not in answer.json()["error"]
    assert httpx.get(f"{live.url}/readyz").status_code == 200
    served_again(live, scan)


def _worker(live: Live) -> int:
    """The process that segments: of this server's, the one that holds most memory."""
    port = httpx.URL(live.url).port
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if Path(folder, "cwd").resolve() == live.log.parent and port:
                found[int(folder.name)] = int((folder / "statm").read_text().split()[1])
    found.pop(os.getpid(), None)
    return max(found, key=lambda process: found[process])


def ask_raw(live: Live, method: str, path: str, body: bytes) -> int:
    """Send a request as it is, without a client that tidies the path up; the answer's status."""
    url = httpx.URL(live.url)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: {FORM['content-type']}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port or 80), timeout=60) as client:
        client.sendall(head.encode() + body)
        return int(client.recv(65536).split()[1])


@pytest.mark.parametrize(
    ("method", "path"), [*CLOSED, ("POST", "/segment/../segment"), ("POST", "/volumes/submit")]
)
def test_the_gate_of_the_real_service_is_closed(live: Live, method: str, path: str) -> None:
    """No address but the known ones takes a body, whoever routes: the gate, BentoML or its server."""
    assert ask_raw(live, method, path, form(("scan", None, b"http://127.0.0.1:9/"))) in (400, 404)


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/healthz", "/metrics", "/docs.json", "/", "/schema.json"]
)
def test_what_is_read_is_there(live: Live, path: str) -> None:
    """Health, metrics and the description answer a GET, and refuse one with a body."""
    assert httpx.get(f"{live.url}{path}").status_code == 200
    assert httpx.request("GET", f"{live.url}{path}", content=b"body").status_code == 400


def test_a_scan_is_served_between_all_this(live: Live, scan: bytes) -> None:
    """The service that refused all this still measures a scan."""
    assert np.isclose(send(live, scan).json()["volumes_ml"]["structure_1"], 11.5, rtol=0.1)
