"""nnU-Net's predictor with a clock; ``benchmarks/infer_cases.py`` runs it with the Python of nnU-Net's environment.

    python nnunet_prediction.py '{"dataset": "Dataset900_x", "images": "images", "out": "masks", "device": "cpu"}'

Nothing of nnU-Net is changed. The network is that of the dataset's plans with random weights, which are kept as a
checkpoint. One predictor is loaded and called once before the clock starts. Then all images are predicted one after the
other, as arrays in memory (``predict_single_npy_array``), and once more from files to files by nnU-Net's worker
processes (``predict_from_files`` with its defaults). Prints a line of JSON with the seconds of both.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from commands import spent
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

CONFIGURATION = "3d_fullres"


def make_model(dataset: str) -> Path:
    """A model folder of the dataset's plans whose weights are random, but always the same."""
    folder = Path(nnUNet_results) / dataset / f"nnUNetTrainer__nnUNetPlans__{CONFIGURATION}"
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(nnUNet_raw) / dataset / "dataset.json", folder / "dataset.json")
    shutil.copy(Path(nnUNet_preprocessed) / dataset / "nnUNetPlans.json", folder / "plans.json")
    plans = PlansManager(json.loads((folder / "plans.json").read_text()))
    labels = plans.get_label_manager(json.loads((folder / "dataset.json").read_text()))
    configuration = plans.get_configuration(CONFIGURATION)
    torch.manual_seed(0)
    heads = labels.num_segmentation_heads
    network = nnUNetTrainer.build_network_architecture(plans, configuration, 1, heads, enable_deep_supervision=False)
    content = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": CONFIGURATION},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def main() -> None:
    """Make the model, load it, predict."""
    wanted = json.loads(sys.argv[1])
    predictor = nnUNetPredictor(device=torch.device(wanted["device"]), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(make_model(wanted["dataset"])), (0,))
    files, reader = sorted(Path(wanted["images"]).iterdir()), SimpleITKIO()
    arrays = [reader.read_images([str(file)]) for file in files]

    def each() -> None:
        for image, properties in arrays:
            predictor.predict_single_npy_array(image, properties)

    predictor.predict_single_npy_array(*arrays[0])
    found = {"arrays": spent(each), "threads": torch.get_num_threads()}
    found["files"] = spent(lambda: predictor.predict_from_files([[str(file)] for file in files], wanted["out"]))
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
