"""The embedded phantom dataset: synthetic CT-like and MR-like torsos with ten organs, made from a seed."""

from pipeline.phantom.dataset import TEST_START, phantom_case, phantom_labels, write_phantom

__all__ = ["TEST_START", "phantom_case", "phantom_labels", "write_phantom"]
