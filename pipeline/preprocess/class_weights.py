"""Class weights for tiny organs, proposed from how much of the foreground each organ is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.preprocess.fingerprint import CaseFingerprint

__all__ = ["propose_class_weights"]

_LARGEST = 10.0  # so that no handful of voxels, perhaps mislabelled ones, rules a training
_BALANCED = 2.0  # below this, i.e. with at least a quarter of the median share, weights are not worth their noise
_NAMED = 3


def propose_class_weights(
    names: Sequence[str], fingerprints: Iterable[CaseFingerprint]
) -> tuple[dict[str, float] | None, str]:
    """Weigh the organs that have less of the foreground than the median organ.

    An organ weighs the square root of the median share over its own, at most 10, rounded to a digit; the median is over
    organs that occur, so that neither a huge organ nor one that no case has moves it.

    Args:
        names: Organ names in the order of classes 1, 2, ….
        fingerprints: One per usable case.

    Returns:
        Organ → weight above 1, the largest first, and the reason in a sentence or two; organs left out weigh 1. None
        for the weights where the organs are about equally frequent.

    Reference: median frequency balancing, Eigen and Fergus 2015 (arXiv 1411.4734), section 6.3; the square root as in
    Mahajan et al. 2018 (arXiv 1805.00932), section 2.3.
    """
    volumes, present, cases = np.zeros(len(names)), np.zeros(len(names), np.int64), 0
    for case in fingerprints:
        voxels = np.array(case.class_voxels[1:], np.float64)
        volumes += voxels * np.prod(case.spacing_mm)
        present += voxels > 0
        cases += 1
    found = volumes > 0
    shares = volumes / max(float(volumes.sum()), np.finfo(float).tiny)
    weights = np.ones(len(names))
    if found.any():
        weights[found] = np.sqrt(np.median(shares[found]) / shares[found]).clip(1.0, _LARGEST).round(1)
    if weights.max(initial=1.0) < _BALANCED:
        return None, "None proposed: no organ has less than a quarter of the median organ's share of the foreground."
    rarest = [int(n) for n in np.argsort(shares) if weights[n] > 1.0]
    named = [f"{names[n]}: {100 * shares[n]:.2g} % of it, in {present[n]} of {cases} cases" for n in rarest[:_NAMED]]
    more = f"; and {len(rarest) - _NAMED} more" if len(rarest) > _NAMED else ""
    why = (
        "A proposal for organs with little of the foreground, used only where loss.class_weights or "
        "sample.class_weights says plan; may be edited at any time. Square root of the median organ's share over the "
        f"organ's, at most {_LARGEST:g}; others weigh 1. {'; '.join(named)}{more}."
    )
    return {names[n]: float(weights[n]) for n in rarest}, why
