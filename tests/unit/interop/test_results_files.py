import stat
import zipfile

import pytest
from nnunet_results import KINDS, write_results

from pipeline.core.errors import VolsegError
from pipeline.interop.results_files import ResultsFiles

MODEL = "Dataset901_made/nnUNetTrainer__nnUNetPlans__3d_fullres"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_results(folder, KINDS["plain"])
    return folder


def archive(path, entries, **options):
    with zipfile.ZipFile(path, "w", **options) as target:
        for name, content in entries:
            target.writestr(name, content)
    return path


def test_a_model_is_found_from_every_folder_above_it_and_in_an_archive(results, tmp_path):
    names = [file for file in sorted(results.rglob("*")) if file.is_file()]
    entries = [(file.relative_to(results).as_posix(), file.read_bytes()) for file in names]
    packed = archive(tmp_path / "model.zip", entries, compression=zipfile.ZIP_DEFLATED)
    for source in (results, results / "Dataset901_made", results / MODEL, packed):
        files = ResultsFiles(source)
        (model,) = files.models
        assert files.checkpoints(model) == {"0": {"final"}, "1": {"final"}}
        assert files.read_json(f"{model}/plans.json")["plans_name"] == "nnUNetPlans"
        assert files.beside(model, "2d").endswith("nnUNetTrainer__nnUNetPlans__2d")
        assert (
            files.read_checkpoint(model, "1", "final")[0]
            == (results / MODEL / "fold_1" / "checkpoint_final.pth").read_bytes()
        )


@pytest.mark.parametrize(
    "name", ["../plans.json", "a/../../plans.json", "/plans.json", "a\\plans.json", "C:/plans.json"]
)
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path, name):
    path = archive(tmp_path / "x.zip", [("a/plans.json", "{}")])
    # Written as it is: the writer would change some of them.
    data = path.read_bytes().replace(b"a/plans.json", b"a/plans.jso_")
    path.write_bytes(data)
    with zipfile.ZipFile(path, "a") as target:
        entry = zipfile.ZipInfo("plain")
        entry.filename = name
        target.writestr(entry, "{}")
    with pytest.raises(VolsegError, match=r"expected names of files below it, got one that leads elsewhere: .*plans"):
        ResultsFiles(path)


def test_links_in_an_archive_are_refused(tmp_path):
    link = zipfile.ZipInfo("a/plans.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = archive(tmp_path / "x.zip", [(link, "/etc/passwd")])
    with pytest.raises(VolsegError, match=r"archive: expected no links, got one: 'a/plans\.json'"):
        ResultsFiles(path)


def test_a_zip_bomb_is_refused_before_it_is_read(tmp_path):
    path = archive(tmp_path / "x.zip", [("a/plans.json", bytes(8 << 20))], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(VolsegError, match=r"got 8388608 bytes in \d+, which looks like a zip bomb: 'a/plans.json'"):
        ResultsFiles(path)


def test_a_name_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = archive(tmp_path / "x.zip", [("a/plans.json", "{}"), ("a/plans.json", "[]")])
    with pytest.raises(VolsegError, match="archive: expected every name once, got one twice"):
        ResultsFiles(path)


def test_plans_of_version_1_are_refused(tmp_path):
    (tmp_path / "nnUNetTrainerV2__nnUNetPlansv2.1").mkdir()
    (tmp_path / "nnUNetTrainerV2__nnUNetPlansv2.1" / "plans.pkl").write_bytes(b"")
    with pytest.raises(VolsegError, match=r"expected plans\.json of version 2, got plans\.pkl\. Models of version 1"):
        ResultsFiles(tmp_path)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(VolsegError, match=r"expected a folder of a trained model with plans\.json in it, got none"):
        ResultsFiles(tmp_path)
    (tmp_path / "x").write_text("text")
    with pytest.raises(VolsegError, match="expected a results folder or a zip archive, got another file"):
        ResultsFiles(tmp_path / "x")
    with pytest.raises(VolsegError, match=r"expected a results folder or a zip archive, got n"):
        ResultsFiles(tmp_path / "y")


def test_damaged_parts_are_refused(tmp_path):
    model = tmp_path / "a"
    model.mkdir()
    (model / "plans.json").write_text("{")
    files = ResultsFiles(tmp_path)
    with pytest.raises(VolsegError, match=r"plans\.json: expected JSON, got"):
        files.read_json("a/plans.json")
    (model / "plans.json").write_text("[]")
    with pytest.raises(VolsegError, match="expected keys with values, got list"):
        files.read_json("a/plans.json")
    with pytest.raises(
        VolsegError, match=r"dataset\.json: nnU-Net model: expected a file that can be read, got 'No such"
    ):
        files.read_json("a/dataset.json")
    with pytest.raises(VolsegError, match="expected at most 0 MB, got more"):
        files.read("a/plans.json", 1)
