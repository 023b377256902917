"""A model of volseg in ONNX Runtime, in 32 and 8 bits, beside PyTorch on this processor: speed and Dice.

    python benchmarks/onnx_backends.py Task04_Hippocampus --threads 1

Exports the hippocampus model that comes with volseg, quantizes it (weights and activations of 8 bits, calibrated on
training cases), and measures all three in turn, with the same threads, on the same batches of windows. Then each
predicts cases that the model never saw, through the inferer of volseg. A type that ONNX Runtime cannot compute with is
said.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from pipeline.data.volumes import read_image, read_label_map
from pipeline.infer.trained_model import TrainedModel
from pipeline.stages.export import export
from pipeline.stages.predict import Predictor

MODEL = "hippocampus"
HELD_OUT = (1, 11, 20, 35, 42, 49, 58, 70, 84, 91, 98, 106)  # of those that its model card names
CALIBRATION = (3, 4, 6, 7, 14, 15, 17, 19)
BATCH, ROUNDS = 4, 15


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Windows of training cases, one after the other."""

    def __init__(self, windows: Iterator[Tensor]) -> None:
        self.windows = windows

    def get_next(self) -> dict[str, Any] | None:
        """The next window; None at the end."""
        window = next(self.windows, None)
        return None if window is None else {"image": window.numpy()}


class Session(nn.Module):
    """A file of ONNX as a network of volseg."""

    def __init__(self, file: Path, network: Any, threads: int) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.divisor, self.margin, self.legal_size = network.divisor, network.margin, network.legal_size

    def forward(self, image: Tensor) -> Tensor:
        """Logits of windows."""
        return torch.from_numpy(self.session.run(["logits"], {"image": image.contiguous().numpy()})[0])


def windows(predictor: Predictor, data: Path, numbers: tuple[int, ...]) -> Iterator[Tensor]:
    """The windows in the middle of some cases."""
    size = predictor.card.network.patch_size
    for number in numbers:
        ((array, _),) = predictor.prepared(read_image(data / "imagesTr" / f"hippocampus_{number:03}.nii.gz"))
        padded = np.zeros((1, 1, *size), np.float32)
        part = tuple(slice(0, min(n, wanted)) for n, wanted in zip(array.shape[1:], size, strict=True))
        padded[(0, 0, *part)] = array[(0, *part)]
        yield torch.from_numpy(padded)


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="Folder of Task04_Hippocampus.")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    predictor = Predictor.load(MODEL, device="cpu")
    (model,) = predictor.models
    network: nn.Module = model.networks[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        export(MODEL, out / "onnx", "onnx")
        plain = out / "onnx" / "model.onnx"
        quant_pre_process(str(plain), str(out / "simple.onnx"), skip_symbolic_shape=True)
        quantize_static(
            str(out / "simple.onnx"),
            str(out / "int8.onnx"),
            Calibration(windows(predictor, options.data, CALIBRATION)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        half = onnx.load(str(plain))
        networks: dict[str, Any] = {"PyTorch, 32 bits": network}
        networks["ONNX Runtime, 32 bits"] = Session(plain, network, options.threads)
        networks["ONNX Runtime, 8 bits"] = Session(out / "int8.onnx", network, options.threads)
        print("ONNX Runtime, bfloat16:", bfloat16_problem(half))
        batch = torch.cat(list(windows(predictor, options.data, HELD_OUT[:BATCH])))
        speeds(networks, batch)
        for name, each in networks.items():
            print(f"{name}: mean Dice {mean_dice(each, model, options.data):.4f} of {len(HELD_OUT)} cases")


def bfloat16_problem(proto: Any) -> str:
    """Why a model whose weights and arithmetic are bfloat16 cannot be run here; ``runs`` if it can."""
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            bits = onnx.numpy_helper.to_array(tensor).astype(np.float32).view(np.uint32) >> 16
            tensor.data_type = onnx.TensorProto.BFLOAT16
            tensor.ClearField("float_data")
            tensor.raw_data = bits.astype(np.uint16).tobytes()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    del proto.graph.value_info[:]
    try:
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever it raises is the answer
        return str(error).splitlines()[0]
    return "runs"


def speeds(networks: dict[str, Callable[[Tensor], Tensor]], batch: Tensor) -> None:
    """Print windows per second of all networks, measured in turn."""
    times: dict[str, list[float]] = {name: [] for name in networks}
    with torch.no_grad():
        for number in range(ROUNDS + 2):
            for name, network in networks.items():
                begin = time.perf_counter()
                network(batch)
                if number > 1:  # the first ones warm up
                    times[name].append(time.perf_counter() - begin)
    first = statistics.median(next(iter(times.values())))
    for name, each in times.items():
        middle = statistics.median(each)
        print(f"{name}: {len(batch) / middle:.2f} windows/s, {first / middle:.2f} times PyTorch")


def mean_dice(network: nn.Module, model: TrainedModel, data: Path) -> float:
    """Mean over organs and held-out cases."""
    predictor = Predictor([TrainedModel(model.card, [network], torch.device("cpu"))])
    scores = []
    for number in HELD_OUT:
        name = f"hippocampus_{number:03}.nii.gz"
        found = predictor.predict(read_image(data / "imagesTr" / name)).array
        reference = read_label_map(data / "labelsTr" / name).array
        for value in model.labels.values:
            one, other = found == value, reference == value
            scores.append(2 * (one & other).sum() / (one.sum() + other.sum()))
    return float(np.mean(scores))


if __name__ == "__main__":
    main()
