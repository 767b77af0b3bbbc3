"""One script per stage of ``dvc.yaml``: read the parameters, call the library, write the outputs."""

import importlib.util
import sys

if importlib.util.find_spec("segdistill") is None:
    sys.exit(
        f"error: {sys.executable} has no segdistill. Activate the environment and run the same command "
        "again: . .venv/bin/activate"
    )
