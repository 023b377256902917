import pytest
import torch
from torch import nn

from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.slices import SliceNetwork


class _Ramp(nn.Module):
    """2D network: channel 0 repeats the input, channel 1 adds the row index, channel 2 the column index."""

    divisor = (8, 4)

    def legal_size(self, size):
        return tuple(-(-n // d) * d for n, d in zip(size, self.divisor, strict=True))

    def forward(self, image):
        rows = torch.arange(image.shape[2]).view(-1, 1)
        return torch.cat([image, image + rows, image + torch.arange(image.shape[3])], dim=1)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thickness", [1, 3])
def test_every_slice_goes_through_the_network(axis, thickness):
    shape = [4, 5, 6]
    shape[axis] = thickness
    volume = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    logits = SliceNetwork(_Ramp(), axis)(volume)
    assert logits.shape == (2, 3, *shape)
    for index in range(thickness):
        expected = _Ramp()(volume.select(2 + axis, index))
        assert torch.equal(logits.select(2 + axis, index), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_whole_volumes_run_through_the_inferer(axis):
    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, 1).eval()
    window = [4, 4, 4]
    window[axis] = 1
    volume = torch.randn(1, 1, 6, 5, 7, generator=torch.Generator().manual_seed(1))
    result = StreamingInferer(window, 0.5, batch=8)(volume, SliceNetwork(network, axis))
    with torch.no_grad():
        expected = torch.stack([network(part) for part in volume.unbind(2 + axis)], dim=2 + axis)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("axis", "divisor", "legal"), [(0, (1, 8, 4), (5, 16, 8)), (1, (8, 1, 4), (8, 9, 8)), (2, (8, 4, 1), (8, 12, 6))]
)
def test_legal_sizes_are_those_of_the_network_in_plane(axis, divisor, legal):
    network = SliceNetwork(_Ramp(), axis)
    assert network.divisor == divisor
    assert network.legal_size((5, 9, 6)) == legal


def test_network_without_rules_takes_any_size():
    network = SliceNetwork(nn.Identity(), 1)
    assert network.divisor == (1, 1, 1)
    assert network.legal_size((5, 9, 6)) == (5, 9, 6)


def test_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="slice axis: expected 0, 1 or 2, got 3"):
        SliceNetwork(nn.Identity(), 3)
