"""What each step around the network costs, on a made-up scan, and how label maps compress best.

Run from the repository root: ``python -m benchmarks.runtime_steps``. The network is eleven
thresholds, so the network step stands for the windows' own cost.
"""

import argparse
import statistics
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from segdistill.runtime.plan import Normalisation
from segdistill.runtime.segment import STEPS, Segmentator
from segdistill.volume import read_label_map, write_volume
from tests.onnx_models import threshold_bundle


def main() -> None:
    """Print a table of steps and a table of compression settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 128, 100), help="voxels")
    parser.add_argument("--voxel-mm", type=float, default=1.7)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = folder / "scan.nii.gz"
        make_scan(scan, tuple(given.shape), given.voxel_mm)
        bundle = threshold_bundle(
            folder / "bundle",
            np.linspace(-1.2, 2.0, 10).tolist(),
            normalisation=Normalisation("zscore"),
            foreground="above_mean",
            patch_size=(64, 64, 64),
            size_divisor=(16, 16, 16),
        )
        segmentator = Segmentator(bundle, given.threads)
        out = folder / "out.nii.gz"
        runs = [segmentator.segment_file(scan, out).timings for _ in range(given.repeat)]
        shape = " x ".join(map(str, given.shape))
        print(f"{shape} voxels of {given.voxel_mm} mm to 2 mm, 11 classes, median of {given.repeat}")
        print(f"{'step':12} {'wall s':>8} {'CPU s':>8}")
        around = 0.0
        for step in STEPS:
            wall, cpu = (statistics.median(run[step][i] for run in runs) for i in (0, 1))
            around += cpu * (step != "network")
            print(f"{step:12} {wall:8.4f} {cpu:8.4f}")
        print(f"{'all but the network':21} {around:8.4f}")
        compare_compression(read_label_map(out).array, given.repeat)


def make_scan(path: Path, shape: tuple[int, ...], voxel_mm: float) -> None:
    """Write a noisy int16 scan: a textured ball with a dark rim in dark air."""
    random = np.random.default_rng(7)
    place = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in place))
    texture = gaussian_filter(random.standard_normal(shape), 4)
    tissue = 500 + 150 * texture / texture.std()
    scan = np.where(radius < 0.85, tissue, 20) + random.normal(0, 15, shape)
    write_volume(path, np.abs(scan).astype(np.int16), np.diag([voxel_mm] * 3 + [1.0]))


def compare_compression(labels: np.ndarray, repeat: int) -> None:
    """Print size and CPU time of zlib's settings on a label map."""
    body = labels.tobytes("F")
    print(f"\n{'zlib':16} {'kB':>8} {'CPU ms':>8}")
    for strategy, name in ((zlib.Z_DEFAULT_STRATEGY, "default"), (zlib.Z_RLE, "rle")):
        for level in (1, 2, 3, 6, 9):
            spent = []
            for _ in range(repeat):
                begin = time.process_time()
                packer = zlib.compressobj(level, zlib.DEFLATED, 31, zlib.DEF_MEM_LEVEL, strategy)
                size = len(packer.compress(body) + packer.flush())
                spent.append(time.process_time() - begin)
            print(f"{name:8} level {level} {size / 1e3:8.1f} {1e3 * statistics.median(spent):8.1f}")


if __name__ == "__main__":
    main()
