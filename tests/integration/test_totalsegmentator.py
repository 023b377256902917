"""A task of TotalSegmentator as one model: what its parts give alone, put together by hand, is what it gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import run
from numpy.typing import NDArray
from totalsegmentator_weights import scan, write_weights

import pipeline.stages.predict as predicting
from pipeline.core.errors import ConfigError, VolsegError
from pipeline.core.grid import reorient_array
from pipeline.data.volumes import read_image
from pipeline.infer.segment import Prepared, prepare_for
from pipeline.infer.trained_model import TrainedModel
from pipeline.interop.totalsegmentator import import_totalsegmentator
from pipeline.model.folder import labels_of, member_folders, read_card
from pipeline.preprocess.resample import resample
from pipeline.stages.export import export
from pipeline.stages.model_card import verify_model
from pipeline.stages.predict import Predictor, predict
from pipeline.stages.prediction_files import Output
from pipeline.stages.share import share

PARTS = (291, 292, 293, 294, 295)
SIZES = (24, 26, 18, 23, 26)  # organs of each part


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), "total")


@pytest.fixture(scope="module")
def total(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("total") / "model"
    import_totalsegmentator(weights, out)
    return out


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scans") / "scan.nii.gz"
    nib.save(scan(), path)
    return path


@pytest.fixture(scope="module")
def alone(total: Path, image: Path) -> dict[int, NDArray[np.integer]]:
    """Masks of the parts, each a model of its own."""
    given = read_image(image)
    return {part: Predictor.load(total / f"part_{part}", device="cpu").predict(given).array for part in PARTS}


def by_hand(alone: dict[int, NDArray[np.integer]], parts: tuple[int, ...] = PARTS) -> NDArray[np.integer]:
    """The parts put together in the order of their numbers; values go on where those of the part before end."""
    whole = np.zeros_like(next(iter(alone.values())), dtype=np.int64)
    for part in parts:
        first = sum(SIZES[: PARTS.index(part)])
        whole = np.where(alone[part] > 0, alone[part] + first, whole)
    return whole


def test_a_task_becomes_one_model_with_the_published_values(capfd, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    code, said, _ = run(capfd, "import-totalsegmentator", weights, "-o", out, "--license", "apache-2.0")
    assert (code, "117 organs of Dataset291_" in " ".join(said.split())) == (0, True)
    cards = [read_card(home) for home in member_folders(out)]
    assert [home.name for home in member_folders(out)] == [f"part_{part}" for part in PARTS]
    table = labels_of(out, cards)
    assert table.values == tuple(range(1, 118))
    named = {
        1: "spleen",
        5: "liver",
        25: "sacrum",
        51: "heart",
        69: "humerus_left",
        92: "rib_left_1",
        117: "costal_cartilages",
    }
    assert {value: table.names[value] for value in named} == named
    assert [len(card.plan.label_table.organs) for card in cards] == list(SIZES)
    for card in cards:
        plan, infer = card.plan, card.settings.infer
        assert (plan.orientation, plan.spacing_mm, plan.image_order) == ("SAR", (1.5, 1.5, 1.5), 1)
        assert (infer.mirror, infer.overlap, infer.blend) == (False, 0.5, "nnunet")
    found = verify_model(out)
    assert (found.files, found.networks) == (11, 5)  # five descriptions, five weights, and the list of parts
    text = (out / "README.md").read_text()
    assert "# 117 organs in CT" in text
    assert "5 parts, which run one after the other; later ones are painted over earlier ones." in text


def test_the_parts_run_one_after_the_other_and_later_ones_win(
    total: Path, image: Path, alone: dict[int, NDArray[np.integer]]
) -> None:
    expected = by_hand(alone)
    found = Predictor.load(total, device="cpu").predict(read_image(image))
    assert found.array.dtype == np.uint8
    np.testing.assert_array_equal(found.array, expected)
    # Every part is seen somewhere, and somewhere a later one is painted over it, or this would show nothing.
    for part, size in zip(PARTS, SIZES, strict=True):
        first = sum(SIZES[: PARTS.index(part)])
        seen = (expected > first) & (expected <= first + size)
        assert seen.sum() > 50
        assert part == PARTS[-1] or ((alone[part] > 0) & ~seen).sum() > 50


def test_an_image_is_prepared_as_totalsegmentator_does(total: Path, image: Path) -> None:
    model = Predictor.load(total / "part_291", device="cpu").models[0]
    array, history = prepare_for(model, read_image(image))
    voxels = np.asarray(scan().dataobj).astype(np.float32)
    turned = reorient_array(voxels, "LPS", "RAS")
    # 40 x 34 x 15 voxels of 1.1 x 1.2 x 2.5 mm: 29.3, 27.2 and 25 of 1.5 mm.
    small = np.rint(resample(np.ascontiguousarray(turned)[None], (29, 27, 25), 1))[0]
    normalized = (np.clip(small, -80.0, 190.0) - 40.0) / 60.0
    off = np.abs(array[0] - normalized.transpose(2, 1, 0)) * 60
    # The axes are resampled in another order: a value near a half may be rounded to the other side.
    assert off.max() <= 1.001
    assert (off > 1e-3).mean() < 1e-3
    inside = (array[0] > -1.9) & (array[0] < 2.4)
    assert inside.sum() > 1000
    assert np.abs(array[0] * 60 - np.rint(array[0] * 60))[inside].max() < 1e-3
    assert history.orientation == "SAR"


def test_of_organs_that_are_wanted_only_their_parts_run(
    total: Path, image: Path, alone: dict[int, NDArray[np.integer]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    plain = predicting._one_segmented

    def noted(models: Sequence[TrainedModel], prepared: Prepared) -> object:
        ran.append(models[0].labels.organs[0])
        return plain(models, prepared)

    monkeypatch.setattr(predicting, "_one_segmented", noted)
    whole = by_hand(alone, (291, 294))
    values = [int(value) for value in np.unique(whole) if value > 0]
    table = labels_of(total, [read_card(home) for home in member_folders(total)])
    wanted = {next(value for value in values if value <= 24), next(value for value in values if value > 24)}
    output = Output(organs=tuple(table.names[value] for value in wanted), statistics=True)
    assert predict(total, image, tmp_path / "masks", device="cpu", output=output).exit_code == 0
    assert ran == ["spleen", "humerus_left"]
    found = np.asarray(nib.load(tmp_path / "masks/scan.nii.gz").dataobj)
    np.testing.assert_array_equal(found, np.where(np.isin(whole, list(wanted)), whole, 0))
    (entry,) = json.loads((tmp_path / "masks/statistics.json").read_text())["cases"]
    voxel_ml = 1.1 * 1.2 * 2.5 / 1000
    for value in wanted:
        assert entry["organs"][table.names[value]]["volume_ml"] == pytest.approx((whole == value).sum() * voxel_ml)
    predict(total, image, tmp_path / "masks", device="cpu", output=output)  # what is there is kept
    assert len(ran) == 2


def test_body_and_cleaning_are_those_of_the_parts(total: Path, image: Path) -> None:
    given = read_image(image)
    words = ["infer.roi=body", "infer.remove_small_ml={heart: 0.05, spleen: 0.05}"]
    whole = Predictor.load(total, device="cpu", settings=words)
    found, region = whole.predict_with_region(given)
    assert region is not None
    assert (region.kind, region.windows % 5) == ("body", 0)
    parts = {
        part: Predictor.load(total / f"part_{part}", device="cpu", settings=words[:1]).predict(given).array
        for part in PARTS
    }
    index = whole.cleaning.apply(by_hand(parts), whole.labels, given.grid.voxel_volume_ml)
    np.testing.assert_array_equal(found.array, index)
    with pytest.raises(ConfigError, match=r"infer\.keep_largest: expected some of spleen, .*, got tail\. Correct it"):
        Predictor.load(total, device="cpu", settings=["infer.keep_largest=[tail]"])
    with pytest.raises(ConfigError, match=r"model: expected a model of one part with probabilities, .*got one of 5"):
        whole.predict_soft(given)


def test_parts_are_shared_as_one_model(total: Path, image: Path, tmp_path: Path) -> None:
    share(total, tmp_path / "shared")
    assert verify_model(tmp_path / "shared").files == 11
    given = read_image(image)
    one, other = (Predictor.load(folder, device="cpu").predict(given).array for folder in (total, tmp_path / "shared"))
    np.testing.assert_array_equal(one, other)
    (tmp_path / "shared/part_3/fold_0/model.safetensors").unlink()
    with pytest.raises(VolsegError, match=r"part_3/fold_0/model\.safetensors: file: expected"):
        verify_model(tmp_path / "shared")


def test_the_fast_task_is_a_model_of_one_part(tmp_path: Path, image: Path) -> None:
    found = import_totalsegmentator(
        write_weights(tmp_path / "weights", "total_fast"), tmp_path / "m", task="total_fast"
    )
    assert (found.organs, len(found.parts)) == (117, 1)
    card = read_card(tmp_path / "m")
    assert card.plan.spacing_mm == (3.0, 3.0, 3.0)
    assert card.plan.label_table.names[51] == "heart"
    mask = Predictor.load(tmp_path / "m", device="cpu").predict(read_image(image)).array
    assert len(np.unique(mask)) > 5


def test_a_list_of_parts_from_elsewhere_is_checked(total: Path, tmp_path: Path) -> None:
    cards, path = [read_card(home) for home in member_folders(total)], tmp_path / "parts.json"
    content = json.loads((total / "parts.json").read_text())
    overlap = {"names": {"1": "a"}, "regions": {"b": [1]}, "regions_class_order": [1]}
    for change, message in (
        ({"parts": ["../secret"]}, "parts: names: expected folders beside this file, got '../secret'. Correct them."),
        ({"parts": []}, "parts: expected"),
        ({"labels": overlap}, "labels: organs: expected none that overlap, got regions. Correct them."),
        ({"labels": {"names": {"1": "spleen"}}}, "part_291: expected organs that the labels name, got kidney_right."),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(VolsegError) as stop:
            labels_of(tmp_path, cards)
        assert str(stop.value).startswith(f"{path}: {message}")


def test_what_is_no_task_is_refused_and_nothing_written(weights: Path, tmp_path: Path) -> None:
    def refused(folder: Path, message: str, task: str = "total") -> None:
        with pytest.raises(VolsegError, match=message):
            import_totalsegmentator(folder, tmp_path / "model", task=task)
        assert not (tmp_path / "model").exists()

    refused(weights, "task: expected one of total, total_fast, .*, got 'liver_vessels'. Correct it", "liver_vessels")
    refused(
        weights, r"part: expected one model Dataset297_…/…__3d_fullres, as total_fast needs, got none", "total_fast"
    )
    some = Path(shutil.copytree(weights, tmp_path / "some"))
    shutil.rmtree(next(some.glob("Dataset293_*")))
    refused(some, r"part: expected one model Dataset293_…/…__3d_fullres, as total needs, got none\. Name the weights")
    # The part of the ribs in place of that of the heart: 26 organs instead of 18.
    shutil.copytree(next(some.glob("Dataset295_*")), some / "Dataset293_TotalSegmentator_part3_cardiac_1559subj")
    refused(some, "classes: expected 19, got 27 with the background")


def test_no_bundle_is_written_that_would_see_other_images(total: Path, tmp_path: Path) -> None:
    with pytest.raises(VolsegError, match=r"got one of 5 parts\. Export its folders part_… one by one"):
        export(total, tmp_path / "bundle", "monai-bundle")
    with pytest.raises(VolsegError, match=r"got one of TotalSegmentator\. Predict with volseg, or export the network"):
        export(total / "part_291", tmp_path / "bundle", "monai-bundle")
    assert not (tmp_path / "bundle").exists()
