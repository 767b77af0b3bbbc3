"""nnU-Net's own environment, made once and kept under .cache/."""

import hashlib
import os
import shutil
import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = Path(__file__).parent / "requirements-nnunet.lock"


class NotInstallableError(Exception):
    """An environment that pip can't make here."""


def nnunet_python() -> Path:
    """The Python of the locked nnU-Net's environment.

    Raises:
        NotInstallableError: pip can't get it here.
    """
    folder = ROOT / ".cache" / f"nnunet-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if (folder / "complete").is_file():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*pip, "-r", str(LOCK)], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(folder)
        raise NotInstallableError(
            f"nnU-Net can't be installed here: {done.stderr.strip().splitlines()[-1]}"
        )
    (folder / "complete").touch()
    return python


def run_nnunet(python: Path, jobs: Path, scratch: Path) -> None:
    """Do the jobs of ``nnunet_side.py`` in nnU-Net's environment, and in no other."""
    places = {f"nnUNet_{name}": str(scratch / name) for name in ("raw", "preprocessed", "results")}
    for place in places.values():
        Path(place).mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), str(Path(__file__).with_name("nnunet_side.py")), str(jobs)],
        cwd=scratch,
        env={**kept, **places, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
