"""Training patches: which case, which place, the same for the same seed, step and worker."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segdistill.files import SegdistillError, read_json
from segdistill.runtime.plan import Plan
from segdistill.simulation.rendering.knobs import RenderingKnobs
from segdistill.simulation.rendering.labelmap import LabelMap
from segdistill.simulation.rendering.render import render
from segdistill.training.augment import apply, augmentation
from segdistill.training.knobs import TrainingKnobs


@dataclass(frozen=True)
class TrainingCase:
    """A prepared case.

    Attributes:
        case: its name.
        image: (1, X, Y, Z) float16 on the plan's grid, normalised; memory-mapped.
        label: (X, Y, Z) uint8 channel indices, or ignored; memory-mapped. Of an unlabelled case, the
            class that the teacher finds likeliest.
        soft: (4, X, Y, Z) uint8 soft labels of the teacher, kept as ``distillation/soft_labels.py``
            says, or None; memory-mapped.
    """

    case: str
    image: np.ndarray
    label: np.ndarray
    soft: np.ndarray | None = None


@dataclass(frozen=True)
class People:
    """Label maps of people, and how scans are drawn from them."""

    maps: list[LabelMap]
    knobs: RenderingKnobs


@dataclass(frozen=True)
class Small:
    """The small patches that a training starts with.

    Growing the patches takes a fraction of the time of full ones all along: Fischer et al. 2024,
    "Progressive Growing of Patch Size", arXiv 2407.07853; here in one step. With instance norm, the
    patches of the last steps decide how much of a scan the network wants to see at once when it serves.

    Attributes:
        patch_size: voxels.
        batch_size: patches per step and worker.
    """

    patch_size: tuple[int, int, int]
    batch_size: int

    @classmethod
    def from_knobs(cls, knobs: TrainingKnobs, plan: Plan) -> "Small":
        """As the knobs say.

        Raises:
            SegdistillError: the network can't take the size.
        """
        size = knobs.small_patch_size
        if any(n % d for n, d in zip(size, plan.size_divisor, strict=True)):
            raise SegdistillError(
                f"params.yaml: training.small_patch_size is {list(size)}; it needs three multiples of "
                f"{list(plan.size_divisor)}."
            )
        return cls(size, knobs.small_batch_size)


@dataclass(frozen=True)
class Batch:
    """Patches of one step.

    Attributes:
        image: (B, 1, X, Y, Z) float32.
        label: (B, X, Y, Z) int64 channel indices; ``overlap.IGNORED`` where it can't be told.
        soft: (B, 4, X, Y, Z) uint8 soft labels, moved along with the image; None without a teacher.
    """

    image: Tensor
    label: Tensor
    soft: Tensor | None

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return Batch(
            self.image.to(device),
            self.label.to(device),
            None if self.soft is None else self.soft.to(device),
        )


def read_cases(
    folder: Path,
    split: str,
    *,
    soft: Path | None = None,
    soft_of_all: bool = True,
    unlabelled: bool = False,
) -> list[TrainingCase]:
    """The prepared cases of one split, in the order of the index.

    Args:
        folder: of the stage ``prepare``.
        split: ``train`` or ``val``.
        soft: folder of the teacher's soft labels. With it, unlabelled cases come too: the teacher
            labels them.
        soft_of_all: every case has soft labels, not the unlabelled ones alone.
        unlabelled: also give unlabelled cases when there are no soft labels yet; their label is all
            background.

    Label maps without scans are no such cases, see :func:`read_people`; a split that has those alone is
    empty.

    Raises:
        SegdistillError: no index, nothing of that split, or soft labels that lack one.
    """
    index = [entry for entry in read_json(folder / "index.json") if entry["split"] == split]
    entries = [entry for entry in index if not entry.get("rendered")]
    if index and not entries:
        return []
    if soft is None and not unlabelled:
        entries = [entry for entry in entries if entry["labelled"]]
    if not entries:
        raise SegdistillError(
            f"{folder}: no case in split {split!r}. Check 'split' of the sites and run 'dvc repro'."
        )
    return [
        _read_case(
            folder,
            entry["case"],
            entry["labelled"],
            soft if soft_of_all or not entry["labelled"] else None,
        )
        for entry in entries
    ]


def read_people(folder: Path, device: torch.device) -> list[LabelMap]:
    """The prepared label maps without scans, all of the train split, in the order of the index."""
    index = read_json(folder / "index.json")
    return [LabelMap.read(folder / entry["case"]).to(device) for entry in index if entry.get("rendered")]


def _read_case(folder: Path, case: str, labelled: bool, soft_labels: Path | None) -> TrainingCase:
    image = _mapped(folder / f"{case}.image.npy")
    soft = None
    if soft_labels is not None:
        path = soft_labels / f"{case}.soft.npy"
        if not path.is_file():
            raise SegdistillError(f"{path}: no soft labels of this case. Run 'dvc repro soft_labels'.")
        soft = _mapped(path)
    if labelled:
        label = _mapped(folder / f"{case}.label.npy")
    else:
        label = np.zeros(image.shape[1:], np.uint8) if soft is None else soft[0]
    return TrainingCase(case, image, label, soft)


def _mapped(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


class PatchSampler:
    """Draws batches of augmented patches, of the plan's size or ``small`` ones.

    A share of the patches is centred on a voxel of a structure, each structure of the case equally
    often, so that hippocampus is met as often as cortex; the others lie anywhere.

    Patches of a batch have one size, so a case that is smaller goes on beyond its border as it does in a
    served window: evenly on both sides, the outermost voxels repeated, here with their labels. A patch
    that is alone in its batch is no larger than its case (and what ``size_divisor`` asks, which is added
    behind), and that is what ``whole`` mode gives the network.

    Where there are label maps without scans, ``people``, a share of the patches is rendered from those.
    They differ in more ways than augmentation makes, so nothing is added to them.
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
        small: Small | None = None,
        people: People | None = None,
    ) -> None:
        self._cases = cases
        self._batch_size = batch_size
        self._small = small
        self._people = people if people and people.maps else None
        self._plan = plan
        self._foreground_share = foreground_share
        self._seed = seed
        self._transform = augmentation(flip_left_right)
        self._centres = [
            self._find_centres(case, plan.channels_out, number) for number, case in enumerate(cases)
        ]

    def batch(self, step: int, worker: int = 0, *, full: bool = True) -> Batch:
        """The batch of one step of one worker: full patches, else small ones.

        It depends on nothing but seed, step, worker and their size, so a training that goes on from a
        checkpoint sees what it would have seen.
        """
        size, count = self._plan.patch_size, self._batch_size
        if self._small and not full:
            size, count = self._small.patch_size, self._small.batch_size
        random = np.random.default_rng([self._seed, step, worker])
        patches = [self._patch(size, random, alone=count == 1) for _ in range(count)]
        return Batch(
            image=torch.stack([patch["image"] for patch in patches]).float(),
            label=torch.stack([patch["label"][0] for patch in patches]).long(),
            soft=torch.stack([patch["soft"] for patch in patches]).to(torch.uint8)
            if "soft" in patches[0]
            else None,
        )

    def _patch(
        self, patch_size: tuple[int, int, int], random: np.random.Generator, *, alone: bool
    ) -> dict[str, Tensor]:
        if self._people and (not self._cases or random.random() < self._people.knobs.share):
            return self._rendered(self._people, patch_size, random, alone=alone)
        number = int(random.integers(len(self._cases)))
        case, centres = self._cases[number], self._centres[number]
        shape = case.label.shape
        if alone:
            x, y, z = (min(*pair) for pair in zip(patch_size, self._plan.divisible(shape), strict=True))
            patch_size = x, y, z
        if centres and random.random() < self._foreground_share:
            places = centres[int(random.integers(len(centres)))]
            centre = places[int(random.integers(len(places)))]
            jitter = [int(random.integers(-size // 4, size // 4 + 1)) for size in patch_size]
            start = [
                int(c) + j - size // 2 for c, j, size in zip(centre, jitter, patch_size, strict=True)
            ]
        else:
            start = [
                int(random.integers(max(1, n - size + 1)))
                for n, size in zip(shape, patch_size, strict=True)
            ]
        start = [
            min(max(0, s), max(0, n - size)) for s, n, size in zip(start, shape, patch_size, strict=True)
        ]
        window = tuple(slice(s, s + size) for s, size in zip(start, patch_size, strict=True))
        patch = {
            "image": case.image[(slice(None), *window)].astype(np.float32),
            "label": np.array(case.label[window])[None],
        }
        if case.soft is not None:
            patch["soft"] = np.array(case.soft[(slice(None), *window)])
        padded = {name: _padded(array, patch_size, alone=alone) for name, array in patch.items()}
        return apply(self._transform, padded, random)

    def _rendered(
        self,
        people: People,
        patch_size: tuple[int, int, int],
        random: np.random.Generator,
        *,
        alone: bool,
    ) -> dict[str, Tensor]:
        person = people.maps[int(random.integers(len(people.maps)))]
        drawn = render(
            person,
            self._plan,
            people.knobs,
            random,
            patch_size=patch_size,
            foreground_share=self._foreground_share,
            alone=alone,
        )
        return {"image": drawn.image, "label": drawn.label[None]}

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


def _padded(array: np.ndarray, patch_size: tuple[int, int, int], *, alone: bool) -> np.ndarray:
    """(C, X, Y, Z) with its outermost voxels repeated up to the patch's size; ``alone``: behind only."""
    missing = [size - n for n, size in zip(array.shape[1:], patch_size, strict=True)]
    if not any(missing):
        return array
    before = [0 if alone else m // 2 for m in missing]
    around = [(0, 0), *((b, m - b) for b, m in zip(before, missing, strict=True))]
    return np.pad(array, around, mode="edge")


def ahead(draw: Callable[[int], Batch], steps: range, depth: int = 2) -> Iterator[Batch]:
    """The batches of all steps, the next ``depth`` of them drawn in a thread while one is trained on."""

    def alone() -> None:
        torch.set_num_threads(1)  # of this thread: the network's threads keep the cores

    with ThreadPoolExecutor(1, initializer=alone) as pool:
        waiting = [pool.submit(draw, step) for step in steps[:depth]]
        for step in steps:
            batch = waiting.pop(0).result()
            if step + depth < steps.stop:
                waiting.append(pool.submit(draw, step + depth))
            yield batch
