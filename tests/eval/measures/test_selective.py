"""The risk-coverage curve: hand-worked values, no dependence on row order, failures last, intervals."""

import numpy as np
import pytest

from lore.eval.measures.bootstrap import times_drawn
from lore.eval.measures.metrics import NO_VERDICT
from lore.eval.measures.selective import COVERAGES, risk_curve

CONFIDENCE = np.asarray([0.9, 0.8, 0.7, 0.6])


def risks(gold, predicted, confidence, **options) -> dict[float, float]:
    found = risk_curve(np.asarray(gold), np.asarray(predicted), confidence, np.arange(len(gold)), samples=0, **options)
    return {round(c, 2): point.value for c, point in zip(found.coverage, found.risk, strict=True)} | {"area": found.area.value}


def test_hand_worked_curve():
    found = risks([1, 1, 1, 1], [1, 0, 1, 0], CONFIDENCE)
    assert [found[c] for c in (0.25, 0.5, 0.75, 1.0)] == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    fine = np.linspace(1e-6, 4, 400_001)  # errors grow evenly inside a pair's part of the coverage
    errors = np.interp(fine, [0, 1, 2, 3, 4], [0, 0, 1, 1, 2])
    assert found["area"] == pytest.approx((errors / fine).mean(), abs=1e-4)


def test_pairs_of_one_confidence_count_alike_whatever_their_order():
    rng = np.random.default_rng(0)
    confidence = rng.choice([0.4, 0.6, 0.9], 60)
    gold, predicted = np.ones(60, dtype=int), (rng.random(60) < confidence).astype(int)
    order = rng.permutation(60)
    first, second = risks(gold, predicted, confidence), risks(gold[order], predicted[order], confidence[order])
    assert first == pytest.approx(second)
    assert first[1.0] == pytest.approx((predicted == 0).mean())
    same = risks(gold, predicted, np.full(60, 0.5))
    assert set(np.round(list(same.values()), 9)) == {round((predicted == 0).mean(), 9)}


def test_failures_are_wrong_and_come_last():
    found = risks([1, 1, 1, 1], [1, NO_VERDICT, 1, 1], np.asarray([0.3, 0.99, 0.3, 0.3]))
    assert found[0.75] == 0 and found[1.0] == pytest.approx(1 / 4) and found[0.95] == pytest.approx(0.2 / 0.95)


def test_weights_and_prior_count_as_pairs_would():
    gold, predicted = np.asarray([0, 1, 1, 0]), np.asarray([0, 0, 1, 1])
    doubled = risks(np.repeat(gold, [1, 2, 1, 2]), np.repeat(predicted, [1, 2, 1, 2]), np.repeat(CONFIDENCE, [1, 2, 1, 2]))
    assert risks(gold, predicted, CONFIDENCE, weights=np.asarray([1.0, 2, 1, 2])) == pytest.approx(doubled)
    assert risks(gold, predicted, CONFIDENCE, prior=[0.5, 0.5]) == pytest.approx(risks(gold, predicted, CONFIDENCE))
    assert risks(gold, predicted, CONFIDENCE, prior=[0.8, 0.2])[1.0] == pytest.approx(0.5)


def test_every_interval_comes_from_resampled_queries():
    rng = np.random.default_rng(1)
    groups, confidence = np.repeat(np.arange(30), 4), np.round(rng.random(120), 2)
    gold, predicted = np.ones(120, dtype=int), (rng.random(120) < confidence).astype(int)
    found = risk_curve(gold, predicted, confidence, groups, samples=300, seed=2)
    assert len(found.risk) == len(COVERAGES) == 20 and found.coverage[-1] == 1
    for point in [*found.risk, found.area]:
        assert point.low <= point.value <= point.high
    wrong = np.bincount(groups, predicted == 0)
    drawn = np.concatenate(list(times_drawn(30, 300, 2))) @ wrong / 120
    assert found.risk[-1].low == pytest.approx(np.percentile(drawn, 100 * 0.0185), abs=0.01)
    assert found.risk[4].value < found.risk[-1].value
