"""Programs that a script starts never outlive it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from segdistill import telemetry
from segdistill.files import SegdistillError
from tools.children import child, environment, run

# Starts a program in a session of its own, says both numbers, and ignores what it is told.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
with open(sys.argv[1] + ".part", "w") as stream:
    stream.write(f"{os.getpid()} {inner.pid}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""


def _numbers(path: Path) -> list[int]:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, "the program never started"
        time.sleep(0.02)
    return [int(number) for number in path.read_text().split()]


def _gone(number: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            # An orphan that nobody has asked about is dead all the same.
            if psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_nothing_outlives_its_block(tmp_path: Path) -> None:
    """A program that ignores Ctrl-C, and one it put into another session, are gone after the block."""
    told = tmp_path / "numbers"
    command = [sys.executable, "-c", STUBBORN, str(told)]
    with child(command, cwd=tmp_path, env=environment(), patience_s=0.5):
        numbers = _numbers(told)
        assert all(psutil.pid_exists(number) for number in numbers)
    assert len(numbers) == 2
    assert all(_gone(number) for number in numbers)


@pytest.mark.usefixtures("interruptible")
def test_program_gets_time_to_end_by_itself(tmp_path: Path) -> None:
    """At the end of the block a program is interrupted first, and may tidy up."""
    code = (
        "import pathlib, time\n"
        "try:\n    pathlib.Path('started').touch(); time.sleep(600)\n"
        "except KeyboardInterrupt:\n    pathlib.Path('tidy').touch()\n"
    )
    with child([sys.executable, "-c", code], cwd=tmp_path, env=environment()) as process:
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
    assert (tmp_path / "tidy").exists()
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_script_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    """A script that is interrupted, terminated or hung up ends what it started, then itself."""
    told = tmp_path / "numbers"
    script = (
        "import sys, pathlib\n"
        "from tools import children\n"
        "children.stop_politely()\n"
        f"with children.child([sys.executable, '-c', {STUBBORN!r}, {str(told)!r}],\n"
        "        cwd=pathlib.Path.cwd(), env=children.environment(), patience_s=0.5) as it:\n"
        "    it.wait()\n"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", script], cwd=root, stderr=subprocess.DEVNULL) as outer:
        numbers = _numbers(told)
        os.kill(outer.pid, number)
        assert outer.wait(20) == 128 + number
    assert all(_gone(number) for number in numbers)


def test_failed_program_is_an_error(tmp_path: Path) -> None:
    """A program that fails ends the script with its exit status and what to do."""
    with pytest.raises(SegdistillError, match=r"exit status 3.*goes on"):
        run([sys.executable, "-c", "raise SystemExit(3)"], cwd=tmp_path)


def test_stages_find_this_python_and_report_nothing() -> None:
    """What is started calls this very Python as ``python``, with every tool's telemetry off."""
    env = environment()
    found = subprocess.run(
        ["python", "-c", "import sys; print(sys.prefix)"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == sys.prefix
    assert telemetry.OFF.items() <= env.items()
