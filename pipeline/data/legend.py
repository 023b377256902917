"""Names and colours of label values, in the forms in which viewers read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from pipeline.core.errors import one_line
from pipeline.core.labels import LabelTable
from pipeline.data.organ_codes import Code, OrganCode, organ_codes

_SNAP_HEAD = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# Fields:
#    IDX:   Zero-based index
#    -R-:   Red color component (0..255)
#    -G-:   Green color component (0..255)
#    -B-:   Blue color component (0..255)
#    -A-:   Label transparency (0.00 .. 1.00)
#    VIS:   Label visibility (0 or 1)
#    MSH:   Label mesh visibility (0 or 1)
#  LABEL:   Label description
################################################
    0     0    0    0        0  0  0    "Clear Label"
"""

# Lists that come with 3D Slicer.
_SEGMENT_TERMS = "Segmentation category and type - 3D Slicer General Anatomy list"
_REGION_TERMS = "Anatomic codes - DICOM master list"

_ORGANS = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")
"""Okabe and Ito, Color Universal Design, 2008, without black; light ones first, since they lie on grey images."""

# The 256 colours of Turbo (Mikhailov, Google 2019), as matplotlib has them: predicting should not wait for matplotlib.
_TURBO = (
    "30123b32154333184a341b51351e5836215f37246638276d392a733a2d793b2f803c32863d358b3e38913f3b973f3e9c4040a24143a7"
    "4146ac4249b1424bb5434eba4451bf4454c34456c74559cb455ccf455ed34661d64664da4666dd4669e0466be3476ee64771e94773eb"
    "4776ee4778f0477bf2467df44680f64682f84685fa4687fb458afc458cfd448ffe4391fe4294ff4196ff4099ff3e9bfe3d9efe3ba0fd"
    "3aa3fc38a5fb37a8fa35abf833adf731aff52fb2f42eb4f22cb7f02ab9ee28bceb27bee925c0e723c3e422c5e220c7df1fc9dd1ecbda"
    "1ccdd81bd0d51ad2d21ad4d019d5cd18d7ca18d9c818dbc518ddc218dec018e0bd19e2bb19e3b91ae4b61ce6b41de7b21fe9af20eaac"
    "22ebaa25eca727eea42aefa12cf09e2ff19b32f29835f39438f4913cf58e3ff68a43f78746f8844af8804ef97d52fa7a55fa7659fb73"
    "5dfc6f61fc6c65fd6969fd666dfe6271fe5f75fe5c79fe597dff5680ff5384ff5188ff4e8bff4b8fff4992ff4796fe4499fe429cfe40"
    "9ffd3fa1fd3da4fc3ca7fc3aa9fb39acfb38affa37b1f936b4f836b7f735b9f635bcf534bef434c1f334c3f134c6f034c8ef34cbed34"
    "cdec34d0ea34d2e935d4e735d7e535d9e436dbe236dde037dfdf37e1dd37e3db38e5d938e7d739e9d539ebd339ecd13aeecf3aefcd3a"
    "f1cb3af2c93af4c73af5c53af6c33af7c13af8be39f9bc39faba39fbb838fbb637fcb336fcb136fdae35fdac34fea933fea732fea431"
    "fea130fe9e2ffe9b2dfe992cfe962bfe932afe9029fd8d27fd8a26fc8725fc8423fb8122fb7e21fa7b1ff9781ef9751df8721cf76f1a"
    "f66c19f56918f46617f36315f26014f15d13f05b12ef5811ed5510ec530feb500eea4e0de84b0ce7490ce5470be4450ae2430ae14109"
    "df3f08dd3d08dc3b07da3907d83706d63506d43305d23105d02f05ce2d04cc2b04ca2a04c82803c52603c32503c12302be2102bc2002"
    "b91e02b71d02b41b01b21a01af1801ac1701a91601a71401a41301a112019e10019b0f01980e01950d01920b018e0a018b0902880802"
    "8507028106027e05027a0403"
)


def organ_color(index: int) -> str:
    """Colour of the ``index``-th organ of a label table, as ``#rrggbb``; all are different up to 107 organs."""
    if index < len(_ORGANS):
        return _ORGANS[index]
    # Steps of the golden ratio: organs that follow each other are far apart in the map, whose ends are too dark.
    place = 6 * int(256 * (0.05 + 0.9 * (((index - len(_ORGANS)) * 0.61803) % 1.0)))
    return f"#{_TURBO[place : place + 6]}"


def target_colors(table: LabelTable, colors: Mapping[int, str] | None = None) -> dict[str, str]:
    """Organ or region → its colour; a region has that of the value it is painted with.

    Args:
        table: What label values mean.
        colors: Label value → ``#rrggbb``; by default those of their places in the table.
    """
    known = colors or {value: organ_color(n) for n, value in enumerate(table.values)}
    drawn = dict(zip(table.regions, table.painted, strict=True)) or {name: value for value, name in table.names.items()}
    return {name: known[value] for name, value in drawn.items()}


@dataclass(frozen=True)
class LegendEntry:
    """What a label value means and how it is drawn.

    Args:
        value: Label value, at least 1.
        name: Organ.
        color: ``#rrggbb``.
    """

    value: int
    name: str
    color: str

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""
        red, green, blue = bytes.fromhex(self.color.removeprefix("#"))
        return red, green, blue


def caret_xml(legend: Sequence[LegendEntry]) -> bytes:
    """Label table for the header of a NIfTI file, UTF-8.

    Connectome Workbench reads it from an extension with Caret's code 30. TotalSegmentator writes the same table with
    code 0, and tools made for its masks look for it in the first extension.
    """
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', '<CaretExtension><VolumeInformation Index="0"><LabelTable>']
    for entry in legend:
        red, green, blue = (f"{part / 255:.6g}" for part in entry.rgb)
        color = f'Red="{red}" Green="{green}" Blue="{blue}" Alpha="1"'
        lines.append(f'<Label Key="{entry.value}" {color}>{escape(one_line(entry.name))}</Label>')
    lines.append("</LabelTable><StudyMetaDataLinkSet></StudyMetaDataLinkSet><VolumeType>Label</VolumeType>")
    return "\n".join([*lines, "</VolumeInformation></CaretExtension>"]).encode("utf-8")


def segment_fields(legend: Sequence[LegendEntry], shape: Sequence[int]) -> dict[str, str]:
    """Header fields that make a NRRD label map of a shape (I, J, K) a segmentation of 3D Slicer.

    All segments lie in one layer, so their extents are that of the volume, as Slicer itself writes it. Organs that
    SNOMED CT has a code for here are told by it.

    Reference: Slicer developer guide, Segmentations, "Segmentation labelmap file format (.seg.nrrd)". Older versions of
        Slicer call the source representation the master representation.
    """
    extent = " ".join(f"0 {n - 1}" for n in shape)
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    codes = organ_codes([entry.name for entry in legend])
    for n, entry in enumerate(legend):
        if codes[entry.name].known:
            fields |= {f"Segment{n}_Tags": f"TerminologyEntry:{_terminology(codes[entry.name])}|"}
        fields |= {
            f"Segment{n}_ID": f"Segment_{entry.value}",
            f"Segment{n}_Name": " ".join(one_line(entry.name).split()),
            f"Segment{n}_NameAutoGenerated": "0",
            f"Segment{n}_Color": " ".join(f"{part / 255:.6g}" for part in entry.rgb),
            f"Segment{n}_ColorAutoGenerated": "0",
            f"Segment{n}_LabelValue": str(entry.value),
            f"Segment{n}_Layer": "0",
            f"Segment{n}_Extent": extent,
        }
    return fields


def _terminology(code: OrganCode) -> str:
    """What an organ is, as 3D Slicer writes it: of two lists of terms, category and type, then the region."""

    def told(part: Code | None) -> str:
        return "^".join((part.scheme, part.value, part.meaning)) if part else "^^"

    segment = (told(code.category), told(code.type), told(code.modifier))
    return "~".join((_SEGMENT_TERMS, *segment, _REGION_TERMS, told(code.region), told(code.region_modifier)))


def slicer_colors(legend: Sequence[LegendEntry]) -> str:
    """A colour table of 3D Slicer (``.ctbl``): opacity 255 is opaque.

    Reference: Slicer developer guide, Colors, "Color table file format".
    """
    return "".join(("# Color table file\n", *_color_lines("Background", legend, opaque=255)))


def freesurfer_colors(legend: Sequence[LegendEntry]) -> str:
    """A colour table of FreeSurfer, like its ``FreeSurferColorLUT.txt``: the last number is transparency."""
    return "".join(("#No. Label Name: R G B A\n", *_color_lines("Unknown", legend, opaque=0)))


def _color_lines(background: str, legend: Sequence[LegendEntry], *, opaque: int) -> Iterator[str]:
    yield f"0 {background} 0 0 0 0\n"
    for entry in legend:
        name = "_".join(one_line(entry.name).split()) or f"label_{entry.value}"  # blanks end a name there
        yield f"{entry.value} {name} {' '.join(map(str, entry.rgb))} {opaque}\n"


def snap_labels(legend: Sequence[LegendEntry]) -> str:
    """A label description file of ITK-SNAP (Segmentation, Import Label Descriptions)."""
    lines = []
    for entry in legend:
        red, green, blue = entry.rgb
        name = one_line(entry.name).replace('"', "'")
        lines.append(f'{entry.value:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{name}"\n')
    return _SNAP_HEAD + "".join(lines)
