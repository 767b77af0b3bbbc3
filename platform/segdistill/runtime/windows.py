"""Running a network over a whole volume: Gaussian-weighted sliding windows, or one pass."""

from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from segdistill.files import SegdistillError
from segdistill.runtime.backend import Backend, Logits, as_float32
from segdistill.runtime.plan import Convention, Plan

# Of the window size; nnU-Net's value (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).
_SIGMA = 1 / 8

SLAB = 16  # planes of logits that ``whole`` mode gives at a time


def predict(array: NDArray[np.float32], plan: Plan, backend: Backend) -> NDArray[np.float32]:
    """Run the network over a volume: :func:`predict_slabs`, put together.

    Returns:
        (K, X, Y, Z) float32 logits.
    """
    logits = np.empty((plan.channels_out, *array.shape[1:]), np.float32)
    done = 0
    for slab in predict_slabs(array, plan, backend):
        logits[:, done : done + slab.shape[1]] = slab
        done += slab.shape[1]
    return logits


def predict_slabs(
    array: NDArray[np.float32], plan: Plan, backend: Backend
) -> Iterator[NDArray[np.float32]]:
    """Run the network over a volume, as the plan's ``mode`` says, and give logits when they are final.

    ``windows``: windows of ``patch_size``, evenly spaced so that neighbours share at least
    ``overlap`` of a window, each weighted by a Gaussian about its centre. The weights of one place
    sum to one, so the result is one running sum. ``whole``: one pass.

    Windows go along the first axis last, so the planes that no later window reaches are final. Logits
    are kept for one window's depth, however large the volume. ``whole`` mode gives :data:`SLAB` planes
    at a time, so that logits that a backend has in bfloat16 are never all there in float32.

    Volumes smaller than a window (``windows``), or not a multiple of ``size_divisor`` (``whole``),
    are padded by :func:`pad`, and the padding is cut off again.

    Args:
        array: (1, X, Y, Z) float32 on the plan's grid.
        plan: the family's plan.
        backend: runs the network.

    Yields:
        (K, n, Y, Z) float32 logits of the next n planes; all n together are X. They stay until the next
        slab is asked for.

    Raises:
        SegdistillError: the network's output has another shape than the plan says, or isn't finite.
    """
    size = array.shape[1:]
    if plan.mode == "whole":
        window = least = plan.divisible(size)
    else:
        window = plan.patch_size
        x, y, z = (max(n, patch) for n, patch in zip(size, window, strict=True))
        least = x, y, z
    padded = pad(array, least, plan.convention)
    del array  # where nobody else holds it, it goes before the network's memory comes
    before = [(n - old) // 2 for n, old in zip(least, size, strict=True)]
    x, y, z = (slice(b, b + n) for b, n in zip(before, size, strict=True))
    if window == least:
        logits = _run(backend, padded, plan)[:, x, y, z]
        for start in range(0, size[0], SLAB):
            yield _finite(as_float32(logits[:, start : start + SLAB]))
        return
    sums = np.zeros((plan.channels_out, window[0], *least[1:]), np.float32)
    first = 0  # plane of the volume that the sums begin at
    for where, weight in _weighted_windows(least, window, plan.overlap, plan.convention):
        final = where[0].start - first
        if final:
            yield _finite(sums[:, :final, y, z])
            sums[:, : window[0] - final] = sums[:, final:]
            sums[:, window[0] - final :] = 0
            first = where[0].start
        out = as_float32(_run(backend, padded[(slice(None), *where)], plan))
        if not out.flags.writeable:
            out = out.copy()
        out *= weight
        sums[:, :, where[1], where[2]] += out
    # A volume thinner than a window has padding on this axis, and this one slab.
    yield _finite(sums[:, x if size[0] < window[0] else slice(None), y, z])


def pad(
    array: NDArray[np.float32], least: tuple[int, ...], convention: Convention = "own"
) -> NDArray[np.float32]:
    """Grow the spatial axes of (C, X, Y, Z) to at least ``least``, evenly on both sides.

    The outermost voxels are repeated: at a crop's border there is mostly air, and air goes on. (A
    zero would be the mean intensity after ``zscore``.) Training repeats the outermost voxels too.
    nnU-Net's convention pads with zeros.
    """
    missing = [max(0, n - old) for n, old in zip(least, array.shape[1:], strict=True)]
    if not any(missing):
        return array
    around = [(0, 0), *((m // 2, m - m // 2) for m in missing)]
    grown: NDArray[np.float32] = np.pad(
        array, around, mode="constant" if convention == "nnunet" else "edge"
    )
    return grown


def starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis: evenly spaced, at most (1 - overlap) apart."""
    if size <= window:
        return [0]
    step = max(1.0, window * (1 - overlap))
    count = int(np.ceil((size - window) / step)) + 1
    return [round(i * (size - window) / (count - 1)) for i in range(count)]


def _weighted_windows(
    size: tuple[int, ...], window: tuple[int, ...], overlap: float, convention: Convention = "own"
) -> Iterator[tuple[tuple[slice, ...], NDArray[np.float32]]]:
    """Every window's place and its (x, y, z) weights; the weights of one voxel sum to one.

    Windows lie on a grid and the Gaussian is separable, so the sum of the weights is too: each axis
    is normalised by itself, and no volume of summed weights is needed.
    """
    axes = []
    for n, w in zip(size, window, strict=True):
        middle = w // 2 if convention == "nnunet" else (w - 1) / 2
        bell = np.exp(-0.5 * ((np.arange(w) - middle) / (w * _SIGMA)) ** 2)
        total = np.zeros(n)
        begin = starts(n, w, overlap)
        for first in begin:
            total[first : first + w] += bell
        axes.append([(slice(s, s + w), bell / total[s : s + w]) for s in begin])
    for x, y, z in product(*axes):
        weight = (x[1][:, None, None] * y[1][:, None] * z[1]).astype(np.float32)
        yield (x[0], y[0], z[0]), weight


def _run(backend: Backend, part: NDArray[np.float32], plan: Plan) -> Logits:
    out = backend(np.ascontiguousarray(part[None]))
    expected = (1, plan.channels_out, *part.shape[1:])
    if out.shape != expected:
        raise SegdistillError(
            f"the network gave {out.shape}, the plan needs {expected}: model.onnx and plan.json don't "
            "belong together. Export the bundle again."
        )
    logits: Logits = out[0]
    return logits


def _finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Refuse logits that aren't numbers: weights may all be finite, and what they add up to not be."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = logits.sum()  # NaN or infinite if any of them is, and fast; large ones may overflow it
    if not np.isfinite(total) and not np.isfinite(logits).all():
        raise SegdistillError(
            "the network gave logits that are NaN or infinite for this scan, so there is no result: its "
            "weights are unusable. Take another version of the model, or train it again."
        )
    return logits
