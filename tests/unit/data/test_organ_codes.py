"""Codes of organs: all names of two schemes, in any spelling; what is not known is not guessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom.sr._concepts_dict import concepts

from pipeline.core.labels import LabelTable
from pipeline.data.organ_codes import (
    ABNORMAL,
    ANATOMY,
    PRIVATE_SCHEME,
    Code,
    label_text,
    organ_code,
    organ_codes,
)

# DICOM's own lists (PS3.16) as pydicom has them: value → meaning.
DICOM = {value: meaning for codes in concepts["SCT"].values() for value, (meaning, _) in codes.items()}

NAMES = {
    **{f"vertebrae_{n}": f"{n} vertebra" for n in (*(f"C{n}" for n in range(1, 8)), *(f"T{n}" for n in range(1, 13)))},
    **{f"vertebrae_{n}": f"{n} vertebra" for n in ("L1", "L2", "L3", "L4", "L5", "S1")},
    **{"spleen": "Spleen", "lung_left": "Lung", "iliac_vena_right": "Common iliac vein", "hip_left": "Hip"},
    **{"autochthon_left": "Deep muscle of back", "small_bowel": "Small intestine", "skull": "Skull"},
}


def checked(value: str) -> bool:
    """Whether the check digit of a SNOMED CT identifier is right (Verhoeff's dihedral scheme)."""
    d = [[(i + j) % 5 if i < 5 and j < 5 else 0 for j in range(10)] for i in range(10)]
    for i in range(10):
        for j in range(10):
            if i < 5:
                d[i][j] = (i + j) % 5 if j < 5 else 5 + (i + j - 5) % 5
            else:
                d[i][j] = 5 + (i - 5 - j) % 5 if j < 5 else (i - j) % 5
    p = [[*range(10)], [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
    while len(p) < 8:
        p.append([p[-1][p[1][n]] for n in range(10)])
    check = 0
    for place, digit in enumerate(reversed(value)):
        check = d[check][p[place % 8][int(digit)]]
    return check == 0


def scheme(real_data: Path, name: str) -> LabelTable:
    content = json.loads((real_data / "ct_multiorgan" / f"{name}_label_names.json").read_text())
    return LabelTable({int(value): organ for value, organ in content.items()})


@pytest.mark.parametrize(("name", "count"), [("ct", 117), ("mr", 50)])
def test_every_name_of_both_schemes_has_a_code_of_its_own_with_its_side(name: str, count: int, real_data: Path) -> None:
    codes = organ_codes(scheme(real_data, name).targets)
    assert len(codes) == count
    assert all(code.known and checked(code.type.value) for code in codes.values())
    # All different, and each pair of sides is one concept with two modifiers.
    assert len(set(codes.values())) == count
    for organ, code in codes.items():
        side = next((side for side in ("left", "right") if side in organ.split("_")), "")
        told = [part.meaning for part in (code.modifier, code.region_modifier) if part]
        if side and code.type.meaning not in ("Left auricular appendage", "Middle lobe of right lung"):
            assert told == [side.capitalize()]
            other = codes[organ.replace(side, {"left": "right", "right": "left"}[side])]
            assert (other.type, other.region) == (code.type, code.region)
        else:
            assert told == []
            assert side in code.type.meaning.lower()


@pytest.mark.parametrize("name", ["ct", "mr"])
def test_what_dicom_lists_means_the_same_there(name: str, real_data: Path) -> None:
    listed = 0
    for organ, code in organ_codes(scheme(real_data, name).targets).items():
        meaning = DICOM.get(code.type.value, "").lower()
        listed += bool(meaning)
        # The code of one side must not stand for both, as TotalSegmentator's of the subclavian artery does.
        if "left" in meaning or "right" in meaning:
            assert ("left" in meaning) == ("left" in organ), (organ, meaning)
    assert listed > 30


@pytest.mark.parametrize("name", NAMES)
def test_the_meaning_of_a_name(name: str) -> None:
    assert organ_code(name).type.meaning == NAMES[name]
    assert organ_code(name).category == ANATOMY


@pytest.mark.parametrize("name", ["kidney_left", "Left Kidney", "Kidney_L", "kidneyLeft", "l_kidney", "KIDNEY LT"])
def test_a_name_in_any_spelling(name: str) -> None:
    code = organ_code(name)
    assert (code.type.value, code.modifier) == ("64033007", Code("7771000", "SCT", "Left"))


def test_a_cyst_lies_in_the_kidney_of_its_side() -> None:
    code = organ_code("kidney_cyst_right")
    assert (code.category, code.type.meaning, code.modifier) == (ABNORMAL, "Cyst", None)
    assert code.region is not None
    assert code.region_modifier is not None
    assert (code.region.meaning, code.region_modifier.meaning) == ("Kidney", "Right")


def test_the_parts_of_the_hippocampus() -> None:
    codes = organ_codes(("Anterior", "Posterior"))
    told = [(code.type.meaning, code.modifier.meaning if code.modifier else "") for code in codes.values()]
    assert told == [("Hippocampus", "Anterior"), ("Hippocampus", "Posterior")]
    # These words alone say nothing where there are others.
    assert not organ_codes(("Anterior", "Posterior", "liver"))["Anterior"].known


def test_a_name_that_is_not_known_has_a_private_code_that_stays() -> None:
    code = organ_code("my organ")
    assert not code.known
    assert (code.type.scheme, code.type.meaning) == (PRIVATE_SCHEME, "my organ")
    assert len(code.type.value) == 16
    assert organ_code("my organ") == code
    assert organ_code("my organ 2").type.value != code.type.value
    assert organ_code("liver segment").type.scheme == PRIVATE_SCHEME


def test_labels_fit_into_dicom() -> None:
    assert label_text("a" * 200) == "a" * 64
    assert label_text("a\\b\nc") == "a/b c"
    assert label_text("\n") == "organ"
