"""pass@k and majority@k equal the mean over every choice of k answers, counted one by one."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.eval.measures.samples import counts_of_k, majority_at, pass_at
from lore.eval.probes.sampling import sample_curves
from lore.eval.testset import Labeled
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

RUBRIC = load_rubric("rair")


def one_by_one(answers: list[str | None], gold: str, k: int) -> tuple[float, float]:
    passed, won = [], []
    for chosen in combinations(answers, k):
        votes = Counter(tier for tier in chosen if tier is not None)
        most = [tier for tier, count in votes.items() if count == max(votes.values())]
        passed.append(gold in chosen)
        won.append(gold in most and 1 / len(most))
    return float(np.mean(passed)), float(np.mean(won))


@settings(deadline=None, max_examples=120)
@given(st.lists(st.sampled_from([None, "L1", "L2", "L3", "L4"]), min_size=1, max_size=8), st.data())
def test_both_are_the_mean_over_every_choice_of_k(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    votes = Counter(answers)
    right, failures = votes.pop("L4", 0), votes.pop(None, 0)
    passed, won = one_by_one(answers, "L4", k)
    assert pass_at(len(answers), right, k) == pytest.approx(passed)
    assert majority_at(right, list(votes.values()), failures, k) == pytest.approx(won)


def test_hand_worked_values():
    assert pass_at(4, 1, 2) == 0.5 and pass_at(4, 0, 4) == 0 and pass_at(4, 4, 1) == 1
    assert majority_at(2, [2], 0, 4) == 0.5  # a tie is half a win
    assert majority_at(1, [], 3, 4) == 1 and majority_at(0, [], 4, 2) == 0  # failures vote for nothing
    assert majority_at(33, [31], 0, 64) == 1 and 0.5 < majority_at(33, [31], 0, 32) < 1
    assert counts_of_k(1) == [1] and counts_of_k(8) == [1, 2, 4, 8] and counts_of_k(6) == [1, 2, 4, 6]


def labeled(queries: int) -> Labeled:
    ids = [f"p{index}" for index in range(2 * queries)]
    names = [f"q{index // 2}" for index in range(2 * queries)]
    return Labeled("test", ids, names, np.full(len(ids), 3), np.ones(len(ids)), [[] for _ in ids])


def test_curves_over_pairs_with_intervals_and_weights():
    test = labeled(10)
    samples = {f"p{index}": ["L4"] * 3 + ["L1"] if index % 2 else ["L1", "L2", None, "L4"] for index in range(20)}
    curves = sample_curves(samples, test, RUBRIC, temperature=0.7, bootstrap_samples=100)
    assert (curves.n, curves.temperature, curves.pairs) == (4, 0.7, 20)
    assert list(curves.pass_at) == list(curves.majority_at) == [1, 2, 4]
    assert curves.pass_at[1].value == curves.majority_at[1].value == pytest.approx((0.75 + 0.25) / 2)
    assert curves.pass_at[4].value == 1 and curves.majority_at[4].value == pytest.approx((1 + 1 / 3) / 2)
    assert curves.pass_at[2].low <= curves.pass_at[2].value <= curves.pass_at[2].high
    odd = np.asarray([0.0, 1.0] * 10)
    assert sample_curves(samples, test, RUBRIC, temperature=1, weights=odd).pass_at[1].value == pytest.approx(0.75)
    some = dict(list(samples.items())[:4])
    assert sample_curves(some, test, RUBRIC, temperature=1).pairs == 4
    assert set(curves.to_json()["pass_at"]) == {"1", "2", "4"}


def test_uneven_or_foreign_samples_are_refused():
    with pytest.raises(LoreError, match="1 pairs with 2, 1 pairs with 1"):
        sample_curves({"p0": ["L1", "L2"], "p1": ["L1"]}, labeled(2), RUBRIC, temperature=1)
    with pytest.raises(LoreError, match="such as x"):
        sample_curves({"x": ["L1"]}, labeled(2), RUBRIC, temperature=1)
    with pytest.raises(LoreError, match="found no pair"):
        sample_curves({}, labeled(2), RUBRIC, temperature=1)


def test_majorities_of_64_answers_stay_exact():
    rng = np.random.default_rng(0)
    answers = rng.choice(["L1", "L2", "L3", "L4"], 64, p=[0.2, 0.2, 0.2, 0.4])
    votes = Counter(answers.tolist())
    exact = majority_at(votes["L4"], [votes[tier] for tier in ("L1", "L2", "L3")], 0, 16)
    drawn = []
    for _ in range(20_000):
        chosen = Counter(rng.choice(answers, 16, replace=False).tolist())
        top = [tier for tier, count in chosen.items() if count == max(chosen.values())]
        drawn.append("L4" in top and 1 / len(top))
    assert exact == pytest.approx(np.mean(drawn), abs=0.012)
