"""Targets of a student: worked by hand, on arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.distill.targets import (
    border_targets,
    even_rates,
    expected_gain,
    grouped_order,
    human_targets,
    tier_gains,
    traffic_weights,
    two_readings,
)
from lore.rubric.rubric import load_rubric

TIERS = ["L1", "L2", "L3", "L4"]


def test_gains_run_from_0_to_1_along_the_values_of_the_tiers():
    assert tier_gains(load_rubric("shop")) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    uneven = load_rubric("shop").model_copy(deep=True)
    tiers = [tier.model_copy(update={"value": value}) for tier, value in zip(uneven.tiers, (0, 1, 4, 10), strict=True)]
    assert tier_gains(uneven.model_copy(update={"tiers": tiers})) == pytest.approx([0, 0.1, 0.4, 1])
    falling = [tier.model_copy(update={"value": -tier.value}) for tier in uneven.tiers]
    assert tier_gains(uneven.model_copy(update={"tiers": falling})) == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_the_expected_gain_is_the_mean_over_the_tiers():
    assert expected_gain(np.asarray([[0.1, 0.2, 0.3, 0.4], [0, 0, 0, 1]]), np.asarray([0, 0.5, 0.5, 1])) == pytest.approx([0.65, 1])


def test_a_tier_alone_gives_some_mass_to_its_neighbors():
    found = border_targets(np.asarray([0, 1, 3]), 4, 0.1)
    assert found == pytest.approx(np.asarray([[0.9, 0.1, 0, 0], [0.1, 0.8, 0.1, 0], [0, 0, 0.1, 0.9]]))
    assert (border_targets(np.asarray([2, 0]), 3, 0.0) == np.asarray([[0, 0, 1], [1, 0, 0]])).all()


def test_two_readings_are_averaged_and_count_less_the_more_they_differ():
    first = np.asarray([[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5], [1, 0, 0]])
    second = np.asarray([[1, 0, 0], [0.25, 0.5, 0.25], [np.nan] * 3, [0, 0, 1]])
    target, weight = two_readings(first, second, least_weight=0.1)
    assert target == pytest.approx(np.asarray([[1, 0, 0], [0.375, 0.5, 0.125], [0.2, 0.3, 0.5], [0.5, 0, 0.5]]))
    assert weight == pytest.approx([1, 0.75, 1, 0.1])


def test_raters_who_differ_are_a_distribution_and_others_a_tier():
    found = human_targets(np.asarray([3, 1]), [{"L3": 0.25, "L4": 0.75}, None], TIERS)
    assert found == pytest.approx(np.asarray([[0, 0, 0.25, 0.75], [0, 1, 0, 0]]))


def test_even_rates_give_every_filled_bin_the_same_number_of_grouped_order():
    grades = np.asarray([0.0] * 2 + [0.6] * 6)
    rates = even_rates(grades, bins=2, most_repeats=10)
    assert rates == pytest.approx([2, 2] + [4 / 6] * 6)
    assert even_rates(np.asarray([1.0, 1.0, 0.2]), bins=20, most_repeats=10) == pytest.approx([0.75, 0.75, 1.5])


def test_a_bin_with_one_pair_is_not_repeated_without_end():
    grades = np.asarray([0.1] + [0.9] * 99)
    rates = even_rates(grades, bins=2, most_repeats=4)
    assert rates[0] == pytest.approx(4) and rates[1:] == pytest.approx(96 / 99)
    assert rates.mean() == pytest.approx(1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(1, 12), st.floats(1, 9))
@settings(max_examples=60, deadline=None)
def test_rates_have_mean_1_and_stay_below_the_largest(grades, bins, most):
    rates = even_rates(np.asarray(grades), bins, most)
    assert rates.mean() == pytest.approx(1) and rates.min() > 0 and rates.max() <= most * (1 + 1e-9)


def test_weights_lead_from_the_sample_back_to_traffic():
    rates, frequency = np.asarray([2.0, 0.5, 0.5]), np.asarray([10.0, 30.0, 20.0])
    weights = traffic_weights(rates, frequency, strength=1, most=100)
    assert rates * weights == pytest.approx(3 * frequency / frequency.sum())
    assert traffic_weights(rates, frequency, strength=0, most=100) == pytest.approx([1, 1, 1])
    unknown = traffic_weights(np.ones(3), np.asarray([10.0, 30.0, np.nan]), strength=1, most=100)
    assert unknown == pytest.approx([0.5, 1.5, 1])
    cut = traffic_weights(np.ones(100), np.asarray([1e6] + [1.0] * 99), strength=1, most=5)
    assert cut.tolist() == pytest.approx([5] + [95 / 99] * 99)


def test_a_batch_holds_several_items_of_each_of_its_queries():
    queries = np.repeat(np.arange(40), 8)
    order = grouped_order(queries, np.ones(320, int), np.ones(320), batch_size=16, steps=20, items=4, seed=1)
    assert sorted(order) == list(range(320))
    for batch in order.reshape(20, 16):
        assert len(np.unique(queries[batch])) <= 4 and np.bincount(queries[batch]).max() <= 8
    again = grouped_order(queries, np.ones(320, int), np.ones(320), batch_size=16, steps=20, items=4, seed=1)
    assert (order == again).all()
    assert (grouped_order(queries, np.ones(320, int), np.ones(320), batch_size=16, steps=20, items=4, seed=2) != order).any()


def test_longer_training_begins_with_the_order_of_a_shorter_one():
    queries, lengths = np.arange(30) // 3, np.arange(30)
    short = grouped_order(queries, lengths, np.ones(30), batch_size=10, steps=4, items=3, seed=0)
    long = grouped_order(queries, lengths, np.ones(30), batch_size=10, steps=9, items=3, seed=0)
    assert (long[:40] == short).all()


def test_rows_come_as_often_as_their_rate_says():
    rates = np.asarray([2.5, 0.25] + [1.0] * 8)
    order = grouped_order(np.arange(10), np.ones(10, int), rates, batch_size=10, steps=1000, items=4, seed=0)
    assert np.bincount(order)[:2] / 1000 == pytest.approx(10 * rates[:2] / rates.sum(), rel=0.1)


def test_two_visits_of_a_row_are_not_in_one_group():
    order = grouped_order(np.zeros(4, int), np.ones(4, int), np.full(4, 2.0), batch_size=4, steps=2, items=4, seed=0)
    assert all(len(set(batch)) == 4 for batch in order.reshape(2, 4))


def test_a_batch_holds_rows_of_about_one_length_in_random_order_of_the_batches():
    rng = np.random.default_rng(0)
    queries, lengths = np.arange(3000) // 3, rng.integers(10, 60, 3000)
    order = grouped_order(queries, lengths, np.ones(3000), batch_size=30, steps=250, items=3, seed=0)
    assert sorted(order[:3000]) == list(range(3000))
    longest = lengths[order].reshape(250, 30).max(axis=1)
    # Of three random lengths the longest is 47 on average, and of thirty it is 58.
    assert 47 < longest.mean() < 51
    assert np.abs(np.corrcoef(longest[:16], np.arange(16))[0, 1]) < 0.8


def test_the_longest_group_of_a_batch_comes_first():
    queries, lengths = np.asarray([0, 0, 1, 1, 2, 2]), np.asarray([5, 9, 40, 2, 7, 7])
    order = grouped_order(queries, lengths, np.ones(6), batch_size=6, steps=1, items=2, seed=0)
    assert queries[order].tolist() == [1, 1, 0, 0, 2, 2]
