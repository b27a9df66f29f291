"""The curve over labels: which sizes it tries, and when it stops. The students are verdicts of a chosen accuracy."""

from types import SimpleNamespace

import numpy as np
import pytest

from lore.distill.curve import measure_curve
from lore.eval.testset import Labeled
from lore.judge.verdict import Verdict
from lore.rubric.rubric import load_rubric

RUBRIC = load_rubric("shop")
PAIRS = 400


def labeled(split: str) -> Labeled:
    gold = np.arange(PAIRS) % 4
    ids = [f"{split}{at}" for at in range(PAIRS)]
    return Labeled(split, ids, [f"q{at // 4}" for at in range(PAIRS)], gold, np.ones(PAIRS), [[] for _ in ids])


HUMAN = SimpleNamespace(dev=labeled("dev"), test=labeled("test"), source=SimpleNamespace(rubric=RUBRIC))


def curve(accuracies: dict[int, float], labels: int, sizes: list[int], samples: int = 200):
    """The curve of students with these accuracies, and the sizes that were trained."""
    section = SimpleNamespace(sizes=sizes, metric="macro_f1")
    recipe, tried = SimpleNamespace(curve=section, bootstrap_samples=samples, seed=0), []

    def answered(size: int):
        tried.append(size)
        found = []
        for part in (HUMAN.dev, HUMAN.test):
            right = np.random.default_rng(size).random(PAIRS) < accuracies[size]
            tiers = np.where(right, part.gold, (part.gold + 1) % 4)
            rows = zip(part.pair_ids, tiers, (np.eye(4)[tiers] * 0.6 + 0.1).tolist(), strict=True)
            found.append({one: Verdict(one, RUBRIC.tier_ids[tier], row) for one, tier, row in rows})
        return tuple(found)

    return measure_curve(recipe, HUMAN, labels, answered), tried


def test_the_curve_stops_at_the_first_size_that_does_not_gain():
    found, tried = curve({10: 0.4, 20: 0.7, 40: 0.7, 80: 0.95, 100: 0.99}, 100, [10, 20, 40, 80])
    assert tried == [10, 20, 40] and [point.labels for point in found.points] == tried
    assert found.points[0].gain is None and found.points[1].gain.low > 0 and found.points[2].gain.low <= 0
    assert found.stopped.startswith("flat: the gain from 20 to 40 labels")


def test_a_curve_that_still_rises_ends_with_all_labels():
    found, tried = curve({10: 0.3, 20: 0.6, 50: 0.9}, 50, [10, 20, 80, 160])
    assert tried == [10, 20, 50] and found.stopped == "all labels are used"
    gains = [point.dev.value - before.dev.value for before, point in zip(found.points, found.points[1:], strict=False)]
    assert [point.gain.value for point in found.points[1:]] == pytest.approx(gains)
    assert found.points[1].gain.low < gains[0] < found.points[1].gain.high
    assert found.to_json()["points"][2]["test"]["value"] == pytest.approx(found.points[2].test.value, abs=1e-6)


def test_without_resamples_the_gain_itself_decides():
    _, tried = curve({10: 0.5, 20: 0.6, 40: 0.55, 50: 0.9}, 50, [10, 20, 40], samples=0)
    assert tried == [10, 20, 40]
