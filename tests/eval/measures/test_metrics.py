"""Metrics equal scikit-learn's, count failures as wrong, and their intervals cover the truth."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

from lore.eval.measures.bootstrap import Estimate, estimate, interval, lower_level, query_groups, resample, values_and_draws
from lore.eval.measures.metrics import NO_VERDICT, confidence_of, count, measure, metric_names, prior_weights, total
from lore.rubric.cost_matrix import cost_matrix
from lore.support.errors import LoreError

TIERS = ["L1", "L2", "L3", "L4"]
RELEVANT = [False, False, True, True]


def measured(gold, predicted, tiers=TIERS, relevant=RELEVANT, **options) -> dict[str, float]:
    counts = total(count(np.asarray(gold), np.asarray(predicted), len(tiers), **options))
    return {name: float(value) for name, value in measure(counts, tiers, relevant).items()}


@settings(deadline=None, max_examples=200)
@given(st.integers(2, 6), st.data())
def test_metrics_equal_scikit_learns_for_any_labels_and_number_of_tiers(tiers, data):
    rows = data.draw(
        st.lists(
            st.tuples(st.integers(0, tiers - 1), st.integers(0, tiers - 1), st.sampled_from([0.5, 1.0, 3.0])),
            min_size=1,
            max_size=40,
        )
    )
    gold, predicted, weights = (np.asarray(column) for column in zip(*rows, strict=True))
    ids = [f"t{index}" for index in range(tiers)]
    relevant = [index >= tiers / 2 for index in range(tiers)]
    ours = measured(gold, predicted, ids, relevant, weights=weights)

    assert ours["acc_k"] == pytest.approx(accuracy_score(gold, predicted, sample_weight=weights))
    assert ours["micro_f1"] == pytest.approx(f1_score(gold, predicted, average="micro", sample_weight=weights))
    two = (np.asarray(relevant)[gold], np.asarray(relevant)[predicted])
    assert ours["acc_2"] == pytest.approx(accuracy_score(*two, sample_weight=weights))
    assert ours["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro", sample_weight=weights, zero_division=0))
    per_tier = f1_score(gold, predicted, labels=range(tiers), average=None, sample_weight=weights, zero_division=np.nan)
    for index, tier in enumerate(ids):
        assert ours[f"f1_{tier}"] == pytest.approx(per_tier[index], nan_ok=True)
    if len(set(gold) | set(predicted)) == 1:
        assert math.isnan(ours["qwk"])
    else:
        assert ours["qwk"] == pytest.approx(
            cohen_kappa_score(gold, predicted, labels=range(tiers), weights="quadratic", sample_weight=weights)
        )


def test_a_format_failure_is_wrong_everywhere_and_reported():
    gold, answered = [0, 1, 2, 3], [0, 1, 2, NO_VERDICT]
    ours = measured(gold, answered)
    assert ours["acc_k"] == ours["acc_2"] == 0.75
    assert ours["failure_rate"] == 0.25
    assert (ours["f1_L3"], ours["f1_L4"]) == (1.0, 0.0)
    assert ours["macro_f1"] == 0.75
    assert ours["micro_f1"] == pytest.approx(2 * 3 / (2 * 3 + 0 + 1))  # three hits, no false alarm, one miss
    assert ours["cost"] == 4 / 4  # L4 can be missed by three tiers and the border
    assert ours["qwk"] == pytest.approx(cohen_kappa_score(gold, [0, 1, 2, 0], weights="quadratic"))


def test_a_failure_never_scores_better_than_any_wrong_verdict_in_accuracy_and_f1():
    rng = np.random.default_rng(0)
    gold, predicted = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    failing = np.where(gold != predicted, NO_VERDICT, predicted)
    for name in ("acc_2", "acc_k"):
        assert measured(gold, failing)[name] <= measured(gold, predicted)[name]
    assert measured(gold, np.full(200, NO_VERDICT))["acc_2"] == 0
    assert measured(gold, np.full(200, NO_VERDICT))["macro_f1"] == 0
    assert measured(gold, np.full(200, NO_VERDICT))["qwk"] < 0


def test_the_cost_counts_tiers_the_border_and_optimism():
    assert cost_matrix(RELEVANT, border_cost=0, optimism_cost=1)[:, :4].tolist() == [
        [0, 1, 2, 3],
        [1, 0, 1, 2],
        [2, 1, 0, 1],
        [3, 2, 1, 0],
    ]
    dear = cost_matrix(RELEVANT, border_cost=0.5, optimism_cost=2)
    assert dear.tolist() == [[0, 2, 5, 7, 7], [1, 0, 3, 5, 5], [2.5, 1.5, 0, 2, 2.5], [3.5, 2.5, 1, 0, 3.5]]
    found = estimate(np.asarray([0, 3]), np.asarray([2, NO_VERDICT]), np.arange(2), TIERS, RELEVANT, costs=dear)["cost"]
    assert found.value == (5 + 3.5) / 2
    assert measured([1, 1, 1], [1, 1, 1])["cost"] == 0


def test_hand_worked_brier():
    probabilities = np.asarray([[0.5, 0.5, 0, 0], [0, 0, 0, 1.0], [0, 0, 0, 1.0]])
    predicted = np.asarray([0, 3, NO_VERDICT])
    ours = measured([0, 0, 3], predicted, probabilities=probabilities, weights=np.asarray([1.0, 1, 2]))
    assert ours["brier"] == pytest.approx((0.5 + 2 + 2 * (9 + 3) / 16) / 4)  # the failure is a guess whatever its numbers
    assert math.isnan(measured([0], [0])["brier"])


def test_every_metric_has_its_name_whatever_is_known():
    gold, predicted = np.asarray([0, 3, 2]), np.asarray([0, 2, 2])
    bare = estimate(gold, predicted, np.arange(3), TIERS, RELEVANT, samples=20)
    assert set(bare) == set(metric_names(TIERS)) - {"ece_calibrated", "refused_rate"}
    even = np.full((3, 4), 0.25)
    given = {"probabilities": even, "calibrated": even[:, 0], "gains": np.arange(4), "refused": gold != predicted}
    assert set(estimate(gold, predicted, np.arange(3), TIERS, RELEVANT, samples=20, **given)) == set(metric_names(TIERS))


def test_confidence_of_a_failure_is_that_of_a_guess():
    probabilities = np.asarray([[0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]])
    assert confidence_of(probabilities, np.asarray([1, NO_VERDICT])).tolist() == [0.1, 0.25]


def test_hand_worked_ece():
    # bins of 1/15: .95 and .95 (one right), .5 (right): 2/3 * |.95 - .5| + 1/3 * |.5 - 1|
    ours = measured([3, 0, 2], [3, 3, 2], confidence=np.asarray([0.95, 0.95, 0.5]))
    assert ours["ece"] == pytest.approx(2 / 3 * 0.45 + 1 / 3 * 0.5)
    assert math.isnan(measured([3], [3])["ece"])
    assert measured([3, 3], [3, 3], confidence=np.asarray([1.0, 1.0]))["ece"] == 0


def test_one_label_one_query_and_empty_tiers():
    groups = query_groups(["a", "a"])
    found = estimate(np.asarray([3, 3]), np.asarray([3, 3]), groups, TIERS, RELEVANT)
    assert found["acc_k"].value == 1 and math.isnan(found["acc_k"].low)
    assert math.isnan(found["qwk"].value) and math.isnan(found["f1_L1"].value)
    assert found["macro_f1"].value == 1
    assert str(found["qwk"]) == "–" and str(found["acc_k"]) == "1.00"
    assert found["qwk"].to_json() == {"value": None, "low": None, "high": None}
    found = estimate(np.asarray([3, 3]), np.asarray([3, 3]), query_groups(["a", "b"]), TIERS, RELEVANT)
    assert str(found["acc_k"]) == "1.00 [1.00, 1.00]"


def test_no_pairs_give_no_values():
    none = np.zeros(0, dtype=np.int64)
    assert math.isnan(estimate(none, none, none, TIERS, RELEVANT)["acc_k"].value)


def test_wrong_indices_are_refused():
    with pytest.raises(ValueError, match="0..3"):
        count(np.asarray([4]), np.asarray([0]), 4)
    with pytest.raises(ValueError, match="2 labels and 1"):
        count(np.asarray([1, 2]), np.asarray([0]), 4)


def test_prior_weights_give_the_tiers_their_shares():
    gold = np.asarray([0, 0, 0, 1, 3])
    weights = prior_weights(gold, [0.1, 0.2, 0.3, 0.4])
    shares = np.bincount(gold, weights, 4) / weights.sum()
    assert shares == pytest.approx([1 / 7, 2 / 7, 0, 4 / 7])
    assert weights.sum() == pytest.approx(5)


def test_under_a_prior_every_metric_is_that_of_weighted_pairs():
    rng = np.random.default_rng(3)
    gold, groups, prior = rng.integers(0, 4, 90), rng.integers(0, 15, 90), [0.06, 0.27, 0.07, 0.6]
    probabilities = rng.dirichlet(np.ones(4), 90)
    predicted = np.where(rng.random(90) < 0.1, NO_VERDICT, probabilities.argmax(axis=1))
    options = {"probabilities": probabilities, "calibrated": probabilities.max(axis=1), "gains": np.asarray([0, 0.01, 0.1, 1])}
    options["refused"] = (predicted != NO_VERDICT) & (rng.random(90) < 0.2)
    weighted = estimate(gold, predicted, groups, TIERS, RELEVANT, weights=prior_weights(gold, prior), samples=0, **options)
    ours = estimate(gold, predicted, groups, TIERS, RELEVANT, prior=prior, samples=0, **options)
    assert set(ours) == set(metric_names(TIERS))
    for name, value in ours.items():
        assert value.value == pytest.approx(weighted[name].value), name


def test_under_a_prior_every_resample_has_the_prior_again():
    rng = np.random.default_rng(3)
    gold, groups = rng.integers(0, 2, 60), np.arange(60)
    predicted = np.where(gold == 0, 0, 0)  # right on the worse tier alone: the accuracy is that tier's share
    _, drawn = values_and_draws(gold, predicted, groups, ["no", "yes"], [False, True], prior=[0.3, 0.7], samples=100)
    assert drawn["acc_k"] == pytest.approx(np.full(100, 0.3))
    alone = estimate(gold * 0, predicted, groups, ["no", "yes"], [False, True], prior=[0.0, 1.0])["acc_k"]
    assert math.isnan(alone.value) and str(alone) == "–"


def test_few_queries_widen_the_interval_as_students_does():
    assert lower_level(None) == pytest.approx(0.025) and lower_level(100_000) == pytest.approx(0.025, rel=1e-3)
    assert lower_level(10) == pytest.approx(0.00855, abs=1e-4)  # z = -sqrt(10 / 9) * 2.262
    draws = np.random.default_rng(0).random(1000)
    few, many = interval("acc_k", 0.5, draws, 5), interval("acc_k", 0.5, draws)
    assert few.low < many.low < many.high < few.high


def test_a_resample_is_a_sum_of_whole_queries():
    gold, predicted = np.asarray([0, 1, 2]), np.asarray([0, 1, 1])
    per_query = count(gold, predicted, 3, groups=np.asarray([0, 0, 1]), confidence=np.asarray([0.9, 0.8, 0.7]))
    drawn = resample(per_query, 50, seed=1)
    first, second = drawn.confusion[:, 0, 0], drawn.confusion[:, 2, 1]
    assert (first == drawn.confusion[:, 1, 1]).all() and (first + second == 2).all()
    assert drawn.gaps.sum(axis=1) == pytest.approx(first * (0.9 + 0.8 - 2) + second * 0.7)


def test_the_same_seed_gives_the_same_interval_and_pairs_of_a_query_widen_it():
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(60) < 0.7, 10)  # whole queries succeed or fail
    gold = rng.integers(0, 4, 600)
    predicted = np.where(right, gold, (gold + 1) % 4)
    by_query = estimate(gold, predicted, np.repeat(np.arange(60), 10), TIERS, RELEVANT, seed=3)["acc_k"]
    by_pair = estimate(gold, predicted, np.arange(600), TIERS, RELEVANT, seed=3)["acc_k"]
    assert by_query == estimate(gold, predicted, np.repeat(np.arange(60), 10), TIERS, RELEVANT, seed=3)["acc_k"]
    assert by_query.high - by_query.low > 2 * (by_pair.high - by_pair.low)
    assert by_query.low < by_query.value < by_query.high


def test_the_interval_of_the_calibration_error_holds_its_value():
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.25, 1, 500)
    gold = np.zeros(500, dtype=np.int64)
    predicted = (rng.random(500) > confidence).astype(np.int64)  # perfectly calibrated: resamples lie above the value
    found = estimate(gold, predicted, np.arange(500), TIERS, RELEVANT, confidence=confidence)["ece"]
    assert found.low <= found.value <= found.high


def test_a_thousand_resamples_of_two_thousand_pairs_take_seconds():
    rng = np.random.default_rng(0)
    gold, predicted = rng.integers(0, 4, 2000), rng.integers(-1, 4, 2000)
    start = time.perf_counter()
    estimate(gold, predicted, rng.integers(0, 1500, 2000), TIERS, RELEVANT, confidence=rng.random(2000), samples=1000)
    assert time.perf_counter() - start < 3


def test_estimates_read_compactly():
    assert str(Estimate(0.871, 0.853, 0.894)) == "0.87 [0.85, 0.89]"


def test_a_prior_on_tiers_without_pairs_alone_is_an_error():
    with pytest.raises(LoreError, match="only for tiers without a test pair"):
        prior_weights(np.array([0, 0, 1]), [0.0, 0.0, 1.0])
