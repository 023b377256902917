"""What an organ's name means in SNOMED CT, as DICOM segments and measurements, and segments of 3D Slicer, say it.

Names are those of TotalSegmentator's 117 classes of CT and 50 of MR, of the phantom and of the Decathlon's hippocampus,
in any spelling of words and sides: ``kidney_left``, ``Left Kidney`` and ``Kidney_L`` are one. A name that is not known
gets a code of its own in a private coding scheme: nothing is guessed.

Reference: PS3.16 CID 7150 (categories), CID 7151 (types), CID 244 (laterality). Where DICOM lists no code it is that of
    TotalSegmentator's own table, but for the gluteus maximus (theirs is the entire muscle) and the subclavian artery
    (theirs is the right one, for both sides).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.core.errors import one_line
from pipeline.core.regions import side_and_words

PRIVATE_SCHEME = "99VOLSEG"
"""Coding scheme of names that SNOMED CT has no code for here; private ones begin with 99 (PS3.3 8.2)."""

_LONGEST = 64  # characters of a code's meaning and of a segment's label (VR LO)


class Code(NamedTuple):
    """A concept: value, coding scheme, meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class OrganCode:
    """What a name means.

    Args:
        category: What kind of thing it is.
        type: The thing.
        modifier: The side, or the part of it, that the type does not tell.
        region: Where it is, if the type does not tell.
        region_modifier: The side of that.
    """

    category: Code
    type: Code
    modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None

    @property
    def known(self) -> bool:
        """Whether it is a concept of SNOMED CT."""
        return self.type.scheme == "SCT"


def _sct(value: int, meaning: str) -> Code:
    return Code(str(value), "SCT", meaning)


ANATOMY = _sct(91723000, "Anatomical Structure")
ABNORMAL = _sct(49755003, "Morphologically Abnormal Structure")
SIDES = {"left": _sct(7771000, "Left"), "right": _sct(24028007, "Right")}
_PARTS = {"anterior": _sct(255549009, "Anterior"), "posterior": _sct(255551008, "Posterior")}
_HIPPOCAMPUS = _sct(5366008, "Hippocampus")
_CYST = _sct(367643001, "Cyst")
_KIDNEY = _sct(64033007, "Kidney")

_VERTEBRAE = {
    **{"c1": 14806007, "c2": 39976000, "c3": 113205007, "c4": 5329002, "c5": 36978003, "c6": 36054005, "c7": 87391001},
    **{"t1": 64864005, "t2": 53733008, "t3": 1626008, "t4": 73071006, "t5": 56401006, "t6": 45296009, "t7": 62487009},
    **{"t8": 11068009, "t9": 82687006, "t10": 7610001, "t11": 12989004, "t12": 23215003},
    **{"l1": 66794005, "l2": 14293000, "l3": 36470004, "l4": 11994002, "l5": 49668003, "s1": 65985001},
}
_RIBS = {
    **{"1": (48535007, "First"), "2": (78247007, "Second"), "3": (25888004, "Third"), "4": (25523003, "Fourth")},
    **{"5": (15339008, "Fifth"), "6": (59558009, "Sixth"), "7": (24915002, "Seventh"), "8": (5953002, "Eighth")},
    **{"9": (22565002, "Ninth"), "10": (77644006, "Tenth"), "11": (58830002, "Eleventh"), "12": (43993008, "Twelfth")},
}
# Words of a name, without its side.
_TYPES: dict[str, Code] = {
    "adrenal gland": _sct(23451007, "Adrenal gland"),
    "aorta": _sct(15825003, "Aorta"),
    "autochthon": _sct(244849004, "Deep muscle of back"),
    "brachiocephalic trunk": _sct(12691009, "Brachiocephalic trunk"),
    "brachiocephalic vein": _sct(8887007, "Brachiocephalic vein"),
    "brain": _sct(12738006, "Brain"),
    "clavicula": _sct(51299004, "Clavicle"),
    "colon": _sct(71854001, "Colon"),
    "common carotid artery": _sct(32062004, "Common carotid artery"),
    "costal cartilages": _sct(50016007, "Costal cartilage"),
    "duodenum": _sct(38848004, "Duodenum"),
    "esophagus": _sct(32849002, "Esophagus"),
    "femur": _sct(71341001, "Femur"),
    "gallbladder": _sct(28231008, "Gallbladder"),
    "gluteus maximus": _sct(206007, "Gluteus maximus muscle"),
    "gluteus medius": _sct(78333006, "Gluteus medius muscle"),
    "gluteus minimus": _sct(75297007, "Gluteus minimus muscle"),
    "heart": _sct(80891009, "Heart"),
    "hip": _sct(29836001, "Hip"),
    "hippocampus": _HIPPOCAMPUS,
    "humerus": _sct(85050009, "Humerus"),
    "iliac artery": _sct(73634005, "Common iliac artery"),
    "iliac vena": _sct(46027005, "Common iliac vein"),
    "iliopsoas": _sct(68455001, "Iliopsoas muscle"),
    "inferior vena cava": _sct(64131007, "Inferior vena cava"),
    "intervertebral discs": _sct(360499006, "Intervertebral disc"),
    "kidney": _KIDNEY,
    "liver": _sct(10200004, "Liver"),
    "lung": _sct(39607008, "Lung"),
    "lung lower lobe": _sct(90572001, "Lower lobe of lung"),
    "lung upper lobe": _sct(45653009, "Upper lobe of lung"),
    "pancreas": _sct(15776009, "Pancreas"),
    "portal vein and splenic vein": _sct(110765007, "Portal vein and splenic vein"),
    "prostate": _sct(41216001, "Prostate"),
    "pulmonary vein": _sct(122972007, "Pulmonary vein"),
    "sacrum": _sct(54735007, "Sacrum"),
    "scapula": _sct(79601000, "Scapula"),
    "skull": _sct(89546000, "Skull"),
    "small bowel": _sct(30315005, "Small intestine"),
    "spinal cord": _sct(2748008, "Spinal cord"),
    "spine": _sct(421060004, "Spine"),
    "spleen": _sct(78961009, "Spleen"),
    "sternum": _sct(56873002, "Sternum"),
    "stomach": _sct(69695003, "Stomach"),
    "subclavian artery": _sct(36765005, "Subclavian artery"),
    "superior vena cava": _sct(48345005, "Superior vena cava"),
    "thyroid gland": _sct(69748006, "Thyroid gland"),
    "trachea": _sct(44567001, "Trachea"),
    "urinary bladder": _sct(89837001, "Urinary bladder"),
    "vertebrae": _sct(51282000, "Vertebra"),
    **{f"vertebrae {name}": _sct(code, f"{name.upper()} vertebra") for name, code in _VERTEBRAE.items()},
    **{f"rib {number}": _sct(code, f"{name} rib") for number, (code, name) in _RIBS.items()},
}
# Those whose code tells the side.
_SIDED = {
    ("left", "atrial appendage"): _sct(33626005, "Left auricular appendage"),
    ("right", "lung middle lobe"): _sct(72481006, "Middle lobe of right lung"),
}


def organ_code(name: str) -> OrganCode:
    """What a name means; of one that is not known, a private code that is the same for the same name."""
    side, words = side_and_words(name)
    text = " ".join(words)
    if (side, text) in _SIDED:
        return OrganCode(ANATOMY, _SIDED[side, text])
    if text == "kidney cyst":
        return OrganCode(ABNORMAL, _CYST, region=_KIDNEY, region_modifier=SIDES.get(side))
    if words[:1] == ("hippocampus",) and len(words) == 2 and words[1] in _PARTS and not side:
        return OrganCode(ANATOMY, _HIPPOCAMPUS, _PARTS[words[1]])
    if text in _TYPES:
        return OrganCode(ANATOMY, _TYPES[text], SIDES.get(side))
    # A code has 16 characters (VR SH), so that it cannot be the name itself.
    value = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return OrganCode(ANATOMY, Code(value, PRIVATE_SCHEME, label_text(name)))


def organ_codes(names: Collection[str]) -> dict[str, OrganCode]:
    """What each name of a label table means.

    In the Decathlon's hippocampus the parts are called Anterior and Posterior, and nothing else: so are they here,
    where there are just these two.
    """
    parts = {name.lower() for name in names} == set(_PARTS)
    return {name: organ_code(f"hippocampus {name}" if parts else name) for name in names}


def label_text(name: str) -> str:
    """A name as DICOM can hold it: one line of 64 characters, without the character that separates values."""
    return one_line(name).replace("\\", "/")[:_LONGEST] or "organ"
