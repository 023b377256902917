"""What a worker is told to prepare a case; apart from the work, so that sending it needs neither torch nor MONAI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.case_files import CaseFiles
from pipeline.preprocess.plan import Plan

__all__ = ["PrepareTask"]


@dataclass(frozen=True)
class PrepareTask:
    """One case to prepare, as it travels to a worker.

    Args:
        files: Where the case is; it has a reference.
        plan: The dataset's plan.
        out: Folder of the prepared dataset.
        extra: Further MONAI dictionary transforms, run last.
    """

    files: CaseFiles
    plan: Plan
    out: Path
    extra: tuple[Any, ...] = ()
