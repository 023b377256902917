from pipeline.evaluate import Row
from pipeline.export.report_tables import case_status, worst_rows

NAN, INF = float("nan"), float("inf")


def row(case, name, status, dice, hd95=NAN):
    more = {} if hd95 != hd95 else {"hd95_mm": hd95, "diagonal_mm": 100.0}
    return Row(case, (1,), name, status, dice, dice, 1.0, 1.0, more)


def test_the_worst_rows_come_first_and_those_without_a_score_not_at_all():
    rows = [
        row("a", "liver", "scored", 0.5, 3.0),
        row("a", "spleen", "true_negative", NAN),
        row("b", "liver", "scored", 0.5, 7.0),
        row("b", "spleen", "missed", 0.0, INF),
    ]
    assert [(each.case, each.name) for each in worst_rows(rows)] == [("b", "spleen"), ("b", "liver"), ("a", "liver")]


def test_what_went_wrong_in_a_case():
    assert case_status([row("a", "liver", "scored", 0.9)]) == ""
    assert case_status([]) == "failed"
    assert case_status([row("a", "liver", "failed", NAN)]) == "failed"
    assert case_status([row("a", "liver", "missing_prediction", 0.0)]) == "no prediction"
    lost = [row("a", name, "missed", 0.0) for name in "pqrst"]
    assert case_status([*lost, row("a", "u", "hallucinated", 0.0)]) == "missed: p, q, r, s …; hallucinated: u"
