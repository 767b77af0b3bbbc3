"""Programs that a script starts, and that never outlive it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

import psutil

from segdistill import telemetry
from segdistill.files import SegdistillError

#: Seconds that a program has to end by itself after an interrupt.
PATIENCE_S = 30.0


def environment() -> dict[str, str]:
    """This process's environment, with this Python first in PATH and all telemetry off."""
    here = str(Path(sys.executable).parent)
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PATH")])])
    return {**os.environ, **telemetry.OFF, "PATH": path, "PYTHONUNBUFFERED": "1"}


def stop_politely() -> None:
    """Let a terminated or hung-up script end as an interrupted one does: through its ``finally``."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        # Once is enough: what is being stopped needs its time.
        for again in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(again, signal.SIG_IGN)
        print("\nstopping what runs; the same command goes on from here", file=sys.stderr, flush=True)
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, leave)


@contextlib.contextmanager
def child(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    output: IO[bytes] | None = None,
    patience_s: float = PATIENCE_S,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program beside the block; at its end, for whatever reason, nothing of it is left.

    The program and all that it started get an interrupt, as Ctrl-C would give them, and after
    ``patience_s`` seconds they are killed.

    Args:
        command: program and arguments.
        cwd: folder to run in.
        env: its environment.
        output: where its stdout and stderr go; None: where this script's go.
        patience_s: time to end by itself, s.
    """
    process = subprocess.Popen(  # noqa: S603
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        # A session of its own, so that it can be interrupted with all that it started.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end(process, patience_s)


def _end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    # What moved to a session of its own is found now, while it still has its parent.
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience_s)
    _, alive = psutil.wait_procs(family, timeout=3)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def run(command: Sequence[str], *, cwd: Path) -> None:
    """Run a program to its end, its output shown as it comes.

    Raises:
        SegdistillError: it failed.
    """
    with child(command, cwd=cwd, env=environment()) as process:
        # Woken now and then, so that a signal is not kept waiting.
        while process.poll() is None:
            time.sleep(0.1)
    if process.returncode:
        shown = " ".join(command[2:] if command[1:2] == ["-m"] else command)
        raise SegdistillError(
            f"'{shown}' failed with exit status {process.returncode}; what it printed is above. "
            "Mend that and run the same command again: it goes on from there."
        )
