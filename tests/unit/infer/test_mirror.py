import weakref

import pytest
import torch

from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.mirror import Rotation, View, mirrored, views


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("axes", "passes"), [((0, 1, 2), 8), ((1, 2), 4), ((1, 1), 2), ((), 1)])
def test_identity_network_returns_its_input_after_all_passes(axes, passes):
    calls = []
    inputs = _random(1, 2, 3, 4, 5)
    result = mirrored(lambda window: calls.append(1) or window, axes)(inputs)
    torch.testing.assert_close(result, inputs)
    assert len(calls) == passes


def test_mean_of_the_passes_is_that_computed_by_hand():
    # A network that answers with the voxel index along the axis: the mirrored pass, turned back, counts down.
    ramp = torch.arange(4.0).expand(1, 1, 3, 4)
    result = mirrored(lambda window: ramp, axes=(1,))(torch.zeros(1, 1, 3, 4))
    assert result.unique().tolist() == [1.5]


def _by_side(window):
    """Background 0; class 1 where the voxel lies in the left half, class 2 in the right half, class 3 anywhere."""
    half = window.shape[2] // 2
    logits = torch.zeros(1, 4, *window.shape[2:])
    logits[:, 1, :half], logits[:, 2, half:], logits[:, 3] = 1.0, 1.0, 0.5
    return logits


def test_left_and_right_channels_are_swapped_in_passes_that_mirror_them():
    inputs = torch.zeros(1, 1, 6, 2, 2)
    plain = _by_side(inputs)
    aware = mirrored(_by_side, (0, 1, 2), side_pairs_axis=0, side_pairs=((1, 2),))(inputs)
    torch.testing.assert_close(aware, plain)
    blind = mirrored(_by_side, (0, 1, 2))(inputs)
    assert blind[:, 1:3].unique().tolist() == [0.5]  # half of the passes say left, half say right
    unmirrored = mirrored(_by_side, (1, 2), side_pairs_axis=0, side_pairs=((1, 2),))(inputs)
    torch.testing.assert_close(unmirrored, plain)


def test_half_precision_is_averaged_in_float32_and_nothing_of_the_callers_is_written():
    kept = _random(1, 1, 4, 4).to(torch.bfloat16)
    before = kept.clone()
    result = mirrored(lambda window: kept, (0, 1))(torch.zeros(1, 1, 4, 4))
    assert result.dtype == torch.float32
    assert torch.equal(kept, before)
    flips = [kept.float(), kept.float().flip(2), kept.float().flip(3), kept.float().flip(2, 3)]
    torch.testing.assert_close(result, sum(flips) / 4)


def test_mirrored_network_runs_in_windows():
    inputs = _random(1, 1, 9, 7)
    torch.testing.assert_close(
        StreamingInferer((4, 4))(inputs, mirrored(lambda window: 2 * window, (0, 1))), 2 * inputs
    )


PLANE = Rotation((0, 1))


def test_views_by_hand():
    assert views((2,)) == (View(), View(flips=(2,), mirrored=(2,)))
    half = View(flips=(0, 1))
    assert views((), Rotation((0, 1), quarter=False)) == (View(), half)
    assert views((), PLANE) == (View(), half, View(True, (0,)), View(True, (1,)))
    everything = {(view.swapped, view.flips) for view in views((0, 1), PLANE)}
    assert everything == {(swapped, flips) for swapped in (False, True) for flips in ((), (0,), (1,), (0, 1))}
    assert views((0,), PLANE)[4] == View(False, (0,), (0,))
    counts = [len(views(axes, PLANE)) for axes in ((), (0,), (1,), (0, 1), (2,), (0, 1, 2))]
    assert counts == [4, 8, 8, 8, 8, 16]  # the 2015 recipe's many orientations: all 8 of the square


@pytest.mark.parametrize("quarter", [False, True])
def test_rotations_are_those_of_the_window(quarter):
    seen = []
    window = _random(1, 1, 4, 4, 2)
    result = mirrored(lambda x: seen.append(x.clone()) or x, (), rotation=Rotation((0, 1), quarter))(window)
    torch.testing.assert_close(result, window)
    expected = [torch.rot90(window, turns, (2, 3)) for turns in ((0, 2, 1, 3) if quarter else (0, 2))]
    assert len(seen) == len(expected)
    for turned in expected:
        assert any(torch.equal(turned, one) for one in seen)


def test_a_network_that_knows_directions_is_averaged_over_the_four_of_them():
    # It answers with the row's number: turned back, the number of the row from each of the four sides.
    rows = torch.arange(3.0).reshape(1, 1, 3, 1).expand(1, 1, 3, 3)
    result = mirrored(lambda window: rows, (), rotation=PLANE)(torch.zeros(1, 1, 3, 3))
    assert result.unique().tolist() == [1.0]
    one = mirrored(lambda window: rows, (), rotation=Rotation((0, 1), quarter=False))(torch.zeros(1, 1, 3, 3))
    assert one.unique().tolist() == [1.0]  # (0 + 2) / 2 and so on
    corner = torch.zeros(1, 1, 2, 2)
    corner[..., 0, 0] = 4.0
    assert mirrored(lambda window: corner, (), rotation=PLANE)(torch.zeros(1, 1, 2, 2)).unique().tolist() == [1.0]


def test_windows_that_are_not_square_are_rotated_by_180_degrees_only():
    seen = []
    mirrored(lambda x: seen.append(x.shape) or x, (2,), rotation=PLANE)(torch.zeros(1, 1, 4, 6, 2))
    assert seen == [(1, 1, 4, 6, 2)] * 4
    seen.clear()
    cut = mirrored(lambda x: seen.append(x.shape) or x[:, :, 1:-1], (), rotation=PLANE)(torch.zeros(1, 1, 4, 4))
    assert (len(seen), cut.shape) == (2, (1, 1, 2, 4))


def test_a_rotation_leaves_left_and_right_and_a_mirror_image_swaps_them():
    calls = []

    def left(window):
        calls.append(1)
        return torch.ones(1, 3, 2, 2) * torch.tensor([0.0, 1.0, 0.0]).reshape(1, 3, 1, 1)

    turned = mirrored(left, (), side_pairs_axis=0, side_pairs=((1, 2),), rotation=PLANE)(torch.zeros(1, 1, 2, 2))
    assert turned[0, :, 0, 0].tolist() == [0.0, 1.0, 0.0]
    both = mirrored(left, (0,), side_pairs_axis=0, side_pairs=((1, 2),), rotation=PLANE)(torch.zeros(1, 1, 2, 2))
    assert both[0, :, 0, 0].tolist() == [0.0, 0.5, 0.5]
    assert len(calls) == 12


def test_memory_does_not_grow_with_the_passes():
    alive, most = [], []

    def network(window):
        most.append(sum(one() is not None for one in alive))
        logits = window * 2
        alive.append(weakref.ref(logits))
        return logits

    inputs = _random(1, 1, 4, 4, 4)
    result = mirrored(network, (0, 1, 2), rotation=PLANE)(inputs)
    torch.testing.assert_close(result, 2 * inputs)
    assert (len(most), max(most)) == (16, 0)


def test_rotated_network_runs_in_windows():
    inputs = _random(1, 1, 9, 7)
    rotated = mirrored(lambda window: 2 * window, (0,), rotation=PLANE)
    torch.testing.assert_close(StreamingInferer((4, 4))(inputs, rotated), 2 * inputs)
