"""Calibration of a student recovers what was done to its probabilities, and thresholds keep their promise."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.judge.temperature import apply_temperature, negative_log_likelihood
from lore.student.calibration import Calibration, fit_calibration, fit_thresholds
from lore.support.errors import LoreError


def drawn(count: int, tiers: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    true = rng.dirichlet(np.ones(tiers), count)
    return true, (true.cumsum(axis=1) < rng.random(count)[:, None]).sum(axis=1)


def test_temperature_undoes_overconfidence_and_keeps_every_verdict():
    true, gold = drawn(2000)
    wrong = apply_temperature(true, 0.4)
    found = fit_calibration(wrong, gold, None, "temperature")
    assert found.temperature == pytest.approx(2.5, rel=0.1)
    assert (found.apply(wrong).argmax(1) == wrong.argmax(1)).all()


def test_isotonic_repairs_what_a_temperature_cannot():
    true, gold = drawn(5000)
    # A student that is too low everywhere: the probabilities of being above each border are cubed.
    above = np.pad(true[:, ::-1].cumsum(axis=1)[:, ::-1], ((0, 0), (0, 1))) ** 3
    wrong = above[:, :-1] - above[:, 1:]
    half = len(gold) // 2
    losses = {}
    for kind in ("none", "temperature", "isotonic"):
        found = fit_calibration(wrong[:half], gold[:half], None, kind)
        losses[kind] = negative_log_likelihood(found.apply(wrong[half:]), gold[half:])
    best = negative_log_likelihood(true[half:], gold[half:])
    assert losses["isotonic"] < losses["temperature"] - 0.01 and losses["isotonic"] < best + 0.05


@pytest.mark.parametrize("kind", ["none", "temperature", "isotonic"])
def test_a_calibration_is_the_same_after_json_and_gives_probabilities(kind):
    true, gold = drawn(300)
    found = fit_calibration(apply_temperature(true, 3), gold, np.linspace(1, 2, len(gold)), kind)
    again = Calibration.model_validate(json.loads(json.dumps(found.model_dump())))
    extreme = np.vstack([true, np.eye(4), np.full((1, 4), 0.25)])
    np.testing.assert_array_equal(found.apply(extreme), again.apply(extreme))
    assert np.allclose(found.apply(extreme).sum(1), 1) and (found.apply(extreme) >= 0).all()
    if kind == "isotonic":
        assert (found.apply(extreme) > 0).all()  # no tier is impossible


def test_a_distribution_of_raters_counts_as_its_shares():
    true, gold = drawn(200)
    spread = np.zeros((200, 4))
    spread[np.arange(200), gold] = 0.75
    spread[np.arange(200), 3 - gold] += 0.25
    rows, weights = np.repeat(np.arange(200), 2), np.tile([0.75, 0.25], 200)
    labels = np.stack([gold, 3 - gold], axis=1).reshape(-1)
    for kind in ("temperature", "isotonic"):
        ours = fit_calibration(true, spread, None, kind)
        theirs = fit_calibration(true[rows], labels, weights, kind)
        assert (ours.temperature or 0) == pytest.approx(theirs.temperature or 0, rel=1e-3)
        for one, other in zip(ours.borders, theirs.borders, strict=True):
            assert one.x == pytest.approx(other.x) and one.y == pytest.approx(other.y)


def test_damaged_or_mixed_parameters_are_refused():
    steps = {"x": [0.0, 1.0], "y": [0.0, 1.0]}
    for values in (
        {"kind": "temperature"},
        {"kind": "none", "temperature": 1.0},
        {"kind": "isotonic", "borders": []},
        {"kind": "temperature", "temperature": float("nan")},
        {"kind": "isotonic", "borders": [steps | {"y": [1.0, 0.0]}]},
        {"kind": "isotonic", "borders": [steps | {"x": [0.0]}]},
    ):
        with pytest.raises(ValueError):
            Calibration.model_validate(values)
    with pytest.raises(ValueError, match="2 tiers"):
        Calibration(kind="isotonic", borders=[steps]).check_tiers(4)
    with pytest.raises(LoreError, match="dev split"):
        fit_calibration(np.zeros((0, 4)), np.zeros(0, dtype=int), None, "isotonic")


def test_thresholds_by_hand():
    relevance = np.asarray([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    relevant = np.asarray([True, True, False, True, False, False])
    found = fit_thresholds(relevance, relevant, recall=1.0, precision=0.75)
    assert found["filter"].threshold == pytest.approx(0.55) and found["filter"].precision == pytest.approx(0.75)
    assert found["page_quality"].threshold == pytest.approx(0.55) and found["page_quality"].recall == 1
    assert fit_thresholds(relevance, relevant, recall=0.6, precision=1.0)["filter"].threshold == pytest.approx(0.75)
    assert fit_thresholds(relevance, relevant, precision=1.0)["page_quality"].threshold == pytest.approx(0.75)
    never = fit_thresholds(relevance, ~relevant, precision=0.9)["page_quality"]
    assert never.threshold is None and never.kept == 0
    assert fit_thresholds(relevance, np.ones(6, dtype=bool)) == {}


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 10), st.booleans(), st.integers(1, 3)), min_size=2, max_size=60), st.floats(0, 1))
def test_a_threshold_keeps_its_promise_on_the_pairs_that_it_was_chosen_on(rows, target):
    relevance, relevant, weights = (np.asarray(column) for column in zip(*rows, strict=True))
    relevance = relevance / 10
    for use, found in fit_thresholds(relevance, relevant, weights, recall=target, precision=target).items():
        if found.threshold is None:
            continue
        kept = relevance >= found.threshold
        good = (weights * relevant)[kept].sum()
        recall, precision = good / (weights * relevant).sum(), good / weights[kept].sum()
        assert (recall, precision) == (pytest.approx(found.recall), pytest.approx(found.precision))
        assert (recall if use == "filter" else precision) >= target - 1e-9
