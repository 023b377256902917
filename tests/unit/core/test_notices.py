"""What libraries say about files is told once, with the file's name, and by one process."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from command_line import run
from toy import write_toy

from pipeline.core.notices import FileWarning, about, listening, tell, told_to, unheard
from pipeline.data.volumes import read_image
from pipeline.engine.local import open_engine


def odd_nifti(path: Path) -> Path:
    """A file whose header nibabel complains about, and reads."""
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[108:112] = np.float32(355).tobytes()  # three bytes further, which is no multiple of 16
    path.write_bytes(content[:352] + bytes(3) + content[352:])
    return path


SAID = "vox offset (=355) not divisible by 16, not SPM compatible; leaving at current value"


def test_a_text_is_told_once_and_on_one_line(tmp_path: Path) -> None:
    texts = about(tmp_path / "a.nii", ["one\n  two", "three", "three", "\x1b[31mred"])
    assert texts == [f"{tmp_path}/a.nii: one two", f"{tmp_path}/a.nii: three", f"{tmp_path}/a.nii: ?[31mred"]
    told: list[str] = []
    with told_to(told.append):
        tell(texts)
        tell(texts)
    assert told == texts


def test_what_a_library_says_is_kept_and_what_others_say_goes_on() -> None:
    logger = logging.getLogger("some.library")
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with listening("some.library", "some") as said:
            logger.warning("logged %d", 1)
            logger.debug("too fine")
            warnings.warn_explicit("warned", UserWarning, "/lib/some/module.py", 1)
            warnings.warn_explicit("of another", UserWarning, "/lib/other/module.py", 1)
    assert said == ["logged 1", "warned"]
    assert [(str(other.message), other.filename) for other in others] == [("of another", "/lib/other/module.py")]


def test_what_may_quote_a_patient_is_not_heard(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    loud = logging.getLogger("some.part")
    with caplog.at_level(logging.DEBUG):
        with unheard("some"):
            loud.error("SECRET")
            for module in ("some", "some.part"):
                warnings.warn_explicit("SECRET", UserWarning, "part.py", 1, module)
            with pytest.raises(UserWarning, match="not its own"):  # warnings are errors here
                warnings.warn_explicit("not its own", UserWarning, "part.py", 1, "someone")
            logging.getLogger("other").error("heard")
        loud.error("again")
    assert [record.getMessage() for record in caplog.records] == ["heard", "again"]
    assert "SECRET" not in "".join(capfd.readouterr())


def test_nibabel_is_told_with_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = odd_nifti(tmp_path / "a.nii")
    told: list[str] = []
    with told_to(told.append):
        assert read_image(path).array.max() == 23
        assert read_image(path).array.max() == 23
    assert told == [f"{path}: {SAID}"]
    assert capfd.readouterr() == ("", "")


def test_itk_is_told_with_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.tif"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 5), np.uint8)), str(path))
    content = bytearray(path.read_bytes())
    first = int.from_bytes(content[4:8], "little")
    for at in range(first + 2, first + 2 + 12 * int.from_bytes(content[first : first + 2], "little"), 12):
        if content[at : at + 2] == (279).to_bytes(2, "little"):
            content[at + 8 : at + 12] = (99_999).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.warns(FileWarning) as caught:
        assert read_image(path).array.min() == 1
    text = 'TIFFReadDirectory: Warning, Bogus "StripByteCounts" field, ignoring and calculating from imagelength.'
    assert [str(warning.message) for warning in caught] == [f"{path}: {text}"]
    assert capfd.readouterr() == ("", "")


def _largest(path: Path) -> float:
    return float(read_image(path).array.max())


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_worker_leaves_the_telling_to_who_asked(tmp_path: Path, jobs: int, capfd: pytest.CaptureFixture[str]) -> None:
    paths = [odd_nifti(tmp_path / f"{n}.nii") for n in range(3)]
    texts: list[str] = []
    with told_to(texts.append), open_engine(jobs, light=True) as engine:
        assert [outcome.value for outcome in engine(_largest, paths * 2)] == [23.0] * 6
    assert sorted(texts) == [f"{path}: {SAID}" for path in paths]
    assert capfd.readouterr() == ("", "")


def test_the_command_line_prints_a_note(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_toy(tmp_path / "data", 2)
    odd = odd_nifti(folder / "images" / "toy_9.nii")
    odd_nifti(folder / "labels" / "toy_9.nii")
    _, out, err = run(capfd, "check", folder)
    assert out.count(SAID) + err.count(SAID) == 2
    assert f"Note: {odd}: {SAID}" in err
