"""nnU-Net's half of the comparison: runs where nnU-Net is installed, and this platform isn't.

``python nnunet_side.py JOBS.json`` does a list of jobs: ``make`` trains a small model with nnU-Net's own
network and preprocessing and saves it with its own trainer, ``logits`` runs its network on an array, and
``predict`` predicts a folder with its own predictor.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def make(folder: Path, request: dict[str, Any]) -> None:
    """Train on the request's scans for some steps and save plans, dataset and checkpoint."""
    torch.manual_seed(request["seed"])
    plans, dataset = request["plans"], request["dataset"]
    started = {**plans, "continue_training": False}
    trainer = nnUNetTrainer(started, "3d_fullres", 0, dataset, device=torch.device("cpu"))
    heads = trainer.label_manager.num_segmentation_heads
    network = trainer.network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, heads
    )
    trainer.optimizer, _ = trainer.configure_optimizers()
    with torch.no_grad():  # nothing that a trained network has may be zero or one
        for value in network.parameters():
            if value.ndim == 1:
                value.add_(0.1 * torch.randn_like(value))
    optimizer = torch.optim.Adam(network.parameters(), 0.004)
    configuration = trainer.configuration_manager
    pairs = [preprocessed(trainer, case) for case in request["cases"]]
    random = np.random.default_rng(request["seed"])
    network.train()
    for step in range(request["steps"]):
        image, label = pairs[step % len(pairs)]
        start = [
            int(random.integers(max(1, n - size + 1)))
            for n, size in zip(label.shape, configuration.patch_size, strict=True)
        ]
        window = tuple(slice(s, s + n) for s, n in zip(start, configuration.patch_size, strict=True))
        outputs = network(padded(image[window], configuration.patch_size)[None, None].float())
        target = padded(label[window], configuration.patch_size)[None].long()
        loss = torch.nn.functional.cross_entropy(outputs[0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trainer.logger.log("ema_fg_dice", np.float64(0.5), 0)
    trainer._best_ema = np.float32(0.5)
    fold = folder / "fold_0"
    fold.mkdir(parents=True)
    trainer.save_checkpoint(str(fold / "checkpoint_final.pth"))
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    print("loss", float(loss))  # noqa: T201


def preprocessed(trainer: nnUNetTrainer, case: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """A scan and its label map through nnU-Net's preprocessor."""
    configuration = trainer.configuration_manager
    worker = configuration.preprocessor_class(verbose=False)
    image, label, _ = worker.run_case(
        [case["image"]], case["label"], trainer.plans_manager, configuration, trainer.dataset_json
    )
    return image[0], np.maximum(label[0], 0)


def padded(array: np.ndarray, size: list[int]) -> torch.Tensor:
    """An array grown with zeros to ``size``."""
    grown = np.pad(array, [(0, n - have) for n, have in zip(size, array.shape, strict=True)])
    return torch.from_numpy(grown)


def load(folder: Path) -> nnUNetPredictor:
    """nnU-Net's predictor of a results folder, without mirroring, on the CPU."""
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,))
    return predictor


def main() -> None:
    """See the module."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for job in json.loads(Path(sys.argv[1]).read_text()):
        folder = Path(job["model"])
        if job["do"] == "make":
            make(folder, job)
        elif job["do"] == "predict":
            Path(job["out"]).mkdir()
            load(folder).predict_from_files_sequential(job["scans"], job["out"])
        else:
            network = load(folder).network.eval()
            with torch.inference_mode():
                np.save(job["out"], network(torch.from_numpy(np.load(job["array"]))).numpy())


if __name__ == "__main__":
    main()
