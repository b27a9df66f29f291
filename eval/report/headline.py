"""The first sentences of the report: which judge is best, and whether it beats the baselines.

A difference is reported only if its paired 95 % interval, over the same queries, excludes zero. The best judge is chosen on
the test pairs themselves, so with many judges its rank is partly luck.
"""

from math import isnan

import numpy as np

from lore.eval.measures.bootstrap import Estimate, mean_estimate
from lore.eval.scorecard import Answers, Scorecard
from lore.eval.testset import EvalData
from lore.judge.verdict import Verdict

BASELINES = ("majority", "lexical")


def headline(
    cards: list[Scorecard],
    verdicts: dict[str, dict[str, Verdict]],
    data: EvalData,
    *,
    label_weights: bool = False,
    samples: int = 1000,
    seed: int = 0,
) -> list[str]:
    """Sentences about the judge with the highest Acc@K: its accuracy, the gain over the best baseline, and the gain over the next
    judge."""
    ranked = sorted(cards, key=lambda card: -_accuracy(card))
    judges = [card for card in ranked if card.kind not in BASELINES]
    baselines = [card for card in ranked if card.kind in BASELINES]

    def gain(first: Scorecard, second: Scorecard) -> Estimate:
        test = data.test
        right = [Answers.of(verdicts[card.name], test, data.rubric).predicted == test.gold for card in (first, second)]
        weights = test.weights if label_weights else None
        difference = right[0].astype(np.float64) - right[1]
        return mean_estimate(difference, test.groups, weights=weights, samples=samples, seed=seed)

    if not judges:
        return [f"No judge was tested, only baselines. {_how_often(baselines[0])}."]
    best, *others = judges
    sentences = [f"{_how_often(best, len(judges))}."]
    if baselines:
        sentences.append(_against_baseline(best.name, baselines[0].name, gain(best, baselines[0])))
    else:
        sentences.append("No baseline was tested, so there is nothing to compare this with.")
    if others:
        sentences.append(_against_next(best.name, others[0].name, gain(best, others[0])))
    return sentences


def _accuracy(card: Scorecard) -> float:
    value = card.whole.metrics["acc_k"].value
    return -1.0 if isnan(value) else value


def _how_often(card: Scorecard, of: int = 1) -> str:
    exact, sides = card.whole.metrics["acc_k"], card.whole.metrics["acc_2"]
    rank = f" ranks first of {of} judges: it" if of > 1 else ""
    return (
        f"{card.name}{rank} gives the right tier to {_percent(exact)} of the pairs and tells relevant from irrelevant "
        f"for {_percent(sides)}"
    )


def _against_baseline(judge: str, baseline: str, gain: Estimate) -> str:
    if not _known(gain):
        return _unknown(judge, f"the best baseline, {baseline}")
    if gain.low > 0:
        return f"That is {_points(gain)} more right tiers than the best baseline, {baseline}."
    if gain.high < 0:
        return f"That is {_points(gain, -1)} fewer right tiers than the best baseline, {baseline}."
    return f"It cannot be told apart from the best baseline, {baseline} (difference {_points(gain)})."


def _against_next(judge: str, other: str, gain: Estimate) -> str:
    if not _known(gain):
        return _unknown(judge, f"the next judge, {other}")
    if gain.low > 0:
        return f"It is ahead of the next judge, {other}, by {_points(gain)}."
    return f"It cannot be told apart from the next judge, {other} (difference {_points(gain)})."


def _known(gain: Estimate) -> bool:
    return not isnan(gain.low)


def _unknown(judge: str, other: str) -> str:
    return f"There is no interval (too few queries, or no resamples), so {judge} cannot be compared with {other}."


def _percent(value: Estimate) -> str:
    if isnan(value.value):
        return "an unknown share"
    interval = "" if isnan(value.low) else f" [{100 * value.low:.0f}, {100 * value.high:.0f}]"
    return f"{100 * value.value:.0f} %{interval}"


def _points(gain: Estimate, sign: int = 1) -> str:
    low, high = sorted((sign * gain.low, sign * gain.high))
    return f"{_tenths(sign * gain.value)} points [{_tenths(low)}, {_tenths(high)}]"


def _tenths(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:.1f}"
