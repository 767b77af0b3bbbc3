"""What a network is made of: an nnU-Net-style 3D U-Net whose channel counts scale with one width."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from segdistill.files import SegdistillError

Norm = Literal["batch", "instance"]


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
    """

    channels: tuple[int, ...]
    channels_in: int
    channels_out: int
    stem_stride: int
    norm: Norm
    deep_supervision: int

    def __post_init__(self) -> None:
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

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of every level, finest first."""
        return (self.stem_stride, *(2 for _ in self.channels[1:]))

    @classmethod
    def scaled(cls, knobs: Mapping[str, Any], width: float, channels_out: int) -> "Architecture":
        """The family's architecture at one width.

        Args:
            knobs: the ``network`` part of params.yaml.
            width: channel multiplier; 1 is the teacher. Every level has
                ``max(min_channels, width * min(max_channels, base_channels * 2^level))`` channels.
            channels_out: classes, background included.

        Raises:
            SegdistillError: a knob that makes no network.
        """
        if not 0 < width <= 1:
            raise SegdistillError(f"a width of {width} makes no student; use 0 < width <= 1.")
        full = [
            min(knobs["max_channels"], knobs["base_channels"] * 2**level)
            for level in range(knobs["stages"])
        ]
        floor = knobs["min_channels"] if width < 1 else 1
        return cls(
            channels=tuple(max(floor, round(width * count)) for count in full),
            channels_in=1,
            channels_out=channels_out,
            stem_stride=knobs["stem_stride"],
            norm=knobs["norm"],
            deep_supervision=knobs["deep_supervision"],
        )

    def to_json(self) -> dict[str, Any]:
        """The architecture as plain JSON values; :meth:`from_json` reads it back."""
        return asdict(self) | {"channels": list(self.channels)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Architecture":
        """Build from JSON values."""
        return cls(**{**body, "channels": tuple(body["channels"])})
