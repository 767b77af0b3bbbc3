"""What draws scans from a label map: rendering, as the rooms above hand it to this one."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from segdistill.volume import Volume

#: Draws a scan (int16) and its label map, (X, Y, Z) uint8 in the task's codes on the scan's grid.
Draw = Callable[[np.random.Generator], tuple[Volume, NDArray[np.uint8]]]
#: From a label map, and the task's code of each of its codes, to what draws scans of that person.
Render = Callable[[Volume, Mapping[int, int]], Draw]
