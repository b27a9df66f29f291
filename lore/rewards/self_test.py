"""The rewards' self-test: before step 0, rewards answers with a known ranking and stops the run if a reward hack pays off.

On every pair, no case may score above its rival (lore.rewards.adversarial_answers), and a case whose verdict has a lower value
has to score below it. Therefore honest mistakes score below gold; hacks do not score above the honest answer with the same
verdict; a wrong constant tier does not score above the cheapest honest mistake; and text without a verdict scores below the
most expensive honest mistake.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.measure import Measurement

from lore.codec.lexical_match import count_marks
from lore.data.pair import Pair
from lore.rewards.adversarial_answers import GOLD, Case, cases
from lore.rewards.reward import Rewards
from lore.support.console import Console, Table
from lore.support.errors import LoreError

MAX_PAIRS = 64
EPSILON = 1e-9
SURE = 0.9  # probability of an answer's own verdict, if rewards.calibration is on


@dataclass(frozen=True, slots=True)
class Row:
    """One case: its mean reward, and the mean of each component over the pairs where it does not abstain (nan if none).

    Each mean is first taken per label and then over labels, so that label frequencies do not favor a constant tier.
    """

    name: str
    total: float
    parts: dict[str, float]


def self_test(rewards: Rewards, pairs: Sequence[Pair], tokenizer: Any = None) -> list[Row]:
    """Rewards all cases of at most MAX_PAIRS labeled pairs, balanced over labels; returns gold first, then by mean reward.

    tokenizer: counts tokens; without one, words and punctuation marks are counted. Raises LoreError if a case outscores its
    rival, with component, case and pair.
    """
    chosen = _some_of_each_label(pairs)
    if not chosen:
        raise LoreError(
            f"The rewards' self-test got {len(pairs)} pairs and none has a label, so it cannot compute rewards. Check "
            "data.split and data.limit with `lore data stats`."
        )
    count = (lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])) if tokenizer is not None else count_marks
    rows: dict[str, list[np.ndarray]] = {}
    wrong: list[str] = []
    for pair in chosen:
        found = cases(pair, *_wrong_tiers(rewards, pair), rewards.view.rubric, rewards.view.fmt)
        parts = dict(zip([case.name for case in found], _parts(rewards, found, pair, count), strict=True))
        for case in found:
            rows.setdefault(case.name, []).append(parts[case.name])
            if case.rival:
                wrong += _not_below(rewards, case, parts[case.name], parts[case.rival], pair)
    if wrong:
        shown = "\n".join(f"  {line}" for line in wrong[:5])
        more = f"\n  and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise LoreError(
            f"The rewards' self-test failed on {len(chosen)} pairs: the model would learn a reward hack instead of the verdict.\n"
            f"{shown}{more}\nLower the weight of the named component, or raise rewards.verdict."
        )
    table = [_row(rewards, name, np.array(values), [pair.label for pair in chosen]) for name, values in rows.items()]
    return sorted(table, key=lambda row: (row.name != GOLD, -row.total))


def print_self_test(rows: Sequence[Row]) -> None:
    """Prints the rows as a table; a dash marks a component that abstained on all pairs."""
    names = list(rows[0].parts)
    table = Table(title="rewards before step 0", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("answer", "total", *names):
        table.add_column(name, justify="left" if name == "answer" else "right", no_wrap=True)
    for row in rows:
        values = [row.total, *(row.parts[name] for name in names)]
        table.add_row(row.name, *("-" if np.isnan(value) else f"{value:.2f}" for value in values))
    console = Console()
    console.width = max(console.width, Measurement.get(console, console.options.update(width=1000), table).maximum)
    console.print(table)


def _some_of_each_label(pairs: Sequence[Pair]) -> list[Pair]:
    by_label: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.label is not None:
            by_label.setdefault(pair.label, []).append(pair)
    interleaved = chain.from_iterable(zip_longest(*by_label.values()))
    return [pair for pair in interleaved if pair is not None][:MAX_PAIRS]


def _wrong_tiers(rewards: Rewards, pair: Pair) -> tuple[str, str]:
    """The wrong verdicts with the highest and the lowest value for a pair."""
    tier_ids = rewards.view.rubric.tier_ids
    value = dict(zip(tier_ids, rewards.view.values_of(pair), strict=True))
    wrong = sorted((tier for tier in tier_ids if tier != pair.label), key=lambda tier: value[tier])
    return wrong[-1], wrong[0]


def _parts(rewards: Rewards, found: Sequence[Case], pair: Pair, count: Callable[[str], int]) -> np.ndarray:
    tier_ids = rewards.view.rubric.tier_ids
    answers = []
    for case in found:
        rest = (1 - SURE) / (len(tier_ids) - 1)
        sure = [SURE if tier == case.tier else rest for tier in tier_ids] if case.tier and rewards.needs_probabilities else None
        answers.append(rewards.read(case.text, count(case.text), probabilities=sure))
    return rewards.parts(answers, [pair] * len(found))


def _not_below(rewards: Rewards, case: Case, parts: np.ndarray, rival: np.ndarray, pair: Pair) -> list[str]:
    """A message if a case scores above its rival, or equals it although its verdict has a lower value; else an empty list."""
    total, most = rewards.totals(np.array([parts, rival]))
    verdict = rewards.names.index("verdict")
    if total < most - EPSILON or (total <= most + EPSILON and parts[verdict] == rival[verdict]):
        return []
    part = rewards.names[int(np.argmax(_shares(rewards, parts) - _shares(rewards, rival)))]
    return [f"{part}: '{case.name}' gets {total:.3f} and '{case.rival}' {most:.3f} (pair {pair.pair_id})"]


def _shares(rewards: Rewards, parts: np.ndarray) -> np.ndarray:
    """Contribution of each component to the total."""
    judged = ~np.isnan(parts)
    return np.where(judged, parts * rewards.weights, 0.0) / max((judged * rewards.weights).sum(), EPSILON)


def _row(rewards: Rewards, name: str, parts: np.ndarray, labels: list[str]) -> Row:
    """Means of one case. parts: [N, parts] for N pairs with these labels."""
    weight = np.array([1 / labels.count(label) for label in labels])[:, None]
    judged = ~np.isnan(parts)
    sums, weights = (np.where(judged, parts, 0.0) * weight).sum(axis=0), (judged * weight).sum(axis=0)
    means = np.divide(sums, weights, out=np.full(len(sums), np.nan), where=weights > 0)
    total = float(np.average(rewards.totals(parts), weights=weight[:, 0]))
    return Row(name, total, dict(zip(rewards.names, means.tolist(), strict=True)))
