"""Sums over windows and passes, computed by hand."""

import pytest
import torch

from pipeline.infer.slab import Slab, Sums, Weights

CPU = torch.device("cpu")


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_window_is_added_turned_back_and_with_its_channels_in_place():
    slab, logits = Slab(4, (3, 2), 3, torch.float32, CPU), _random(3, 4, 3, 2)
    weights = Weights(torch.full((4, 3, 2), 0.5), 3, torch.float32)
    slab.add((0, 0, 0), logits, weights, flips=(0, 2), swapped=((1, 2),))
    assert torch.equal(slab.finish(4), logits[[0, 2, 1]].flip(1, 3).permute(1, 2, 3, 0))


@pytest.mark.parametrize("flips", [(), (0,), (1,), (0, 1, 2)])
def test_what_lies_outside_is_left_out_of_turned_windows_too(flips):
    slab, logits = Slab(5, (4, 4), 2, torch.float32, CPU), _random(2, 5, 6, 3)
    slab.add((0, -1, 2), logits, Weights(torch.ones(5, 6, 3), 2, torch.float32), flips)
    back = logits.flip([n + 1 for n in flips]).permute(1, 2, 3, 0)
    found = slab.finish(5)
    assert torch.equal(found[:, :, 2:], back[:, 1:5, :2])
    assert not found[:, :, :2].any()


@pytest.mark.parametrize("classes", [2, 40])
def test_planes_go_around_the_ring_in_pieces(classes, monkeypatch):
    monkeypatch.setattr("pipeline.infer.slab._ADDED_BYTES", 3 * 4 * 4 * classes * 4)  # three planes
    slab, weights = Slab(5, (4, 4), classes, torch.float32, CPU), Weights(torch.ones(5, 4, 4), classes, torch.float32)
    first, second = _random(classes, 5, 4, 4), _random(classes, 5, 4, 4, seed=1)
    slab.add((0, 0, 0), first, weights)
    assert torch.equal(slab.finish(3), first[:, :3].permute(1, 2, 3, 0))
    slab.forget(3)
    slab.add((3, 0, 0), second, weights)
    expected = torch.cat([(first[:, 3:] + second[:, :2]) / 2, second[:, 2:]], 1).permute(1, 2, 3, 0)
    assert slab.piece_end(8) == 5
    torch.testing.assert_close(slab.finish(5), expected[:2])
    slab.forget(5)
    assert torch.equal(slab.finish(8), expected[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("relative", [False, True])
def test_the_mean_of_passes_made_elsewhere_first_is_the_same(dtype, relative):
    passes = [_random(6, 4, 4, 4, seed=n) for n in range(5)]
    importance = _random(4, 4, 4).abs() + 1e-3
    found = []
    for elsewhere in (None, CPU):
        sums = Sums(Slab(4, (4, 4), 6, dtype, CPU, relative), importance, len(passes), elsewhere)
        for n, logits in enumerate(passes):
            sums.add((0, 0, 0), logits, flips=(n % 3,), swapped=((1, 2),) * (n % 2))
        assert not sums.means
        found.append(sums.slab.finish(4))
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    same = [one - one.amax(-1, keepdim=True) for one in found]  # a relative mean is of logits relative once more
    torch.testing.assert_close(*same, atol=tolerance, rtol=tolerance)
