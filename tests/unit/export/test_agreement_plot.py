import io

import matplotlib.image
import numpy as np

from pipeline.evaluate import Row
from pipeline.export.agreement_plot import MOST_PANELS, agreement_panels, volume_agreement
from pipeline.export.palette import LIGHT


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
