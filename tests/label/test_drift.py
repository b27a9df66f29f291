"""PSI against values worked out by hand, and what it says about samples of the same labels."""

from math import isnan, log

import numpy as np
import pytest

from lore.label.drift import LOG_ODDS, in_deciles, psi, psi_noise, reading, relevance_counts


def test_psi_by_hand():
    """Shares .5/.5 before and .8/.2 now: .3 ln 1.6 - .3 ln .4 = .3 ln 4."""
    assert psi([50, 50], [80, 20], smoothing=0) == pytest.approx(0.3 * log(4))
    assert psi([20, 30, 50], [2, 3, 5], smoothing=0) == pytest.approx(0.0)
    # .2 ln(.3/.1) + 0 + -.2 ln(.3/.5)
    assert psi([10, 40, 50], [30, 40, 30], smoothing=0) == pytest.approx(0.2 * log(3) + 0.2 * log(5 / 3))


def test_an_empty_bin_gets_half_a_pair():
    """Shares (.5, 10.5)/11 before and (5.5, 5.5)/11 now: 5/11 (ln 11 - ln(5.5/10.5))."""
    assert psi([0, 10], [5, 5]) == pytest.approx(5 / 11 * (log(11) - log(5.5 / 10.5)))
    assert psi([0, 10], [0, 10]) == 0
    assert isnan(psi([0, 0], [5, 5]))
    with pytest.raises(ValueError, match="2 bins before and 3 now"):
        psi([1, 2], [1, 2, 3])


def test_noise_is_what_samples_of_the_same_labels_reach():
    rng = np.random.default_rng(0)
    shares = [0.1, 0.2, 0.3, 0.4]
    drawn = [psi(rng.multinomial(500, shares), rng.multinomial(2000, shares)) for _ in range(4000)]
    assert np.mean(np.asarray(drawn) <= psi_noise(4, 500, 2000)) == pytest.approx(0.95, abs=0.01)


def test_readings():
    assert [reading(value, 0.0) for value in (0.05, 0.1, 0.25, 0.3)] == ["stable", "some drift", "some drift", "large drift"]
    assert reading(0.3, 0.4) == "too few pairs to tell"
    assert reading(float("nan"), 0.0) == "no labels to compare"


def test_deciles_of_the_labels_before():
    rng = np.random.default_rng(1)
    before, now = rng.beta(0.3, 0.3, 50_000), rng.beta(0.3, 0.3, 20_000)
    first, second = in_deciles(relevance_counts(before), relevance_counts(now))
    assert len(first) == 10 and first.sum() == 50_000 and second.sum() == 20_000
    assert np.abs(first / 50_000 - 0.1).max() < 0.01  # as near as bins of .1 log-odds have them
    assert psi(first, second) < 0.002
    shifted = relevance_counts(1 / (1 + np.exp(-(np.log(now / (1 - now)) + 2))))
    assert psi(*in_deciles(relevance_counts(before), shifted)) > 0.1


def test_a_histogram_keeps_sure_judges_apart():
    counts = relevance_counts(np.asarray([0.0, 1e-6, 0.001, 0.5, 0.999, 1.0, np.nan]))
    assert counts.sum() == 6 and counts[0] == 2 and counts[-1] == 1
    assert np.flatnonzero(counts).size == 5
    # All pairs in one bin: one bin is left, and there is no drift to see.
    same = np.zeros(len(LOG_ODDS) + 1)
    same[7] = 100
    assert [len(part) for part in in_deciles(same, same)] == [2, 2]
    assert psi(*in_deciles(same, same)) == 0
