"""Macro-F1 from a confusion matrix equals scikit-learn's, and failures count as misses."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from lore.judge.confusion import NO_VERDICT, confusion_matrix, confusion_of, macro_f1, tier_f1
from lore.rubric.rubric import load_rubric

RUBRIC = load_rubric("shop")


@pytest.mark.parametrize("tiers, seed", [(2, 0), (4, 1), (4, 2), (11, 3)])
def test_macro_f1_is_that_of_scikit_learn(tiers, seed):
    rng = np.random.default_rng(seed)
    gold, predicted, weights = rng.integers(0, tiers, 60), rng.integers(-1, max(2, tiers - 1), 60), rng.random(60)
    confusion = confusion_matrix(gold, predicted, tiers, weights)
    occurring = sorted({*gold, *predicted} - {NO_VERDICT})
    options = {"labels": occurring, "sample_weight": weights, "zero_division": 0}
    assert macro_f1(confusion) == pytest.approx(f1_score(gold, predicted, average="macro", **options))
    assert tier_f1(confusion)[0, occurring] == pytest.approx(f1_score(gold, predicted, average=None, **options))


def test_groups_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    gold, predicted, groups = rng.integers(0, 3, 50), rng.integers(-1, 3, 50), rng.integers(0, 5, 50)
    by_group = confusion_matrix(gold, predicted, 3, None, groups)
    assert by_group.shape == (5, 3, 4) and (by_group.sum(axis=0) == confusion_matrix(gold, predicted, 3)[0]).all()


def test_a_failure_stands_in_the_last_column_and_is_no_false_alarm():
    tiers = RUBRIC.tier_ids
    confusion = confusion_of([(tiers[0], tiers[0]), (tiers[0], None), (tiers[3], tiers[0])], RUBRIC)
    assert confusion[0].tolist() == [1, 0, 0, 0, 1] and confusion[3].tolist() == [1, 0, 0, 0, 0]
    assert macro_f1(confusion) == (2 / 4 + 0) / 2  # two hits counted twice over two labels and two verdicts; one tier never hit
    assert np.isnan(macro_f1(np.zeros((4, 5))))
