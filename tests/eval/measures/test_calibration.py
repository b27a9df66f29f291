"""Temperature scaling recovers a known temperature, changes no verdict, and the tables add up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.eval.measures.calibration import (
    TEMPERATURES,
    apply_temperature,
    fit_temperature,
    negative_log_likelihood,
    reliability_table,
)
from lore.eval.measures.metrics import CALIBRATION_BINS, count, expected_calibration_error, total
from lore.support.errors import LoreError


def simulated(temperature: float, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from calibrated probabilities, and the same probabilities made too sure or too timid."""
    rng = np.random.default_rng(0)
    true = rng.dirichlet(np.ones(4), n)
    gold = (true.cumsum(axis=1) < rng.random(n)[:, None]).sum(axis=1)
    return apply_temperature(true, 1 / temperature), gold


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_fitted_temperature_undoes_the_one_applied(temperature):
    probabilities, gold = simulated(temperature)
    assert fit_temperature(probabilities, gold) == pytest.approx(temperature, rel=0.08)


def test_calibration_lowers_the_error_of_a_judge_that_is_too_sure():
    probabilities, gold = simulated(3.0)
    fitted = apply_temperature(probabilities, fit_temperature(probabilities[:2000], gold[:2000]))[2000:]
    before, after = (error_of(p, gold[2000:]) for p in (probabilities[2000:], fitted))
    assert after < before / 3
    assert negative_log_likelihood(fitted, gold[2000:]) < negative_log_likelihood(probabilities[2000:], gold[2000:])


def error_of(probabilities: np.ndarray, gold: np.ndarray) -> float:
    counts = total(count(gold, probabilities.argmax(axis=1), 4, confidence=probabilities.max(axis=1)))
    return float(expected_calibration_error(counts.gaps, counts.confusion.sum()))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda p: sum(p) > 0.01), st.floats(*TEMPERATURES))
def test_a_temperature_keeps_order_and_sum(weights, temperature):
    probabilities = np.asarray([weights]) / sum(weights)
    scaled = apply_temperature(probabilities, temperature)
    assert scaled.sum() == pytest.approx(1)
    assert (np.diff(scaled[0][np.argsort(probabilities[0])]) >= -1e-12).all()


def test_certain_and_impossible_labels_stay_finite():
    probabilities = np.asarray([[1.0, 0.0], [1.0, 0.0]])
    assert fit_temperature(probabilities, np.asarray([0, 0])) == pytest.approx(TEMPERATURES[0], rel=0.5)
    assert np.isfinite(negative_log_likelihood(probabilities, np.asarray([0, 1])))
    assert fit_temperature(probabilities, np.asarray([1, 1])) == pytest.approx(TEMPERATURES[1], rel=0.2)


def test_no_dev_pair_is_an_error_that_says_what_to_do():
    with pytest.raises(LoreError, match="calibrate_on"):
        fit_temperature(np.zeros((0, 4)), np.zeros(0, dtype=int))


def test_the_reliability_table_covers_every_pair_once():
    probabilities, gold = simulated(2.0, n=500)
    rows = reliability_table(gold, probabilities.argmax(axis=1), probabilities.max(axis=1))
    assert len(rows) == CALIBRATION_BINS and sum(row["weight"] for row in rows) == 500
    assert rows[0]["confidence"] is None and rows[0]["accuracy"] is None
    for row in rows:
        if row["confidence"] is not None:
            assert row["low"] - 1e-6 <= row["confidence"] <= row["high"] + 1e-6 and 0 <= row["accuracy"] <= 1
