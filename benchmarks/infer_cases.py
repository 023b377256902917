"""Many small cases predicted by one warm predictor on a CPU, beside nnU-Net: the same network, windows and passes.

    python benchmarks/infer_cases.py Task04_Hippocampus --nnunet /opt/nnunet/bin --work /tmp/cases
    python benchmarks/infer_cases.py Task04_Hippocampus --nnunet /opt/nnunet/bin --work /tmp/cases --only volseg

``--nnunet`` is the ``bin`` folder of an environment with nnU-Net 2.8.1, which plans the dataset. Its network gets
random weights and volseg the same ones, key by key. Both see the same windows (the planned patch, half overlapping,
Gaussian blending) in all eight mirror images. Each tool is a process of its own that has predicted a case before the
clock starts. "arrays" are images in memory one after the other; "files" are read and masks written, by nnU-Net with its
worker processes, by volseg with its threads. volseg computes in bf16 where the processor does, nnU-Net on processors in
fp32; "volseg fp32" is in nnU-Net's precision. All masks are held against nnU-Net's, which adds windows up in float16.

``taskset`` in front gives both less of a machine. Seconds of processors tell more than those of the clock where other
work goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.commands import run, spent

from pipeline.config.settings import Settings
from pipeline.data.volumes import read_image, read_label_map
from pipeline.model.folder import ModelCard, fold_folder, save_weights, write_card
from pipeline.model.nnunet import nnunet_options, nnunet_weights
from pipeline.model.spec import NetworkSpec
from pipeline.preprocess.plan_file import read_plan
from pipeline.stages.predict import Predictor, predict

NAME = "Dataset900_benchmark"
VOLSEG = [sys.executable, "-m", "pipeline"]
PRECISIONS = {"volseg": "auto", "volseg fp32": "fp32"}


def prepare(dataset: Path, nnunet: Path, work: Path, cases: int) -> dict[str, str]:
    """nnU-Net's and volseg's plan of a dataset, and some images, where they are not there; nnU-Net's environment."""
    folders = {f"nnUNet_{part}": str(work / part) for part in ("raw", "preprocessed", "results")}
    environment = {**os.environ, **folders, "nnUNet_compile": "f"}
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    raw, planned = work / "raw" / NAME, work / "preprocessed" / NAME / "nnUNetPlans.json"
    if not raw.is_dir():
        run([*VOLSEG, "convert", str(dataset), "-o", str(raw), "--to", "nnunet"], environment)
    if not planned.is_file():
        run([str(nnunet / "nnUNetv2_extract_fingerprint"), "-d", NAME[7:10]], environment)
        run([str(nnunet / "nnUNetv2_plan_experiment"), "-d", NAME[7:10]], environment)
    if not (work / "plan" / "plan.yaml").is_file():
        run([*VOLSEG, "plan", str(raw), "-o", str(work / "plan"), "--set", "preprocess.memory_gb=8"], environment)
    images = work / "images"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir()
    for image in sorted((raw / "imagesTr").iterdir())[:cases]:
        shutil.copy(image, images)
    return environment


def write_model(work: Path, precision: str) -> Path:
    """The network of nnU-Net's checkpoint as a model folder of volseg."""
    theirs = work / "results" / NAME / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    planned = json.loads((theirs / "plans.json").read_text())["configurations"]["3d_fullres"]
    name, dims, options = nnunet_options(planned["architecture"])
    turned = {key: [tuple(reversed(n)) for n in options[key]] for key in ("kernel_sizes", "strides")}
    plan, patch = read_plan(work / "plan" / "plan.yaml"), tuple(reversed(planned["patch_size"]))
    settings = Settings.model_validate({"infer": {"mirror": True}, "train": {"precision": precision}})
    spec = NetworkSpec(
        name=name,
        dims=dims,  # type: ignore[arg-type]
        in_channels=1,
        out_channels=plan.label_table.outputs,
        options=options | turned,
        patch_size=patch,
    )
    state = torch.load(theirs / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    weights = {  # nnU-Net's arrays begin with the last axis of a file
        key: value.permute(0, 1, 4, 3, 2) if value.ndim == 5 else value for key, value in nnunet_weights(state).items()
    }
    folder = work / f"model_{precision}"
    write_card(folder, ModelCard(network=spec, plan=plan, settings=settings, provenance={}))
    save_weights(fold_folder(folder, 0) / "model.safetensors", weights)
    return folder


def child(model: Path, images: Path, out: Path) -> None:
    """Predict with volseg and print what it took."""
    predictor, files = Predictor.load(model, device="cpu"), sorted(images.iterdir())
    scans = [read_image([file]) for file in files]
    predictor.predict(scans[0])

    def each() -> None:
        for scan in scans:
            predictor.predict(scan)

    found: dict[str, Any] = {"arrays": spent(each), "threads": torch.get_num_threads()}
    found["files"] = spent(lambda: predict(model, [images], out, device="cpu"))
    sys.stdout.write(json.dumps(found) + "\n")


def measured(method: str, nnunet: Path, work: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What a tool took in a process of its own."""
    out, images = work / f"masks {method}", work / "images"
    shutil.rmtree(out, ignore_errors=True)
    if method == "nnunet":
        wanted = {"dataset": NAME, "images": str(images), "out": str(out), "device": "cpu"}
        script = Path(__file__).with_name("helpers") / "nnunet_prediction.py"
        words = [str(nnunet / "python"), str(script), json.dumps(wanted)]
    else:
        model = write_model(work, PRECISIONS[method])
        words = [sys.executable, __file__, "--child", str(model), str(images), str(out)]
    log = work / f"{method}.json"
    run(["bash", "-c", f'"$@" > "{log}"', "bash", *words], environment)
    return dict(json.loads(log.read_text().strip().splitlines()[-1]))


def different(one: Path, other: Path) -> str:
    """Share of voxels that two folders of masks do not agree on."""
    masks = [[read_label_map(file).array for file in sorted(folder.glob("*.nii.gz"))] for folder in (one, other)]
    if not masks[1]:
        return ""
    pairs = list(zip(*masks, strict=True))
    return f"{sum(np.count_nonzero(a != b) for a, b in pairs) / sum(a.size for a, _ in pairs):.1e}"


def main() -> None:
    """Read the command line and print the table; ratios are nnU-Net's seconds over the tool's."""
    if sys.argv[1:2] == ["--child"]:
        child(*map(Path, sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--nnunet", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of everything that is written")
    parser.add_argument("--cases", type=int, default=52)
    tools = ["nnunet", *PRECISIONS]
    parser.add_argument("--only", choices=tools, help="measure this alone, and compare with what nnU-Net took before")
    chosen = parser.parse_args()
    work = chosen.work.resolve()
    environment = prepare(chosen.dataset, chosen.nnunet, work, chosen.cases)
    base: dict[str, Any] = {}
    if chosen.only in PRECISIONS:
        base = json.loads((work / "nnunet.json").read_text().strip().splitlines()[-1])
    print("| tool | arrays s | processor s | ratio | files s | processor s | ratio | voxels unlike nnU-Net's |")
    print("|---|---|---|---|---|---|---|---|")
    for method in [chosen.only] if chosen.only else tools:
        found = measured(method, chosen.nnunet, work, environment)
        base = base or found
        cells = [method]
        for way in ("arrays", "files"):
            part, theirs = found[way], base[way]
            ratios = " / ".join(f"{theirs[key] / part[key]:.1f}" for key in ("seconds", "cpu_s"))
            cells += [f"{part['seconds']:.1f}", f"{part['cpu_s']:.1f}", ratios]
        cells.append(different(work / f"masks {method}", work / "masks nnunet"))
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
