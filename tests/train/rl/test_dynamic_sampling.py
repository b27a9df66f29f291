"""Which prompts a step asks: the schedule, the chance that a group has spread, and the draws by it."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lore.train.rl.config import DynamicSection
from lore.train.rl.dynamic_sampling import (
    CORRECTION_DECAY_GROUPS,
    CORRECTION_PRIOR,
    MIN_PROBABILITY,
    SHARP_EXPONENT,
    PromptChoice,
    schedule,
    window,
)


def choice(rates: list[float], group: int = 8, samples: int = 8, **section: float) -> PromptChoice:
    return PromptChoice(np.array(rates), samples, group, DynamicSection(**section))


def closed_form(right: float, wrong: float, group: int) -> float:
    """1 - P(all right) - P(all wrong) of a beta-binomial, as rising factorials."""
    total = right + wrong
    return 1 - sum(math.prod((own + i) / (total + i) for i in range(group)) for own in (right, wrong))


def test_an_unseen_prompt_has_the_chance_of_the_prior():
    # Beta(1/2, 1/2), groups of 2: both right 1/2 * 3/4 = 3/8, both wrong the same, so 1/4 is left.
    assert choice([0.3], group=2, samples=0).spread_probability() == pytest.approx([0.25])


@given(st.floats(0, 1), st.integers(0, 16), st.integers(2, 16))
def test_the_chance_of_spread_is_beta_binomial(rate, samples, group):
    # Half of the pool's samples count, and half a right and half a wrong answer are there from the start.
    right, wrong = rate * samples / 2 + 0.5, (1 - rate) * samples / 2 + 0.5
    assert choice([rate], group, samples).spread_probability()[0] == pytest.approx(closed_form(right, wrong, group), abs=1e-9)


def test_the_chance_of_spread_is_that_of_simulated_groups():
    rng = np.random.default_rng(0)
    rates = [0.0, 0.125, 0.5, 0.9]
    share = rng.beta(np.array(rates) * 4 + 0.5, (1 - np.array(rates)) * 4 + 0.5, (200_000, 4))
    right = rng.binomial(8, share)
    spread = ((right > 0) & (right < 8)).mean(axis=0)
    assert choice(rates).spread_probability() == pytest.approx(spread, abs=4 * 0.5 / 200_000**0.5)


def test_what_was_seen_fades_and_what_is_new_counts_in_full():
    one = choice([0.5, 0.25], forget=0.5)
    assert one.seen.tolist() == [[2, 2], [1, 3]]
    one.observe(0, 8, 8, False)
    assert one.seen.tolist() == [[9, 1], [1, 3]]
    one.observe(0, 2, 8, True)
    assert one.seen.tolist() == [[6.5, 6.5], [1, 3]]
    assert choice([0.5], forget=1).seen.tolist() == [[2, 2]]


@pytest.mark.parametrize("forget, expected", [(0.0, [[10, 2]]), (1.0, [[8, 0]])])
def test_the_extremes_of_forgetting(forget, expected):
    one = choice([0.5], forget=forget)
    one.observe(0, 8, 8, False)
    assert one.seen.tolist() == expected


def test_every_pass_over_the_pool_asks_each_prompt_once_in_an_order_of_its_own():
    order = schedule(12, 10, 6, seed=3, curriculum=False).reshape(-1)
    passes = order.reshape(5, 12)
    assert all(sorted(one) == list(range(12)) for one in passes.tolist())
    assert len({tuple(one) for one in passes.tolist()}) == 5
    assert (schedule(12, 10, 6, seed=3, curriculum=False).reshape(-1) == order).all()
    assert (schedule(12, 10, 6, seed=4, curriculum=False).reshape(-1) != order).any()


def test_a_run_shorter_than_a_pass_asks_nothing_twice():
    order = schedule(100, 5, 8, seed=0, curriculum=False)
    assert order.shape == (5, 8) and len(np.unique(order)) == 40


def test_a_curriculum_moves_a_window_over_the_pool_from_its_first_row_to_its_last():
    order = schedule(50, 9, 4, seed=0, curriculum=True)
    windows = [window(50, 9, step) for step in range(9)]
    assert [len(one) for one in windows] == [10] * 9
    assert windows[0][0] == 0 and windows[-1][-1] == 49
    assert [one[0] for one in windows] == sorted(one[0] for one in windows)
    for inside, asked in zip(windows, order, strict=True):
        assert set(asked) <= set(inside) and len(set(asked)) == 4


def test_a_window_smaller_than_a_step_is_asked_more_than_once():
    order = schedule(10, 4, 6, seed=0, curriculum=True)
    assert order.shape == (4, 6) and set(order[0]) <= {0, 1} and set(order[-1]) <= {8, 9}
    assert window(3, 1, 0).tolist() == [0]


def test_scheduled_prompts_are_kept_as_often_as_they_have_spread():
    # Chances: about 0.26 for one always right, about 0.95 for one in the middle; twice the chance, at most 1.
    one, among = choice([1.0, 0.5], samples=16, explore=0.05), np.arange(2)
    chance = one.spread_probability()
    rng = np.random.default_rng(0)
    kept = np.mean([one.keep(among, among, rng) for _ in range(4000)], axis=0)
    assert 2 * chance[0] < 1 < 2 * chance[1]
    assert kept == pytest.approx([2 * chance[0], 1], abs=0.04)


def test_sharp_foresight_keeps_what_promises_as_much_as_a_draw():
    one, among = choice([1.0, 0.5], explore=0.01, sharp=True), np.arange(2)
    odds = (one.spread_probability()[0] / one.hit_rate(among)) ** SHARP_EXPONENT
    rng = np.random.default_rng(0)
    kept = np.mean([one.keep(among, among, rng) for _ in range(4000)], axis=0)
    assert 0.001 < odds < 0.35 and one.spread_probability()[1] > one.hit_rate(among)
    assert kept == pytest.approx([odds, 1], abs=0.04)


def test_prompts_that_promise_alike_are_all_kept():
    among = np.arange(5)
    assert choice([1.0] * 5, sharp=True).keep(among, among, np.random.default_rng(0)).all()


def test_a_prompt_without_hope_is_still_asked_now_and_then():
    one = choice([0.0, 0.5], samples=10_000, explore=0.1)
    rng = np.random.default_rng(0)
    assert one.spread_probability()[0] < 0.001
    assert np.mean([one.keep(np.array([0]), np.arange(2), rng)[0] for _ in range(4000)]) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("sharp, power", [(False, 1), (True, SHARP_EXPONENT)])
def test_draws_follow_the_chances(sharp, power):
    one = choice([0.0, 0.5, 1.0], samples=10_000, sharp=sharp)
    likely = np.maximum(one.spread_probability(), MIN_PROBABILITY)
    weights = likely**power
    rng = np.random.default_rng(0)
    counts = Counter(one.draw(1, np.arange(3), [], rng)[0] for _ in range(6000))
    assert [counts[row] / 6000 for row in range(3)] == pytest.approx(weights / weights.sum(), abs=0.02)
    assert one.hit_rate(np.arange(3)) == pytest.approx((weights * likely).sum() / weights.sum())


@given(st.integers(1, 12), st.sets(st.integers(0, 9)), st.integers(0, 100))
def test_draws_take_nothing_that_is_taken_while_others_are_left(count, taken, seed):
    drawn = choice([0.5] * 10).draw(count, np.arange(10), taken, np.random.default_rng(seed))
    free = set(range(10)) - taken
    assert len(drawn) == count
    assert len(set(drawn) & free) == min(count, len(free))
    if count <= len(free):
        assert not set(drawn) & taken and len(set(drawn)) == count
    elif count <= 10:
        assert len(set(drawn)) == count


def test_draws_stay_inside_the_window():
    one, rng = choice([0.5] * 20), np.random.default_rng(0)
    assert set(one.draw(4, np.arange(5, 10), {5}, rng)) == {6, 7, 8, 9}
    assert one.draw(0, np.arange(5, 10), set(), rng) == []


def test_chances_are_corrected_by_what_groups_of_prompts_like_it_showed():
    one = choice([1.0, 1.0, 0.5], sharp=True)
    before = one.spread_probability()
    one.observe(0, 8, 8, False)
    # One group in which `before` with spread were foreseen and none was found; the others' counts are untouched.
    expected = before[1] * CORRECTION_PRIOR / (CORRECTION_PRIOR + before[1])
    assert one.spread_probability()[1:] == pytest.approx([expected, before[2]])


def test_a_correction_forgets():
    one = choice([1.0] * 400, sharp=True)
    first = one.spread_probability()[0]
    for row in range(200):
        one.observe(row, 8, 8, False)
    assert one.spread_probability()[-1] < 0.15 * first
    for row in range(200, 200 + 2 * CORRECTION_DECAY_GROUPS):
        one.observe(row, 7, 8, True)
    assert one.spread_probability()[-1] > 0.8  # an eighth of the old is left


def test_a_restored_choice_goes_on_as_the_first_would():
    one, other = (choice([0.9, 0.5, 0.1], sharp=True) for _ in range(2))
    for row, right in ((0, 8), (1, 4), (2, 1)):
        one.observe(row, right, 8, right < 8)
    assert (one.spread_probability() != other.spread_probability()).any()
    other.restore(json.loads(json.dumps(one.state())))
    assert (one.spread_probability() == other.spread_probability()).all()
    assert one.draw(3, np.arange(3), [], np.random.default_rng(0)) == other.draw(3, np.arange(3), [], np.random.default_rng(0))


def test_foresight_finds_what_a_surer_judge_still_gets_right_and_wrong():
    """Six of ten prompts are never wrong any more, though the samples of the judge before had one wrong answer in nine."""
    rng = np.random.default_rng(0)
    rows = 1500
    rates_before = np.where(np.arange(rows) % 10 < 6, 0.89, 0.6)
    rates_now = np.where(np.arange(rows) % 10 < 6, 0.999, 0.7)
    one = choice((rng.binomial(8, rates_before) / 8).tolist(), sharp=True)
    order, found = schedule(rows, 48, 32, seed=0, curriculum=False), []
    for scheduled in order:
        asked, among = scheduled.copy(), np.arange(rows)
        for place in np.flatnonzero(~one.keep(scheduled, among, rng)):
            asked[place] = one.draw(1, among, set(asked), rng)[0]
        right = rng.binomial(8, rates_now[asked])
        for row, count in zip(asked, right, strict=True):
            one.observe(row, count, 8, 0 < count < 8)
        found.append(((right > 0) & (right < 8)).mean())
    scheduled_spread = np.mean((rates_now**8 < 0.5) * (1 - rates_now**8))
    assert np.mean(found[-16:]) > 1.5 * scheduled_spread


@pytest.mark.parametrize("change", [{"seen": [[1, 2]]}, {"tried": 3}, {"seen": "x"}, {"seen": None}, {"tried": {}}])
def test_counts_of_other_prompts_are_no_state(change):
    one = choice([0.9, 0.5, 0.1])
    with pytest.raises((TypeError, ValueError)):
        one.restore(one.state() | change)
    with pytest.raises(KeyError):
        one.restore({})
