"""Draw the sites side by side, with and without labels: ``python -m tools.montage OUT.png``.

No stage of ``dvc.yaml``: it makes the picture in docs/simulation.md.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from PIL import Image

from pipelines.stage import run_stage
from segdistill.files import SegdistillError, atomic_path
from segdistill.sites.manifest import Site, read_sites
from segdistill.volume import Volume, read_label_map, read_volume

COLOURS = ListedColormap(
    [*colormaps["tab10"].colors, *colormaps["Set3"].colors]  # type: ignore[attr-defined]
)
_ABDOMEN_HU = (-160.0, 240.0)  # what a radiologist's window of soft tissue shows

_PIXELS = {"origin": "lower", "interpolation": "nearest"}


def draw(sites: list[tuple[Path, Site]], out: Path, case: int) -> None:
    """One row per site: an axial and a coronal slice of one case, each with and without its labels."""
    figure = Figure(figsize=(8.0, 2.1 * len(sites) + 0.4), facecolor="black", dpi=75)
    rows = figure.subplots(len(sites), 4, squeeze=False)
    for (folder, site), row in zip(sites, rows, strict=True):
        entry = site.cases[min(case, len(site.cases)) - 1]
        if entry.label is None:
            raise SegdistillError(f"{folder}: case {entry.case} has no label map to draw.")
        scan, label = read_volume(folder / entry.scan), read_label_map(folder / entry.label)
        image, spacing = _upright(scan)
        codes, _ = _upright(label)
        dark, bright = 0.0, float(np.percentile(image[codes > 0], 99.5))
        if image.min() < -500:  # no MR image is negative: HU
            dark, bright = _ABDOMEN_HU
        # Where most structures are cut: the slice with the most different codes, the fullest of those.
        for left, axis in ((0, 2), (2, 1)):
            others = tuple(a for a in range(3) if a != axis)
            kinds = sum((codes == code).any(axis=others).astype(int) for code in site.structures)
            at = int(np.argmax(kinds * codes.size + (codes > 0).sum(axis=others)))
            aspect = spacing[others[1]] / spacing[others[0]]
            for axes in row[left : left + 2]:
                axes.axis("off")
                axes.imshow(
                    image.take(at, axis).T, "gray", vmin=dark, vmax=bright, aspect=aspect, **_PIXELS
                )
            inside = np.ma.masked_equal(codes.take(at, axis), 0).T
            row[left + 1].imshow(
                inside, COLOURS, vmin=0.5, vmax=COLOURS.N + 0.5, alpha=0.5, aspect=aspect, **_PIXELS
            )
        size = " x ".join(f"{value:g}" for value in spacing)
        held = ", held out" if site.held_out else ""
        row[0].set_title(f"{site.site}: {size} mm{held}", color="white", fontsize=9, loc="left")
    simulated = [site.site for _, site in sites if site.simulated]
    figure.suptitle(
        "SIMULATED: " + ", ".join(simulated) if simulated else "", color="white", fontsize=10
    )
    figure.tight_layout(pad=0.3)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    with atomic_path(out) as partial:  # 256 colours are enough, at a third of the size
        Image.open(drawn).convert("RGB").quantize(256).save(partial, "PNG", optimize=True)


def _upright(volume: Volume) -> tuple[NDArray[np.floating], tuple[float, ...]]:
    """The array on RAS axes and its voxel size in mm."""
    turn = ornt_transform(io_orientation(volume.affine), axcodes2ornt("RAS"))
    order = np.argsort(turn[:, 0])
    return apply_orientation(volume.array, turn), tuple(volume.spacing_mm[axis] for axis in order)


def main() -> None:
    """Read the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="picture to write (.png)")
    parser.add_argument("--sites", type=Path, default=Path("data/sites/brain_mri"), help="sites' folder")
    parser.add_argument("--case", type=int, default=1, help="which case of every site, from 1")
    arguments = parser.parse_args()
    sites = list(read_sites(arguments.sites))
    draw(sites, arguments.out, arguments.case)
    print(f"montage: {len(sites)} sites, {arguments.out}")


if __name__ == "__main__":
    run_stage(main)
