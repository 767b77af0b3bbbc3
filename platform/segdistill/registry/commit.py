"""The commit of the code, as git has it."""

import subprocess
from pathlib import Path

# What decides how a model comes about; its knobs and data have digests of their own.
_CODE = ("platform", "pipelines", "serving", "dvc.yaml", "requirements.lock")


def commit_of(root: Path) -> str | None:
    """The commit of a repository, ``-dirty`` appended where tracked code differs; None outside git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603
                ["git", "-C", str(root), *arguments],  # noqa: S607 - git as the user has it
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if not commit:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *_CODE)
    return commit if changed == "" else f"{commit}-dirty"
