import io

import matplotlib.image
import numpy as np
from matplotlib import image as pictures

from pipeline.data.legend import organ_color
from pipeline.evaluate.metrics import Row
from pipeline.report.plots import (
    DARK,
    LIGHT,
    MOST_PANELS,
    agreement_panels,
    dice_against_volume,
    metric_boxplots,
    volume_agreement,
)


def rows(*scores, status="scored"):
    return [Row(f"c{n}", (1,), "liver", status, score, score, 100.0, 100.0) for n, score in enumerate(scores)]


def pixels(png):
    return pictures.imread(io.BytesIO(png))


def test_plots_are_drawn_and_transparent():
    for draw in (metric_boxplots, dice_against_volume):
        for theme in (LIGHT, DARK):
            picture = pixels(draw(rows(0.9, 0.8, 0.5), theme))
            assert picture.shape[1] == 1440
            assert picture[0, 0, 3] == 0.0
            assert 0.002 < (picture[..., 3] > 0).mean() < 0.5


def test_plots_are_the_same_in_every_run():
    assert metric_boxplots(rows(0.9, 0.1), LIGHT) == metric_boxplots(rows(0.9, 0.1), LIGHT)


def test_nothing_to_draw_gives_an_empty_frame():
    for draw in (metric_boxplots, dice_against_volume):
        assert pixels(draw([], LIGHT)).shape[2] == 4
        assert pixels(draw(rows(float("nan"), status="true_negative"), LIGHT)).shape[2] == 4


def test_misses_carry_the_accent_colour():
    accent = np.array([0xD5, 0x5E, 0x00]) / 255
    near = [
        (np.abs(pixels(dice_against_volume(r, LIGHT))[..., :3] - accent).max(axis=-1) < 0.02).sum()
        for r in (rows(0.5), rows(0.0, status="missed"))
    ]
    assert near[0] == 0
    assert near[1] > 10


def test_organ_colours_differ():
    assert len({organ_color(n) for n in range(107)}) == 107


def row(organ, case, reference, prediction, status="scored"):
    return Row(f"c{case}", (organ,), f"organ {organ}", status, 0.5, 0.3, reference, prediction)


def test_of_many_organs_those_that_agree_least_are_drawn_in_the_order_of_their_labels():
    """The bias of organ n is n percent."""
    rows = [row(n, case, 100.0, 100.0 + n) for n in range(1, MOST_PANELS + 4) for case in range(3)]
    names = [name for name, _ in agreement_panels(rows)]
    assert names == [f"organ {n}" for n in range(4, MOST_PANELS + 4)]
    assert [len(group) for _, group in agreement_panels(rows)] == [3] * MOST_PANELS


def test_rows_without_a_score_are_not_drawn():
    nothing = Row("c", (1,), "organ 1", "true_negative", float("nan"), float("nan"), 0.0, 0.0)
    assert agreement_panels([nothing]) == []
    assert matplotlib.image.imread(io.BytesIO(volume_agreement([nothing], LIGHT))).shape[1] == 1440


def test_a_case_without_a_prediction_is_drawn_as_a_cross():
    accent = np.array([0xD5, 0x5E, 0x00]) / 255

    def near(rows):
        picture = matplotlib.image.imread(io.BytesIO(volume_agreement(rows, LIGHT)))
        return int((np.abs(picture[..., :3] - accent).max(axis=-1) < 0.02).sum())

    found = [row(1, 0, 10.0, 10.0)]
    lost = [row(1, 0, 10.0, float("nan"), "missing_prediction")]
    assert near(lost) > near(found) + 10
