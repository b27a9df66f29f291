"""Kappa equals scikit-learn's, alpha the krippendorff package's; the ceiling and the ratings file."""

import json
import math

import krippendorff
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from lore.eval.measures.agreement import Ratings, ceiling, cohen_kappa, coincidences, judge_agreement, ordinal_alpha
from lore.eval.measures.metrics import NO_VERDICT, count, total
from lore.eval.ratings import read_ratings
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

RUBRIC = load_rubric("rair")
RELEVANT = RUBRIC.relevant_mask


def ratings_of(table: np.ndarray) -> Ratings:
    """From labels [raters, pairs], nan where a rater has none."""
    rater, pair = np.nonzero(~np.isnan(table))
    return Ratings(pair, rater, table[rater, pair].astype(int), [f"r{index}" for index in range(len(table))])


@settings(deadline=None, max_examples=150)
@given(
    st.integers(2, 5).flatmap(
        lambda raters: st.lists(
            st.lists(st.sampled_from([0, 1, 2, 3, np.nan]), min_size=raters, max_size=raters), min_size=2, max_size=15
        )
    )
)
def test_alpha_equals_the_packages_for_any_raters_with_missing_labels(rows):
    table = np.asarray(rows, dtype=float).T
    votes = np.stack([(table == tier).sum(axis=0) for tier in range(4)], axis=1).astype(float)
    together = coincidences(votes).sum(axis=0)
    assume((together.sum(axis=0) > 0).sum() > 1)
    expected = krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal", value_domain=[0, 1, 2, 3])
    assert ordinal_alpha(together) == pytest.approx(expected)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.5, 1.0, 3.0])), min_size=2, max_size=40))
def test_kappa_equals_scikit_learns(rows):
    gold, predicted, weights = (np.asarray(column) for column in zip(*rows, strict=True))
    assume(len(set(gold) | set(predicted)) > 1)
    confusion = total(count(gold, predicted, 4, weights=weights)).confusion
    expected = cohen_kappa_score(gold, predicted, labels=range(4), sample_weight=weights)
    assert cohen_kappa(confusion) == pytest.approx(expected)


def test_a_failure_agrees_with_no_label_and_stands_farthest_from_it():
    gold, predicted = np.asarray([0, 1, 2, 3] * 5), np.asarray([0, 1, 2, NO_VERDICT] * 5)
    found = judge_agreement(gold, predicted, np.arange(20), 4, samples=50)
    as_fifth = np.where(predicted == NO_VERDICT, 4, predicted)
    assert found.kappa.value == pytest.approx(cohen_kappa_score(gold, as_fifth))
    as_worst = np.where(predicted == NO_VERDICT, 0, predicted)
    assert found.quadratic_kappa.value == pytest.approx(cohen_kappa_score(gold, as_worst, weights="quadratic"))
    assert found.alpha.value == pytest.approx(krippendorff.alpha(reliability_data=[gold, as_worst], level_of_measurement="ordinal"))
    assert found.kappa.low <= found.kappa.value <= found.kappa.high and found.with_raters is None


def test_one_label_has_no_kappa_and_one_query_no_interval():
    found = judge_agreement(np.ones(4, dtype=int), np.ones(4, dtype=int), np.zeros(4, dtype=int), 4)
    assert math.isnan(found.kappa.value) and math.isnan(found.quadratic_kappa.value) and math.isnan(found.alpha.value)
    found = judge_agreement(np.asarray([0, 1]), np.asarray([0, 1]), np.zeros(2, dtype=int), 4)
    assert found.kappa.value == 1 and math.isnan(found.kappa.low)


def test_kappa_depends_on_the_prior():
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 4, 400)
    predicted = np.where(rng.random(400) < 0.7, gold, rng.integers(0, 4, 400))
    even, skewed = (judge_agreement(gold, predicted, np.arange(400), 4, prior=p, samples=0) for p in ([1] * 4, [1, 1, 1, 97]))
    assert skewed.kappa.value < even.kappa.value - 0.2


def test_judge_against_single_raters():
    rng = np.random.default_rng(1)
    gold = rng.integers(0, 4, 60)
    table = np.stack([np.where(rng.random(60) < 0.8, gold, rng.integers(0, 4, 60)) for _ in range(3)]).astype(float)
    table[2, 20:] = np.nan
    found = judge_agreement(gold, gold, np.arange(60) // 2, 4, ratings=ratings_of(table), samples=100)
    rated = [60, 60, 20]
    kappas = [cohen_kappa_score(gold[:n], row[:n], weights="quadratic") for row, n in zip(table, rated, strict=True)]
    assert found.with_raters.value == pytest.approx(np.average(kappas, weights=rated))
    assert found.with_raters.low < found.with_raters.value < found.with_raters.high


def test_the_ceiling_of_two_raters_is_their_agreement():
    first, second = np.tile([0.0, 1, 2, 3, 3, np.nan], 4), np.tile([0.0, 2, 3, 3, 0, 1], 4)
    found = ceiling(ratings_of(np.stack([first, second])), np.arange(24), RELEVANT, samples=50)
    assert (found.pairs, found.raters) == (20, 2)
    assert found.acc_k.value == pytest.approx(2 / 5) and found.acc_2.value == pytest.approx(3 / 5)
    both = ~np.isnan(first)
    assert found.kappa.value == pytest.approx(cohen_kappa_score(first[both], second[both], weights="quadratic"))
    expected = krippendorff.alpha(reliability_data=[first, second], level_of_measurement="ordinal", value_domain=[0, 1, 2, 3])
    assert found.alpha.value == pytest.approx(expected)
    assert found.acc_k.low <= found.acc_k.value <= found.acc_k.high


def test_the_ceiling_holds_one_rater_against_the_median_of_the_others():
    three = ceiling(ratings_of(np.asarray([[0.0], [1], [3]])), np.arange(1), RELEVANT)
    # 0 against 1 (of 1 and 3 the worse), 1 against 0, 3 against 0
    assert three.acc_k.value == 0 and three.acc_2.value == pytest.approx(2 / 3)
    four = ceiling(ratings_of(np.asarray([[2.0], [2], [2], [0]])), np.arange(1), RELEVANT)
    assert four.acc_k.value == pytest.approx(3 / 4)
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 300)
    table = np.where(rng.random((5, 300)) < 0.8, true, rng.integers(0, 4, (5, 300))).astype(float)
    expected = np.mean([table[r] == np.sort(np.delete(table, r, 0), axis=0)[1] for r in range(5)])
    assert ceiling(ratings_of(table), np.arange(300), RELEVANT, samples=0).acc_k.value == pytest.approx(expected)


def test_a_crowd_of_raters_with_few_pairs_each_has_an_alpha_and_no_kappa():
    rng = np.random.default_rng(0)
    pair = np.tile(np.arange(200), 3)
    crowd = Ratings(pair, rng.permutation(600) // 2, (pair % 4 + rng.choice([-1, 0, 0, 0, 1], 600)).clip(0, 3), ["x"] * 300)
    found = ceiling(crowd, np.arange(200), RELEVANT, samples=50)
    assert math.isnan(found.kappa.value) and found.alpha.low < found.alpha.value < found.alpha.high
    judged = judge_agreement(np.arange(200) % 4, np.arange(200) % 4, np.arange(200), 4, ratings=crowd, samples=0)
    assert math.isnan(judged.with_raters.value)


def test_raters_who_share_no_pair_have_no_ceiling():
    alone = ceiling(ratings_of(np.asarray([[0.0, np.nan], [np.nan, 1.0]])), np.arange(2), RELEVANT)
    assert alone.pairs == 0 and math.isnan(alone.alpha.value)


ROWS = [("a", "ann", "L4"), ("a", "bob", "Perfect"), ("b", "ann", "l1")]


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.tsv", "r.parquet"])
def test_ratings_are_read_from_every_kind_of_table(tmp_path, name):
    path = tmp_path / name
    rows = [dict(zip(("pair_id", "rater", "label"), row, strict=True)) for row in ROWS]
    if name == "r.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name == "r.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        cut = "\t" if name == "r.tsv" else ","
        path.write_text("\n".join(cut.join(row) for row in [("pair_id", "rater", "label"), *ROWS]) + "\n")
    found = read_ratings(path, RUBRIC, ["a", "b", "c"])
    assert found.pair.tolist() == [0, 0, 1] and found.tier.tolist() == [3, 3, 0]
    assert found.raters == ["ann", "bob"] and found.rater.tolist() == [0, 1, 0] and found.unrated == 1


def test_ratings_that_do_not_fit_are_refused_with_all_their_ids(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("pair_id,rater,label\na,ann,L4\na,ann,L3\nx,ann,L1\nb,bob,superb\nb,,L1\n")
    with pytest.raises(LoreError) as caught:
        read_ratings(path, RUBRIC, ["a", "b"])
    message = str(caught.value)
    twice = "1 pairs that one rater labeled twice: a (of ann)"
    for part in (twice, "outside the test: x", "b ('superb' of bob)", "row 5 (no rater)"):
        assert part in message
    path.write_text("pair_id,label\na,L4\n")
    with pytest.raises(LoreError, match="'rater' is missing"):
        read_ratings(path, RUBRIC, ["a"])
    with pytest.raises(LoreError, match="does not exist"):
        read_ratings(tmp_path / "none.csv", RUBRIC, ["a"])
    path.rename(tmp_path / "r.xlsx")
    with pytest.raises(LoreError, match="expected .parquet"):
        read_ratings(tmp_path / "r.xlsx", RUBRIC, ["a"])
