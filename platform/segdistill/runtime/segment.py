"""The whole way at the bedside: a scan in, a label map on its own grid and volumes in ml out."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdistill.files import SegdistillError
from segdistill.runtime.backend import Backend, OnnxBackend, OpenVinoBackend
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.plan import Plan
from segdistill.runtime.preprocess import preprocess
from segdistill.runtime.restore import restore
from segdistill.runtime.setting import Setting
from segdistill.runtime.windows import predict
from segdistill.volume import Volume, read_volume, write_label_map
from segdistill.volume.memory import available_bytes

STEPS = ("read", "orient_crop", "normalise", "resample", "network", "restore", "write")

Timings = dict[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The outcome for one scan.

    Attributes:
        labels: (X, Y, Z) uint8 label codes on the scan's grid.
        volumes_ml: millilitres per structure, by name, in the plan's order.
        timings: step to (wall seconds, CPU seconds of all threads), in the order of :data:`STEPS`.
    """

    labels: NDArray[np.uint8]
    volumes_ml: dict[str, float]
    timings: Timings


@dataclass
class _Clock:
    """Wall and CPU seconds by step. CPU time is the process's, so one scan at a time counts right."""

    timings: Timings = field(default_factory=dict)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.timings[step] = (time.perf_counter() - wall, time.process_time() - cpu)


class Segmentator:
    """A bundle, loaded and ready to segment."""

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 0,
        backend: Backend | None = None,
        setting: Setting | None = None,
    ) -> None:
        """Load the bundle's network.

        Args:
            bundle: from :meth:`~segdistill.runtime.bundle.Bundle.read`.
            threads: CPU threads of the network; 0 takes as many as the process may use.
            backend: runs the network instead of what the setting says.
            setting: how to run it; None: the reference, with ``threads``.

        Raises:
            SegdistillError: the setting can't be run here, or the bundle has no quantised network.
        """
        self.bundle = bundle
        self.setting = setting or Setting.reference(bundle.plan, threads)
        self.plan = self.setting.applied_to(bundle.plan)
        self.backend: Backend = backend or open_backend(bundle, self.setting)

    def segment(self, volume: Volume) -> Segmentation:
        """Segment a scan that was read with :func:`~segdistill.volume.read_volume`.

        Raises:
            SegdistillError: no content in the scan, or too little memory for it.
        """
        return self._segment(volume, _Clock())

    def segment_file(self, scan: Path, labels: Path) -> Segmentation:
        """Segment the file ``scan`` and write the label map to ``labels``, on the same grid.

        Raises:
            VolumeError: the scan can't be used, see :func:`~segdistill.volume.read_volume`, or
                ``labels`` isn't a ``.nii`` or ``.nii.gz``.
            SegdistillError: as :meth:`segment`; or the disk is full.
        """
        clock = _Clock()
        with clock("read"):
            volume = read_volume(scan)
        outcome = self._segment(volume, clock)
        with clock("write"):
            write_label_map(labels, outcome.labels, volume)
        return outcome

    def _segment(self, volume: Volume, clock: _Clock) -> Segmentation:
        plan = self.plan
        needed, free = peak_bytes(volume, plan), available_bytes()
        if needed > free:
            raise SegdistillError(
                f"the scan, {_by(volume.array.shape)} voxels of {_by(volume.spacing_mm)} mm, needs "
                f"about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free. Free some, or "
                "crop the scan to the part that matters."
            )
        prepared = preprocess(volume, plan, clock)
        with clock("network"):
            logits = predict(prepared.array, plan, self.backend)
        with clock("restore"):
            labels = restore(logits, prepared.geometry, plan)
            counts = np.bincount(labels.ravel(order="K"), minlength=256)
        voxel_ml = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
        volumes = {entry.name: float(counts[entry.code] * voxel_ml) for entry in plan.structures}
        return Segmentation(labels, volumes, clock.timings)


def open_backend(bundle: Bundle, setting: Setting) -> Backend:
    """The network of a bundle, ready to run as a setting says.

    Raises:
        SegdistillError: the setting can't be run here, or the bundle has no quantised network.
    """
    path = bundle.int8 if setting.precision == "int8" else bundle.model
    if path is None:
        raise SegdistillError(
            f"{bundle.folder}: has no quantised network, so it can't run in int8. Export it again."
        )
    if setting.backend == "openvino":
        return OpenVinoBackend(path, setting.threads, setting.precision)
    if setting.precision == "bf16":
        raise SegdistillError("ONNX Runtime has no bf16 on CPUs. Take OpenVINO, or f32.")
    return OnnxBackend(path, setting.threads)


def peak_bytes(volume: Volume, plan: Plan) -> float:
    """A simple upper estimate of what segmenting takes beyond the scan itself, in bytes.

    On the scan's grid: the content as float32, two masks, labels and indices (8 bytes a voxel). On the
    plan's grid, as if nothing were cropped: the input twice, logits and one window's share of them
    (4 bytes each). A network's inner activations come on top in ``whole`` mode: 64 float32 a voxel,
    a generous figure for a student with a full-resolution level.
    """
    native = float(np.prod(volume.array.shape))
    ratio = np.prod(np.array(volume.spacing_mm) / np.array(plan.spacing_mm))
    patch = float(np.prod(plan.patch_size))
    grid = max(native * float(ratio), patch)
    active = grid if plan.mode == "whole" else patch
    return 8 * native + 4 * grid * (2 + plan.channels_out) + 4 * active * (64 + plan.channels_out)


def _by(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)
