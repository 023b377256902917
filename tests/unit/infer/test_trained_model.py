import pytest
import torch
from members import member
from torch import nn

from pipeline.core.errors import VolsegError
from pipeline.infer import trained_model as room
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.trained_model import SliceNetwork, device_with_memory, with_room


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


# Predictions that cannot fit are refused with the numbers, before the first window.

CPU = torch.device("cpu")


def test_enough_memory_is_on_the_device_of_the_network(monkeypatch):
    monkeypatch.setattr(room, "available_bytes", lambda: 2_000)
    assert device_with_memory(2_000, "logits", CPU) == CPU
    assert device_with_memory(2_000, "logits", CPU, 3_000) == CPU


@pytest.mark.parametrize(("most", "got"), [(None, "4.0 GB"), (30_000_000, "30 MB")])
def test_too_little_memory_is_refused_with_the_numbers(monkeypatch, most, got):
    monkeypatch.setattr(room, "available_bytes", lambda: 4_000_000_000)
    with pytest.raises(VolsegError, match=rf"memory: expected at least 4.1 GB for 105 classes, got {got}\. Set infer"):
        device_with_memory(4_100_000_000, "105 classes", CPU, most)


def test_where_nothing_is_known_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(room, "available_bytes", lambda: None)
    assert device_with_memory(10**15, "logits", CPU) == CPU


def test_a_gpu_with_too_little_memory_leaves_the_sums_to_the_cpu(monkeypatch):
    monkeypatch.setattr(room, "available_bytes", lambda: 10**12)
    monkeypatch.setattr(room, "free_bytes", lambda device: 10_000)
    cuda = torch.device("cuda", 0)
    assert device_with_memory(8_000, "logits", cuda) == cuda  # 0.8 of what is free
    assert device_with_memory(8_001, "logits", cuda) == CPU
    assert device_with_memory(5_000, "logits", cuda, beside=3_000) == cuda
    assert device_with_memory(5_000, "logits", cuda, beside=3_001) == CPU  # no room for the image


def test_a_limit_holds_on_a_gpu_too(monkeypatch):
    monkeypatch.setattr(room, "available_bytes", lambda: 10**12)
    monkeypatch.setattr(room, "free_bytes", lambda device: 10**12)
    cuda = torch.device("cuda", 0)
    assert device_with_memory(2_000, "logits", cuda, 2_000) == cuda
    with pytest.raises(VolsegError, match=r"memory: expected at least 4.1 GB for 105 classes, got 30 MB\. Set infer"):
        device_with_memory(4_100_000_000, "105 classes", cuda, 30_000_000)


def test_what_a_window_takes_on_a_gpu(monkeypatch):
    model = member()
    monkeypatch.setattr(room, "window_bytes", lambda network, shape, dtype: sum(shape))
    # 5 classes in windows of 8 x 8 x 8: sums of 8 planes, logits of 4 windows twice, the image, and a window.
    sums, logits, image = 5 * 8 * 20 * 30 * 4, 2 * 5 * 512 * 4 * 4, 10 * 20 * 30 * 4
    assert model.bytes_on_gpu((1, 10, 20, 30), model.inferer((10, 20, 30), axis=0)) == sums + logits + image + 26


# Where a GPU runs out of memory on the way, sums go to the CPU and the work begins anew.


def failing(times, done):
    def work(models):
        done.append([one.sums_on_cpu for one in models])
        if len(done) <= times:
            raise RuntimeError("CUDA error: out of memory")
        return "labels"

    return work


def on_gpu():
    model = member()
    model.devices = [torch.device("cuda", 0)]
    return model


@pytest.mark.parametrize("times", [0, 1])
def test_the_second_try_has_its_sums_on_the_cpu(times):
    done, model = [], on_gpu()
    assert with_room([model], failing(times, done)) == "labels"
    assert done == [[False], [True]][: times + 1]
    assert not model.sums_on_cpu  # the next case is tried on the GPU again


def test_after_it_the_user_is_told_what_to_change():
    done = []
    with pytest.raises(
        VolsegError, match=r"memory of cuda:0: expected enough for a batch of windows.*infer\.window_size"
    ):
        with_room([on_gpu()], failing(2, done))
    assert len(done) == 2


def test_on_the_cpu_there_is_one_try():
    done = []
    with pytest.raises(VolsegError, match="memory of cpu: expected enough for a batch of windows"):
        with_room([member()], failing(1, done))
    assert done == [[False]]


def test_errors_of_other_kinds_are_not_tried_again():
    def work(models):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        with_room([on_gpu()], work)
