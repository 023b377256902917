import io

import numpy as np
from matplotlib import image as pictures

from pipeline.evaluate import Row
from pipeline.export.palette import DARK, LIGHT, organ_color
from pipeline.export.plots import dice_against_volume, metric_boxplots


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
