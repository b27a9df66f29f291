"""Splits: a query is on one side, the sides keep their sizes, and no later row moves an earlier one."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lore.data.pair import Pair
from lore.data.parquet import PairWriter, read_metadata, read_pairs
from lore.data.splits import split_of, split_pairs
from lore.data.statistics import pair_stats
from lore.support.errors import LoreError


@given(st.text(max_size=20))
def test_case_and_spacing_do_not_move_a_query(query):
    assert split_of(f"  {query} ") == split_of(query) in ("train", "dev", "test")


def test_shares_are_kept_and_seeds_deal_anew():
    counts = Counter(split_of(f"query {i}", {"a": 0.5, "b": 0.2, "c": 0.3, "d": 0}) for i in range(5000))
    assert counts["a"] == pytest.approx(2500, abs=150) and counts["b"] == pytest.approx(1000, abs=120) and "d" not in counts
    moved = sum(split_of(f"query {i}") != split_of(f"query {i}", seed=1) for i in range(1000))
    assert 300 < moved < 600
    assert [split_of(f"query {i}") for i in range(6)] == ["train", "dev", "train", "train", "train", "train"]


@pytest.mark.parametrize("fractions", [{}, {"train": 0.5}, {"train": 1.2, "test": -0.2}, {"": 1.0}])
def test_shares_that_are_no_shares_are_refused(fractions):
    with pytest.raises(LoreError, match="sum to 1"):
        split_of("query", fractions)


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "a.parquet"
    with PairWriter(path, metadata={"lore.rubric": "crowdflower"}) as writer:
        for i in range(60):
            values = {
                "query": f"Query {i // 3}",
                "title": f"t{i % 5}",
                "label": "4",
                "slices": ["hard"] if i % 2 else [],
            }
            writer.write(Pair(pair_id=str(i), **values))
    return path


def test_splitting_a_file_by_query_keeps_everything_else(pairs_file, tmp_path):
    counts = split_pairs(pairs_file, tmp_path / "b.parquet")
    before, after = list(read_pairs(pairs_file)), list(read_pairs(tmp_path / "b.parquet"))
    assert counts.total() == 60 and len(counts) > 1
    assert [pair.split for pair in after] == [split_of(pair.query) for pair in before]
    for pair in after:
        pair.split = None
    assert after == before
    assert read_metadata(tmp_path / "b.parquet")["lore.rubric"] == "crowdflower"


def test_splitting_in_place_by_item_and_refusing_a_second_time(pairs_file):
    split_pairs(pairs_file, pairs_file, by="item")
    sides = {(pair.title, pair.split) for pair in read_pairs(pairs_file)}
    assert len(sides) == 5
    with pytest.raises(LoreError, match="--replace"):
        split_pairs(pairs_file, pairs_file)
    split_pairs(pairs_file, pairs_file, replace=True)
    with pytest.raises(LoreError, match="query or item, not by 'colour'"):
        split_pairs(pairs_file, pairs_file, by="colour")
    assert [path.name for path in pairs_file.parent.iterdir()] == ["a.parquet"]


def test_stats_count_what_is_there(tmp_path):
    rows = [
        ("a", "red shoe", "4", "train", ["hard"]),
        ("b", "RED shoe", "1", "test", ["hard", "long"]),
        ("c", "red shoe", None, "test", []),
        ("d", "blue shoe", "4", None, []),
        ("e", "blue shoe", "3", None, []),
        ("f", "blue shoe", "4", None, []),
    ]
    with PairWriter(tmp_path / "a.parquet", metadata={"lore.rubric": "crowdflower"}) as writer:
        for name, query, label, split, slices in rows:
            title = name if query != "blue shoe" else "same"
            writer.write(Pair(pair_id=name, query=query, title=title, label=label, split=split, slices=slices))
    found = pair_stats(tmp_path / "a.parquet")
    assert (found["pairs"], found["labeled"], found["queries"]) == (6, 5, 2)
    assert found["tiers"]["test"] == {"1": 1, "3": 0, "4": 0, "(none)": 1}
    assert found["slices"] == {"hard": 2, "long": 1}
    assert found["lengths"]["title"] == {"pairs": 6, "p50": 4, "p95": 4, "max": 4}
    assert (found["duplicates"], found["conflicting_labels"]) == (1, 1)
    assert found["queries_shared_by_splits"] == {"train and test": 1, "train and (none)": 0, "test and (none)": 0}
