from contextlib import suppress
from itertools import combinations, combinations_with_replacement, product

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.labels import LabelTable
from pipeline.evaluate.overlap import overlaps
from pipeline.infer.labelling import decode

NAMES = {value: f"label_{value}" for value in (1, 2, 3, 4)}
SUBSETS = [held for size in (4, 3, 2, 1) for held in combinations(NAMES, size)]  # from large to small


def _tables() -> list[LabelTable]:
    """Every table of up to four regions that is not refused."""
    tables = []
    for count in (1, 2, 3, 4):
        for chosen in combinations(SUBSETS, count):
            regions = {f"region_{n}": held for n, held in enumerate(chosen)}
            try:
                tables.append(LabelTable(NAMES, None, regions))
            except ValueError:
                continue
    return tables


def _shared() -> list[LabelTable]:
    """Regions of which others make up the first, or that have the same values, with every order that is not refused."""
    names = {1: "label_1", 2: "label_2", 3: "label_3"}
    subsets = [held for size in (3, 2, 1) for held in combinations(names, size)]
    tables = []
    for chosen in combinations_with_replacement(subsets, 3):
        for order in product(*chosen):
            with suppress(ValueError):
                tables.append(LabelTable(names, None, {f"region_{n}": held for n, held in enumerate(chosen)}, order))
    return tables


TABLES = [*_tables(), *(table for table in _shared() if len(set(table.painted)) < 3)]


@settings(max_examples=200)
@given(st.sampled_from(TABLES), st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_perfect_logits_of_any_regions_score_1(table: LabelTable, values: list[int]) -> None:
    reference = np.minimum(values, max(table.names))
    index = table.to_index(reference)
    found = torch.stack([torch.from_numpy(np.isin(index, region)) for region in table.region_classes()])
    prediction = table.from_index(decode(found.float() * 2 - 1, table.painting()).numpy())
    for row in overlaps(reference, prediction, table):
        assert row.status == "true_negative" or row.dice == 1.0
