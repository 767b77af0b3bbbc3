"""Knobs of a task for tests: the demo's, some of them changed."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


def write_params(path: Path, **changes: Any) -> Path:
    """Write params.yaml; ``changes`` take the place of whole sections."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    path.write_text(yaml.safe_dump(params | changes, sort_keys=False))
    return path
