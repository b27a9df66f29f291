"""The components of the reward. Each is a pure function of (answer, pair, view) that returns a number, or None to abstain.

verdict        1 for the label, decreasing to 0 with the cost of the mistake, 0 against a computed rule, -1 without a verdict
format         the text is exactly one answer and was not truncated
mismatch       the answer names the pair's mismatch dimension if its tier requires one
rules          the named rules exist, fit the verdict and match the pair's rules
grounding      the rationale's citations occur in the item
demands        the rationale's demands match the pair's demands
length         1 for short answers, with a linear decrease to 0
calibration    1 minus half the Brier score of the tier probabilities

As far as possible, whether a component returns None depends on the pair and the answer order, not on the answer, so omitting
parts of an answer cannot raise the reward. A format failure gets the minimum of every component that could have scored a valid
answer. The verdict is in [-1, 1], every other component in [0, 1].
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
from lore.rubric.computed_rules import ceiling, computed_of, contradicts
from lore.rubric.cost_matrix import cost_matrix
from lore.rubric.demand import Demand, read_demands
from lore.rubric.rubric import Rubric, Rule
from lore.support.errors import LoreError
from lore.support.text import normalize

NO_VERDICT = -1.0
TEXTS = ("title", "attributes", "description")
MAX_DEMANDS = 64  # per rationale; further demands count as wrong


@dataclass(frozen=True)
class View:
    """The context that every component gets in addition to answer and pair."""

    section: RewardsSection
    rubric: Rubric
    fmt: PromptFormat

    @cached_property
    def values(self) -> np.ndarray:
        """[K, K] value in [0, 1] of each verdict (column) for each label (row).

        Costs are divided by the highest cost over all labels. Dividing by the highest cost per label would cancel
        optimism_cost for labels that allow mistakes in one direction only.
        """
        section = self.section
        cost = cost_matrix(self.rubric.relevant_mask, border_cost=section.border_cost, optimism_cost=section.optimism_cost)
        return 1 - cost[:, :-1] / cost.max()

    def values_of(self, pair: Pair) -> np.ndarray:
        """[K] value of each verdict for a labeled pair: 0 above the ceiling that the computed rules of its demands leave."""
        values, best = self.values[self.rubric.index(pair.label)], ceiling(self.rubric, self.computed(pair))
        return values if best is None else np.where(np.arange(len(values)) > self.rubric.index(best), 0.0, values)

    def computed(self, pair: Pair) -> list[str]:
        """The computed rules among the pair's demands."""
        return computed_of(self.rubric, (demand.rule for demand in pair.demands))

    @cached_property
    def rules(self) -> dict[str, Rule]:
        return {rule.id: rule for rule in self.rubric.rules}

    @property
    def reasoned(self) -> bool:
        """Whether answers contain more than the verdict."""
        return self.fmt.order != "answer_only"


def verdict(answer: Answer, pair: Pair, view: View) -> float | None:
    """The value of the verdict, computed from lore.rubric.cost_matrix: see View.values_of. 0, as for the most expensive mistake, if
    the answer contradicts a computed rule of the pair's demands; -1 for a format failure."""
    judgement = answer.judgement
    if isinstance(judgement, FormatFailure):
        return NO_VERDICT
    if pair.label is None:
        return None
    if contradicts(view.rubric, view.computed(pair), judgement.rules, judgement.rationale, judgement.mismatch):
        return 0.0
    return float(view.values_of(pair)[view.rubric.index(judgement.tier)])


def well_formed(answer: Answer, pair: Pair, view: View) -> float:
    """1 or 0. A `<verdict>` inside the rationale counts as a second verdict: the codec ignores it, other parsers may not."""
    failed = isinstance(answer.judgement, FormatFailure) or answer.truncated
    return 0.0 if failed or answer.text.count("<verdict>") != 1 else 1.0


def mismatch(answer: Answer, pair: Pair, view: View) -> float | None:
    """1 or 0. If the pair's dimension is unknown, a tier that requires a mismatch may name any dimension of the rubric.

    None if the answer's tier requires no mismatch and the answer names none, or if the answer's tier requires one but the
    label does not: the verdict component already scores that mistake.
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
    """fit * (1 + agreement) / 2, or fit alone if the pair's rules are unknown; 1 for the correct verdict with the pair's rules.

    fit: share of the named rules that fit the verdict. A rule fits if it exists, is the first named rule of its dimension and,
    if the rubric aggregates by the worst demand, has the verdict's tier. agreement: F1 with the pair's rules. Both are 0 unless
    more than half of the named rules fit or match.
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
    """`share`, or 0 if it is at most one half, so that naming every rule earns nothing."""
    return share if share > 0.5 else 0.0


def grounding(answer: Answer, pair: Pair, view: View) -> float | None:
    """Share of the rationale's findings that occur in the cited source. 0 for a rationale that mentions raters or hints.

    Text that is not a demand, and repeated demands, count as ungrounded. Photo findings are skipped if the pair has a photo,
    and so is a correct `none`. If nothing else is left: 0 if the pair's own rationale cites the item's texts, else None.
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
        if claim is None or (claim.dimension, normalize(claim.wanted)) in said:
            continue
        said.add((claim.dimension, normalize(claim.wanted)))
        if has_photo and claim.source in ("photo", ""):  # the source may be missing if only the photo shows the finding
            passed_over += 1
        elif claim.source:
            sound = not why_ungrounded(claim.wanted, claim.found, claim.source, places, has_photo=has_photo)
            passed_over += sound and claim.source == "none"
            stand += sound and claim.source != "none"
    judged = len(claims) - passed_over
    return stand / judged if judged else None if _cites_nothing(pair) else 0.0


def _cites_nothing(pair: Pair) -> bool:
    """Whether the pair has no rationale, or one that cites none of the item's texts."""
    if not pair.rationale and not pair.demands:
        return True
    known = pair.demands or read_demands(pair.rationale or "")
    return all(demand is not None and demand.source not in TEXTS for demand in known)


def demands(answer: Answer, pair: Pair, view: View) -> float | None:
    """Agreement with the pair's demands, in [0, 1].

    Demands are matched greedily. Each match scores the share of equal fields: dimension, value wanted, value found with its
    source, rule, tier. The result is 2 * sum / (number of claimed demands + number of the pair's demands), like an F1 score,
    so a missing demand costs as much as an invented one.
    """
    if not view.reasoned or not pair.demands:
        return None
    if isinstance(answer.judgement, FormatFailure):
        return 0.0
    claims = read_demands(answer.judgement.rationale)
    pool = list(filter(None, claims[:MAX_DEMANDS]))
    named, wanted = [_compared(demand) for demand in pool], [_compared(demand) for demand in pair.demands]
    agreed = sorted(
        ((_steps(ours, theirs), i, j) for i, ours in enumerate(named) for j, theirs in enumerate(wanted)), reverse=True
    )
    total, used_ours, used_theirs = 0.0, set(), set()
    for value, i, j in agreed:
        if i not in used_ours and j not in used_theirs:
            used_ours.add(i)
            used_theirs.add(j)
            total += value
    return 2 * total / (len(claims) + len(pair.demands))


def _compared(demand: Demand) -> tuple:
    """The fields of a demand that are compared, the dimension first. Normalized once: a long answer meets many demands."""
    found = normalize(demand.found), demand.source
    return demand.dimension, normalize(demand.wanted), found, demand.rule, demand.tier


def _steps(ours: tuple, theirs: tuple) -> float:
    """Share of equal fields of two `_compared`, in [0, 1]; 0 if the dimensions differ."""
    if ours[0] != theirs[0]:
        return 0.0
    return sum(mine == other for mine, other in zip(ours, theirs, strict=True)) / len(ours)


def length(answer: Answer, pair: Pair, view: View) -> float:
    """1 up to length_free_tokens, then linear to 0 at length_limit_tokens; 0 for format failures and truncated answers."""
    if isinstance(answer.judgement, FormatFailure) or answer.truncated:
        return 0.0
    free, limit = view.section.length_free_tokens, view.section.length_limit_tokens
    return float(min(1.0, max(0.0, (limit - answer.tokens) / (limit - free))))


def calibration(answer: Answer, pair: Pair, view: View) -> float | None:
    """1 - sum((p - y)^2) / 2 with y the one-hot label (Brier 1950), a proper scoring rule."""
    if isinstance(answer.judgement, FormatFailure):
        return 0.0
    if answer.probabilities is None or pair.label is None:
        return None
    p = np.asarray(answer.probabilities, dtype=float)
    tiers = len(view.rubric.tiers)
    if p.shape != (tiers,) or not np.isfinite(p).all() or p.min() < 0 or abs(p.sum() - 1) > 1e-3:
        raise LoreError(
            f"Pair {pair.pair_id}: the tier probabilities are {p.tolist()!r}; expected {tiers}, one per tier of rubric "
            f"{view.rubric.name}, not negative and with sum 1. Normalize them over the tiers at the verdict position."
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
