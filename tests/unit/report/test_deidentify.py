from pathlib import Path

import pytest

from pipeline.evaluate.results import ScoredFiles
from pipeline.report.deidentify import names_of

CASE = ScoredFiles(
    "JOHN DOE 12345678",
    Path("/home/klinik/refs/JOHN DOE 12345678.nii.gz"),
    Path("/home/klinik/pred/JOHN DOE 12345678.nii.gz"),
    (Path("/archive/St Mary/scan77.nii.gz"),),
)


@pytest.fixture
def names():
    return names_of([CASE, ScoredFiles("b", Path("/home/klinik/refs/b.nii.gz"))], show=False)


def test_an_alias_is_short_and_the_same_in_every_report(names):
    assert names.case(CASE.id) == names_of([CASE], show=False).case(CASE.id)
    assert len(names.case(CASE.id)) == 8
    assert names.case(CASE.id) != names.case("b")


def test_ids_and_paths_are_replaced_in_sentences(names):
    alias = names.case(CASE.id)
    assert names.text(f"case {CASE.id}: expected 3 axes, got 4.") == f"case {alias}: expected 3 axes, got 4."
    for path in (CASE.prediction, "pred/JOHN DOE 12345678.nii.gz", CASE.images[0], "/home/klinik/refs"):
        assert names.text(f"{path}: cannot be read.") == "[path]: cannot be read."
    assert names.text("/home/klinik/pred/predictions.json: cannot be read.") == "[path]: cannot be read."


def test_one_letter_is_a_word_unless_it_names_a_case(names):
    alias = names.case("b")
    assert names.text("case b: organ b of a file (e.g. b)") == f"case {alias}: organ b of a file (e.g. {alias})"


@pytest.mark.parametrize(
    "text",
    [
        "Mr Doe is missing.",
        "12345678 is not a number.",
        "OTHER PATIENT.nii.gz: no reference of that name, not scored.",
        "folder/of/another: cannot be read.",
        r"C:\scans\x: cannot be read.",
        "klinik: expected a folder.",
    ],
)
def test_what_may_still_hold_a_name_is_withheld(names, text):
    assert names.text(text) is None
    assert names.texts([text, "Fine."]) == (["Fine."], 1)
    assert names_of([CASE], show=True).text(text) == text


def test_parts_of_ids_that_underscores_join_are_withheld():
    one = ScoredFiles("SMITH_JOHN_T1", Path("/home/klinik/王伟/SMITH_JOHN_T1.nii.gz"))
    names = names_of([one], show=False)
    for text in ("SMITH_JOHN is odd.", "SMITH_JOHN_T1_0000 is odd.", "Mr smith is odd.", "王伟 is odd."):
        assert names.text(text) is None
    assert names.text("SMITH_JOHN_T1 is odd, of 2 in T1.") == f"{names.case(one.id)} is odd, of 2 in T1."


def test_cases_without_files_have_aliases_too():
    names = names_of([CASE], ["DOE_JANE", CASE.id], show=False)
    assert names.case("DOE_JANE") == names_of([], ["DOE_JANE"], show=False).case("DOE_JANE") != "DOE_JANE"
    assert names.text("case DOE_JANE: no masks.") == f"case {names.case('DOE_JANE')}: no masks."
    assert names.text("Jane has none.") is None


def test_everyday_words_of_paths_do_no_harm(names):
    text = "The tolerance of NSD (1 mm) is below the largest spacing in 2 of 3 cases; refs and pred agree."
    assert names.text(text) == text
