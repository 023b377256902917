from __future__ import annotations

import pickle
from pathlib import Path

from pipeline.core.errors import (
    AllFailedError,
    ConfigError,
    DataError,
    VolsegError,
    one_line,
    result_of,
    sentence,
    unforeseen,
    visible,
)


def test_a_sentence_names_case_file_rule_value_and_what_to_do() -> None:
    text = sentence(
        "label map grid",
        "the image grid",
        "shapes (2, 3, 4) and (2, 3, 5)",
        "Drop it",
        case="liver_012",
        file="a.nii",
    )
    assert text == (
        "case liver_012: a.nii: label map grid: expected the image grid, got shapes (2, 3, 4) and (2, 3, 5). Drop it."
    )


def test_a_sentence_leaves_out_what_is_not_known_and_ends_with_one_stop() -> None:
    assert sentence("spacing", "numbers above 0", -1, "Repair it.") == (
        "spacing: expected numbers above 0, got -1. Repair it."
    )
    assert sentence("x", "y", "z", "Do", file=Path("b.nii.gz")) == "b.nii.gz: x: expected y, got z. Do."


def test_a_config_error_lists_every_problem() -> None:
    error = ConfigError(["train.epochs: wrong.", "model.dims: wrong too."], "run.yaml")
    assert str(error) == "run.yaml: 2 problems\n  - train.epochs: wrong.\n  - model.dims: wrong too."
    assert str(ConfigError(["one"])) == "settings: 1 problem\n  - one"


def test_errors_survive_the_way_back_from_a_worker_process() -> None:
    config = pickle.loads(pickle.dumps(ConfigError(["a", "b"], "run.yaml")))
    assert (config.problems, config.source, str(config)) == (
        ("a", "b"),
        "run.yaml",
        "run.yaml: 2 problems\n  - a\n  - b",
    )
    assert str(pickle.loads(pickle.dumps(DataError("case x: broken.")))) == "case x: broken."


def test_all_errors_are_volseg_errors_and_value_errors_where_a_value_is_wrong() -> None:
    assert issubclass(ConfigError, VolsegError)
    assert issubclass(DataError, VolsegError)
    assert issubclass(DataError, ValueError)
    assert not issubclass(VolsegError, ValueError)


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    assert visible("a\x1b[2Jb\rc\x9b\x07") == "a\\x1b[2Jb\\x0dc\\x9b\\x07"
    assert visible("caf\udce9 \ud800 \u202egpj") == "caf\\xe9 \\ud800 \\u202egpj"
    assert visible("Grüße 肝\n\tx") == "Grüße 肝\n\tx"


def test_a_name_on_one_line() -> None:
    assert one_line("left\r\nlung\x1b[0m  x\t") == "left lung [0m  x"


def test_no_name_of_a_case_or_file_begins_a_line_of_its_own() -> None:
    found = sentence("file", "a", "b", "Do it", case="x\nError: y", file="d\nz.nii")
    assert found == "case x\\nError: y: d\\nz.nii: file: expected a, got b. Do it."


def test_addresses_of_objects_tell_no_one_anything() -> None:
    error = RuntimeError(f"applying transform {object()}\nand more")
    assert unforeseen(error) == "RuntimeError: applying transform <object object> and more"


def test_the_error_of_a_batch_says_why_the_first_case_fell_and_holds_what_there_is() -> None:
    error = pickle.loads(pickle.dumps(AllFailedError({"cases": 2}, [("a", "a.nii: no volume."), ("b", "case b: x.")])))
    assert (str(error), error.result) == ("case a: a.nii: no volume. All 2 cases failed.", {"cases": 2})
    assert str(AllFailedError(None, [("b", "case b: x.")])) == "case b: x."

    def fail(number: int) -> int:
        raise AllFailedError(number, [("a", "x.")])

    assert (result_of(fail, 7), result_of(abs, -3)) == (7, 3)
