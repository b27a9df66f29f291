"""Choosing from a pool: windows, balance, weights, the order of the curriculum, and the pairs behind the rows."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lore.data.images import image_bytes
from lore.data.pair import Pair, pair_digest
from lore.data.pair_source import PairSource
from lore.data.parquet import PairWriter, read_pairs
from lore.data.section import JudgedDataSection
from lore.engines.config import ModelSection
from lore.support.errors import LoreError
from lore.support.fingerprint import model_fingerprint
from lore.train.pool.config import PoolSection
from lore.train.pool.curriculum import _labeled_among, check_pool_matches, chosen_pairs, describe, pool_tiers, read_pool, select
from lore.train.pool.pool import POOL_SCHEMA

TIERS = ["L1", "L2", "L3", "L4"]


def rows_of(count: int) -> list[dict]:
    """Labels in uneven shares, every pass rate, a confidence, two slices."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        rate = index % 5 / 4
        rows.append(
            {
                "pair_id": f"p{index}",
                "query": f"lamp {index}",
                "label": TIERS[min(3, int(rng.integers(7)))],
                "label_weight": [1.0, 0.5, 0.25][index % 3],
                "slices": [["general"], ["hard", "rules"], []][index % 3],
                "tier": "L1",
                "probabilities": None if index % 11 == 0 else [0.7, 0.1, 0.1, 0.1],
                "confidence": None if index % 11 == 0 else float(rng.uniform(0.3, 1)),
                "agrees": False,
                "samples": [{"text": "a", "tokens": 1, "tier": "L1", "truncated": False}],
                "pass_rate": rate,
                "sample_agreement": 1.0,
            }
        )
    return rows


@pytest.fixture(scope="session")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("pool") / "pool.parquet"
    schema = POOL_SCHEMA.with_metadata({"lore.tiers": '["L1", "L2", "L3", "L4"]'})
    pq.write_table(pa.Table.from_pylist(rows_of(240), schema=schema), file)
    return str(file)


def ids(table: pa.Table) -> list[str]:
    return table["pair_id"].to_pylist()


def test_everything_is_chosen_once_in_an_order_that_the_seed_decides(path):
    one, same, other = (select(PoolSection(path=path), seed) for seed in (0, 0, 1))
    assert ids(one) == ids(same) != ids(other)
    assert sorted(ids(one)) == sorted(ids(other)) == sorted(ids(read_pool(path)))


def test_answers_to_other_prompts_are_refused_and_those_of_another_judge_are_named(path, tmp_path, capsys):
    table = read_pool(path)
    check_pool_matches(table, path, "r1", ModelSection(name="any"))  # a file that does not say
    metadata = {"lore.renderer_hash": "r1", "lore.judge": model_fingerprint("org/judge", None)}
    known = table.replace_schema_metadata({**table.schema.metadata, **metadata})
    check_pool_matches(known, path, "r1", ModelSection(name="org/judge"))
    assert capsys.readouterr().out == ""
    with pytest.raises(LoreError, match="asked with renderer r1, and this run asks with r2"):
        check_pool_matches(known, path, "r2", ModelSection(name="org/judge"))
    check_pool_matches(known, path, "r1", ModelSection(name="org/judge", adapter="org/adapter"))
    assert "sampled from other weights than those of org/adapter" in " ".join(capsys.readouterr().out.split())


def test_both_ends_of_a_window_are_inside_and_an_unreadable_answer_is_in_none(path):
    chosen = select(PoolSection(path=path, pass_rate=(0.25, 0.75)), 0)
    assert set(chosen["pass_rate"].to_pylist()) == {0.25, 0.5, 0.75}
    sure = select(PoolSection(path=path, confidence=(0.0, 1.0)), 0)
    assert len(sure) == len(read_pool(path)) - read_pool(path)["confidence"].null_count
    both = select(PoolSection(path=path, confidence=(0.5, 0.7), pass_rate=(0.0, 0.5)), 0)
    assert all(0.5 <= value <= 0.7 for value in both["confidence"].to_pylist())
    assert all(value <= 0.5 for value in both["pass_rate"].to_pylist())


def test_nothing_left_says_what_each_window_removed(path):
    with pytest.raises(LoreError, match=r"240 rows pool.confidence \[0.0, 0.1\] excludes 240 and pool.pass_rate .* excludes 0"):
        select(PoolSection(path=path, confidence=(0.0, 0.1), pass_rate=(0.2, 0.9)), 0)


@pytest.mark.parametrize("window", [(0.6, 0.2), (-0.1, 0.5), (0.5, 1.2)])
def test_impossible_windows_are_refused(window):
    with pytest.raises(ValidationError, match="0 <= low <= high <= 1"):
        PoolSection(path="x", pass_rate=window)


def test_slices_are_needed_where_they_decide():
    assert [conflict.keys for conflict in PoolSection(path="x", order="slice").conflicts()] == [("order", "slices")]
    assert [conflict.keys for conflict in PoolSection(path="x", balance="slice").conflicts()] == [("balance", "slices")]


@pytest.mark.parametrize("limit", [None, 20, 100])
def test_balanced_tiers_are_equally_frequent_without_repeating_a_row(path, limit):
    chosen = select(PoolSection(path=path, balance="tier", limit=limit), 0)
    counts = Counter(chosen["label"].to_pylist())
    rarest = min(Counter(read_pool(path)["label"].to_pylist()).values())
    assert len(set(ids(chosen))) == len(chosen)
    if limit is None:
        assert set(counts.values()) == {rarest}
    else:
        assert len(chosen) <= limit and max(counts.values()) - min(counts.values()) <= 3 + max(0, limit // 4 - rarest)


def test_slices_balanced_and_in_the_order_of_the_curriculum(path):
    section = PoolSection(path=path, balance="slice", order="slice", slices=["rules", "general"])
    found = select(section, 0)["slices"].to_pylist()
    place = [0 if "rules" in has else 1 if "general" in has else 2 for has in found]
    assert place == sorted(place) and set(Counter(place).values()) == {80}


@pytest.mark.parametrize("order, sign", [("easy_to_hard", -1), ("hard_to_easy", 1)])
def test_rows_come_from_easy_to_hard_or_the_other_way(path, order, sign):
    chosen = select(PoolSection(path=path, order=order, limit=100), 3)
    found = zip(*(chosen[name].to_pylist() for name in ("pass_rate", "confidence")), strict=True)
    keys = [(sign * rate, sign * (sure or 0)) for rate, sure in found]
    assert keys == sorted(keys) and len(keys) == 100


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), limit=st.one_of(st.none(), st.integers(1, 240)))
def test_a_row_comes_as_often_as_its_weight_says(path, seed, limit):
    table = read_pool(path)
    chosen = select(PoolSection(path=path, weighted=True, limit=limit), seed)
    assert len(chosen) == (limit or 240)
    weights = dict(zip(ids(table), table["label_weight"].to_pylist(), strict=True))
    counts = Counter(ids(chosen))
    for pair_id, weight in weights.items():
        expected = len(chosen) * weight / sum(weights.values())
        assert int(expected - 1e-9) <= counts[pair_id] <= int(expected + 1 + 1e-9)


def test_weights_of_nothing_are_an_error(path, tmp_path):
    rows = [row | {"label_weight": 0.0} for row in rows_of(6)]
    pq.write_table(pa.Table.from_pylist(rows, schema=POOL_SCHEMA), tmp_path / "zero.parquet")
    with pytest.raises(LoreError, match="pool.weighted.*all zero"):
        select(PoolSection(path=str(tmp_path / "zero.parquet"), weighted=True), 0)


def test_a_file_that_is_no_pool_is_an_error(tmp_path):
    with pytest.raises(LoreError, match="stage pool"):
        read_pool(tmp_path / "none.parquet")
    pq.write_table(pa.table({"pair_id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(LoreError, match="no column label, .*not a pool"):
        read_pool(tmp_path / "other.parquet")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "other.parquet").read_bytes()[:100])
    with pytest.raises(LoreError, match="torn.parquet is not a readable Parquet file .*run recipes/pool.yaml"):
        read_pool(tmp_path / "torn.parquet")


def test_the_choice_is_described_by_tier(path, capsys):
    before = read_pool(path)
    after = select(PoolSection(path=path, pass_rate=(0.25, 0.75)), 0)
    rows = describe(before, after)
    assert [row["tier"] for row in rows] == [*TIERS, "all"]
    assert rows[-1]["before"] == 240 and rows[-1]["after"] == rows[-1]["pairs"] == len(after)
    assert rows[-1]["pass_rate_before"] == pytest.approx(0.5) and "selected from the pool" in capsys.readouterr().out


@pytest.fixture
def pairs(tmp_path):
    """Writes the pairs of rows_of; `change` alters one before it is written."""

    def write(change=lambda pair: pair) -> JudgedDataSection:
        with PairWriter(tmp_path / "pairs.parquet") as writer:
            for row in rows_of(240):
                pair = Pair(pair_id=row["pair_id"], query=row["query"], title="a lamp", label=row["label"])
                if change(pair):
                    writer.write(pair)
        return JudgedDataSection(path=str(tmp_path / "pairs.parquet"), rubric="shop")

    return write


def test_rows_find_their_pairs_in_the_rows_order(path, pairs, tmp_path):
    chosen = select(PoolSection(path=path, weighted=True, limit=60), 0)
    assert [pair.pair_id for pair in chosen_pairs(chosen, PairSource(pairs(), tmp_path))] == ids(chosen)


def test_photos_stay_in_a_file_of_the_run_that_all_processes_map(path, tmp_path):
    with PairWriter(tmp_path / "pairs.parquet") as writer:
        for number, row in enumerate(rows_of(240)):
            image = {"bytes": f"photo {number}".encode(), "path": None} if number % 3 else None
            writer.write(Pair(pair_id=row["pair_id"], query=row["query"], title="a lamp", label=row["label"], image=image))
    data = JudgedDataSection(path=str(tmp_path / "pairs.parquet"), rubric="shop")
    chosen = select(PoolSection(path=path, weighted=True, limit=60), 0)
    written = {pair.pair_id: pair for pair in read_pairs(data.path)}
    kept = [written[pair_id] for pair_id in ids(chosen)]
    stored, bare = (chosen_pairs(chosen, PairSource(data, tmp_path), photos=photos) for photos in (True, False))
    assert (tmp_path / "data" / "photos.arrow").is_file()
    assert any(pair.image for pair in kept)
    for one, other, third in zip(kept, stored, bare, strict=True):
        assert not isinstance(other.image, dict)
        assert replace(one, image=None) == replace(other, image=None) == third
        assert one.image == (None if other.image is None else dict(other.image))
        if one.image:
            assert image_bytes(other.image) == one.image["bytes"]


def test_pairs_that_are_missing_or_rated_anew_are_an_error(path, pairs, tmp_path):
    chosen = read_pool(path)
    with pytest.raises(LoreError, match="1 of 240 pairs of the pool are not among.*p7"):
        chosen_pairs(chosen, PairSource(pairs(lambda pair: pair.pair_id != "p7"), tmp_path))

    def rated_anew(pair):
        pair.label = "L4" if pair.label != "L4" else "L1"
        return pair

    with pytest.raises(LoreError, match="240 of 240 pairs have another label.*p0, L. in the pool and L. now"):
        chosen_pairs(chosen, PairSource(pairs(rated_anew), tmp_path))
    other = JudgedDataSection(path="x", rubric="homedepot")
    with pytest.raises(LoreError, match="made with the tiers L1, L2, L3, L4, and data.rubric homedepot has"):
        chosen_pairs(chosen, PairSource(other, tmp_path))


def test_a_pool_made_before_ids_began_with_a_letter_finds_its_pairs(tmp_path):
    old = pair_digest("lamp", "1")
    with PairWriter(tmp_path / "a.parquet") as writer:
        writer.write(Pair(pair_id=f"p{old}", query="lamp", title="t", label="L4"))
        writer.write(Pair(pair_id="other", query="lamp", title="u", label="L4"))
    source = PairSource(JudgedDataSection(path=str(tmp_path / "a.parquet"), rubric="shop"), tmp_path)
    assert [pair.pair_id for pair in _labeled_among({old}, source, ["label"])] == [old]


@pytest.mark.parametrize("held", [b"", b"{", b"[" * 100_000, b"[1]", b"\xff", b'"L1"'], ids=lambda held: str(held[:4]))
def test_damaged_metadata_of_a_pool_is_named(held):
    table = pa.Table.from_pylist(rows_of(2), POOL_SCHEMA).replace_schema_metadata({"lore.tiers": held, "lore.judge": b"\xff"})
    with pytest.raises(LoreError, match="metadata lore.tiers is damaged"):
        pool_tiers(table)
    check_pool_matches(table, "pool.parquet", "renderer", ModelSection(name="some/model"))
