"""Windows that networks see mirrored and rotated; the inferer turns their logits back and averages them."""

import pytest
import torch

from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.mirror import Rotation, View, views
from pipeline.infer.passes import Passes


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _mean(network, inputs, axes, margin=None, **kwargs):
    """Of all passes over an image that is one window."""
    return StreamingInferer(inputs.shape[2:], margin=margin)(inputs, Passes([network], axes=axes, **kwargs))


@pytest.mark.parametrize(("axes", "passes"), [((0, 1, 2), 8), ((1, 2), 4), ((1, 1), 2), ((), 1)])
def test_identity_network_returns_its_input_after_all_passes(axes, passes):
    calls = []
    inputs = _random(1, 2, 3, 4, 5)
    result = _mean(lambda window: calls.append(1) or window, inputs, axes)
    torch.testing.assert_close(result, inputs)
    assert len(calls) == passes


def test_mean_of_the_passes_is_that_computed_by_hand():
    # A network that answers with the voxel index along the axis: the mirrored pass, turned back, counts down.
    ramp = torch.arange(4.0).expand(1, 1, 3, 4)
    result = _mean(lambda window: ramp, torch.zeros(1, 1, 3, 4), (1,))
    torch.testing.assert_close(result, torch.full((1, 1, 3, 4), 1.5))


def _by_side(window):
    """Background 0; class 1 where the voxel lies in the left half, class 2 in the right half, class 3 anywhere."""
    half = window.shape[2] // 2
    logits = torch.zeros(1, 4, *window.shape[2:])
    logits[:, 1, :half], logits[:, 2, half:], logits[:, 3] = 1.0, 1.0, 0.5
    return logits


def test_left_and_right_channels_are_swapped_in_passes_that_mirror_them():
    inputs = torch.zeros(1, 1, 6, 2, 2)
    plain = _by_side(inputs)
    aware = _mean(_by_side, inputs, (0, 1, 2), sides=0, side_pairs=((1, 2),))
    torch.testing.assert_close(aware, plain)
    blind = _mean(_by_side, inputs, (0, 1, 2))
    torch.testing.assert_close(blind[:, 1:3], torch.full((1, 2, 6, 2, 2), 0.5))  # half of the passes say left
    unmirrored = _mean(_by_side, inputs, (1, 2), sides=0, side_pairs=((1, 2),))
    torch.testing.assert_close(unmirrored, plain)


def test_half_precision_is_averaged_in_float32_and_nothing_of_the_callers_is_written():
    kept, inputs = _random(1, 1, 4, 4).to(torch.bfloat16), torch.zeros(1, 1, 4, 4)
    before = kept.clone()
    result = _mean(lambda window: window.add_(1) is None or kept, inputs, (0, 1))
    assert result.dtype == torch.float32
    assert torch.equal(kept, before)
    assert not inputs.any()
    flips = [kept.float(), kept.float().flip(2), kept.float().flip(3), kept.float().flip(2, 3)]
    torch.testing.assert_close(result, sum(flips) / 4)


PLANE = Rotation((0, 1))


def test_views_by_hand():
    assert views((2,)) == (View(), View(flips=(2,), mirrored=(2,)))
    half = View(flips=(0, 1))
    assert views((), Rotation((0, 1), quarter=False)) == (View(), half)
    assert views((), PLANE) == (View(), half, View((0, 1), (0,)), View((0, 1), (1,)))
    everything = {(view.swapped, view.flips) for view in views((0, 1), PLANE)}
    assert everything == {(swapped, flips) for swapped in ((), (0, 1)) for flips in ((), (0,), (1,), (0, 1))}
    assert views((0,), PLANE)[4] == View((), (0,), (0,))
    counts = [len(views(axes, PLANE)) for axes in ((), (0,), (1,), (0, 1), (2,), (0, 1, 2))]
    assert counts == [4, 8, 8, 8, 8, 16]  # the 2015 recipe's many orientations: all 8 of the square


@pytest.mark.parametrize("quarter", [False, True])
def test_rotations_are_those_of_the_window(quarter):
    seen = []
    window = _random(1, 1, 4, 4, 2)
    result = _mean(lambda x: seen.append(x.clone()) or x, window, (), rotation=Rotation((0, 1), quarter))
    torch.testing.assert_close(result, window)
    expected = [torch.rot90(window, turns, (2, 3)) for turns in ((0, 2, 1, 3) if quarter else (0, 2))]
    assert len(seen) == len(expected)
    for turned in expected:
        assert any(torch.equal(turned, one) for one in seen)


def test_a_network_that_knows_directions_is_averaged_over_the_four_of_them():
    # It answers with the row's number: turned back, the number of the row from each of the four sides.
    rows = torch.arange(3.0).reshape(1, 1, 3, 1).expand(1, 1, 3, 3)
    assert _mean(lambda window: rows, torch.zeros(1, 1, 3, 3), (), rotation=PLANE).unique().tolist() == [1.0]
    half = Rotation((0, 1), quarter=False)
    assert _mean(lambda window: rows, torch.zeros(1, 1, 3, 3), (), rotation=half).unique().tolist() == [1.0]
    corner = torch.zeros(1, 1, 2, 2)
    corner[..., 0, 0] = 4.0
    assert _mean(lambda window: corner, torch.zeros(1, 1, 2, 2), (), rotation=PLANE).unique().tolist() == [1.0]


def test_windows_that_are_not_square_are_rotated_by_180_degrees_only():
    seen = []
    _mean(lambda x: seen.append(x.shape) or x, torch.zeros(1, 1, 4, 6, 2), (2,), rotation=PLANE)
    assert seen == [(1, 1, 4, 6, 2)] * 4
    seen.clear()
    inferer, passes = StreamingInferer((4, 4), margin=(1, 0)), Passes([_cut(seen)], rotation=PLANE)
    assert inferer(torch.zeros(1, 1, 2, 4), passes).shape == (1, 1, 2, 4)
    assert len(seen) == 2
    assert PLANE.within((4, 4, 9), (2, 2, 9)) == PLANE
    assert not PLANE.within((4, 4), (2, 4)).quarter


def _cut(seen):
    return lambda x: seen.append(x.shape) or x[:, :, 1:-1]


def test_a_rotation_leaves_left_and_right_and_a_mirror_image_swaps_them():
    calls, inputs = [], torch.zeros(1, 1, 2, 2)

    def left(window):
        calls.append(1)
        return torch.ones(1, 3, 2, 2) * torch.tensor([0.0, 1.0, 0.0]).reshape(1, 3, 1, 1)

    turned = _mean(left, inputs, (), sides=0, side_pairs=((1, 2),), rotation=PLANE)
    torch.testing.assert_close(turned[0, :, 0, 0], torch.tensor([0.0, 1.0, 0.0]))
    both = _mean(left, inputs, (0,), sides=0, side_pairs=((1, 2),), rotation=PLANE)
    torch.testing.assert_close(both[0, :, 0, 0], torch.tensor([0.0, 0.5, 0.5]))
    assert len(calls) == 12


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sums", ["float32", "float16"])
def test_mirrored_and_rotated_networks_run_in_windows_along_any_axis(axis, sums):
    inputs, calls = _random(1, 2, 9, 7, 5), []
    passes = Passes([lambda window: calls.append(1) or 2 * window], axes=(0, 2), rotation=PLANE)
    found = StreamingInferer((4, 4, 4), axis=axis, accumulate=sums, batch=3)(inputs, passes)
    rtol = 1e-5 if sums == "float32" else 0.005  # a few roundings of 11 digits
    torch.testing.assert_close(found, 2 * inputs, atol=1e-5, rtol=rtol)
    assert len(calls) % 16 == 0


@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_averaged_in_the_sums_is_the_mean_of_passes_made_one_by_one(axis):
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 4, 3, padding=1).eval()
    inputs, swapped = _random(1, 1, 8, 8, 5), [0, 2, 1, 3]
    expected = []
    for view in views((0, 2), PLANE):
        seen = inputs.transpose(2, 3) if view.swapped else inputs
        dims = [n + 2 for n in view.flips]
        with torch.no_grad():
            logits = network(seen.flip(dims)).flip(dims)
        logits = logits.transpose(2, 3) if view.swapped else logits
        expected.append(logits[:, swapped] if 0 in view.mirrored else logits)
    passes = Passes([network], axes=(0, 2), sides=0, side_pairs=((1, 2),), rotation=PLANE)
    found = StreamingInferer((8, 8, 5), axis=axis)(inputs, passes)
    torch.testing.assert_close(found, torch.stack(expected).mean(0), atol=1e-5, rtol=0)
