"""Every network and every way to predict gives on a GPU what it gives on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from members import REGIONS, image, member, member_of, plan_of, smooth_scan
from networks import MEMBERS, tiny
from torch import Tensor, nn

from pipeline.config.settings import LossSettings, TrainSettings
from pipeline.core.volume import Image
from pipeline.infer.trained_model import TrainedModel
from pipeline.model.device import PLAIN, Execution, execute, to_device
from pipeline.model.spec import build_network
from pipeline.preprocess.interpolation import resample
from pipeline.preprocess.resample import resample_labels
from pipeline.stages.predict import Predictor
from pipeline.stages.tune import fastest, measured_ways
from pipeline.train.loss import supervised_loss
from pipeline.train.state import first_state, update, without_margin

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
MIRRORED = {"augment": {"flip_axes": ("LR", "AP", "SI"), "rotate_degrees": 180.0, "rotate_p": 0.2}}


def devices(count: int = 1) -> list[torch.device]:
    if torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} CUDA devices, found {torch.cuda.device_count()}")
    return [torch.device("cuda", n) for n in range(count)]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32, not in TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize(("name", "dims"), MEMBERS)
def test_every_network_trains_and_predicts_as_on_the_cpu(name: str, dims: int, exact: None) -> None:
    size = tiny(name, dims).legal_size((16,) * 2 if dims == 2 else (8,) * 3)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn((2, 1, *size), generator=generator)
    labels = torch.randint(-1, 3, (2, *size), generator=generator)
    settings = TrainSettings(optimizer="sgd", learning_rate=1e-2)
    # Processors write beyond their memory in this one's backward pass, channels last: PyTorch 2.13 aborts.
    how = Execution(channels_last=(name, dims) != ("resunet", 2))
    losses, found = [], []
    for device in (CPU, *devices()):
        network = tiny(name, dims, out_channels=3)
        for layer in network.modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd):
                layer.p = 0.0  # no two devices drop alike
        execute(network, device, how)
        state = first_state(network.train(), settings, torch.float32, how)

        def objective(heads: Any, labels: Tensor, margin: Sequence[int] = network.margin) -> Tensor:
            return supervised_loss(heads, without_margin(labels, margin), LossSettings())

        batch = [(images.to(device), labels.to(device))]
        losses.append([float(update(state, batch, objective, settings, 1e-2)) for _ in range(2)])
        with torch.inference_mode():
            found.append(network.eval()(how.images(images.to(device))).cpu())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)
    # Where two classes are equally likely, rounding decides.
    best, second = found[0].topk(2, dim=1).values.unbind(1)
    clear = best - second > 2e-3
    assert clear.float().mean() > 0.5
    assert torch.equal(found[1].argmax(1)[clear], found[0].argmax(1)[clear])


def on(models: Sequence[TrainedModel], places: Sequence[torch.device], **infer: Any) -> Predictor:
    """A predictor of the models' networks, copied to other devices in turn."""
    made = []
    for model in models:
        networks = [
            to_device(copy.deepcopy(network), places[n % len(places)]) for n, network in enumerate(model.networks)
        ]
        settings = model.card.settings.infer.model_copy(update=infer)
        made.append(TrainedModel(model.card, networks, places, settings))
    return Predictor(made)


@pytest.mark.parametrize(
    ("make", "infer"),
    [
        (lambda: [member(settings=MIRRORED)], {}),
        (lambda: [member(settings=MIRRORED)], {"mirror": True}),
        (lambda: [member(settings=MIRRORED)], {"mirror": True, "accumulate": "float16"}),
        (lambda: [member(dims=2, settings=MIRRORED)], {"mirror": True}),
        (lambda: [member(table=REGIONS)], {}),
        (lambda: [member()], {"roi": "body", "roi_margin_mm": 4.0}),
        (lambda: [member()], {"roi": "organs", "roi_margin_mm": 4.0}),
        (lambda: [member()], {"roi": "auto", "roi_margin_mm": 4.0}),
        (lambda: [member(folds=2), member(seed=5, spacing_mm=(3.0, 3.0, 3.0))], {}),
    ],
    ids=["plain", "mirror", "float16", "2D", "regions", "body", "organs", "auto", "ensemble"],
)
@pytest.mark.parametrize("given", [image("LPS"), smooth_scan()], ids=["noise", "smooth"])
def test_masks_are_those_of_the_cpu(
    make: Callable[[], list[TrainedModel]], infer: dict[str, Any], given: Image
) -> None:
    models = make()
    expected, found = (on(models, places, **infer).predict(given).array for places in ([CPU], devices()))
    assert len(np.unique(expected)) > 1
    assert np.mean(expected != found) < 1e-3  # rounding may decide near ties


def test_masks_of_many_classes_are_those_of_the_cpu() -> None:
    network = build_network("unet", 3, 1, 40, seed=3, features=(4, 8), norm="instance")
    model = member_of(network, 40, plan_of(40))
    expected, found = (on([model], places).predict(smooth_scan()).array for places in ([CPU], devices()))
    assert len(np.unique(expected)) == 10  # of random weights
    assert np.mean(expected != found) < 1e-3


@pytest.mark.parametrize("regions", [False, True], ids=["softmax", "regions"])
def test_soft_outputs_of_folds_over_two_gpus_are_those_of_the_cpu(regions: bool) -> None:
    options: dict[str, Any] = {"table": REGIONS} if regions else {}
    models = [member(folds=3, settings=MIRRORED, **options)]
    expected, found = (
        on(models, places, mirror=True).predict_soft(image("LPS"), models[0].labels.targets)
        for places in ([CPU], devices(2))
    )
    assert expected.entropy is not None
    assert found.entropy is not None
    np.testing.assert_allclose(found.entropy, expected.entropy, atol=0.02)
    for organ, probabilities in expected.probabilities.items():
        np.testing.assert_allclose(found.probabilities[organ], probabilities, atol=0.02)


@pytest.mark.parametrize("orders", [0, 1, 3, (3, 3, 0), (1, 0, 3)])
def test_resampling_of_every_order_is_the_same_on_both_devices(orders: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn((2, 9, 10, 11), generator=generator)
    labels = torch.randint(-1, 4, (9, 10, 11), generator=generator)
    for shape in ((12, 7, 11), (5, 20, 22)):
        found = resample(volume.cuda(), shape, orders)
        torch.testing.assert_close(found.cpu(), resample(volume, shape, orders), rtol=1e-3, atol=1e-3)
        moved = resample_labels(labels.cuda(), shape)
        assert (found.device.type, moved.device.type) == ("cuda", "cuda")
        assert float((moved.cpu() != resample_labels(labels, shape)).float().mean()) < 1e-3


def test_ways_of_executing_a_network_are_measured_on_a_gpu() -> None:
    (device,) = devices()
    batch = torch.randn(2, 1, 8, 8, 8).to(device), torch.zeros(2, 8, 8, 8, dtype=torch.int64).to(device)
    ways = [PLAIN, Execution(channels_last=False), Execution(compiled="fused"), Execution(compiled="graphs")]
    found = measured_ways(
        lambda: tiny("unet", 3), batch, lambda heads, labels: heads.float().mean(), TrainSettings(), ways
    )
    # Compilers may be missing, and do not know the stand-in: then that is said, and the others are measured.
    assert [entry.step_s is not None for entry in found[:2]] == [True, True]
    assert all((entry.step_s is None) == bool(entry.error) for entry in found)
    assert fastest(found) in ways
