"""Networks whose logits are smaller than their input: tiles that fit together, and the windows they come from."""

import pytest
import torch
from members import logits_of
from networks import tiny
from torch import nn

from pipeline.config.settings import InferSettings, Settings
from pipeline.core.errors import ConfigError
from pipeline.core.grid import mirrored_index
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.trained_model import SliceNetwork, TrainedModel
from pipeline.infer.tta import Passes
from pipeline.infer.windows import check_window, prediction_window
from pipeline.model.folder import ModelCard
from pipeline.model.spec import NetworkSpec, build_network
from pipeline.preprocess.plan_file import Plan


def predict_logits(network, volume, spec, plan, settings):
    card = ModelCard(network=spec, plan=plan, settings=Settings(train={"precision": "fp32"}), provenance={})
    return logits_of(TrainedModel(card, [network], torch.device("cpu"), settings), volume)


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _valid(name, dims, **options):
    return tiny(name, dims, **options).double().eval()


def _whole(network, inputs, run=None):
    """The network applied once to the whole volume, mirrored at its border."""
    size = inputs.shape[2:]
    legal = network.legal_size([n + 2 * lost for n, lost in zip(size, network.margin, strict=True)])
    for axis, (lost, wide) in enumerate(zip(network.margin, legal, strict=True)):
        index = torch.from_numpy(mirrored_index(-lost, wide, size[axis]))
        inputs = inputs.index_select(axis + 2, index)
    with torch.no_grad():
        logits = (run or network)(inputs)
    return logits[(..., *(slice(n) for n in size))]


def _inferer(network, window, overlap=0.0, **arguments):
    arguments = {"margin": network.margin, "step": network.divisor, **arguments}
    return StreamingInferer(window, overlap, batch=3, **arguments)


@pytest.mark.parametrize(("name", "dims"), [("unet2015", 2), ("unet2015", 3), ("unet3d_cicek", 3)])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_tiles_equal_the_whole_volume(name, dims, overlap):
    network = _valid(name, dims)
    inputs = _random(2, 1, *(17, 9, 5)[:dims])
    window = [n + 2 * step for n, step in zip(network.legal_size((1,) * dims), network.divisor, strict=True)]
    result = _inferer(network, window, overlap)(inputs, network)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, _whole(network, inputs), atol=1e-10, rtol=0)


def test_tiles_off_the_step_differ_from_the_whole_volume():
    network = _valid("unet2015", 2)  # its step is 2
    window, inputs = network.legal_size((24, 24)), _random(1, 1, 40, 40)
    tile = network.output_size(window)[0]
    assert tile % 2 == 0
    overlap = 1 / tile  # tiles an odd number of pixels apart, if it were not for the step
    result = _inferer(network, window, overlap)(inputs, network)
    torch.testing.assert_close(result, _whole(network, inputs), atol=1e-10, rtol=0)
    illegal = _inferer(network, window, overlap, step=(1, 1))(inputs, network)
    assert (illegal - _whole(network, inputs)).abs().max() > 1e-3


def test_windows_show_the_image_beyond_a_tile_and_mirror_it_beyond_the_border_alone():
    seen = []

    def network(windows):
        seen.extend(windows[:, 0, :, 0].tolist())
        return windows[:, :, 2:-2]

    inputs = torch.arange(7.0).reshape(1, 1, 7, 1)
    result = StreamingInferer((8, 1), 0.0, margin=(2, 0), step=(4, 1))(inputs, network)
    assert seen == [[2, 1, 0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 5, 4, 3]]
    torch.testing.assert_close(result, inputs)


def test_volumes_smaller_than_the_margin():
    network = _valid("unet2015", 2)
    inputs = _random(1, 1, 1, 3)
    result = _inferer(network, network.legal_size((1, 1)))(inputs, network)
    torch.testing.assert_close(result, _whole(network, inputs), atol=1e-10, rtol=0)


def test_mirrored_passes_are_turned_back_with_their_margin():
    network = _valid("unet2015", 2)
    inputs = _random(1, 1, 13, 10)
    result = _inferer(network, network.legal_size((30, 30)))(inputs, Passes([network], axes=(0, 1)))
    flips = [(), (2,), (3,), (2, 3)]
    expected = _whole(network, inputs, lambda x: sum(network(x.flip(dims)).flip(dims) for dims in flips) / 4)
    torch.testing.assert_close(result, expected, atol=1e-10, rtol=0)
    assert (result - _whole(network, inputs)).abs().max() > 1e-3


def test_tiles_of_a_box_are_those_of_the_whole_volume():
    network = _valid("unet2015", 2)
    inputs, window = _random(1, 1, 43, 40), network.legal_size((30, 30))
    inferer = _inferer(network, window, box=((21, 35), (5, 19)))
    found, whole = inferer(inputs, network), _whole(network, inputs)
    inside = (..., slice(21, 35), slice(5, 19))
    torch.testing.assert_close(found[inside], whole[inside], atol=1e-10, rtol=0)
    assert not found[..., :8, :].any()


@pytest.mark.parametrize("axis", [0, 2])
def test_slices_of_a_volume_have_their_margin_in_plane(axis):
    network = _valid("unet2015", 2)
    runner = SliceNetwork(network, axis)
    lost, step = network.margin[0], network.divisor[0]
    assert runner.margin == tuple(0 if n == axis else lost for n in range(3))
    assert runner.divisor == tuple(1 if n == axis else step for n in range(3))
    window = runner.legal_size(tuple(1 if n == axis else 20 for n in range(3)))
    volume = _random(1, 1, 6, 5, 7)
    result = _inferer(runner, window)(volume, runner)
    expected = torch.stack([_whole(network, part) for part in volume.unbind(2 + axis)], dim=2 + axis)
    torch.testing.assert_close(result, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": (1,)}, r"margin: expected 2 numbers of at least 0, got \(1,\)"),
        ({"margin": (1, -1)}, "margin: expected 2 numbers of at least 0"),
        ({"step": (0, 1)}, "step: expected 2 numbers of at least 1"),
        ({"margin": (0, 4)}, r"window: expected more than twice the margin \(0, 4\), got \(8, 8\)"),
    ],
)
def test_wrong_margins_and_steps_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StreamingInferer((8, 8), **arguments)


def test_outputs_with_another_margin_are_refused():
    with pytest.raises(ValueError, match=r"network output: expected logits \(1, L, 4, 6\), got \(1, 1, 8, 8\)"):
        StreamingInferer((8, 8), margin=(2, 1))(torch.zeros(1, 1, 4, 4), lambda window: window)


@pytest.mark.parametrize(
    ("name", "dims", "patch", "shape", "expected"),
    [
        ("ciresan_n4", 2, (95, 95), (512, 40), (188, 134)),  # 94 pixels of logits, or as many as the image has
        ("unet2015", 2, (572, 572), (512, 512), (572, 572)),
        ("unet2015", 2, (204, 204), (512, 512), (380, 380)),  # 196 pixels of logits, the margin being 92
        ("unet2015", 2, (572, 572), (388, 100), (572, 284)),  # no larger than the image needs
        ("unet3d_cicek", 3, (132, 132, 116), (999, 999, 30), (180, 180, 124)),
    ],
)
def test_windows_of_networks_with_a_margin(name, dims, patch, shape, expected):
    with torch.device("meta"):
        network = build_network(name, dims, 1, 2)
    assert prediction_window(network, patch, shape) == expected
    assert network.legal_size(expected) == expected


def _spec(name, dims, patch, **options):
    return NetworkSpec(name=name, dims=dims, in_channels=1, out_channels=2, options=options, patch_size=patch)


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("unet2015", (200, 204), r"infer.window_size: expected a size unet2015 can tile .*\(204, 204\)\.$"),
        ("unet2015", (188, 220), r"got \(188, 220\)\. The next legal one is \(204, 220\)\.$"),  # 4 pixels of logits
        ("unet", (40, 32), r"can tile volumes with, got \(40, 32\)\. The next legal one is \(48, 32\)"),
        ("unet", (32, 32, 32), "infer.window_size: expected 2 numbers for a network of 2 dimensions, got"),
    ],
)
def test_illegal_windows_are_refused_with_the_next_legal_one(name, wanted, message):
    with pytest.raises(ConfigError, match=message):
        check_window(_spec(name, 2, (64, 64)), InferSettings(window_size=wanted))


def test_legal_windows_pass():
    check_window(_spec("unet2015", 2, (204, 204)), InferSettings())
    check_window(_spec("unet2015", 2, (204, 204)), InferSettings(window_size=(204, 572)))
    check_window(_spec("unet", 3, (16, 16, 16)), InferSettings(window_size=(32, 16, 48)))


def _plan(slice_axis=2):
    plan = {
        "dataset": "toy",
        "channels": ("CT",),
        "labels": {"names": {"1": "organ"}, "ignore_label": None},
        "orientation": "RAS",
        "crop": "none",
        "spacing_mm": (1.0, 1.0, 1.0),
        "image_order": 1,
        "store_dtype": "float32",
        "normalization": ({"scheme": "zscore"},),
        "median_shape": (20, 20, 20),
        "slice_axis": slice_axis,
        "patch_3d": {"patch_size": (16, 16, 16), "batch_size": 2},
        "patch_2d": {"patch_size": (16, 16), "batch_size": 2},
    }
    return Plan.model_validate(plan)


class _Spy(nn.Module):
    """Hands on what a network is asked, with its sizes."""

    def __init__(self, network):
        super().__init__()
        self.network, self.margin, self.divisor = network, network.margin, network.divisor
        self.seen = []

    def legal_size(self, size):
        return self.network.legal_size(size)

    def forward(self, windows):
        self.seen.append(tuple(windows.shape))
        return self.network(windows)


def test_the_pixel_classifier_predicts_densely():
    network = _Spy(tiny("ciresan_n4", 2).eval())
    volume = _random(1, 30, 3, 100).float()
    logits = predict_logits(network, volume, _spec("ciresan_n4", 2, (95, 95)), _plan(1), InferSettings(batch_size=1))
    # Slices lie across j. 3 windows of 124 by 188 pixels are no more than 8 of 95 by 95.
    assert [shape[0] for shape in network.seen] == [3, 3]
    assert {shape[2:] for shape in network.seen} == {(124, 188)}
    for index in range(3):
        expected = _whole(network, volume[None, :, :, index])
        torch.testing.assert_close(logits[None, :, :, index], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("norm", "calls"), [("none", 4), ("batch", 4), ("instance", 9)])
def test_overlap_costs_windows_only_where_tiles_disagree(norm, calls):
    network = _Spy(tiny("unet2015", 2, norm=norm).eval())
    window = network.legal_size((32, 32))
    tile = network.network.output_size(window)[0]
    volume = _random(1, 2 * tile, 2 * tile, 1).float()
    settings = InferSettings(window_size=window, overlap=0.5, batch_size=8)
    logits = predict_logits(network, volume, _spec("unet2015", 2, window, features=(4, 8)), _plan(), settings)
    assert sum(shape[0] for shape in network.seen) == calls
    assert logits.shape == (2, 2 * tile, 2 * tile, 1)


def test_a_window_larger_than_the_patch_gives_a_padded_network_more_to_see():
    network = _Spy(tiny("unet", 3).eval())
    spec, settings = _spec("unet", 3, (4, 4, 4), features=(4, 8)), InferSettings(window_size=(8, 4, 6), batch_size=2)
    logits = predict_logits(network, _random(1, 9, 4, 5).float(), spec, _plan(), settings)
    assert logits.shape == (2, 9, 4, 5)
    assert network.seen == [(2, 1, 8, 4, 6)]


def test_networks_without_rules_are_padded():
    volume = _random(1, 9, 4, 5).float()
    spec = _spec("unet", 3, (4, 4, 4))
    torch.testing.assert_close(predict_logits(nn.Identity(), volume, spec, _plan(), InferSettings()), volume)
