"""Real servers for tests: started on a free loopback port, watched for connections, stopped whole."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segdistill import telemetry

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

# Every Python process that imports this notes whom it would talk to, name look-ups included.
_WATCH = """
import os, sys
def _note(event, args):
    if event == "socket.getaddrinfo":
        target = args[0]
    elif event in ("socket.connect", "socket.sendto"):
        address = args[1]
        target = address[0] if isinstance(address, tuple) else "unix"
    else:
        return
    if isinstance(target, bytes):
        target = target.decode()
    with open(os.environ["WATCH_LOG"], "a") as log:
        log.write(f"{target}\\n")
sys.addaudithook(_note)
"""
LOOPBACK = {"127.0.0.1", "localhost", "::1", "unix", "0.0.0.0", "None"}  # noqa: S104


@dataclass(frozen=True)
class Live:
    """A running server: its address and the file of all it writes."""

    url: str
    log: Path


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def watched(folder: Path, **changes: str) -> dict[str, str]:
    """An environment whose Python processes note their connections in ``folder/talk.log``.

    All switches against telemetry that are set outside are taken away: what is tested is the
    software's own.
    """
    site = folder / "watch"
    site.mkdir(parents=True, exist_ok=True)
    (site / "sitecustomize.py").write_text(_WATCH)
    (folder / "talk.log").touch()
    switches = {*telemetry.OFF, "BENTOML_HOME"}
    env = {name: value for name, value in os.environ.items() if name not in switches}
    env |= {
        "PYTHONPATH": os.pathsep.join(map(str, (site, ROOT, ROOT / "platform"))),
        "WATCH_LOG": str(folder / "talk.log"),
    }
    env |= {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return env | changes


def strangers(folder: Path) -> set[str]:
    """Whom the watched processes talked to, other than this machine."""
    return set((folder / "talk.log").read_text().split()) - LOOPBACK


@contextlib.contextmanager
def serve(
    command: Sequence[str], port: int, ready: str, cwd: Path, env: Mapping[str, str], log: Path
) -> Iterator[Live]:
    """Run a server until the block ends, and wait until it is ready."""
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=cwd, env=dict(env), stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while not _answers(url + ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{command} did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield Live(url, log)
    finally:
        # Its own session: no other process can be in this group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
