"""nnU-Net's own predictor on the CPU, without mirroring.

``python nnunet_worker.py RESULTS_FOLDER THREADS``. Runs in nnU-Net's environment, which has none of this
platform.
"""

import sys
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

sys.path.insert(0, str(Path(__file__).parent))

from talk import answer


def main(folder: str, threads: str) -> None:
    """Load the model and answer."""
    torch.set_num_threads(int(threads))
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(folder, (0,))

    def segment(scan: str, labels: str) -> None:
        predictor.predict_from_files_sequential([[scan]], [labels.removesuffix(".nii.gz")])

    answer(segment)


if __name__ == "__main__":
    main(*sys.argv[1:])
