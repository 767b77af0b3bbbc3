"""Training patches: which case, which place, the same for the same seed, step and worker."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segdistill.files import SegdistillError, read_json
from segdistill.runtime.plan import Plan
from segdistill.training.augment import apply, augmentation


@dataclass(frozen=True)
class TrainingCase:
    """A prepared case.

    Attributes:
        case: its name.
        image: (1, X, Y, Z) float16 on the plan's grid, normalised; memory-mapped.
        label: (X, Y, Z) uint8 channel indices; memory-mapped.
    """

    case: str
    image: np.ndarray
    label: np.ndarray


def read_cases(folder: Path, split: str) -> list[TrainingCase]:
    """The prepared cases of one split, in the order of the index.

    Raises:
        SegdistillError: no index, or no case of that split.
    """
    entries = [entry for entry in read_json(folder / "index.json") if entry["split"] == split]
    if not entries:
        raise SegdistillError(
            f"{folder}: no case in split {split!r}. Check 'split' of the sites and run 'dvc repro'."
        )
    return [
        TrainingCase(
            case=entry["case"],
            image=_mapped(folder / f"{entry['case']}.image.npy"),
            label=_mapped(folder / f"{entry['case']}.label.npy"),
        )
        for entry in entries
    ]


def _mapped(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


class PatchSampler:
    """Draws batches of augmented patches.

    A share of the patches is centred on a voxel of a structure, each structure of the case equally
    often, so that hippocampus is met as often as cortex; the others lie anywhere.
    """

    _CENTRES = 2000  # remembered voxels per case and structure

    def __init__(
        self,
        cases: list[TrainingCase],
        plan: Plan,
        *,
        batch_size: int,
        foreground_share: float,
        flip_left_right: bool,
        seed: int,
    ) -> None:
        self._cases = cases
        self._size = plan.patch_size
        self._batch_size = batch_size
        self._foreground_share = foreground_share
        self._seed = seed
        self._transform = augmentation(flip_left_right)
        self._centres = [
            self._find_centres(case, plan.channels_out, number) for number, case in enumerate(cases)
        ]

    def batch(self, step: int, worker: int = 0) -> tuple[Tensor, Tensor]:
        """The batch of one step of one worker: image (B, 1, X, Y, Z) float32, label (B, X, Y, Z) int64.

        It depends on nothing but seed, step and worker, so a training that goes on from a checkpoint
        sees what it would have seen.
        """
        random = np.random.default_rng([self._seed, step, worker])
        pairs = [self._patch(random) for _ in range(self._batch_size)]
        images, labels = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(labels)

    def _patch(self, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        number = int(random.integers(len(self._cases)))
        case, centres = self._cases[number], self._centres[number]
        shape = case.label.shape
        if centres and random.random() < self._foreground_share:
            places = centres[int(random.integers(len(centres)))]
            centre = places[int(random.integers(len(places)))]
            jitter = [int(random.integers(-size // 4, size // 4 + 1)) for size in self._size]
            start = [
                int(c) + j - size // 2 for c, j, size in zip(centre, jitter, self._size, strict=True)
            ]
        else:
            start = [
                int(random.integers(max(1, n - size + 1)))
                for n, size in zip(shape, self._size, strict=True)
            ]
        start = [
            min(max(0, s), max(0, n - size)) for s, n, size in zip(start, shape, self._size, strict=True)
        ]
        window = tuple(slice(s, s + size) for s, size in zip(start, self._size, strict=True))
        image = self._padded(case.image[(slice(None), *window)].astype(np.float32)[0], "edge")
        label = self._padded(np.array(case.label[window]), "constant")
        image_out, label_out = apply(self._transform, image[None], label[None], random)
        return image_out.float(), label_out[0].long()

    def _padded(self, array: np.ndarray, mode: str) -> np.ndarray:
        short = [(0, size - n) for n, size in zip(array.shape, self._size, strict=True)]
        return np.pad(array, short, mode=mode) if any(after for _, after in short) else array  # type: ignore[call-overload]

    def _find_centres(self, case: TrainingCase, classes: int, number: int) -> list[np.ndarray]:
        random = np.random.default_rng([self._seed, 0xCE, number])
        flat = np.asarray(case.label).reshape(-1)
        found = []
        for channel in range(1, classes):
            places = np.flatnonzero(flat == channel)
            if len(places):
                chosen = random.choice(places, min(self._CENTRES, len(places)), replace=False)
                found.append(np.stack(np.unravel_index(np.sort(chosen), case.label.shape), axis=1))
        return found
