"""Prediction-powered intervals cover the truth, whatever the judge is worth, and are shorter where it is good."""

import math
from pathlib import Path

import numpy as np
import pytest

from lore.eval.goodrate.estimate import estimate
from lore.eval.goodrate.log import Shown
from lore.eval.goodrate.rated_sample import Rated, draw
from lore.eval.measures.ppi import interval, parts, solve

LOGS = 1000
K = 4  # items a page
TRAFFIC = 0.69673467  # mean of the logistic function over N(1, 1), by quadrature


def test_a_fixed_lambda_gives_the_published_estimate():
    """Against ppi_py 0.2.3: ppi_mean_pointestimate and ppi_mean_ci of these arrays, with lam=1 and with the tuned one. It has F
    over the unrated rows alone, so its lambda is ours times their share."""
    n, N = 400, 1000
    rng = np.random.default_rng(5)
    y = (rng.random(n + N) < 0.7).astype(float)
    f = np.where(rng.random(n + N) < 0.3, 1 - y, y) * 0.8 + 0.1 * rng.random(n + N)
    rows = parts(f, np.where(np.arange(n + N) < n, y, np.nan), np.ones(n + N), np.arange(n + N), target="traffic")
    same = solve(rows, power=(n + N) / N).powered
    assert same.value == pytest.approx(0.74293017, abs=1e-8)
    assert (same.low, same.high) == pytest.approx((0.6889606, 0.79689973), abs=4e-4)  # theirs are normal quantiles, ours Student's
    tuned = solve(rows).powered
    assert tuned.value == pytest.approx(0.72619004, abs=1e-4)
    assert (tuned.low, tuned.high) == pytest.approx((0.68395785, 0.76842224), abs=6e-4)


def test_the_estimates_of_a_worked_example():
    # Weights 1, 1, 2, 4; the first three rows are rated, drawn with chances 1/2, 1/2, 1: they stand for 2, 2 and 2.
    f, y = np.array([1.0, 0.0, 1.0, 0.5]), np.array([1.0, 0.0, 0.0, np.nan])
    rows = parts(f, y, np.array([1.0, 1.0, 2.0, 4.0]), np.arange(4), np.array([0.5, 0.5, 1.0, np.nan]))
    assert (rows.judged, rows.rated) == pytest.approx((5 / 8, 1 / 3))
    assert rows.gap == pytest.approx(5 / 8 - 2 / 3)
    assert rows.rated_C == pytest.approx([math.sqrt(0.5) * 2 / 9, -math.sqrt(0.5) / 9, 0, 0])  # the third was sure to be drawn
    assert rows.gap_C == pytest.approx([-math.sqrt(0.5) / 9, math.sqrt(0.5) * 2 / 9, 0, 0])
    assert solve(rows).power == pytest.approx(4 / 5)
    assert solve(rows, power=1).powered.value == pytest.approx(1 / 3 + 5 / 8 - 2 / 3)
    assert not rows.judged_C.any()
    traffic = parts(f, y, np.array([1.0, 1.0, 2.0, 4.0]), np.arange(4), np.array([0.5, 0.5, 1.0, np.nan]), target="traffic")
    assert traffic.judged_C == pytest.approx(np.array([1, 1, 2, 4]) / 8 * (f - 5 / 8))
    assert traffic.rated_C == pytest.approx([2 / 9, -1 / 9, -1 / 9, 0])


def test_rows_of_one_query_count_as_one():
    rng = np.random.default_rng(0)
    y = np.repeat((rng.random(100) < 0.5).astype(float), 5)
    single = solve(parts(y, y, np.ones(500), np.arange(500), np.full(500, 0.01))).rated
    together = solve(parts(y, y, np.ones(500), np.repeat(np.arange(100), 5), np.full(500, 0.01))).rated
    assert (together.high - together.low) / (single.high - single.low) == pytest.approx(math.sqrt(5), rel=0.03)


def test_what_is_wholly_rated_is_known_exactly_and_what_is_not_rated_not_at_all():
    y = np.array([1.0, 0.0, 1.0, 1.0])
    census = solve(parts(np.zeros(4), y, np.ones(4), np.arange(4)))
    assert (census.rated.value, census.rated.low, census.rated.high) == (0.75, 0.75, 0.75)
    nothing = solve(parts(y, np.full(4, np.nan), np.ones(4), np.arange(4)))
    assert nothing.judge.value == 0.75 and math.isnan(nothing.rated.value) and math.isnan(nothing.powered.value)
    one_query = solve(parts(np.zeros(4), np.array([1.0, 0.0, np.nan, np.nan]), np.ones(4), np.array([0, 0, 1, 2])))
    assert one_query.rated.value == 0.5 and math.isnan(one_query.rated.low)


def test_a_judge_that_is_right_on_the_whole_sample_may_still_err_elsewhere():
    y, rows = np.tile([1.0, 1.0, 1.0, 0.0], 2500), np.arange(10_000)
    found = solve(parts(y, np.where(rows < 200, y, np.nan), np.ones(10_000), rows))
    assert found.power == 1
    assert found.powered.high - found.powered.value == pytest.approx(3.69 / 200, rel=0.02)
    assert found.powered.high - found.powered.low < 0.4 * (found.rated.high - found.rated.low)


def test_few_errors_carry_a_longer_interval_than_many_small_ones():
    many, few = np.full(400, 0.001), np.zeros(400)
    few[:4] = 0.01
    assert math.isclose((many**2).sum(), (few**2).sum())
    short, long = interval(0.5, many, 400), interval(0.5, few, 400)
    assert (long.high - long.low) / (short.high - short.low) == pytest.approx(2.306 / 1.966, rel=1e-3)  # t of 8 and of 399


def simulated(rng: np.random.Generator, queries: int = 400) -> tuple[Shown, np.ndarray]:
    """A log with Zipf impressions, and whether each row is good: a page of K items a query and system, two of five items the same
    in both. Items of one query are alike."""
    bad_luck = rng.normal(1.2, 1.0, (queries, 1))
    good_a = rng.logistic(size=(queries, K)) < bad_luck
    shared = rng.random((queries, K)) < 0.4
    good_b = np.where(shared, good_a, rng.logistic(size=(queries, K)) < bad_luck + 0.4)
    ids = np.arange(queries * K).reshape(queries, K)
    rows = 2 * queries * K
    query = np.tile(np.repeat(np.arange(queries), K), 2)
    impressions = ((1 - rng.random(queries)) ** -0.8)[query]
    texts = [np.concatenate([ids, np.where(shared, ids, ids + queries * K)]).ravel().astype(str).astype(object), query.astype(str)]
    systems, empty = np.repeat(["A", "B"], rows // 2).astype(object), np.full(rows, "", dtype=object)
    log = Shown(Path("log"), texts[0], texts[1].astype(object), empty, systems, empty, np.full(rows, np.nan), impressions)
    return log, np.concatenate([good_a, good_b]).ravel().astype(float)


def judged(rng: np.random.Generator, log: Shown, good: np.ndarray, judge: str) -> np.ndarray:
    """good: probabilities, too low on average, and wrong on one side in a few; random: of no use; biased: 20 points too high."""
    by_pair = np.unique(log.pair_ids.astype(str), return_inverse=True)[1]
    noise, luck = rng.normal(size=by_pair.max() + 1)[by_pair], rng.random(by_pair.max() + 1)[by_pair]
    if judge == "good":
        return 1 / (1 + np.exp(-(4 * good - 2.4 + 1.2 * noise)))
    if judge == "random":
        return luck
    return np.where(good == 1, luck < 0.97, luck < 0.75).astype(float)


def truths(log: Shown, good: np.ndarray) -> dict[str, float]:
    values = {}
    for system in "AB":
        at = log.systems == system
        values[f"items {system}"] = np.average(good[at], weights=log.impressions[at])
        values[f"pages {system}"] = np.average(good[at].reshape(-1, K).min(axis=1), weights=log.impressions[at][::K])
    return values | {f"{of} B - A": values[f"{of} B"] - values[f"{of} A"] for of in ("items", "pages")}


def simulate(unit: str, count: int, judge: str, logs: int = LOGS) -> dict[str, np.ndarray]:
    """Of each rate: share of logs whose truth the rated-alone and the powered interval cover, and how much shorter the latter is,
    and the mean distance of the judge's and of the powered value from the truth."""
    found: dict[str, list] = {}
    for number in range(logs):
        rng = np.random.default_rng(number)
        log, good = simulated(rng)
        drawn, chances = draw(log, count, unit, seed=number)
        sample = Rated(np.where(drawn, good, np.nan), drawn, np.where(drawn, chances, np.nan), int(drawn.sum()), 0)
        rates, _ = estimate(log, judged(rng, log, good, judge), sample)
        truth = truths(log, good)
        for rate in rates:
            name = f"{rate.of} {rate.system}"
            both, alone, true = rate.estimate.powered, rate.estimate.rated, truth[name]
            covers = [each.low <= true <= each.high for each in (alone, both)]
            widths = [alone.high - alone.low, both.high - both.low]
            found.setdefault(name, []).append([*covers, *widths, rate.estimate.judge.value - true, both.value - true])
    means = {name: np.mean(np.array(values, dtype=float), axis=0) for name, values in found.items()}
    for name, (alone, both, wide, narrow, off, left) in means.items():
        print(
            f"{unit} {judge:6} {name:11} covered: rated alone {alone:.3f}, both {both:.3f}; width {wide:.3f} -> {narrow:.3f} "
            f"({narrow / wide:.2f}); bias: judge {off:+.3f}, both {left:+.4f}"
        )
    return means


def check_coverage(unit: str, count: int, judge: str) -> None:
    for name, (alone, both, wide, narrow, off, left) in simulate(unit, count, judge).items():
        if unit == "pair" and name.startswith("pages"):
            assert math.isnan(wide)  # single pairs say nothing about pages
            continue
        assert 0.93 <= alone <= 0.97 and 0.93 <= both <= 0.97, name
        assert abs(left) < 0.01, name
        assert narrow < (0.8 if judge == "good" else 1.02) * wide, name
        if judge == "biased" and "-" not in name:
            assert off > 0.14, name


@pytest.mark.parametrize(("unit", "count", "judge"), [("query", 60, "good"), ("pair", 200, "biased")])
def test_intervals_cover_the_truth_of_simulated_logs(unit, count, judge):
    check_coverage(unit, count, judge)


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["good", "random", "biased"])
@pytest.mark.parametrize(("unit", "count"), [("pair", 200), ("query", 60)])
def test_intervals_cover_whatever_the_judge_is_worth_and_however_the_sample_is_drawn(unit, count, judge):
    check_coverage(unit, count, judge)


def test_all_queries_that_could_have_been_asked_are_covered_too():
    rng, covered = np.random.default_rng(0), []
    for _ in range(LOGS):
        luck = rng.normal(1.0, 1.0, 300)
        y = (rng.logistic(size=(4, 300)) < luck).T.ravel().astype(float)
        f = np.where(rng.random(1200) < 0.1, 1 - y, y)
        rated = np.repeat(rng.permutation(300) < 60, 4)
        rows = parts(f, np.where(rated, y, np.nan), np.ones(1200), np.repeat(np.arange(300), 4), target="traffic")
        found = solve(rows)
        covered.append([each.low <= TRAFFIC <= each.high for each in (found.judge, found.rated, found.powered)])
    of_judge, of_rated, of_both = np.mean(covered, axis=0)
    assert of_judge < 0.3  # the judge alone is sure and wrong
    assert 0.93 <= of_rated <= 0.97 and 0.93 <= of_both <= 0.97
