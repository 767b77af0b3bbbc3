"""Fields that change slowly in space, and the one way in which they reach the voxels.

A field is values on nodes. Everything that is made of it is separable: a matrix per axis, from nodes
to voxels, from voxels to thick slices, from slices back. On a CPU that is a third of the time of torch's
own trilinear interpolation, and it is the same on every device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

Array = NDArray[np.float64]
Weights = Sequence[Tensor | None]


@dataclass(frozen=True, eq=False)
class Smooth:
    """Fields as uniform cubic B-splines, which are smooth and never leave the range of their nodes.

    Attributes:
        nodes: (F, x, y, z) float32.
        origin_mm: place of the first node per axis, mm.
        step_mm: distance of the nodes.
    """

    nodes: Tensor
    origin_mm: tuple[float, float, float]
    step_mm: float

    @classmethod
    def drawn(
        cls, fields: int, low: Array, high: Array, step_mm: float, random: np.random.Generator
    ) -> "Smooth":
        """Fields over a box, (3,) mm to (3,) mm, with nodes that are normal numbers, to be scaled."""
        shape = np.ceil((high - low) / step_mm).astype(int) + 4
        nodes = random.standard_normal((fields, *shape), np.float32)
        x, y, z = (float(start) for start in low - 1.5 * step_mm)
        return cls(torch.from_numpy(nodes), (x, y, z), step_mm)

    def at(self, positions: Sequence[Array], device: torch.device | None = None) -> Tensor:
        """(F, X, Y, Z) values where the axes' positions (X,), (Y,), (Z,), in mm, cross."""
        weights = [
            spline((at - start) / self.step_mm, size).to(device)
            for at, start, size in zip(positions, self.origin_mm, self.nodes.shape[1:], strict=True)
        ]
        return along(self.nodes.to(device), weights)


# Root mean square of a spline whose nodes are independent with standard deviation 1: per axis, the mean
# over places of the sum of squared weights.
SPLINE_SD = float(np.sqrt(151 / 315) ** 3)


def spline(at: Array, nodes: int) -> Tensor:
    """(N, nodes) weights of a cubic B-spline at places (N,) in units of the nodes' distance."""
    far = np.abs(at[:, None] - np.arange(nodes)).astype(np.float32)
    # Two cubes: without powers, which would take most of the time.
    outer, inner = np.maximum(2.0 - far, 0.0), np.maximum(1.0 - far, 0.0)
    return torch.from_numpy(outer * outer * outer / 6.0 - inner * inner * inner * (2.0 / 3.0))


def linear(at: Array, nodes: int) -> Tensor:
    """(N, nodes) weights of linear interpolation; beyond the ends, the last node's value."""
    at = np.clip(at, 0.0, nodes - 1.0)
    weights = np.maximum(1.0 - np.abs(at[:, None] - np.arange(nodes)), 0.0)
    return torch.from_numpy(weights.astype(np.float32))


def along(values: Tensor, weights: Weights) -> Tensor:
    """(F, X, Y, Z) from (F, x, y, z), by one matrix per axis: (X, x), (Y, y), (Z, z); None: as it is."""
    x, y, z = weights
    if z is not None:
        values = values @ z.T
    if y is not None:
        values = y @ values
    if x is not None:
        fields, _, *plane = values.shape
        values = (x @ values.reshape(fields, values.shape[1], -1)).reshape(fields, len(x), *plane)
    return values


def bell(count: int, sigma: float) -> Tensor | None:
    """(N, N) Gaussian point spread along an axis, ``sigma`` in voxels; it is made whole at the ends.

    Lindeberg's discrete Gaussian (1990): its variance is right also where ``sigma`` is below a voxel.
    """
    if sigma <= 0.0:
        return None
    far = np.abs(np.arange(count)[:, None] - np.arange(count))
    return _whole(special.ive(np.arange(count), sigma**2)[far])


def slices(count: int, thick: float) -> tuple[Tensor, Tensor]:
    """Matrices to slices of ``thick`` voxels, averaged over their thickness, and linearly back.

    Returns:
        (M, N) and (N, M); M is at least 1.
    """
    number = max(1, round(count / thick))
    middle = (np.arange(number) + 0.5) * count / number - 0.5
    far = np.abs(middle[:, None] - np.arange(count))
    there = _whole(np.clip(thick / 2.0 + 0.5 - far, 0.0, 1.0))
    back = linear((np.arange(count) + 0.5) * number / count - 0.5, number)
    return there, back


def _whole(weights: Array) -> Tensor:
    return torch.from_numpy((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))
