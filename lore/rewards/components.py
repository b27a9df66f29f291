"""The parts of the reward. Each is a pure function of (answer, pair, what it may look at) and returns a number, or None where
it cannot judge.

verdict        1 at the label, falling to 0 with what the mistake costs, -1 without a verdict
format         the answer ended by itself and is exactly one
mismatch       the failing dimension is named where it has to be, and is the pair's
rules          rules named are the rubric's, fit the verdict, and are the pair's
grounding      what the rationale cites stands in the item
demands        the rationale's demands are the pair's, step by step
length         short, with a soft edge
calibration    1 less half the Brier score of the tier probabilities

None hangs on the pair and the answer order wherever that is possible, so that nothing can be gained by leaving things out. A
format failure is judged by every part that could have judged an answer, and gets its least. All but the verdict lie in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lore.codec.grounding import citable, leaks, why_ungrounded
from lore.codec.judgement import FormatFailure
from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.judge.answer import Answer
from lore.rewards.config import RewardsSection
from lore.rubric.cost_matrix import cost_matrix
from lore.rubric.demand import Demand, read_demands
from lore.rubric.rubric import Rubric, Rule
from lore.support.errors import LoreError
from lore.support.text import normalise

NO_VERDICT = -1.0
TEXTS = ("title", "attributes", "description")
MAX_DEMANDS = 64  # of one rationale; further ones count as wrong


@dataclass(frozen=True)
class View:
    """What parts may look at beside answer and pair."""

    section: RewardsSection
    rubric: Rubric
    fmt: PromptFormat

    @cached_property
    def values(self) -> np.ndarray:
        """[K, K] value in [0, 1] of each verdict (column) for each label (row).

        Scaled by the dearest mistake of all labels, not of each: else the price of optimism would be lost for labels that can
        only be missed in one direction.
        """
        section = self.section
        cost = cost_matrix(self.rubric.relevant_mask, border_cost=section.border_cost, optimism_cost=section.optimism_cost)
        return 1 - cost[:, :-1] / cost.max()

    @cached_property
    def rules(self) -> dict[str, Rule]:
        return {rule.id: rule for rule in self.rubric.rules}

    @property
    def reasoned(self) -> bool:
        """Whether answers have room for more than the verdict."""
        return self.fmt.order != "answer_only"


def verdict(answer: Answer, pair: Pair, view: View) -> float | None:
    """lore.rubric.cost_matrix.cost_matrix, turned into a value: see View.values."""
    if isinstance(answer.judgement, FormatFailure):
        return NO_VERDICT
    if pair.label is None:
        return None
    index = view.rubric.index
    return float(view.values[index(pair.label), index(answer.judgement.tier)])


def well_formed(answer: Answer, pair: Pair, view: View) -> float:
    """1 or 0. A verdict's tags inside the reasoning are read past by the codec and not by everybody else: they count as two."""
    failed = isinstance(answer.judgement, FormatFailure) or answer.truncated
    return 0.0 if failed or answer.text.count("<verdict>") != 1 else 1.0


def mismatch(answer: Answer, pair: Pair, view: View) -> float | None:
    """1 or 0. Where the pair's dimension is not known, any of the rubric will do for a tier that has to name one.

    Where the label's tier has none, there is nothing to compare: that the answer's tier has one is the verdict's mistake.
    """
    tiers = view.rubric.mismatch_tiers
    if not view.reasoned or not tiers:
        return None
    if isinstance(answer.judgement, FormatFailure):
        return 0.0
    named, needed = answer.judgement.mismatch, answer.judgement.tier in tiers
    if pair.mismatch:
        return float(named == pair.mismatch)
    known = needed and named in {dimension.id for dimension in view.rubric.dimensions}
    if (known and pair.label not in (None, *tiers)) or (not needed and not named):
        return None
    return float(known)


def rules(answer: Answer, pair: Pair, view: View) -> float | None:
    """Half for rules that fit the verdict, the whole where they are the pair's; nothing unless more than half of those named do.

    A rule fits that exists, is the first of its dimension, and has the verdict's tier where the worst demand decides. Agreement
    with the pair's rules is F1.
    """
    if not view.reasoned or not view.rules:
        return None
    if isinstance(answer.judgement, FormatFailure):
        return 0.0
    named, tier = answer.judgement.rules, answer.judgement.tier
    if not named:
        return 0.0 if pair.rules else None
    if tier == pair.label and sorted(named) == sorted(pair.rules):
        return 1.0
    fitting: set[str] = set()
    for rule in filter(None, map(view.rules.get, named)):
        if view.rubric.aggregate != "worst" or rule.tier == tier:
            fitting.add(rule.dimension)
    fit = _majority(len(fitting) / len(named))
    if not pair.rules:
        return fit
    hits = len(set(named) & set(pair.rules))
    agreement = 2 * hits / (len(named) + len(pair.rules)) if _majority(hits / len(named)) else 0.0
    return fit * (1 + agreement) / 2


def _majority(share: float) -> float:
    """A share, or 0 where it is not more than a half: naming everything must not pay."""
    return share if share > 0.5 else 0.0


def grounding(answer: Answer, pair: Pair, view: View) -> float | None:
    """Share of the rationale's findings that stand in the cited source; what is no demand, or is one for the second time, counts
    as one that does not. 0 for a rationale that speaks of raters or hints.

    Findings from a photo are passed over where there is one, and so is `none` where nothing can be found. A rationale that cites
    nothing else gets 0 where the pair's own does, or None.
    """
    if not view.reasoned:
        return None
    if isinstance(answer.judgement, FormatFailure):
        return 0.0
    rationale = answer.judgement.rationale
    if leaks(rationale, pair):
        return 0.0
    claims, places, has_photo = read_demands(rationale), citable(pair), pair.image is not None
    stand, passed_over, said = 0, 0, set()
    for claim in claims[:MAX_DEMANDS]:
        if claim is None or (claim.dimension, normalise(claim.wanted)) in said:
            continue
        said.add((claim.dimension, normalise(claim.wanted)))
        if has_photo and claim.source in ("photo", ""):  # a finding may be left out where only the photo shows it
            passed_over += 1
        elif claim.source:
            sound = not why_ungrounded(claim.wanted, claim.found, claim.source, places, has_photo=has_photo)
            passed_over += sound and claim.source == "none"
            stand += sound and claim.source != "none"
    judged = len(claims) - passed_over
    return stand / judged if judged else None if _cites_nothing(pair) else 0.0


def _cites_nothing(pair: Pair) -> bool:
    """Whether the pair's own rationale, if it has one, finds nothing in the item's texts."""
    if not pair.rationale and not pair.demands:
        return True
    known = pair.demands or read_demands(pair.rationale or "")
    return all(demand is not None and demand.source not in TEXTS for demand in known)


def demands(answer: Answer, pair: Pair, view: View) -> float | None:
    """Agreement with the pair's demands, each worth as much as its steps agree: dimension, value wanted, value found and its
    source, rule, tier. Twice the sum over both numbers of demands, so that a missing demand costs as much as an invented one.
    """
    if not view.reasoned or not pair.demands:
        return None
    if isinstance(answer.judgement, FormatFailure):
        return 0.0
    claims = read_demands(answer.judgement.rationale)
    pool = list(filter(None, claims[:MAX_DEMANDS]))
    agreed = sorted(
        ((_steps(ours, theirs), i, j) for i, ours in enumerate(pool) for j, theirs in enumerate(pair.demands)), reverse=True
    )
    total, used_ours, used_theirs = 0.0, set(), set()
    for value, i, j in agreed:
        if i not in used_ours and j not in used_theirs:
            used_ours.add(i)
            used_theirs.add(j)
            total += value
    return 2 * total / (len(claims) + len(pair.demands))


def _steps(ours: Demand, theirs: Demand) -> float:
    """Share of the steps that agree, in [0, 1]; 0 for another dimension."""
    if ours.dimension != theirs.dimension:
        return 0.0
    steps = [
        True,
        normalise(ours.wanted) == normalise(theirs.wanted),
        (normalise(ours.found), ours.source) == (normalise(theirs.found), theirs.source),
        ours.rule == theirs.rule,
        ours.tier == theirs.tier,
    ]
    return sum(steps) / len(steps)


def length(answer: Answer, pair: Pair, view: View) -> float:
    """1 up to length_free_tokens, falling in a line to 0 at length_limit_tokens; 0 for what is no whole answer."""
    if isinstance(answer.judgement, FormatFailure) or answer.truncated:
        return 0.0
    free, limit = view.section.length_free_tokens, view.section.length_limit_tokens
    return float(min(1.0, max(0.0, (limit - answer.tokens) / (limit - free))))


def calibration(answer: Answer, pair: Pair, view: View) -> float | None:
    """1 - sum((p - y)^2) / 2 with y one at the label (Brier 1950): proper, so it is best to report what one believes."""
    if isinstance(answer.judgement, FormatFailure):
        return 0.0
    if answer.probabilities is None or pair.label is None:
        return None
    p = np.asarray(answer.probabilities, dtype=float)
    tiers = len(view.rubric.tiers)
    if p.shape != (tiers,) or not np.isfinite(p).all() or p.min() < 0 or abs(p.sum() - 1) > 1e-3:
        raise LoreError(
            f"Pair {pair.pair_id}: the tier probabilities are {p.tolist()!r}; expected {tiers}, one per tier of rubric "
            f"{view.rubric.name}, that are not negative and sum to 1. Normalise them over the tiers at the verdict position."
        )
    y = np.arange(tiers) == view.rubric.index(pair.label)
    return float(np.clip(1 - ((p - y) ** 2).sum() / 2, 0, 1))


PARTS: dict[str, Callable[[Answer, Pair, View], float | None]] = {
    "verdict": verdict,
    "format": well_formed,
    "mismatch": mismatch,
    "rules": rules,
    "grounding": grounding,
    "demands": demands,
    "length": length,
    "calibration": calibration,
}
