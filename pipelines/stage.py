"""How a stage that fails says so: in one line, with exit code 1."""

import os
import sys
from collections.abc import Callable

from segdistill.files import SegdistillError

#: Set in the environment, it shows where an error came from.
TRACEBACK = "SEGDISTILL_TRACEBACK"


def run_stage(main: Callable[[], None]) -> None:
    """Run a script's ``main``; what the user can mend ends it with one line on stderr and exit code 1.

    That is what this library says of files and knobs, and what the system refuses: a full disk, a folder
    that may not be written. Anything else is a fault of the program and keeps its traceback.
    """
    try:
        main()
    except (SegdistillError, OSError) as error:
        if os.environ.get(TRACEBACK):
            raise
        sys.exit(f"error: {_line(error)}")


def _line(error: SegdistillError | OSError) -> str:
    if isinstance(error, SegdistillError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
