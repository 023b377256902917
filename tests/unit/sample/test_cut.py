from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cutting import cut

from pipeline.sample import cut as module
from pipeline.sample.cut import cut_batch
from pipeline.sample.patches import Patch
from pipeline.sample.spatial import Move, affine_matrices


@pytest.mark.parametrize("start", [(0, 0, 0), (2, 1, 3), (-2, -1, 0), (3, 4, 5), (-3, 2, 4), (-1, -1, -1)])
@pytest.mark.parametrize("size", [(3, 3, 3), (1, 4, 2), (9, 10, 11)])
def test_equals_a_padded_array(start: tuple[int, int, int], size: tuple[int, int, int]) -> None:
    volume = torch.arange(2 * 5 * 6 * 7).reshape(2, 5, 6, 7)
    padded = np.pad(volume.numpy(), [(0, 0), (20, 20), (20, 20), (20, 20)], constant_values=-9)
    i, j, k = (20 + first for first in start)
    expected = padded[:, i : i + size[0], j : j + size[1], k : k + size[2]]
    patch = cut(volume, start, size, -9)
    np.testing.assert_array_equal(patch.numpy(), expected)
    assert patch.dtype == volume.dtype
    assert patch.is_contiguous()


@pytest.mark.parametrize("start", [(-50, 0, 0), (0, 50, 0), (5, 6, 7)])
def test_a_patch_outside_the_volume_is_padding(start: tuple[int, int, int]) -> None:
    assert (cut(torch.ones(1, 5, 6, 7), start, (3, 3, 3), 4.0) == 4.0).all()


def test_a_patch_shares_no_memory() -> None:
    volume = torch.zeros(1, 4, 4, 4)
    cut(volume, (0, 0, 0), (4, 4, 4), 0.0).fill_(1.0)
    assert volume.sum() == 0


def test_batches_have_network_types_and_ignored_padding() -> None:
    image = torch.full((2, 4, 4, 4), 1.5, dtype=torch.float16)
    label = np.full((4, 4, 4), 3, np.int8)  # arrays and tensors alike
    images, labels = cut_batch(
        {"a": (image, label), "b": (image * 2, label)}, [Patch("b", (0, 0, 0)), Patch("a", (-1, 0, 0))], (2, 4, 3)
    )
    assert images.shape == (2, 2, 2, 4, 3)
    assert images.dtype == torch.float32
    assert labels.shape == (2, 2, 4, 3)
    assert labels.dtype == torch.int64
    assert images[:, :, 1].unique(dim=0).flatten().unique().tolist() == [1.5, 3.0]
    assert (images[0] == 3.0).all()
    assert (images[1, :, 0] == 0).all()
    assert (labels[1, 0] == -1).all()
    assert (labels[1, 1] == 3).all()


def test_padding_can_be_chosen() -> None:
    volumes = {"a": (torch.zeros(1, 2, 2, 2), torch.zeros(2, 2, 2, dtype=torch.int8))}
    images, labels = cut_batch(volumes, [Patch("a", (0, 0, 1))], (2, 2, 2), padding=(-3.0, 0))
    assert images[0, 0, 0, 0].tolist() == [0.0, -3.0]
    assert labels.unique().tolist() == [0]


def test_only_the_patch_is_read() -> None:
    class Chunked:
        shape = (1, 100, 100, 100)

        def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
            assert key == (slice(None), slice(98, 100), slice(0, 4), slice(10, 14))
            return np.ones((1, 2, 4, 4), np.float32)

    label = torch.zeros(100, 100, 100, dtype=torch.int8)
    images, _ = cut_batch({"a": (Chunked(), label)}, [Patch("a", (98, 0, 10))], (4, 4, 4))
    assert images.sum() == 2 * 4 * 4


@pytest.mark.parametrize("start", [(0, 0, 0), (-2, 1, 3), (3, 4, 5), (-20, 2, 30), (-9, -1, -1)])
def test_mirroring_equals_a_reflected_array(start: tuple[int, int, int]) -> None:
    volume = torch.arange(2 * 5 * 6 * 7).reshape(2, 5, 6, 7)
    padded = np.pad(volume.numpy(), [(0, 0), (40, 40), (40, 40), (40, 40)], mode="reflect")
    i, j, k = (40 + first for first in start)
    patch = cut(volume, start, (9, 3, 8), None)  # longer than the volume along i and k
    np.testing.assert_array_equal(patch.numpy(), padded[:, i : i + 9, j : j + 3, k : k + 8])
    assert patch.is_contiguous()


def test_a_margin_shows_the_image_around_the_patch_and_ignores_what_is_no_image() -> None:
    image = torch.arange(4.0).reshape(1, 4, 1, 1).half()
    label = np.arange(4, dtype=np.int8).reshape(4, 1, 1)
    patches = [Patch("a", (0, 0, 0)), Patch("a", (1, 0, 0))]
    images, labels = cut_batch({"a": (image, label)}, patches, (4, 1, 1), margin=(1, 0, 0))
    assert images.flatten(1).tolist() == [[1, 0, 1, 2], [0, 1, 2, 3]]
    assert labels.flatten(1).tolist() == [[-1, 0, 1, 2], [0, 1, 2, 3]]


def test_mirroring_reads_no_more_than_it_shows() -> None:
    class Chunked:
        shape = (1, 100, 100, 100)

        def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
            assert key == (slice(None), slice(94, 100), slice(1, 9), slice(10, 18))
            return np.broadcast_to(np.arange(94, 100, dtype=np.float16)[:, None, None], (1, 6, 8, 8)).copy()

    label = torch.zeros(100, 100, 100, dtype=torch.int8)
    images, _ = cut_batch({"a": (Chunked(), label)}, [Patch("a", (96, -6, 12))], (8, 8, 8), margin=(2, 2, 2))
    assert images[0, 0, :, 0, 0].tolist() == [94, 95, 96, 97, 98, 99, 98, 97]


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="patches: expected at least one for a batch, got none"):
        cut_batch({}, [], (2, 2, 2))


# Patches that are rotated, zoomed or bent are sampled from what lies around them.

SHAPE = (30, 28, 26)


def volume(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, *SHAPE, generator=generator).to(dtype)
    return image, torch.randint(0, 5, SHAPE, generator=generator).to(torch.int8)


def zoomed(zoom: float, *angles: float) -> Move:
    spacing = (1.0,) * (3 if len(angles) == 3 else 2)
    return Move(affine_matrices(torch.tensor([angles]), torch.tensor([zoom]), spacing)[0])


def test_moved_patches_show_the_volume_and_the_others_stay_as_they_are() -> None:
    pair, size, start = volume(), (10, 8, 6), (4, 11, 14)
    move = zoomed(0.7, 0.3, -0.2, 0.4)
    patches = [Patch("a", start), Patch("a", (20, 20, 20)), Patch("a", start)]
    images, labels = cut_batch({"a": pair}, patches, size, moves={2: move})
    plain, plain_labels = cut_batch({"a": pair}, patches, size)
    assert torch.equal(images[:2], plain[:2])
    assert torch.equal(labels[:2], plain_labels[:2])
    assert labels[2].min() == 0  # no padding: inside the volume, only in its corners the patch is not
    # The same from the whole volume, padded so that the patch lies in its middle.
    padded = [np.pad(part.numpy(), [(0, 0)] * (part.ndim - 3) + [(40, 40)] * 3, constant_values=-1) for part in pair]
    padded[0][padded[0] == -1] = 0
    around = tuple(slice(40 + s - 15, 40 + s - 15 + n + 30) for s, n in zip(start, size, strict=True))
    whole = move.show(torch.from_numpy(padded[0][:, *around]), torch.from_numpy(padded[1][around]), size, [-15] * 3)
    torch.testing.assert_close(images[2], whole[0], atol=1e-4, rtol=0)
    assert torch.equal(labels[2], whole[1].long())


def test_beyond_the_volume_a_moved_patch_shows_padding() -> None:
    ones = torch.ones(1, 8, 8, 8), torch.ones(8, 8, 8, dtype=torch.int8)
    images, labels = cut_batch({"a": ones}, [Patch("a", (0, 0, 0))], (4, 8, 8), moves={0: zoomed(0.5, 0.0, 0.0, 0.0)})
    # From -1.5 to 4.5 along the first axis in steps of 2: the first is outside, between padding and volume.
    assert labels[0, :, 4, 4].tolist() == [-1, 1, 1, 1]
    assert images[0, 0, :, 4, 4].tolist() == [0.0, 1.0, 1.0, 1.0]
    assert labels[0, 2].tolist()[4] == [-1, -1, 1, 1, 1, 1, -1, -1]  # twice as long as the volume


def test_of_a_moved_patch_only_the_box_is_read() -> None:
    class Chunked:
        shape = (1, 100, 100, 100)

        def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
            assert key == (slice(None), slice(48, 56), slice(0, 6), slice(97, 100))
            return np.ones((1, 8, 6, 3), np.float32)

    label = torch.zeros(100, 100, 100, dtype=torch.int8)
    patches = [Patch("a", (50, 0, 98))]
    images, labels = cut_batch({"a": (Chunked(), label)}, patches, (4, 4, 2), moves={0: zoomed(0.5, 0.0, 0.0, 0.0)})
    assert images[0, 0, :, 1:, 0].unique().tolist() == [1.0]
    assert labels[0, 0, :, 1].tolist() == [-1, 0, 0, 0]


def test_around_a_margin_a_moved_patch_shows_the_volume_mirrored() -> None:
    image, label = torch.arange(8.0).reshape(1, 8, 1, 1).expand(1, 8, 8, 8), torch.ones(8, 8, 8, dtype=torch.int8)
    options = {"margin": (2, 0, 0), "moves": {0: zoomed(0.5, 0.0, 0.0, 0.0)}}
    images, labels = cut_batch({"a": (image, label)}, [Patch("a", (0, 2, 2))], (6, 4, 4), **options)
    # Places -4.5, -2.5, -0.5, 1.5, 3.5, 5.5 of a volume that goes on as 5, 4, 3, 2, 1, then 0, 1, 2, ….
    assert images[0, 0, :, 1, 1].tolist() == [4.5, 2.5, 0.5, 1.5, 3.5, 5.5]
    assert labels[0, :, 1, 1].tolist()[:2] == [-1, -1]
    assert labels[0, :, 1, 1].tolist()[3:] == [1, 1, 1]


@pytest.mark.parametrize("across", [0, 1, 2])
def test_patches_of_slices_move_within_their_slice(across: int) -> None:
    axes = [axis for axis in range(3) if axis != across]
    slices = torch.arange(12.0).reshape([-1 if axis == across else 1 for axis in range(3)]).expand(12, 12, 12)
    start, size = [4, 4, 4], [4, 4, 4]
    size[across] = 1
    patches = [Patch("a", (start[0], start[1], start[2]))]
    pair = slices[None], slices.to(torch.int8)
    images, labels = cut_batch({"a": pair}, patches, size, moves={0: zoomed(0.6, 0.5)}, axes=axes)
    torch.testing.assert_close(images, torch.full((1, 1, *size), 4.0))
    assert labels.unique().tolist() == [4]


@pytest.mark.parametrize(("place", "staged"), [("cuda:0", False), ("cpu", True), (None, True)])
def test_only_volumes_elsewhere_go_to_a_gpu_by_pinned_memory(
    monkeypatch: pytest.MonkeyPatch, place: str | None, staged: bool
) -> None:
    pasted: list[torch.Tensor] = []
    kinds: list[bool] = []

    def empty(shape: torch.Size, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        kinds.append(pin_memory)
        return torch.empty(shape, dtype=dtype)

    monkeypatch.setattr(module, "torch", SimpleNamespace(empty=empty))
    monkeypatch.setattr(module, "paste", lambda target, *_: pasted.append(target))
    copies: list[bool] = []
    gpu, shape = torch.device("cuda", 0), torch.Size((2, 3, 4))
    target: Any = SimpleNamespace(device=gpu, shape=shape, dtype=torch.int64)
    target.copy_ = lambda source, non_blocking: copies.append(non_blocking)
    volume: Any = SimpleNamespace(device=place and torch.device(place))  # None: a file
    module._paste_across(target, volume, (0, 0, 0), 0.0)
    assert [(each.device.type, each.shape, each.dtype) for each in pasted] == [
        ("cpu" if staged else "cuda", shape, torch.int64)
    ]
    assert kinds == copies == [True] * staged
