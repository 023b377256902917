import pytest
import torch

from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.mirror import mirrored


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
