"""What a model comes from, as DVC and git record it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segdistill.files import json_bytes
from segdistill.registry.commit import commit_of
from segdistill.registry.store import RegistryError
from segdistill.shown import command
from segdistill.sites.manifest import Site, site_folders


@dataclass(frozen=True)
class SiteData:
    """One site's data under version control.

    Attributes:
        site: the site's name.
        path: its folder, relative to the root.
        digest: DVC's hash of the folder, at most 36 characters.
        simulated: whether its subjects are simulated.
        held_out: whether no case of it is trained on.
        note: what a reader must know about it.
    """

    site: str
    path: str
    digest: str
    simulated: bool
    held_out: bool
    note: str


@dataclass(frozen=True)
class Lineage:
    """What the family of a task comes from.

    Attributes:
        sites: the data, all sites sorted by name.
        code: git commit, ``-dirty`` appended where tracked code differs; ``unknown`` outside git.
    """

    sites: tuple[SiteData, ...]
    code: str

    @property
    def hashes(self) -> dict[str, str]:
        """DVC's hash of every site's folder, by path."""
        return {site.path: site.digest for site in self.sites}

    @property
    def data_digest(self) -> str:
        """SHA-256 over the sites' paths and hashes."""
        return hashlib.sha256(json_bytes(self.hashes)).hexdigest()

    @property
    def simulated(self) -> bool:
        """Whether any subject is simulated."""
        return any(site.simulated for site in self.sites)

    @property
    def simulation_notes(self) -> tuple[str, ...]:
        """What the simulated sites say of themselves, each text once."""
        return tuple(dict.fromkeys(site.note for site in self.sites if site.simulated and site.note))


def read_lineage(root: Path, task: str) -> Lineage:
    """Read which data a task has and its DVC hashes.

    Hashes of the pipeline's own sites come from its ``dvc.lock``, those of imported sites from the
    ``.dvc`` file beside each.

    Raises:
        RegistryError: a site isn't under DVC, or there is no site.
    """
    hashes = _hashes(root)
    sites = []
    everything = root / "data" / "sites" / task
    for folder in site_folders(everything):
        path = folder.relative_to(root).as_posix()
        if path not in hashes:
            raise RegistryError(
                f"{folder}: this site has no DVC hash, so a model's data can't be named. "
                f"'dvc repro' makes the pipeline's own; for an imported: {command('dvc', 'add', path)}"
            )
        site = Site.read(folder)
        sites.append(SiteData(site.site, path, hashes[path], site.simulated, site.held_out, site.note))
    if not sites:
        raise RegistryError(f"{everything}: no site here. Run 'dvc pull' or 'dvc repro'.")
    return Lineage(tuple(sites), commit_of(root) or "unknown")


def _hashes(root: Path) -> dict[str, str]:
    """DVC's hash by path relative to the root, of every output that DVC knows."""
    found: dict[str, str] = {}
    # A task's own pipeline has its own lock; all of them name paths from the root.
    for lock in [root / "dvc.lock", *sorted(root.glob("tasks/*/dvc.lock"))]:
        if not lock.exists():
            continue
        for stage in _yaml(lock).get("stages", {}).values():
            found.update({out["path"]: out["md5"] for out in stage.get("outs", []) if "md5" in out})
    for pointer in sorted((root / "data").rglob("*.dvc")):
        folder = pointer.parent.relative_to(root)
        for out in _yaml(pointer).get("outs", []):
            if "md5" in out:
                found[(folder / out["path"]).as_posix()] = out["md5"]
    return found


def _yaml(path: Path) -> Mapping[str, Any]:
    try:
        body = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise RegistryError(
            f"{path}: not valid YAML. Bring it back: {command('git', 'checkout', '--', path)}"
        ) from error
    return body if isinstance(body, dict) else {}
