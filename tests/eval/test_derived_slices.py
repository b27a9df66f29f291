"""Slices that follow from frequency, category and mismatch, and what the test set makes of them."""

import numpy as np

from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.eval.derived_slices import derived_slices, frequency_parts
from lore.eval.testset import Labeled, load_split
from lore.rubric.rubric import load_rubric

RUBRIC = load_rubric("rair")


def test_a_third_of_the_traffic_is_the_head():
    queries = ["big", "big", "second", "third", "fourth", "fifth", "unknown"]
    parts = frequency_parts(queries, [50.0, 50.0, 30.0, 10.0, 5.0, 5.0, None])
    # of 100 searches big has the first 50, second starts inside the second third, third at 80
    assert parts == [f"frequency:{part}" for part in ("head", "head", "middle", "tail", "tail", "tail")] + [None]


def test_queries_of_one_frequency_stay_together_in_any_order():
    queries = [f"q{index}" for index in range(9)]
    frequencies = [1.0] * 6 + [3.0] * 3
    parts = dict(zip(queries, frequency_parts(queries, frequencies), strict=True))
    assert set(parts.values()) == {"frequency:head", "frequency:middle"}
    assert dict(zip(queries[::-1], frequency_parts(queries[::-1], frequencies[::-1]), strict=True)) == parts
    assert frequency_parts(queries, [2.0] * 9) == frequency_parts(queries, [None] * 9) == [None] * 9


def test_industry_and_dimension_come_from_category_and_mismatch_unless_the_data_name_them():
    given = [["hard"], ["hard"], []]
    found = derived_slices(
        given, ["a", "b", "c"], [None] * 3, ["Furniture / Beds / Bunk", "Shoes > Boots", None], ["colour", None, None]
    )
    assert found == [["hard", "industry:Furniture", "dimension:colour"], ["hard", "industry:Shoes"], []]
    given = [["dimension:brand"], ["industry:x"], ["frequency:y"]]
    found = derived_slices(given, ["a", "b", "c"], [1.0, 2.0, 3.0], ["A", "B", "C"], ["colour"] * 3)
    assert found == given


def test_the_slices_of_a_split_are_counted_and_masked(tmp_path):
    path = tmp_path / "pairs.parquet"
    with PairWriter(path) as writer:
        for index in range(40):
            more = {"query_frequency": 100.0 if index < 8 else 1.0, "category": "Home > Lamps" if index % 2 else None}
            label = RUBRIC.tier_ids[index % 4]
            query = f"q{index // 4}"
            writer.write(Pair(pair_id=f"p{index}", query=query, title="t", label=label, split="test", slices=["general"], **more))
    test = load_split(path, "test", RUBRIC)
    assert test.slice_sizes() == {"general": 40, "frequency:tail": 32, "industry:Home": 20, "frequency:head": 8}
    assert test.in_slice("industry:Home").tolist() == [bool(index % 2) for index in range(40)]
    assert not test.in_slice("no such").any() and len(test.in_slice("no such")) == 40
    assert sum(test.in_slice(f"frequency:{part}").sum() for part in ("head", "middle", "tail")) == 40
    assert len({id(names) for names in test.slices}) <= 6  # shared, not one list a pair
    # the parts are those of the whole split, whatever is kept of it
    kept = load_split(path, "test", RUBRIC, limit=12)
    assert {name for names in kept.slices for name in names} <= set(test.slice_sizes())
    assert all(kept.slices[index] == test.slices[test.position[pair]] for index, pair in enumerate(kept.pair_ids))


def test_an_empty_test_has_no_slices():
    none = Labeled("test", [], [], np.zeros(0, dtype=int), np.zeros(0), [])
    assert none.slice_sizes() == {} and none.in_slice("a").shape == (0,)
