"""What a network is made of: an nnU-Net-style 3D U-Net whose channel counts scale with one width."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from segdistill.files import SegdistillError
from segdistill.params import Count

Norm = Literal["batch", "instance"]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class NetworkKnobs:
    """The ``network`` part of params.yaml, whose comments say what each does.

    By level, ``channels``, ``strides`` and ``kernels`` come before what the others say; an imported
    teacher sets them.
    """

    base_channels: Count
    max_channels: Count
    stages: Count
    stem_stride: Count
    norm: Norm
    min_channels: Count
    deep_supervision: Count
    channels: tuple[Count, ...] = ()
    strides: tuple[tuple[Count, Count, Count], ...] = ()
    kernels: tuple[tuple[Count, Count, Count], ...] = ()


@dataclass(frozen=True)
class Architecture:
    """A 3D U-Net, teacher or student.

    Attributes:
        channels: feature channels of every resolution level, finest first.
        channels_in: image channels.
        channels_out: classes, background included.
        stem_stride: stride of the first level per axis; 1 is plain nnU-Net, 2 works at half the
            resolution and gives the 2^3 voxels of a cell as channels of the last convolution.
        norm: ``batch`` or ``instance``.
        deep_supervision: number of coarser outputs that are trained beside the full one.
        strides: stride of every level per axis, finest first; left empty, ``stem_stride`` and then 2.
        kernels: size of every level's convolutions per axis, encoder and decoder alike, 1 or 3; left
            empty, 3 everywhere. Thick slices want (3, 3, 1) and (2, 2, 1) at the fine levels.
    """

    channels: tuple[int, ...]
    channels_in: int
    channels_out: int
    stem_stride: int
    norm: Norm
    deep_supervision: int
    strides: tuple[Triple, ...] = ()
    kernels: tuple[Triple, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", self.strides or self._usual_strides)
        object.__setattr__(self, "kernels", self.kernels or self._usual_kernels)
        if len(self.channels) < 3:
            raise SegdistillError(
                f"network.stages is {len(self.channels)}; a U-Net here has at least 3."
            )
        if not 1 <= self.deep_supervision < len(self.channels) - 1:
            raise SegdistillError(
                f"network.deep_supervision is {self.deep_supervision}; with {len(self.channels)} stages "
                f"it is 1 to {len(self.channels) - 2}."
            )
        if self.norm not in get_args(Norm):
            raise SegdistillError(f"network.norm is {self.norm!r}; use batch or instance.")
        if {len(self.strides), len(self.kernels)} != {len(self.channels)}:
            raise SegdistillError(
                f"{len(self.strides)} strides and {len(self.kernels)} kernels for {len(self.channels)} "
                "levels; give one of each per level, or none."
            )
        if self.strides[0] != (self.stem_stride,) * 3:
            raise SegdistillError(
                f"the first level's stride {self.strides[0]} isn't the stem_stride {self.stem_stride}."
            )
        if not all(step in (1, 2) for stride in self.strides[1:] for step in stride):
            raise SegdistillError(f"strides {self.strides}: below the first level they are 1 or 2.")
        if not all(size in (1, 3) for kernel in self.kernels for size in kernel):
            raise SegdistillError(f"kernels {self.kernels}: they are 1 or 3 voxels.")

    @property
    def _usual_strides(self) -> tuple[Triple, ...]:
        return _cubes(self.stem_stride, *(2 for _ in self.channels[1:]))

    @property
    def _usual_kernels(self) -> tuple[Triple, ...]:
        return _cubes(*(3 for _ in self.channels))

    @property
    def divisor(self) -> Triple:
        """What every axis of the input must be a multiple of: the product of the strides."""
        x, y, z = (math.prod(stride[axis] for stride in self.strides) for axis in range(3))
        return x, y, z

    @classmethod
    def scaled(cls, knobs: NetworkKnobs, width: float, channels_out: int) -> "Architecture":
        """The family's architecture at one width.

        Args:
            knobs: what all widths have in common.
            width: channel multiplier; 1 is the teacher. Every level has
                ``max(min_channels, width * min(max_channels, base_channels * 2^level))`` channels.
            channels_out: classes, background included.

        Raises:
            SegdistillError: a knob that makes no network.
        """
        if not 0 < width <= 1:
            raise SegdistillError(f"a width of {width} makes no student; use 0 < width <= 1.")
        full = knobs.channels or [
            min(knobs.max_channels, knobs.base_channels * 2**level) for level in range(knobs.stages)
        ]
        floor = knobs.min_channels if width < 1 else 1
        return cls(
            channels=tuple(max(floor, round(width * count)) for count in full),
            channels_in=1,
            channels_out=channels_out,
            stem_stride=knobs.stem_stride,
            norm=knobs.norm,
            deep_supervision=knobs.deep_supervision,
            strides=knobs.strides,
            kernels=knobs.kernels,
        )

    def to_json(self) -> dict[str, Any]:
        """The architecture as plain JSON values; :meth:`from_json` reads it back.

        Usual strides and kernels are left out: they were implied before there were others.
        """
        body = asdict(self) | {"channels": list(self.channels)}
        for name, usual in (("strides", self._usual_strides), ("kernels", self._usual_kernels)):
            triples = body.pop(name)
            if triples != usual:
                body[name] = [list(triple) for triple in triples]
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Architecture":
        """Build from JSON values."""
        triples = {name: _triples(body[name]) for name in ("strides", "kernels") if name in body}
        return cls(**{**body, "channels": tuple(body["channels"]), **triples})


def _cubes(*sizes: int) -> tuple[Triple, ...]:
    return tuple((size, size, size) for size in sizes)


def _triples(entries: Any) -> tuple[Triple, ...]:
    return tuple((int(x), int(y), int(z)) for x, y, z in entries)
