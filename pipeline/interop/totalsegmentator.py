"""TotalSegmentator's models as model folders of ours: the parts of a task become one model, with the published classes.

Weights lie as its installer puts them: in ``Dataset291_…/nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres`` and so on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.core.documents import short
from pipeline.core.errors import VolsegError, sentence
from pipeline.core.files import OutputFolder
from pipeline.core.labels import LabelTable
from pipeline.interop.nnunet import Stage, read_stage, write_stages
from pipeline.interop.results_files import ResultsFiles
from pipeline.model.folder import ModelParts
from pipeline.model.readme import PAINTED, Described, write_model_card

_TOTAL = {
    291: (
        "spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right "
        "adrenal_gland_left lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right "
        "lung_middle_lobe_right lung_lower_lobe_right esophagus trachea thyroid_gland small_bowel duodenum colon "
        "urinary_bladder prostate kidney_cyst_left kidney_cyst_right"
    ),
    292: (
        "sacrum vertebrae_S1 vertebrae_L5 vertebrae_L4 vertebrae_L3 vertebrae_L2 vertebrae_L1 vertebrae_T12 "
        "vertebrae_T11 vertebrae_T10 vertebrae_T9 vertebrae_T8 vertebrae_T7 vertebrae_T6 vertebrae_T5 "
        "vertebrae_T4 vertebrae_T3 vertebrae_T2 vertebrae_T1 vertebrae_C7 vertebrae_C6 vertebrae_C5 vertebrae_C4 "
        "vertebrae_C3 vertebrae_C2 vertebrae_C1"
    ),
    293: (
        "heart aorta pulmonary_vein brachiocephalic_trunk subclavian_artery_right subclavian_artery_left "
        "common_carotid_artery_right common_carotid_artery_left brachiocephalic_vein_left "
        "brachiocephalic_vein_right atrial_appendage_left superior_vena_cava inferior_vena_cava "
        "portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right iliac_vena_left iliac_vena_right"
    ),
    294: (
        "humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right femur_left "
        "femur_right hip_left hip_right spinal_cord gluteus_maximus_left gluteus_maximus_right "
        "gluteus_medius_left gluteus_medius_right gluteus_minimus_left gluteus_minimus_right autochthon_left "
        "autochthon_right iliopsoas_left iliopsoas_right brain skull"
    ),
    295: (
        "rib_left_1 rib_left_2 rib_left_3 rib_left_4 rib_left_5 rib_left_6 rib_left_7 rib_left_8 rib_left_9 "
        "rib_left_10 rib_left_11 rib_left_12 rib_right_1 rib_right_2 rib_right_3 rib_right_4 rib_right_5 "
        "rib_right_6 rib_right_7 rib_right_8 rib_right_9 rib_right_10 rib_right_11 rib_right_12 sternum "
        "costal_cartilages"
    ),
}
"""Number of a dataset → its organs in the order of their values, which are 1, 2, … within a part and in the whole."""

_TOTAL_MR = {
    850: (
        "spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right "
        "adrenal_gland_left lung_left lung_right esophagus small_bowel duodenum colon urinary_bladder prostate "
        "sacrum vertebrae intervertebral_discs spinal_cord heart aorta inferior_vena_cava "
        "portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right iliac_vena_left iliac_vena_right"
    ),
    851: (
        "humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right femur_left "
        "femur_right hip_left hip_right gluteus_maximus_left gluteus_maximus_right gluteus_medius_left "
        "gluteus_medius_right gluteus_minimus_left gluteus_minimus_right autochthon_left autochthon_right "
        "iliopsoas_left iliopsoas_right brain"
    ),
}


TASKS: Mapping[str, Mapping[int, str]] = {
    "total": _TOTAL,
    "total_fast": {297: " ".join(_TOTAL.values())},
    "total_fastest": {298: " ".join(_TOTAL.values())},
    "total_mr": _TOTAL_MR,
    "total_mr_fast": {852: " ".join(_TOTAL_MR.values())},
    "total_mr_fastest": {853: " ".join(_TOTAL_MR.values())},
}
"""Task → its parts in the order in which they are painted, later ones over earlier ones."""

_RECORD = "imported.json"
_FOLD = "0"  # the only one that is used, and installed
_CONFIGURATION = "3d_fullres"
_FOLDER = "the weights folder of TotalSegmentator, or download the task with it"


@dataclass(frozen=True)
class ImportedTask:
    """What was imported.

    Args:
        files: What was written, relative to the model folder.
        parts: Folders of nnU-Net's models, one per part.
        organs: How many organs the model finds.
    """

    files: tuple[str, ...]
    parts: tuple[str, ...]
    organs: int


def import_totalsegmentator(
    weights: Path | str, out: Path | str, *, task: str = "total", license: str | None = None
) -> ImportedTask:
    """Write the models of a task of TotalSegmentator as one model folder.

    Args:
        weights: Folder in which its installer put them, or a zip archive of such a folder.
        out: Folder to write: new, empty, or one that was imported before.
        task: One of :data:`TASKS`.
        license: Of the weights, as SPDX names it, for the model card.

    Returns:
        What was imported.

    Raises:
        VolsegError: If the task is not known, a part is missing, or has another number of classes, or is not what it
            should be, or ``out`` holds other files. Nothing is written then.
    """
    if task not in TASKS:
        raise VolsegError(sentence("task", f"one of {', '.join(TASKS)}", short(task), "Correct it"))
    files, folder = ResultsFiles(Path(weights)), OutputFolder(Path(out), _RECORD)
    folder.require_own("a model that was imported before")
    # All folders are looked for before the first weights are read, which takes a while.
    models = {number: _part(files, number, task) for number in TASKS[task]}
    stages = {number: _stage(files, models[number], _table(names)) for number, names in TASKS[task].items()}
    whole = _table(" ".join(TASKS[task].values()))
    several = len(stages) > 1
    homes = {(f"part_{number}" if several else ""): stage for number, stage in stages.items()}
    parts = ModelParts(parts=tuple(homes), labels=whole.to_json()) if several else None
    names = write_stages(files, homes, folder, parts=parts)
    cards = tuple(stage.card for stage in stages.values())
    about = Described(cards, whole, PAINTED.format(len(stages)) if several else "", len(stages), license=license)
    return ImportedTask(
        (*names, *write_model_card(folder.path, about, names)), tuple(models.values()), len(whole.organs)
    )


def _table(names: str) -> LabelTable:
    """The label table of organs whose values are 1, 2, …."""
    return LabelTable(dict(enumerate(names.split(), start=1)))


def _part(files: ResultsFiles, number: int, task: str) -> str:
    """The folder of a part's model."""
    there = [model for model in files.models if re.search(rf"(^|/)Dataset{number}_[^/]*/[^/]*$", model)]
    wanted = [model for model in there if model.endswith(f"__{_CONFIGURATION}")]
    if len(wanted) != 1:
        rule, got = f"one model Dataset{number}_…/…__{_CONFIGURATION}, as {task} needs", ", ".join(there) or "none"
        raise VolsegError(sentence("part", rule, got, f"Name {_FOLDER}", file=files.path))
    return wanted[0]


def _stage(files: ResultsFiles, model: str, labels: LabelTable) -> Stage:
    """A part, which sees images and names organs as TotalSegmentator does.

    Raises:
        VolsegError: If it is not what it should be.
    """
    stage = read_stage(files, model, [_FOLD])
    card, table, where = stage.card, stage.card.plan.label_table, files.where(model)
    if table.regions or table.classes != labels.classes:
        got = "regions" if table.regions else f"{table.classes} with the background"
        raise VolsegError(sentence("classes", f"{labels.classes}", got, f"Name {_FOLDER}", file=where))
    if card.plan.cascade or card.network.dims != 3 or len(card.plan.channels) != 1 or card.plan.conventions is None:
        rule, got = "a 3D network of one stage and one channel", card.network.name
        raise VolsegError(sentence("model", rule, got, f"Name {_FOLDER}", file=where))
    # Its images are turned to RAS and resampled linearly to the spacing of the task, which is that of the network.
    changes = {"file_axes": None, "separate_coarse_axis": False, "whole_numbers": True}
    plan = card.plan.model_copy(
        update={
            "labels": labels.to_json(),
            "image_order": 1,
            "conventions": card.plan.conventions.model_copy(update=changes),
        }
    )
    infer = card.settings.infer.model_copy(update={"mirror": False})
    settings = card.settings.model_copy(update={"infer": infer})
    return replace(stage, card=card.model_copy(update={"plan": plan, "settings": settings}))
