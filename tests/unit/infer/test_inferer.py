import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, sliding_window_inference
from torch import nn

from pipeline.infer.inferer import StreamingInferer


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _network(dims, channels=2, classes=3):
    torch.manual_seed(0)
    convolution = nn.Conv2d if dims == 2 else nn.Conv3d
    return convolution(channels, classes, 3, padding=1).eval()


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("shape", "window", "overlap"),
    [
        ((20, 15, 9), (8, 6, 6), 0.5),  # starts agree with those of MONAI: steps of 4, 3 and 3 divide 12, 9 and 3
        ((16, 12), (8, 4), 0.5),
        ((20, 14), (8, 8), 0.25),
        ((5, 12, 7), (8, 4, 8), 0.0),  # padded along two axes
    ],
)
def test_logits_equal_those_of_monai(shape, window, overlap, batch, blend):
    inputs, network = _random(2, 2, *shape), _network(len(shape))
    with torch.no_grad():
        expected = sliding_window_inference(inputs, window, 4, network, overlap=overlap, mode=blend)
    result = StreamingInferer(window, overlap, blend, batch)(inputs, network)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_two_windows_blend_as_computed_by_hand():
    # Constant blending: voxel 0 is seen by the first window, 1 by both, 2 by the second. The network counts windows.
    calls = []

    def network(window):
        calls.append(tuple(window.shape))
        return torch.full_like(window, float(len(calls)))

    result = StreamingInferer((2, 1), 0.5, "constant")(torch.zeros(1, 1, 3, 1), network)
    assert result.flatten().tolist() == [1.0, 1.5, 2.0]
    assert calls == [(1, 1, 2, 1)] * 2


def test_short_axes_are_padded_on_both_sides_for_the_network_only():
    seen = []

    def network(window):
        seen.append(window)
        return window

    result = StreamingInferer((4, 2))(torch.ones(1, 1, 1, 2), network)
    assert seen[0][0, 0, :, 0].tolist() == [0.0, 1.0, 0.0, 0.0]
    torch.testing.assert_close(result, torch.ones(1, 1, 1, 2))


def test_input_is_never_written_to_even_by_a_network_that_works_in_place():
    inputs = _random(1, 1, 8, 8, 8)
    before = inputs.clone()
    result = StreamingInferer((8, 8, 8))(inputs, lambda window: window.mul_(3.0))
    assert torch.equal(inputs, before)
    torch.testing.assert_close(result, 3 * before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_kept_in_float32(dtype):
    inputs = _random(1, 1, 40, 24).to(dtype)
    result = StreamingInferer((8, 8), 0.75)(inputs, lambda window: window)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, inputs.float(), atol=1e-5, rtol=0)  # half sums would be off by 1e-3 or more


def test_autocast_of_the_caller_reaches_the_network():
    seen = []
    network = _network(2)

    def spy(window):
        logits = network(window)
        seen.append(logits.dtype)
        return logits

    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = StreamingInferer((8, 8))(_random(1, 2, 12, 12), spy)
    assert set(seen) == {torch.bfloat16}
    assert result.dtype == torch.float32


def test_batch_progress_and_further_arguments():
    sizes, steps = [], []

    def network(window, factor, *, offset):
        sizes.append(len(window))
        return factor * window + offset

    inferer = StreamingInferer((4, 4), 0.0, batch=3, progress=lambda *seen: steps.append(seen))
    inputs = _random(2, 1, 8, 8)  # four windows in each of two volumes
    torch.testing.assert_close(inferer(inputs, network, 2.0, offset=1.0), 2 * inputs + 1)
    assert sizes == [3, 1, 3, 1]
    assert steps == [(3, 4, "windows"), (4, 4, "windows")] * 2


def test_one_overlap_per_axis():
    calls = []
    StreamingInferer((4, 4), (0.5, 0.0))(torch.zeros(1, 1, 8, 8), lambda window: calls.append(1) or window)
    assert len(calls) == 3 * 2


@pytest.mark.parametrize(
    ("box", "starts"),
    [
        (((4, 13), (3, 9)), [(row, column) for row in (4, 6, 7, 9) for column in (3, 5)]),  # 9 and 6 voxels
        (((5, 7), (8, 10)), [(4, 6)]),  # smaller than the window, which ends with the volume
        (((0, 20), (0, 3)), None),  # of all rows, and of one window of columns
    ],
)
@pytest.mark.parametrize("axis", [0, 1])
def test_windows_cover_a_box_and_see_what_is_around_it(box, starts, axis):
    inputs, seen = _random(1, 1, 20, 10).add_(9), []
    places = torch.arange(200.0).reshape(1, 1, 20, 10)

    def network(windows):
        seen.extend(windows[:, 1, 0, 0].tolist())
        return windows[:, :1]

    inferer = StreamingInferer((4, 4), 0.5, box=box, axis=axis, batch=2, placement="even")
    found = inferer(torch.cat([inputs, places], 1), network)
    if starts is not None:
        assert sorted(seen) == sorted(10.0 * a + b for a, b in starts)
    inside = torch.zeros(20, 10, dtype=torch.bool)
    inside[tuple(slice(*ends) for ends in box)] = True
    torch.testing.assert_close(found[0, 0, inside], inputs[0, 0, inside])
    first, last = ([n for n in range(20) if found[0, 0, n].any()][k] for k in (0, -1))
    assert (first, last) == (min(box[0][0], 4), max(box[0][1], 8) - 1)


def test_inferer_is_one_of_monai_and_gives_plain_tensors_without_gradients():
    inferer = StreamingInferer((4, 4))
    assert isinstance(inferer, Inferer)
    result = inferer(inputs=MetaTensor(_random(1, 2, 6, 6)), network=_network(2))
    assert type(result) is torch.Tensor
    assert not result.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": (4,)}, "window: expected 2 or 3 sizes"),
        ({"window": (4, 0, 4)}, "window: expected 2 or 3 sizes of at least 1 voxel"),
        ({"window": (4, 4), "batch": 0}, "window batch: expected at least 1, got 0"),
        ({"window": (4, 4), "overlap": 1.0}, "window overlap"),
        ({"window": (4, 4), "blend": "cubic"}, "blend: expected one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StreamingInferer(**arguments)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 1, 4, 4, 4), (0, 1, 4, 4), (1, 1, 0, 4)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"inference input: expected \(B, C, 2 spatial axes\)"):
        StreamingInferer((4, 4))(torch.zeros(shape), lambda window: window)


@pytest.mark.parametrize(
    "network", [lambda x: (x, x[:0]), lambda x: [None], lambda x: x[..., :2], lambda x: x[:, :, 0], lambda x: x[:0]]
)
def test_network_outputs_of_another_shape_are_refused(network):
    with pytest.raises(ValueError, match=r"network output: expected logits \(1, L, 4, 4\), got"):
        StreamingInferer((4, 4))(torch.zeros(1, 1, 4, 4), network)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_logits_stay_on_the_device_of_the_inputs():
    inputs = _random(1, 1, 9, 10, 11)
    result = StreamingInferer((4, 6, 8), batch=3)(inputs.cuda(), lambda window: 2 * window)
    assert result.device.type == "cuda"
    torch.testing.assert_close(result.cpu(), 2 * inputs)
    mixed = StreamingInferer((4, 6, 8))(inputs, lambda window: window.cuda())
    assert mixed.device.type == "cpu"
