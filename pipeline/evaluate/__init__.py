"""Evaluation: overlap, surfaces, lesions and calibration per organ, their statistics, and the files they go to.

Imports neither torch nor monai.
"""

from pipeline.evaluate.case import score_case
from pipeline.evaluate.choose_labels import find_labels
from pipeline.evaluate.measures import OVERLAP_ONLY, Measures
from pipeline.evaluate.overlap import Overlap, joint_histogram, overlaps
from pipeline.evaluate.pairing import FilePair, pair_files
from pipeline.evaluate.results import read_evaluation, read_summary, write_evaluation
from pipeline.evaluate.rows import EvaluatedCase, Evaluation, Row
from pipeline.evaluate.scoring import evaluate
from pipeline.evaluate.summary import CONVENTIONS, summarize
from pipeline.evaluate.table import TABLE_COLUMNS, table_rows

__all__ = [
    "CONVENTIONS",
    "OVERLAP_ONLY",
    "TABLE_COLUMNS",
    "EvaluatedCase",
    "Evaluation",
    "FilePair",
    "Measures",
    "Overlap",
    "Row",
    "evaluate",
    "find_labels",
    "joint_histogram",
    "overlaps",
    "pair_files",
    "read_evaluation",
    "read_summary",
    "score_case",
    "summarize",
    "table_rows",
    "write_evaluation",
]
