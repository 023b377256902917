"""One predictor, loaded once: several calls, several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline import Predictor
from pipeline.core.errors import VolsegError
from pipeline.data.volumes import read_image, read_label_map
from pipeline.stages.predict import predict
from pipeline.stages.prediction_files import Output


def test_threads_give_what_calls_one_after_the_other_give(dataset: Path, model: Path) -> None:
    predictor = Predictor.load(model, device="cpu")
    images = [read_image(dataset / "images" / f"toy_{n}.nii.gz") for n in range(6)] * 2
    serial = [predictor.predict(image) for image in images]
    assert len({found.array.tobytes() for found in serial}) == 6
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(predictor.predict, images))
        soft = list(threads.map(lambda image: predictor.predict_soft(image, ("box_left",)), images[:4]))
    for found, expected in zip(together, serial, strict=True):
        np.testing.assert_array_equal(found.array, expected.array)
        assert found.grid == expected.grid
    for given, one in zip(images, soft, strict=False):
        alone = predictor.predict_soft(given, ("box_left",))
        np.testing.assert_array_equal(one.probabilities["box_left"], alone.probabilities["box_left"])
        assert one.confidence == alone.confidence


def test_files_are_predicted_by_a_loaded_model_in_any_thread(dataset: Path, model: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(model, device="cpu")
    scans = [dataset / "images" / f"toy_{n}.nii.gz" for n in range(4)]
    told: list[tuple[int, int, str]] = []
    batch = predictor.predict_files(scans[:2], tmp_path / "a", progress=lambda *all: told.append(all))
    assert (batch.done, told[-1]) == (("toy_0", "toy_1"), (2, 2, "predict"))
    with ThreadPoolExecutor(2) as threads:
        futures = [
            threads.submit(predictor.predict_files, scans[n : n + 2], str(tmp_path / name), output=Output("nii"))
            for n, name in ((0, "b"), (2, "c"))
        ]
        assert [future.result().done for future in futures] == [("toy_0", "toy_1"), ("toy_2", "toy_3")]
    for n, name in ((0, "b"), (1, "b"), (2, "c"), (3, "c")):
        expected = predictor.predict(read_image(scans[n]))
        np.testing.assert_array_equal(read_label_map(tmp_path / name / f"toy_{n}.nii").array, expected.array)
    assert predict(model, scans[:2], tmp_path / "a", device="cpu").kept == ("toy_0", "toy_1")  # the same model


def test_a_predictor_without_a_folder_takes_images_only(dataset: Path, model: Path, tmp_path: Path) -> None:
    loaded = Predictor.load(model, device="cpu")
    made = Predictor(loaded.models)
    with pytest.raises(VolsegError, match=r"predictor: expected one that was loaded from a model folder"):
        made.predict_files([dataset / "images"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
