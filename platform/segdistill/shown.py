"""Names in what is printed: readable on any terminal, and safe to paste into a shell."""

import os
import shlex
from pathlib import Path


def shown(name: str | Path) -> str:
    r"""A file's name for messages and tables: ``P\xe9ron`` for a name whose bytes aren't UTF-8.

    Bytes that are no UTF-8, line breaks and other characters that can't be seen are written as
    ``\x`` and two hexadecimal digits each; everything else stays as it is.
    """
    return "".join(c if c.isprintable() else _bytes(c) for c in str(name))


def command(*words: str | Path) -> str:
    """A command line that means exactly these words when a person pastes it into a shell."""
    return " ".join(map(_quoted, words))


def repro(root: Path, task: str, stage: str) -> str:
    """The command, given in the repository's root, that runs a stage of a task's pipeline.

    Args:
        root: the repository's root; a task with a folder in ``tasks`` has its pipeline there.
        task: the task.
        stage: a stage of ``dvc.yaml``.
    """
    own = Path("tasks", task, "dvc.yaml")
    return command("dvc", "repro", f"{own}:{stage}" if (root / own).exists() else stage)


def _quoted(word: str | Path) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"  # a file, not an option
    if text.isprintable():
        return shlex.quote(text)
    # Bash, zsh and ksh: the only quotes that can hold any byte.
    return "$'" + shown(text.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def _bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
