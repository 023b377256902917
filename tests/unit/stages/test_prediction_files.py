from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.core.errors import DataError, VolsegError
from pipeline.core.labels import LabelTable
from pipeline.data.dataset import CaseFiles
from pipeline.data.label_tables import label_table
from pipeline.data.legend import organ_color
from pipeline.data.prediction_record import PredictionRecord
from pipeline.stages.prediction_files import (
    CasePaths,
    Output,
    case_paths,
    chosen_labels,
    earlier_statistics,
    prediction_entry,
    require_own_files,
    why_failed,
    write_labels,
    write_statistics,
)

TABLE = LabelTable({1: "liver", 2: "spleen", 7: "aorta"})
EYE = LabelTable({1: "rim", 2: "cup_value"}, regions={"disc": (1, 2), "cup": (2,)})


def masks(cases: list[CaseFiles], out: Path, **output: object) -> list[str]:
    found = case_paths(cases, out, Output(**output), TABLE, TABLE)  # type: ignore[arg-type]
    return [found[files.id].mask.name for files in cases]


def test_masks_are_named_as_their_images(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    cases = [
        CaseFiles("a", (scans / "a.nii.gz",)),
        CaseFiles("b", (scans / "b_0000.nrrd",)),
        CaseFiles("c", (scans / "c_0000.nii", scans / "c_0001.nii")),
        CaseFiles("d", (scans / "d.mha#channel=1of2", scans / "d.mha#channel=2of2")),
        CaseFiles("patient_7", (scans / "ct.nii.gz",)),  # named in a list
    ]
    out = tmp_path / "out"
    assert masks(cases, out) == ["a.nii.gz", "b_0000.nrrd", "c.nii", "d.mha", "patient_7.nii.gz"]
    assert masks(cases[:3], out, format="seg.nrrd") == ["a.seg.nrrd", "b_0000.seg.nrrd", "c.seg.nrrd"]
    found = case_paths(cases[:1], out, Output(split=True, format="nrrd"), TABLE, TABLE)["a"]
    assert found == CasePaths(
        out / "a.nrrd", out / "a", {"liver": "liver.nrrd", "spleen": "spleen.nrrd", "aorta": "aorta.nrrd"}
    )


def test_masks_that_meet_are_refused(tmp_path: Path) -> None:
    one, other = (
        CaseFiles("x", (tmp_path / "x_0000.nii",)),
        CaseFiles("x_0000", (tmp_path / "y.nii", tmp_path / "z.nii")),
    )
    with pytest.raises(VolsegError, match=r"x_0000.nii: expected one mask per file, got case x there too"):
        masks([one, other], tmp_path / "out")
    with pytest.raises(VolsegError, match=r"x_0000.nii: expected one mask per file, got the input itself there too"):
        masks([one], tmp_path)
    assert masks([one], tmp_path, format="nrrd") == ["x_0000.nrrd"]


def test_unknown_formats_and_organs_are_named() -> None:
    with pytest.raises(VolsegError, match=r"^format: expected one of nii.gz, nii, nrrd, seg.nrrd, mha, got 'dcm'\."):
        Output("dcm")
    with pytest.raises(DataError, match="organs: expected some of liver, spleen, aorta, got gut"):
        chosen_labels(TABLE, ["gut"])


def test_a_colour_does_not_depend_on_the_organs_that_are_chosen() -> None:
    everything, some = chosen_labels(TABLE, ()), chosen_labels(TABLE, ("aorta",))
    assert [entry.color for entry in everything.legend] == [organ_color(n) for n in range(3)]
    assert some.legend == everything.legend[2:]
    assert some.colors == {"aorta": organ_color(2)}
    assert chosen_labels(EYE, ()).colors == {"disc": organ_color(0), "cup": organ_color(1)}


def test_label_files_can_be_read_back(tmp_path: Path) -> None:
    for table in (TABLE, EYE):
        write_labels(tmp_path, chosen_labels(table, ()))
        content = json.loads((tmp_path / "labels.json").read_text())
        assert LabelTable.from_json(content) == label_table(content, "labels.json") == table
    assert content["colors"] == {"1": organ_color(0), "2": organ_color(1)}
    assert '"cup_value"' in (tmp_path / "labels.txt").read_text()


def refused(out: Path, place: CasePaths, entries: dict[str, dict[str, object]], table: LabelTable = TABLE) -> str:
    """Name of the file that is in the way."""
    with pytest.raises(VolsegError, match="Use another output folder") as caught:
        require_own_files(out, [place], ("labels.json", "labels.txt"), entries, table)
    return Path(str(caught.value).split(":")[0]).name


def test_what_no_prediction_wrote_is_in_the_way(tmp_path: Path) -> None:
    place = CasePaths(tmp_path / "a.nii", tmp_path / "a", {"liver": "liver.nii"})
    require_own_files(tmp_path, [place], ("labels.json",), {}, TABLE)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "liver.nii").touch()
    assert refused(tmp_path, place, {}) == "liver.nii"
    entries: dict[str, dict[str, object]] = {"a.nii": {"organ_files": ["liver.nii"]}}
    require_own_files(tmp_path, [place], ("labels.json",), entries, TABLE)
    (tmp_path / "labels.txt").touch()
    assert refused(tmp_path, place, entries) == "labels.txt"
    (tmp_path / "predictions.json").write_text("{}")
    require_own_files(tmp_path, [place], ("labels.txt",), entries, TABLE)
    place.mask.touch()
    assert refused(tmp_path, place, {}) == "a.nii"


def test_masks_of_other_organs_are_not_mixed(tmp_path: Path) -> None:
    place, entries = CasePaths(tmp_path / "a.nii", tmp_path / "a", {}), {"a.nii": {}, "b.nii": {}}
    (tmp_path / "predictions.json").write_text("{}")
    write_labels(tmp_path, chosen_labels(TABLE, ()))
    (tmp_path / "b.nii").touch()
    require_own_files(tmp_path, [place], (), entries, TABLE)
    assert refused(tmp_path, place, entries, LabelTable({1: "liver"})) == "labels.json"
    (tmp_path / "labels.json").write_text("[]")
    assert refused(tmp_path, place, entries) == "labels.json"
    (tmp_path / "b.nii").unlink()  # nothing stays, so nothing is mixed
    require_own_files(tmp_path, [place], (), entries, TABLE)


def test_entries_are_replaced_by_name_and_each_has_a_line(tmp_path: Path) -> None:
    record = PredictionRecord(tmp_path)
    for case in ("ä", "b"):
        record.note(prediction_entry(CaseFiles(case, (Path("/scans") / f"{case}.nii",)), f"{case}.nii", None))
    record.note({**record.entries["ä.nii"], "hash": "1"})
    assert PredictionRecord(tmp_path).entries == record.entries  # a run that was killed has written no more
    record.write()
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]
    text = (tmp_path / "predictions.json").read_text(encoding="utf-8")
    assert [entry["hash"] for entry in json.loads(text)["cases"]] == ["1", ""]
    assert [line[:13] for line in text.splitlines()] == ['{"cases": [', '{"case": "ä",', '{"case": "b",', "]}"]
    assert PredictionRecord(tmp_path).entries == record.entries


@pytest.mark.parametrize("text", ["", "[]", '{"cases": 3}', '{"cases": [{"case": "a"}]}', '{"cases": {"a": 1}}'])
def test_damaged_files_count_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "predictions.json").write_text(text)
    (tmp_path / "statistics.json").write_text(text)
    assert PredictionRecord(tmp_path).entries == earlier_statistics(tmp_path) == {}


@pytest.mark.parametrize(
    "hurt", [{"prediction": "../a.nii"}, {"organ_files": ["/etc/passwd"]}, {"soft_files": ["../b"]}, {"prediction": 5}]
)
def test_entries_of_files_elsewhere_count_as_none(tmp_path: Path, hurt: dict[str, object]) -> None:
    entries = [{"prediction": "a.nii", "hash": "1"}, {"prediction": "b.nii", "hash": "2", **hurt}]
    (tmp_path / "predictions.json").write_text(json.dumps({"cases": entries}))
    assert PredictionRecord(tmp_path).entries == {"a.nii": entries[0]}


def test_reasons_are_sentences() -> None:
    assert why_failed("a", VolsegError("case a: no.")) == "case a: no."
    assert why_failed("a", RuntimeError("odd")).startswith("case a: expected a prediction, got RuntimeError: odd.")
    assert "Lower infer.batch_size" in why_failed("a", MemoryError())


def test_statistics_are_a_table_and_say_their_conventions(tmp_path: Path) -> None:
    organ = {"label": 1, "voxels": 4, "volume_ml": 0.5, "intensity": {"CT": {"mean": -3.25, "sd": 1.5}},
             "touches_edge": True, "edges": ["S"]}  # fmt: skip
    sure = {"b": organ, "a": organ | {"confidence": 0.875}}
    cases = {
        f"{case}.nii": {"case": case, "prediction": f"{case}.nii", "hash": "h", "organs": {"liver": found}}
        for case, found in sure.items()
    }
    write_statistics(tmp_path, cases, ("CT",))
    assert (tmp_path / "statistics.csv").read_text() == (
        "case,label,name,voxels,volume_ml,mean,sd,touches_edge,edges,confidence\n"
        "a,1,liver,4,0.5,-3.25,1.5,yes,S,0.875\n"
        "b,1,liver,4,0.5,-3.25,1.5,yes,S,\n"
    )
    content = json.loads((tmp_path / "statistics.json").read_text())
    assert [entry["case"] for entry in content["cases"]] == ["a", "b"]
    explained = [line.split(":")[0] for line in content["conventions"]]
    assert explained == ["volume_ml", "mean, sd", "touches_edge", "confidence"]
    assert earlier_statistics(tmp_path) == cases
