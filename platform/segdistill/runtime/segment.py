"""From file to file: a scan in, a label map on its own grid and volumes in ml out."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdistill.files import SegdistillError
from segdistill.runtime.backend import Backend, EngineError, OnnxBackend, OpenVinoBackend
from segdistill.runtime.bundle import Bundle
from segdistill.runtime.plan import Plan
from segdistill.runtime.preprocess import crop, flips, to_grid
from segdistill.runtime.quality import Gauge, Limits, Quality, judge
from segdistill.runtime.restore import Restorer
from segdistill.runtime.setting import Precision, Setting
from segdistill.runtime.windows import SLAB, predict_slabs
from segdistill.volume import Volume, VolumeError, read_volume, write_label_map
from segdistill.volume.memory import TooLittleMemoryError, available_bytes

STEPS = ("read", "orient_crop", "normalise", "resample", "network", "restore", "write")

ACTIVATIONS = 128.0  # per voxel, of a network whose bundle doesn't say: four times 32 channels

Timings = dict[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The outcome for one scan.

    Attributes:
        labels: (X, Y, Z) uint8 label codes on the scan's grid.
        volumes_ml: millilitres per structure, by name, in the plan's order.
        quality: how far they are to be trusted.
        timings: step to (wall seconds, CPU seconds of all threads), in the order of :data:`STEPS`.
    """

    labels: NDArray[np.uint8]
    volumes_ml: dict[str, float]
    quality: Quality
    timings: Timings


@dataclass
class _Clock:
    """Wall and CPU seconds by step. CPU time is the process's, so one scan at a time counts right."""

    timings: Timings = field(default_factory=dict)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        before = self.timings.get(step, (0.0, 0.0))
        self.timings[step] = (
            before[0] + time.perf_counter() - wall,
            before[1] + time.process_time() - cpu,
        )


class Segmentator:
    """A bundle, loaded and ready to segment.

    One scan at a time; :meth:`ready` may be asked from another thread.
    """

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
            BundleError: the bundle's limits of quality make no sense.
        """
        self.bundle = bundle
        self.limits = Limits.of(bundle)
        self.setting = setting or Setting.reference(bundle.plan, threads)
        self.plan = self.setting.applied_to(bundle.plan)
        self._given = backend is not None
        self.backend: Backend | None = backend or open_backend(bundle, self.setting)
        self._reference: Backend | None = None
        self._failed = False  # the engine, at the last scan
        self._opening = threading.Lock()

    def ready(self) -> bool:
        """Whether there is an engine that can be trusted; one that failed is opened anew to answer."""
        try:
            self._opened()
        except SegdistillError:
            return False
        return True

    def segment(self, volume: Volume) -> Segmentation:
        """Segment a scan that was read with :func:`~segdistill.volume.read_volume`.

        Raises:
            VolumeError: no content in the scan.
            TooLittleMemoryError: it doesn't fit the memory that is free.
            EngineError: the engine failed, or couldn't be opened anew after it had.
        """
        return self._segment(lambda: volume, _Clock())[0]

    def segment_file(self, scan: Path, labels: Path) -> Segmentation:
        """Segment the file ``scan`` and write the label map to ``labels``, on the same grid.

        Raises:
            VolumeError: the scan can't be used, see :func:`~segdistill.volume.read_volume`, or
                ``labels`` isn't a ``.nii`` or ``.nii.gz``, or is the scan itself, by whatever name.
            SegdistillError: as :meth:`segment`.
            DiskFullError: no space for the label map.
        """
        refuse_own_scan(scan, labels)
        clock = _Clock()

        def read() -> Volume:
            with clock("read"):
                return read_volume(scan)

        outcome, grid = self._segment(read, clock)
        with clock("write"):
            write_label_map(labels, outcome.labels, grid)
        return outcome

    def _segment(self, read: Callable[[], Volume], clock: _Clock) -> tuple[Segmentation, Volume]:
        """As :meth:`_run`, whose failures make the next scan begin with a new engine."""
        try:
            return self._run(read, clock)
        except EngineError:
            self._failed = True
            raise
        except MemoryError as error:
            self._failed = True
            raise TooLittleMemoryError(
                "the scan needs more memory than is free. Free some, or crop the scan to the part that "
                "matters."
            ) from error

    def _run(self, read: Callable[[], Volume], clock: _Clock) -> tuple[Segmentation, Volume]:
        """Segment what ``read`` gives; also the scan without its voxels, which nothing holds on to."""
        volume = read()
        plan, backend = self._fitting(volume)
        with clock("orient_crop"):
            cropped = crop(volume, plan)
        grid = volume.emptied()
        del volume
        prepared = to_grid(cropped, plan, clock)
        del cropped
        restorer, gauge = Restorer(prepared.geometry, plan), Gauge(plan.channels_out)
        slabs = predict_slabs(prepared.array, plan, backend)
        del prepared
        while True:
            with clock("network"):
                slab = next(slabs, None)
            if slab is None:
                break
            with clock("restore"):
                gauge.add(slab)
                restorer.add(slab)
        voxel_ml = abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000
        volumes = {
            entry.name: float(count * voxel_ml)
            for entry, count in zip(plan.structures, restorer.voxels[1:], strict=True)
        }
        sure = dict(zip(volumes, gauge.confidence()[1:], strict=True))
        quality = judge(sure, volumes, self.limits)
        return Segmentation(restorer.labels, volumes, quality, clock.timings), grid

    def _fitting(self, volume: Volume) -> tuple[Plan, Backend]:
        """What runs a scan: the setting, or the reference where the whole volume doesn't fit."""
        needed = self._needed(volume, self.setting)
        backend = self._opened()
        if needed <= available_bytes():
            return self.plan, backend
        del backend
        # Engines keep, for the next scan, what the largest one so far took: new ones don't have it.
        self._reference = None
        backend = self._opened(anew=True)
        free = available_bytes()
        if needed <= free:
            return self.plan, backend
        if self.plan.mode == "whole" and self.bundle.plan.mode == "windows":
            # Not this setting's windows: nobody has validated those.
            reference = Setting.reference(self.bundle.plan, self.setting.threads)
            needed = self._needed(volume, reference)
            if needed <= free:
                if self._reference is None:
                    self._reference = open_backend(self.bundle, reference)
                return self.bundle.plan, self._reference
        raise TooLittleMemoryError(
            f"the scan, {_by(volume.array.shape)} voxels of {_by(volume.spacing_mm)} mm, needs "
            f"about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free. Free some, or "
            "crop the scan to the part that matters."
        )

    def _needed(self, volume: Volume, setting: Setting) -> float:
        activations = float(self.bundle.provenance.get("activations", ACTIVATIONS))
        plan = setting.applied_to(self.bundle.plan)
        return peak_bytes(volume, plan, activations, setting.precision)

    def _opened(self, *, anew: bool = False) -> Backend:
        """The engine of the setting; opened anew if it failed, or is to be.

        One that works stays until the next one is there. One that failed goes first: its memory may be
        what the next one needs.

        Raises:
            SegdistillError: no engine can be opened, mostly for want of memory.
        """
        with self._opening:
            if self._failed:
                self._reference = None
                self._failed = False
                if not self._given:
                    self.backend = None
            if self.backend is None or (anew and not self._given):
                self.backend = open_backend(self.bundle, self.setting)
            return self.backend


def refuse_own_scan(scan: Path, labels: Path) -> None:
    """Raise VolumeError if a label map would take the place of its scan, by whatever name."""
    with suppress(FileNotFoundError):
        if labels.samefile(scan):
            raise VolumeError(
                f"{labels}: the label map would take the place of the scan. Give it another name."
            )


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


def peak_bytes(
    volume: Volume, plan: Plan, activations: float = ACTIVATIONS, precision: Precision = "f32"
) -> float:
    """An upper estimate of what segmenting takes beyond the scan itself, in bytes.

    As if nothing were cropped. Per voxel of the scan: its content, once more when it is turned round in
    memory (8 bytes), and two masks before the network; the label map and the indices it is made of
    after it (4 bytes). Per voxel of the plan's grid: the input, once more where it is padded. Logits of
    what is restored at a time, twice; in ``windows`` those of a window's depth. And for what the network
    sees at once, its activations and logits, in bfloat16 where that is the precision.

    Args:
        volume: the scan.
        plan: the family's plan, with the mode that is run.
        activations: values that the network holds at once per input voxel.
        precision: of the network.
    """
    native = float(np.prod(volume.array.shape))
    sizes_mm = np.array(volume.array.shape) * np.array(volume.spacing_mm)
    order = np.argsort(flips(volume, plan)[:, 0])
    grid = np.ceil(sizes_mm[order] / np.array(plan.spacing_mm))
    if plan.mode == "whole":
        grid = np.array(plan.divisible(tuple(grid)), float)
    else:
        grid = np.maximum(grid, plan.patch_size)
    seen = grid if plan.mode == "whole" else np.array(plan.patch_size)
    depth = min(SLAB, grid[0]) if plan.mode == "whole" else plan.patch_size[0]
    value = 2 if precision == "bf16" else 4
    network = value * seen.prod() * (activations + 2 * plan.channels_out)
    logits = 4 * depth * grid[1:].prod() * 2 * plan.channels_out
    return float(max(10 * native, 4 * native + network + logits) + 8 * grid.prod())


def _by(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)
