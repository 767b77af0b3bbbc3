"""Views of volumes in the order in which their voxels lie in memory.

Scans are oriented by strides: axes swapped and reversed, nothing moved. NumPy then walks through memory
backwards or across, which takes three times as long as along it. What doesn't care about directions
(means, masks, copies) is done on a view along memory, and its result is turned the way the scan is.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MemoryOrder:
    """How a view of a volume is turned against memory.

    Attributes:
        order: the view's axes, the slowest in memory first.
        reversed_axes: whether the view runs against memory, for each of the view's axes.
    """

    order: tuple[int, ...]
    reversed_axes: tuple[bool, ...]

    @classmethod
    def of(cls, view: NDArray[Any]) -> "MemoryOrder":
        """How ``view``, of any number of axes, is turned."""
        order = sorted(range(view.ndim), key=lambda axis: -abs(view.strides[axis]))
        return cls(tuple(order), tuple(stride < 0 for stride in view.strides))

    def along_memory(self, view: NDArray[Any]) -> NDArray[Any]:
        """A view that is turned like this one, along memory: slowest axis first, all forwards."""
        return self._reverse(view).transpose(self.order)

    def back(self, along: NDArray[Any]) -> NDArray[Any]:
        """What :meth:`along_memory` gave, or an array made of it, turned the way the view was."""
        return self._reverse(along.transpose(np.argsort(self.order)))

    def _reverse(self, view: NDArray[Any]) -> NDArray[Any]:
        steps = tuple(slice(None, None, -1 if against else 1) for against in self.reversed_axes)
        return view[steps]
