"""From prepared cases to training batches: folds, patch positions, cutting, augmentation."""

from pipeline.sample.augment import Direction, augment, directions
from pipeline.sample.cut import IMAGE_PADDING, cut, cut_batch
from pipeline.sample.folds import Fold, make_folds, read_splits, write_splits
from pipeline.sample.patches import CaseInfo, Patch, balanced_patches, sliding_patches

__all__ = [
    "IMAGE_PADDING",
    "CaseInfo",
    "Direction",
    "Fold",
    "Patch",
    "augment",
    "balanced_patches",
    "cut",
    "cut_batch",
    "directions",
    "make_folds",
    "read_splits",
    "sliding_patches",
    "write_splits",
]
