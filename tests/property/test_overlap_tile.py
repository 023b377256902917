from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import tiny

from pipeline.core.grid import mirrored_index
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.windows import tile_starts

NETWORKS = {
    (name, dims): tiny(name, dims, **options).double().eval()
    for name, dims, options in (
        ("unet2015", 2, {"features": (2, 3, 4)}),
        ("unet2015", 3, {"features": (2, 3)}),
        ("unet", 2, {"features": (2, 3), "padding": "valid", "strides": (1, (2, 1)), "kernel_sizes": ((3, 1), (3, 1))}),
        ("ciresan_n4", 2, {}),
    )
}


@settings(max_examples=300)
@given(st.integers(1, 200), st.integers(1, 80), st.integers(1, 20), st.floats(0.0, 0.99))
def test_tiles_cover_every_voxel_at_multiples_of_the_step(size: int, tile: int, step: int, overlap: float) -> None:
    if tile < step:
        return
    starts = tile_starts(size, tile, step, overlap)
    assert starts[0] == 0
    assert all(start % step == 0 for start in starts)
    assert starts[-1] < size <= starts[-1] + tile
    gaps = {after - before for before, after in pairwise(starts)}
    assert len(gaps) <= 1
    assert all(gap <= max(step, tile * (1 - overlap) + 1e-6) for gap in gaps)


@settings(max_examples=30)
@given(
    st.sampled_from(sorted(NETWORKS)),
    st.lists(st.integers(1, 14), min_size=3, max_size=3),
    st.lists(st.integers(0, 4), min_size=3, max_size=3),
    st.sampled_from([0.0, 0.3, 0.6]),
    st.integers(1, 5),
)
def test_tiles_equal_the_network_applied_once_to_the_whole_mirrored_volume(
    key: tuple[str, int], shape: list[int], steps: list[int], overlap: float, batch: int
) -> None:
    network, dims = NETWORKS[key], key[1]
    rules = list(zip(shape, steps, network.margin, network.divisor, strict=False))
    wide = image = torch.randn(1, 1, *shape[:dims], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    window = network.legal_size([(1 + more) * step + 2 * lost for _, more, lost, step in rules])
    whole = network.legal_size([n + 2 * lost for n, _, lost, _ in rules])
    for axis, (n, _, lost, _) in enumerate(rules):
        wide = wide.index_select(axis + 2, torch.from_numpy(mirrored_index(-lost, whole[axis], n)))
    with torch.no_grad():
        expected = network(wide)[(..., *(slice(n) for n in shape[:dims]))]
    inferer = StreamingInferer(window, overlap, batch=batch, margin=network.margin, step=network.divisor)
    torch.testing.assert_close(inferer(image, network), expected, atol=1e-10, rtol=0)
