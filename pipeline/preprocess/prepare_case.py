"""One case through the transforms: into the store for training, or into memory for prediction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from numpy.typing import NDArray

from pipeline.core.errors import DataError, sentence
from pipeline.core.files import text_hash
from pipeline.core.grid import Box, Grid
from pipeline.core.volume import Image
from pipeline.data.dataset import CaseFiles, content_hashes
from pipeline.data.prepared_cases import stored_hash
from pipeline.data.store import PreparedCase, class_voxels, write_prepared
from pipeline.preprocess.grid_history import GridHistory
from pipeline.preprocess.plan_file import Plan
from pipeline.preprocess.resample import MOST_BYTES
from pipeline.preprocess.transforms import grid_of, transforms

_VOXELS_PER_CLASS = 4096
"""Stored positions per class: enough for any number of draws to look uniform."""

_VERSION = "4"
"""Raised when the transforms or what is noted change, so that prepared cases of an older version are made again."""

_DEEPEST = 6  # objects within objects; MONAI's transforms need 3


def transform_text(value: Any, depth: int = 0) -> str:
    """A transform and its parameters as a text, the same in every process: a changed parameter shows in its hash.

    Containers count by their parts, arrays by a hash of their content, functions and classes by their name, other
    objects by their class and attributes, random generators by their class alone.

    Args:
        value: A MONAI transform, or anything that one is made of.
        depth: How many objects this one lies in.

    Returns:
        One line; equal for equal values, also in other processes.
    """
    if isinstance(value, (np.ndarray, torch.Tensor)):
        array = value.detach().cpu().float().numpy() if isinstance(value, torch.Tensor) else value
        return f"array({value.dtype}, {tuple(value.shape)}, {text_hash(array.tobytes().hex())})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{key}: {transform_text(item, depth)}' for key, item in value.items()))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(transform_text(item, depth) for item in value)}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(transform_text(item, depth) for item in value))}}}"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    # Objects may hold themselves; a text of addresses would differ in every process.
    if hasattr(value, "__dict__") and depth < _DEEPEST:
        return f"{type(value).__qualname__}{transform_text(vars(value), depth + 1)}"
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text


def case_hash(files: CaseFiles, plan: Plan, extra: Sequence[Any] = ()) -> str:
    """Hash of everything a prepared case depends on: file contents, group, plan, further transforms, parameters too.

    Raises:
        DataError: If a file cannot be read.
    """
    contents = content_hashes(files)
    parts = [path.name for path in (*files.images, *files.label_sources)]  # which channel, which label value
    return text_hash(
        _VERSION, *contents, plan.content_hash, json.dumps([parts, files.group]), *map(transform_text, extra)
    )


def prepare_case(files: CaseFiles, plan: Plan, out: Path, extra: Sequence[Any] = (), source: str = "") -> bool:
    """Prepare one case and write it, unless the store already holds it unchanged.

    Args:
        files: Where the case is; it has a reference.
        plan: The plan of the dataset.
        out: Folder of the prepared dataset.
        extra: Further MONAI dictionary transforms, run last.
        source: The dataset it is from; noted, so that the case can go when it has left it.

    Returns:
        True if it was written, False if nothing had changed.
    """
    content_hash = case_hash(files, plan, extra)
    if stored_hash(out, files.id) == content_hash:
        return False
    data = {"id": files.id, "image": list(files.images), "label": files.label_sources}
    result, history = run_transforms(data, plan, extra=extra)
    index = result["label"].as_tensor().numpy()[0]
    if stored_hash(out, files.id) == content_hash:  # another run has made it meanwhile
        return False
    # From the name, so that the store is the same whichever worker prepares the case.
    voxels = class_voxels(index, _VOXELS_PER_CLASS, np.random.default_rng(int(text_hash(files.id), 16)))
    write_prepared(
        out,
        PreparedCase(
            files.id,
            result["image"].as_tensor().numpy(),
            index,
            voxels,
            {
                "hash": content_hash,
                "recipe": plan.content_hash,
                "group": files.group,
                "classes": sorted(voxels),
                "images": [str(path.absolute()) for path in files.images],
                "labels": [str(path.absolute()) for path in files.label_sources],
                "dataset": source,
                "trace": history.to_json(),
            },
        ),
        steps=plan.store_dtype == "int16",
    )
    return True


def prepare_image(
    image: Image, plan: Plan, *, case: str = "image", extra: Sequence[Any] = (), most_bytes: int | None = None
) -> tuple[NDArray[np.float32], GridHistory]:
    """An image in memory on the prepared grid, for prediction.

    Args:
        image: (C, I, J, K) on any grid; as many channels as the plan has.
        plan: The model's plan.
        case: Name used in error messages.
        extra: The further transforms that training data went through.
        most_bytes: Memory that resampling may take; by default all that is free.

    Returns:
        (C, I', J', K') float32 normalized intensities, and how to get back.

    Raises:
        DataError: If the number of channels is wrong, intensities are not finite, or the memory is too small.
    """
    if image.channels != len(plan.channels):
        rule = f"{len(plan.channels)} ({', '.join(plan.channels)})"
        advice = "Give one file per channel, in this order"
        raise DataError(sentence("channels", rule, image.channels, advice, case=case))
    tensor = MetaTensor(torch.from_numpy(np.ascontiguousarray(image.array)), affine=torch.tensor(image.grid.affine))
    data = {"id": case, "image": tensor, MOST_BYTES: most_bytes}
    result, history = run_transforms(data, plan, load=False, extra=extra)
    prepared: NDArray[np.float32] = result["image"].as_tensor().numpy()
    return prepared, history


def run_transforms(
    data: Mapping[str, Any], plan: Plan, *, load: bool = True, extra: Sequence[Any] = ()
) -> tuple[dict[str, Any], GridHistory]:
    """Run the chain on ``id``, ``image`` and, for training, ``label``, and keep what is needed to undo it.

    Returns:
        The chain's dictionary and what was done to the grid.

    Raises:
        DataError: If the case cannot be used.
    """
    with_label = "label" in data
    if extra:
        chain = transforms(plan, with_label=with_label, load=load, extra=extra)
    else:
        chain = _chain(plan.model_dump_json(), with_label, load)
    try:
        result: dict[str, Any] = chain(dict(data))
    except RuntimeError as error:  # MONAI wraps what its transforms raise
        raise _cause(error) from None
    source = Grid(result["source_shape"], result["source_affine"])
    orientation = plan.orientation_of(source)
    whole = Box.whole(source.reoriented(orientation).shape)
    start, stop = result.get("crop_start", whole.start), result.get("crop_stop", whole.stop)
    try:
        history = GridHistory(source, orientation, start, stop, grid_of(result["image"]))
    except ValueError as error:  # a further transform of the user moved the field of view
        raise DataError(f"case {data['id']}: {error}") from None
    return result, history


@lru_cache(maxsize=4)
def _chain(plan: str, with_label: bool, load: bool) -> Compose:
    """The chain of a plan, kept because making MONAI's readers takes a fifth of the time of a small case."""
    # The plan comes as JSON, because a worker is given another copy of it with every case.
    return transforms(Plan.model_validate_json(plan), with_label=with_label, load=load)


def _cause(error: BaseException) -> BaseException:
    """The project's own error inside the chain of wrappers, or what a transform raised."""
    inner: BaseException | None = error
    # MONAI wraps an error once for every Compose around the transform.
    while inner is not None:
        if isinstance(inner, DataError):
            return inner
        inner = inner.__cause__
    while error.__cause__ is not None and str(error).startswith("applying transform "):
        error = error.__cause__
    return error
