"""Evaluation: overlap of predictions and references per organ, their statistics, and the files they are written to.

Imports neither torch nor monai.
"""

from pipeline.evaluate.overlap import Overlap, joint_histogram, overlaps
from pipeline.evaluate.pairing import FilePair, find_labels, pair_files
from pipeline.evaluate.results import read_evaluation, read_summary, write_evaluation
from pipeline.evaluate.rows import EvaluatedCase, Evaluation, Row
from pipeline.evaluate.scoring import evaluate, score_case
from pipeline.evaluate.summary import CONVENTIONS, TABLE_COLUMNS, summarize, table_rows

__all__ = [
    "CONVENTIONS",
    "TABLE_COLUMNS",
    "EvaluatedCase",
    "Evaluation",
    "FilePair",
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
