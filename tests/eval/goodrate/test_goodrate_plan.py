"""How many ratings a GoodRate needs: the promised power against a simulation, allocation by traffic, the command."""

from dataclasses import replace
from pathlib import Path

import goodrate_for_tests as shop
import numpy as np
import pytest
from typer.testing import CliRunner

from lore.cli.main import app
from lore.eval.goodrate.log import Shown
from lore.eval.goodrate.plan import (
    BANDS,
    bands_of,
    chances_of,
    plan_change,
    plan_ratings,
    power_of,
    spread_of,
    spread_ratings,
    without_judge,
)
from lore.eval.goodrate.rated_sample import Rated, draw
from lore.eval.measures.ppi import parts, solve
from lore.support.errors import LoreError

ROUNDS = 300


def log_of(queries=3000, seed=0):
    """Four items a query, Zipf traffic."""
    rng = np.random.default_rng(seed)
    impressions = np.repeat(np.round(5 * rng.pareto(1.3, queries) + 5), 4)
    count = 4 * queries
    names = np.asarray([f"q{number // 4}" for number in range(count)], dtype=object)
    ids = np.asarray([f"p{number:05d}" for number in range(count)], dtype=object)
    nothing = np.full(count, "", dtype=object)
    return Shown(Path("log"), ids, names, ids, np.full(count, "all", dtype=object), nothing, np.full(count, np.nan), impressions)


def judge_of(log, seed=1):
    """Probabilities that are calibrated, and a judge less sure of the tail."""
    rng = np.random.default_rng(seed)
    sharp = np.asarray([0.15, 0.3, 0.6])[bands_of(log)]
    return rng.beta(0.7 * sharp, 0.3 * sharp)


def improved(log, judged, change):
    """The judge's probabilities in a second month, in which bad items have become good ones."""
    weight, rng = log.impressions / log.impressions.sum(), np.random.default_rng(2)
    later, left = judged.copy(), change
    for place in rng.permutation(np.flatnonzero(judged < 0.5)):
        step = weight[place] * (1 - 2 * judged[place])
        if step <= left:
            later[place], left = 1 - judged[place], left - step
    return later


@pytest.mark.slow
@pytest.mark.parametrize("use_judge", [True, False])
@pytest.mark.parametrize("change", [0.0, 0.08])
def test_the_planned_power_is_that_of_a_simulation(use_judge, change):
    """Two months, each with labels and ratings of its own, and the intervals of `lore goodrate`."""
    log = log_of(1000)
    judged = judge_of(log)
    spread = spread_of(log, judged) if use_judge else without_judge(log, judged)
    plan = plan_ratings(spread, 0.08, 0.8)
    assert 0.8 <= plan.power < 0.84
    rng, band = np.random.default_rng(0), bands_of(log)
    seen, promised = 0, 0.0
    for _ in range(ROUNDS):
        values, halves, truths = [], [], []
        for share in (judged, improved(log, judged, change)):
            good = (rng.random(len(log)) < share).astype(float)
            drawn, chances = draw(log, 0, "pair", int(rng.integers(2**31)), (band, plan.ratings.tolist()))
            labels, used = np.where(drawn, good, np.nan), share if use_judge else np.zeros(len(log))
            found = solve(parts(used, labels, log.impressions, log.clusters, chances), None if use_judge else 0.0).powered
            values.append(found.value)
            halves.append((found.high - found.low) / 2)
            truths.append(np.average(good, weights=log.impressions))
        seen += abs(values[1] - values[0]) > np.hypot(*halves)
        promised += power_of(spread, plan.ratings, abs(truths[1] - truths[0]))  # labels vary, so the change does
    rate, promised = seen / ROUNDS, promised / ROUNDS
    assert abs(rate - promised) < 3.5 * np.sqrt(promised * (1 - promised) / ROUNDS), (rate, promised)


def test_change_and_ratings_are_two_sides_of_one_plan():
    log = log_of(500)
    spread = spread_of(log, judge_of(log))
    wanted = plan_ratings(spread, 0.1, 0.9)
    back = plan_change(spread, wanted.total, 0.9)
    assert back.ratings.tolist() == wanted.ratings.tolist() and back.change == pytest.approx(0.1, rel=0.02)
    assert plan_change(spread, 4 * wanted.total, 0.9).change < 0.06
    assert power_of(spread, wanted.ratings, 0.1) > power_of(spread, wanted.ratings, 0.05) > power_of(spread, wanted.ratings, 0.0)
    assert power_of(spread, wanted.ratings, 0.0) == pytest.approx(0.05, abs=0.02)


def test_ratings_go_where_impressions_and_doubt_are():
    log = log_of(500)
    spread = spread_of(log, judge_of(log))
    band = bands_of(log)
    assert set(band) == {0, 1, 2}
    share = np.bincount(band, log.impressions) / log.impressions.sum()
    assert (share > 0.2).all()
    loud = replace(spread, second=np.where(spread.band == 2, 0.25, 0.0025))
    ratings = spread_ratings(loud, 120)
    assert ratings.sum() == 120 and ratings[2] > 4 * max(ratings[:2])
    even = spread_ratings(replace(spread, second=np.ones(len(spread.weight))), 120)
    assert even[1:].min() > 30
    chances = chances_of(spread, ratings)
    assert np.allclose([chances[spread.band == number].sum() for number in range(len(BANDS))], ratings)
    pairs = np.bincount(spread.band)
    for total in (10, 11, 17, 60, 500, 1990, 1999):
        found = spread_ratings(spread, total)
        assert found.sum() == total and (found <= pairs).all() and (found > 0).all()
    assert spread_ratings(spread, 500)[0] == pairs[0]  # nearly all of the head would be rated


def test_a_pilot_says_how_ratings_vary():
    log = log_of(800)
    judged = judge_of(log)
    rng = np.random.default_rng(3)
    good = (rng.random(len(log)) < judged).astype(float)
    drawn, chances = draw(log, 600, "pair", 0)
    pilot = Rated(np.where(drawn, good, np.nan), drawn, np.where(drawn, chances, np.nan), 600, 0)
    by_pilot, by_judge = plan_ratings(spread_of(log, judged, pilot), 0.08, 0.8), plan_ratings(spread_of(log, judged), 0.08, 0.8)
    assert by_pilot.spread.basis == "pilot" and by_pilot.spread.power > 0.8
    assert by_pilot.total == pytest.approx(by_judge.total, rel=0.35)
    right = Rated(np.where(drawn, judged, np.nan), drawn, None, 600, 0)
    with pytest.raises(LoreError, match="no variance"):
        spread_of(log, judged, right)


def test_a_change_that_the_log_cannot_show_is_refused():
    spread = spread_of(log_of(20), good_rate=0.5)
    with pytest.raises(LoreError, match="larger change"):
        plan_ratings(spread, 0.0001, 0.999)
    with pytest.raises(LoreError, match="10 to 79"):
        plan_change(spread, 80, 0.8)


def test_the_command_plans_and_its_draw_is_a_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shop.write_log(Path("shop"), queries=250)
    words = ["goodrate", "plan", "shop/log.csv", "--verdicts", "shop/predictions.csv", "--rubric", "shop"]
    done = CliRunner().invoke(app, [*words, "--change", "0.15"])
    assert done.exit_code == 0 and "Without the judge" in done.output, (done.output, done.exception)
    bands = done.output.replace("\n", " ").partition("--bands ")[2].split()[0]
    done = CliRunner().invoke(app, ["goodrate", "sample", "shop/log.csv", "--bands", bands, "-o", "shop/rated.csv"])
    assert done.exit_code == 0 and f"{sum(map(int, bands.split(',')))} pairs to rate" in done.output, (done.output, done.exception)
    shop.rate(Path("shop"))
    done = CliRunner().invoke(app, [*words, "--rated", "shop/rated.csv", "--ratings", "60"])
    assert done.exit_code == 0 and "measured on the pilot" in " ".join(done.output.split()), (done.output, done.exception)
    done = CliRunner().invoke(app, ["goodrate", "shop/log.csv", *words[3:], "--rated", "shop/rated.csv"])
    assert done.exit_code == 0, (done.output, done.exception)


@pytest.mark.parametrize(
    "words, said",
    [
        (["plan", "LOG"], "--change and --ratings"),
        (["plan", "LOG", "--change", "0.1", "--ratings", "10"], "--change and --ratings"),
        (["plan", "LOG", "--change", "0.1", "--verdicts", "TIERS", "--rubric", "shop"], "no probabilities"),
        (["sample", "LOG", "--bands", "1,2", "-o", "new.csv"], "--bands 1,2"),
        (["sample", "LOG", "--bands", "1,-2,3", "-o", "new.csv"], "--bands"),
        (["sample", "LOG", "--bands", "9999,0,0", "-o", "new.csv"], "stratum 1 of 3"),
        (["sample", "LOG", "--bands", "1,1,1", "--pairs", "3", "-o", "new.csv"], "--pairs, --bands and --queries"),
    ],
)
def test_errors_say_what_to_change(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    shop.write_log(Path("shop"), queries=20)
    rows = shop.read(Path("shop/predictions.csv"))
    shop.write(Path("tiers.csv"), ["pair_id", "tier"], [row[:2] for row in rows[1:]])
    words = [{"LOG": "shop/log.csv", "TIERS": "tiers.csv"}.get(word, word) for word in words]
    done = CliRunner().invoke(app, ["goodrate", *words])
    assert done.exit_code == 1 and said in str(done.exception), (done.output, done.exception)
