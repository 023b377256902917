import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.spec import build_network

OPTIONS = {"unet2015": {"features": (3, 4, 5)}, "unet3d_cicek": {"features": (2, 2, 3)}}


def build(name, dims):
    network = build_network(name, dims, 1, 2, seed=0, **OPTIONS[name]).double()
    generator = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if hasattr(layer, "running_mean"):
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2.0, generator=generator)
    return network.eval()


NETWORKS = [build("unet2015", 2), build("unet3d_cicek", 3)]
_settings = settings(deadline=None, max_examples=6)


def random_image(data, size):
    seed = data.draw(st.integers(0, 2**31))
    return torch.randn(1, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cut(x, start, size):
    return x[(..., *(slice(first, first + n) for first, n in zip(start, size, strict=True)))]


@pytest.mark.parametrize("network", NETWORKS, ids=list(OPTIONS))
@_settings
@given(data=st.data())
def test_tiles_at_multiples_of_the_divisor_are_parts_of_the_whole(network, data):
    tile, steps = network.sizes.smallest, network.divisor
    room = [data.draw(st.integers(0, 5 if network.dims == 2 else 2)) for _ in steps]
    start = [step * data.draw(st.integers(0, n)) for step, n in zip(steps, room, strict=True)]
    x = random_image(data, [n + step * more for n, step, more in zip(tile, steps, room, strict=True)])
    with torch.no_grad():
        whole, part = network(x), network(cut(x, start, tile))
    assert tuple(whole.shape[2:]) == network.output_size(x.shape[2:])
    torch.testing.assert_close(part, cut(whole, start, network.output_size(tile)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("network", NETWORKS, ids=list(OPTIONS))
@_settings
@given(data=st.data())
def test_tiles_elsewhere_are_not(network, data):
    tile = network.sizes.smallest
    size = [n + step for n, step in zip(tile, network.divisor, strict=True)]
    x = random_image(data, size)
    axis = data.draw(st.integers(0, network.dims - 1))
    start = [data.draw(st.integers(1, network.divisor[axis] - 1)) if n == axis else 0 for n in range(network.dims)]
    with torch.no_grad():
        whole, part = network(x), network(cut(x, start, tile))
    assert (part - cut(whole, start, network.output_size(tile))).abs().max() > 1e-4


@_settings
@given(
    kernel=st.sampled_from([1, 3, 5]),
    convs=st.integers(1, 3),
    strides=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    up=st.sampled_from(["transposed", "nearest"]),
    more=st.tuples(st.integers(0, 3), st.integers(1, 3)),
)
def test_every_legal_size_gives_the_size_that_the_rule_says(kernel, convs, strides, up, more):
    options = {
        "features": (2,) * (len(strides) + 1),
        "kernel_sizes": kernel,
        "convs_per_stage": convs,
        "strides": (1, *strides),
        "up": up,
    }
    with torch.device("meta"):
        network = build_network("unet2015", 2, 1, 2, **options).eval()
        size = [n + k * step for n, k, step in zip(network.sizes.smallest, more, network.divisor, strict=True)]
        logits = network(torch.empty(1, 1, *size))
        assert tuple(logits.shape[2:]) == network.output_size(size)
        assert [n - lost for n, lost in zip(size, logits.shape[2:], strict=True)] == [2 * n for n in network.margin]
