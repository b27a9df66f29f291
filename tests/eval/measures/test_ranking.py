"""AUC and nDCG equal scikit-learn's, with ties and weights, for the test and for every resample."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from lore.eval.measures.bootstrap import estimate, pair_weights, times_drawn, values_and_draws
from lore.eval.measures.metrics import NO_VERDICT
from lore.eval.measures.ranking import auc, ndcg_by_query

TIERS, RELEVANT = ["L1", "L2", "L3"], [False, True, True]
GAINS = np.asarray([0.0, 0.1, 1.0])
ROW = st.tuples(st.booleans(), st.sampled_from([0.1, 0.3, 0.3, 0.7]), st.sampled_from([0.5, 1.0, 2.0]))


@settings(deadline=None, max_examples=150)
@given(st.lists(ROW, min_size=1, max_size=40))
def test_auc_equals_scikit_learns_with_ties_and_weights(rows):
    relevant, scores, weights = (np.asarray(column) for column in zip(*rows, strict=True))
    ours = auc(relevant, scores, weights)
    if relevant.all() or not relevant.any():
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(roc_auc_score(relevant, scores, sample_weight=weights))


def test_auc_of_each_resample_is_exact():
    rng = np.random.default_rng(0)
    groups, gold = rng.integers(0, 12, 80), rng.integers(0, 3, 80)
    probabilities = np.round(rng.dirichlet(np.ones(3), 80), 1)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    weights = rng.choice([0.5, 1.0, 2.0], 80)
    predicted = probabilities.argmax(axis=1)
    options = {"probabilities": probabilities, "weights": weights, "samples": 30, "seed": 4}
    _, drawn = values_and_draws(gold, predicted, groups, TIERS, RELEVANT, **options)
    scores = np.round(probabilities[:, 1:].sum(axis=1), 9)
    for value, times in zip(drawn["auc"], np.concatenate(list(times_drawn(12, 30, 4))), strict=True):
        assert value == pytest.approx(roc_auc_score(gold > 0, scores, sample_weight=weights * times[groups]))


def test_auc_takes_a_failure_for_a_guess_and_is_not_defined_without_both_sides():
    gold, predicted = np.asarray([0, 2]), np.asarray([0, NO_VERDICT])
    sure = np.asarray([[0.2, 0.4, 0.4], [0.0, 0.0, 1.0]])
    found = estimate(gold, predicted, np.arange(2), TIERS, RELEVANT, probabilities=sure, samples=0)
    assert found["auc"].value == 0 and found["brier"].value == pytest.approx(((0.8**2 + 2 * 0.4**2) + 6 / 9) / 2)
    one_sided = estimate(gold[:1], predicted[:1], np.arange(1), TIERS, RELEVANT, probabilities=sure[:1])
    assert math.isnan(one_sided["auc"].value)
    assert math.isnan(estimate(gold, predicted, np.arange(2), TIERS, RELEVANT)["auc"].value)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.1, 0.3, 0.7, 0.9])), min_size=2, max_size=20))
def test_ndcg_of_a_query_equals_scikit_learns_with_ties(rows):
    gold, scores = (np.asarray(column) for column in zip(*rows, strict=True))
    ours = ndcg_by_query(GAINS[gold], scores, np.zeros(len(gold), dtype=int))
    if not gold.any():
        assert math.isnan(ours[0])
    else:
        assert ours[0] == pytest.approx(ndcg_score([GAINS[gold]], [scores], ignore_ties=False))


def test_ndcg_is_the_mean_over_queries_with_some_gain_in_any_row_order():
    rng = np.random.default_rng(2)
    groups, gold = rng.permutation(np.repeat(np.arange(9), 7)), rng.integers(0, 3, 63)
    gold[groups == 4] = 0
    probabilities = rng.dirichlet(np.ones(3), 63)
    predicted = probabilities.argmax(axis=1)
    expected = [
        ndcg_score([GAINS[gold[groups == q]]], [(probabilities @ GAINS)[groups == q]]) for q in range(9) if q != 4
    ]
    found = estimate(gold, predicted, groups, TIERS, RELEVANT, probabilities=probabilities, gains=GAINS, samples=200)["ndcg"]
    assert found.value == pytest.approx(np.mean(expected)) and found.low < found.value < found.high

    # without probabilities the verdicts' gains are the scores, full of ties
    expected = [ndcg_score([GAINS[gold[groups == q]]], [GAINS[predicted[groups == q]]]) for q in range(9) if q != 4]
    assert estimate(gold, predicted, groups, TIERS, RELEVANT, gains=GAINS)["ndcg"].value == pytest.approx(np.mean(expected))
    assert math.isnan(estimate(gold, predicted, groups, TIERS, RELEVANT)["ndcg"].value)


def test_ndcg_weighs_a_query_by_the_mean_weight_of_its_pairs():
    gold, predicted, groups = np.asarray([2, 0, 2, 0, 0]), np.asarray([2, 0, 0, 2, 0]), np.asarray([0, 0, 1, 1, 1])
    second = (1 / np.log2(3) + 1 / np.log2(4)) / 2  # the relevant item shares ranks 2 and 3
    found = estimate(gold, predicted, groups, TIERS, RELEVANT, gains=GAINS, weights=np.asarray([3.0, 3, 1, 1, 1]))
    assert found["ndcg"].value == pytest.approx((3 * 1 + 1 * second) / 4)


def test_a_draw_weighs_pairs_as_often_as_their_query_is_drawn_and_tiers_by_the_prior():
    groups, gold, weights = np.asarray([0, 0, 1]), np.asarray([0, 1, 1]), np.asarray([1.0, 2.0, 4.0])
    times = np.asarray([[2.0, 0.0], [1.0, 1.0]])
    plain = np.concatenate(list(pair_weights(iter([times]), groups, weights, gold)))
    assert plain.tolist() == [[2, 4, 0], [1, 2, 4]]
    under = np.concatenate(list(pair_weights(iter([times]), groups, weights, gold, [0.5, 0.5])))
    assert under == pytest.approx(np.asarray([[3, 3, 0], [3.5, 3.5 / 3, 7 / 3]]))
