"""From prepared cases to training batches: folds, patch positions, cutting, augmentation."""
