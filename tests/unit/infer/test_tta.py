"""Windows that networks see mirrored and rotated; the inferer turns their logits back and averages them."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from members import ORGANS, image, logits_of, member, plan
from torch import nn

from pipeline.config.settings import Settings
from pipeline.core.errors import ConfigError
from pipeline.core.labels import LabelTable
from pipeline.infer.inferer import StreamingInferer
from pipeline.infer.tta import Passes, Rotation, View, augmentation_problems, mirror_axes, rotation_of, spread, views
from pipeline.stages.predict import Predictor


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


# Which mirrored and rotated windows a model may be shown.

SINGLE = LabelTable({1: "liver", 2: "spleen"})
TURNED = {"rotate_degrees": 180.0, "flip_axes": []}


def rotating(**augment: Any) -> dict[str, Any]:
    return {"infer": {"rotate": True}, "augment": TURNED | augment}


def test_the_plane_lies_in_the_slices_and_across_the_coarse_axis() -> None:
    spec = member().card.network
    assert rotation_of(plan(), spec) == Rotation((0, 1))
    assert rotation_of(plan(spacing_mm=(2.0, 2.01, 1.0)), spec) == Rotation((0, 1))
    assert rotation_of(plan(spacing_mm=(2.0, 2.1, 1.0)), spec) == Rotation((0, 1), quarter=False)
    assert rotation_of(plan(spacing_mm=(5.0, 1.0, 1.0), slice_axis=0), spec) == Rotation((1, 2))
    flat = spec.model_copy(update={"patch_size": (8, 32, 32)})
    assert rotation_of(plan(), flat) == Rotation((1, 2))  # training rotates it there only
    assert rotation_of(plan(slice_axis=1), member(2).card.network) == Rotation((0, 2))


@pytest.mark.parametrize(
    ("augment", "table", "message"),
    [
        ({"rotate_degrees": 30.0}, SINGLE, r"rotate_degrees\), got one with up to 30\. Set it to false"),
        ({"rotate_p": 0.0}, SINGLE, r"infer.rotate: expected a model trained with rotations .*, got one without\."),
        ({"enabled": False}, SINGLE, r"got one without\. Set it to false"),
        ({"flip_axes": ["LR"]}, ORGANS, r"infer.rotate: expected no left and right organs where .*, got 1 pairs\."),
    ],
)
def test_what_training_did_not_show_is_refused(augment: dict[str, Any], table: LabelTable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        member(table=table, settings=rotating(**augment))


def test_what_training_showed_is_taken() -> None:
    spec = member().card.network
    for augment, table in (({}, ORGANS), ({"flip_axes": ["LR"]}, SINGLE), ({"flip_axes": ["AP"]}, ORGANS)):
        settings = Settings.model_validate(rotating(**augment))
        assert augmentation_problems(plan(table), spec, settings, settings.infer) == []
    both = Settings.model_validate({"infer": {"mirror": True, "rotate": True}, "augment": {"flip_axes": []}})
    problems = augmentation_problems(plan(SINGLE), spec, both, both.infer)
    assert [problem.split(":")[0] for problem in problems] == ["infer.mirror", "infer.rotate"]
    across = plan(spacing_mm=(5.0, 1.0, 1.0), slice_axis=0)  # left and right lie across the plane
    settings = Settings.model_validate(rotating(flip_axes=["LR"]))
    assert augmentation_problems(across, spec, settings, settings.infer) == []
    assert mirror_axes(across, 3, settings) == (0,)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_model_that_rotates_predicts_a_rotated_image_alike(dims: int) -> None:
    # Windows of a square volume that fits into one: rotated input, rotated logits.
    turning = member(dims, table=SINGLE, settings=rotating(), spacing_mm=(1.0, 1.0, 1.0), crop="none")
    plain = member(dims, table=SINGLE, settings={"augment": TURNED}, spacing_mm=(1.0, 1.0, 1.0), crop="none")
    volume = torch.randn(1, 8, 8, 8 if dims == 3 else 3, generator=torch.Generator().manual_seed(0))
    turned = torch.rot90(volume, 1, (1, 2))
    found, other = (logits_of(turning, one) for one in (volume, turned))
    torch.testing.assert_close(torch.rot90(found, 1, (1, 2)), other, atol=1e-4, rtol=1e-4)
    first, second = (logits_of(plain, one) for one in (volume, turned))
    assert (torch.rot90(first, 1, (1, 2)) - second).abs().max() > 0.01
    mean = sum(torch.rot90(logits_of(plain, torch.rot90(volume, n, (1, 2))), -n, (1, 2)) for n in range(4)) / 4
    torch.testing.assert_close(found, mean, atol=1e-4, rtol=1e-4)


def test_images_are_predicted_with_rotations_and_soft_outputs() -> None:
    predictor = Predictor([member(table=SINGLE, settings=rotating(flip_axes=["AP"]))])
    soft = predictor.predict_soft(image(), ("liver",))
    np.testing.assert_array_equal(soft.label_map.array, predictor.predict(image()).array)


# Several networks over every window: their mean, what is held meanwhile, and too little memory on the way.

CPU = torch.device("cpu")


def _passes_random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_mean_of_logits_and_windows_left_as_they_are():
    inputs = torch.arange(24.0).reshape(1, 1, 2, 12)
    before = inputs.clone()
    passes = Passes([nn.Identity(), lambda x: x.mul_(3), lambda x: -x])
    torch.testing.assert_close(StreamingInferer((2, 4), batch=2)(inputs, passes), before)  # (1 + 3 - 1) / 3
    assert torch.equal(inputs, before)


def test_networks_compute_in_their_type_and_are_averaged_in_float32():
    layers = [nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)]
    seen = [layer.register_forward_hook(lambda _, __, found: types.add(found.dtype)) for layer in layers]
    types, inputs = set(), torch.ones(1, 1, 4, 4)
    found = StreamingInferer((4, 4))(inputs, Passes(layers, torch.bfloat16))
    assert (types, found.dtype, len(seen)) == ({torch.bfloat16}, torch.float32, 2)
    expected = (layers[0](inputs) + layers[1](inputs)) / 2
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_networks_are_spread_one_after_the_other():
    one, two, three = (torch.device("cuda", n) for n in range(3))
    assert spread(5, [one, two]) == [one, two, one, two, one]
    assert spread(2, [one, two, three]) == [one, two]
    assert spread(2, [CPU]) == [CPU, CPU]


@pytest.mark.parametrize("devices", [1, 2])
def test_no_more_logits_are_held_than_there_are_devices(devices, monkeypatch):
    alive, most = [], []

    def network(windows):
        most.append(sum(one() is not None for one in alive))
        logits = windows * 2
        alive.append(weakref.ref(logits))
        return logits

    passes, inputs = Passes([network] * 4, axes=(0, 1), rotation=Rotation((0, 1))), _passes_random(1, 1, 4, 10)
    names = [CPU, None][:devices]  # no device of its own stands in for another one
    passes.devices = [names[n % devices] for n in range(4)]
    torch.testing.assert_close(StreamingInferer((4, 4))(inputs, passes), 2 * inputs)
    assert len(most) % 32 == 0
    assert max(most) == devices - 1


def test_all_devices_start_before_the_first_is_waited_for():
    log = []

    def network(name):
        return lambda x: log.append(name) or torch.ones_like(x)

    class Logits(torch.Tensor):
        """Says when it is fetched from its device."""

        def __getitem__(self, key):
            log.append("fetched")
            return self.as_subclass(torch.Tensor)[key]

    def device(name):
        made = network(name)
        return lambda x: made(x).as_subclass(Logits)

    passes = Passes([device("a"), device("b")] * 2)
    passes.devices = [CPU, None] * 2
    assert StreamingInferer((2,) * 2)(torch.zeros(1, 1, 2, 2), passes).unique().tolist() == [1.0]
    assert log == ["a", "b", "fetched", "a", "fetched", "b", "fetched", "fetched"]


@pytest.mark.parametrize("fails_at", range(1, 13))
def test_too_little_memory_on_the_way_goes_on_from_there_with_half_the_windows(fails_at):
    inputs, calls, done = _passes_random(1, 1, 4, 32), [], []

    def network(x):
        calls.append(len(x))
        if len(calls) == fails_at and len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * x

    inferer = StreamingInferer((4, 4), 0.0, batch=4, axis=0, progress=lambda *seen: done.append(seen[:2]))
    found = inferer(inputs, Passes([network], axes=(0, 1)))  # two groups of four windows, four passes
    torch.testing.assert_close(found, 2 * inputs)
    sizes = calls[: fails_at - 1] + calls[fails_at:]
    assert sum(sizes) == 8 * 4  # no window is seen in a pass twice
    assert set(sizes[fails_at - 1 :]) <= {2} or fails_at > 8
    assert done == [(4, 8), (8, 8)]


def test_a_device_that_holds_another_pass_is_emptied_before_the_batch_is_halved():
    inputs, calls = _passes_random(1, 1, 4, 8), []

    def network(x):
        calls.append(len(x))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * x

    passes = Passes([network, network])
    passes.devices = [CPU, None]
    torch.testing.assert_close(StreamingInferer((4, 4), 0.0, batch=2, axis=0)(inputs, passes), 2 * inputs)
    assert calls == [2, 2, 2]


def test_slices_of_several_planes_go_through_all_passes_together():
    inputs, calls = _passes_random(1, 1, 5, 4, 7), []
    passes = Passes([lambda x: calls.append(len(x)) or 2 * x] * 2, axes=(0,))
    found = StreamingInferer((5, 4, 1), batch=3)(inputs, passes)
    torch.testing.assert_close(found, 2 * inputs)
    assert calls == [3] * 4 + [3] * 4 + [1] * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sums", ["cpu", "cuda"])
def test_networks_on_a_gpu_with_sums_there_or_on_the_cpu(sums):
    inputs = _passes_random(1, 1, 9, 10, 11)
    network = nn.Conv3d(1, 4, 3, padding=1).eval()
    options = {"axes": (0, 2), "sides": 0, "side_pairs": ((1, 2),), "rotation": Rotation((0, 1))}
    expected = StreamingInferer((4, 4, 8))(inputs, Passes([network], **options))
    passes = Passes([network.cuda()] * 2, **options)
    found = StreamingInferer((4, 4, 8), batch=3)(inputs.to(sums), passes)
    assert found.device.type == sums
    torch.testing.assert_close(found.cpu(), expected, atol=1e-2, rtol=1e-2)  # TF32


def test_what_a_first_stage_found_changes_sides_with_the_window():
    # A network that trusts its last channel, the class index of the first stage: left 1, right 2.
    def trusting(window):
        return torch.cat([(window[:, 1:] == value).float() for value in (0, 1, 2)], dim=1)

    image, found = _random(1, 1, 6, 2, 2), torch.zeros(1, 1, 6, 2, 2)
    found[:, :, :2], found[:, :, 4:] = 1.0, 2.0
    inputs = torch.cat([image, found], dim=1)
    aware = _mean(trusting, inputs, (0, 1, 2), sides=0, side_pairs=((1, 2),), stage_pairs=((1, 2),))
    torch.testing.assert_close(aware, trusting(inputs))
    blind = _mean(trusting, inputs, (0, 1, 2), sides=0, side_pairs=((1, 2),))
    torch.testing.assert_close(blind[:, 1, :2], torch.full((1, 2, 2, 2), 0.5))
