"""Embedded datasets made from a seed: CT-like and MR-like torsos with ten organs, and fundus photographs."""

from pipeline.phantom.dataset import TEST_START, phantom_case, phantom_labels, write_phantom
from pipeline.phantom.fundus import fundus_case, write_fundus

__all__ = ["TEST_START", "fundus_case", "phantom_case", "phantom_labels", "write_fundus", "write_phantom"]
