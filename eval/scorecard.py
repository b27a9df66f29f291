"""All measurements of one judge: the whole test, slices, calibration, failures."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from lore.eval.measures.agreement import judge_agreement
from lore.eval.measures.bootstrap import Estimate, estimate
from lore.eval.measures.calibration import apply_temperature, fit_temperature, reliability_table
from lore.eval.measures.metrics import NO_VERDICT, confidence_of, count, prior_weights, total
from lore.eval.measures.results import Agreement, Condition, Flip, RiskCurve, SampleCurves
from lore.eval.measures.selective import risk_curve
from lore.eval.sections import MetricsSection
from lore.eval.testset import EvalData, Labeled
from lore.judge.ask import FINISHED_BADLY, NO_ANSWER, no_answer
from lore.judge.verdict import Verdict, unscored
from lore.rubric.computed_rules import ceiling, contradicts
from lore.rubric.cost_matrix import cost_matrix
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

SHOWN_CHARACTERS = 200
SHOWN_REASONS, KEPT_REASONS = 3, 20
OTHER_REASONS = "other reasons"
CUT = FINISHED_BADLY["length"]


def _most_frequent(reasons: Counter[str]) -> dict[str, int]:
    """The most frequent reasons; words that quote the prompt differ from pair to pair, so the rest is one number."""
    kept = dict(reasons.most_common(KEPT_REASONS))
    rest = reasons.total() - sum(kept.values())
    return kept | ({OTHER_REASONS: rest} if rest else {})


def unanswered_text(card: "Scorecard") -> str:
    """How many pairs got no answer, or no scores after it, and why; empty if all got both."""
    pairs, found = card.whole.pairs, []
    if card.no_answer:
        lost = f"{sum(card.no_answer.values()):,} of {pairs:,} pairs got no answer and count as wrong"
        found.append(f"{lost}: {_reasons(card.no_answer)}")
    if card.unscored:
        lost = f"{sum(card.unscored.values()):,} of {pairs:,} verdicts have no tier probabilities and count with even ones"
        found.append(f"{lost}: {_reasons(card.unscored)}")
    return ". ".join(found)


def unreadable_text(card: "Scorecard") -> str:
    """How many answers hold no verdict, and why, if these are half of the pairs or more; then the accuracy says little about the
    judge. Empty otherwise.
    """
    failures = {reason: times for reason, times in card.failures.items() if reason not in NO_ANSWER}
    lost = sum(failures.values())
    if 2 * lost < card.whole.pairs or not lost:
        return ""
    advice = " Raise sampling.max_tokens." if 2 * failures.get(CUT, 0) >= lost else ""
    what = f"{lost:,} of {card.whole.pairs:,} answers hold no verdict that can be read and count as wrong"
    return f"{what}: {_reasons(failures)}.{advice}"


def unread_photos_text(card: "Scorecard") -> str:
    """How many pairs were judged without their photo because it could not be read. Empty if none was."""
    if not (lost := card.photos.get("failed")):
        return ""
    return f"the photos of {lost:,} of {card.whole.pairs:,} pairs could not be read, so these pairs were judged as text"


def _reasons(times: dict[str, int]) -> str:
    shown = [f"{count:,} x {why}" for why, count in list(times.items())[:SHOWN_REASONS]]
    return "; ".join(shown + ["…"] * (len(times) > SHOWN_REASONS))


@dataclass
class Answers:
    """A judge's verdicts in the order of the labeled pairs: tier indices [N] (NO_VERDICT for a format failure), probabilities
    [N, K] or None, and whether a verdict is against a computed rule of its pair [N], None for a rubric without any."""

    predicted: np.ndarray
    probabilities: np.ndarray | None
    refused: np.ndarray | None = None

    @classmethod
    def of(cls, verdicts: dict[str, Verdict], pairs: Labeled, rubric: Rubric) -> "Answers":
        rows = [verdicts[pair_id] for pair_id in pairs.pair_ids]
        predicted = np.asarray(
            [NO_VERDICT if row.tier is None else rubric.index(row.tier) for row in rows], dtype=np.int64
        )
        refused = None
        if pairs.computed is not None:
            both = zip(rows, pairs.computed, strict=True)
            refused = np.asarray([row.tier is not None and _is_refused(row, known, rubric) for row, known in both])
        incomplete = any(row.tier is not None and row.probabilities is None and not unscored(row) for row in rows)
        if incomplete or all(row.probabilities is None for row in rows):
            return cls(predicted, None, refused)
        even = [1 / len(rubric.tier_ids)] * len(rubric.tier_ids)
        return cls(predicted, np.asarray([row.probabilities or even for row in rows], dtype=np.float64), refused)

    def confidence(self) -> np.ndarray | None:
        return None if self.probabilities is None else confidence_of(self.probabilities, self.predicted)


def _is_refused(verdict: Verdict, computed: list[str], rubric: Rubric) -> bool:
    best = ceiling(rubric, computed)
    above = best is not None and rubric.index(verdict.tier) > rubric.index(best)
    return above or contradicts(rubric, computed, verdict.rules, verdict.rationale, verdict.mismatch)


@dataclass
class Part:
    """Metrics over a subset of the pairs."""

    pairs: int
    queries: int
    metrics: dict[str, Estimate]

    def to_json(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "queries": self.queries,
            "metrics": {name: value.to_json() for name, value in self.metrics.items()},
        }


@dataclass
class Scorecard:
    """One row of the results table, with the details behind it."""

    name: str
    kind: str
    how: str
    whole: Part
    natural: Part | None
    """Under the recipe's prior; None without a prior."""
    slices: dict[str, Part]
    confusion: np.ndarray
    """[K, K + 1] pair weights: label by verdict; the last column holds format failures."""
    reliability: list[dict[str, float | None]] | None
    reliability_calibrated: list[dict[str, float | None]] | None
    temperature: float | None
    """Fitted on the calibration split. None without such a split, or if the judge gives no probabilities."""
    failures: dict[str, int] = field(default_factory=dict)
    no_answer: dict[str, int] = field(default_factory=dict)
    """Pairs that got no answer at all (a part of the failures), by reason in the server's words; the most frequent ones."""
    unscored: dict[str, int] = field(default_factory=dict)
    """Pairs with a verdict whose tier probabilities the server refused, by reason; the most frequent ones."""
    photos: dict[str, int] = field(default_factory=dict)
    slices_natural: dict[str, Part] = field(default_factory=dict)
    """Every slice under the recipe's prior. A slice without any pair of the prior's tiers has no values here."""
    risk: RiskCurve | None = None
    """None if the judge gives no probabilities."""
    risk_natural: RiskCurve | None = None
    samples: SampleCurves | None = None
    agreement: Agreement | None = None
    agreement_natural: Agreement | None = None
    flips: list[Flip] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "how": self.how,
            **self.whole.to_json(),
            "under_prior": self.natural.to_json() if self.natural else None,
            "slices": {name: part.to_json() for name, part in self.slices.items()},
            "confusion": [[round(float(cell), 4) for cell in row] for row in self.confusion],
            "temperature": None if self.temperature is None else round(self.temperature, 4),
            "reliability": self.reliability,
            "reliability_calibrated": self.reliability_calibrated,
            "failures": self.failures,
            "no_answer": self.no_answer,
            "unscored": self.unscored,
            "photos": self.photos,
            "slices_under_prior": {name: part.to_json() for name, part in self.slices_natural.items()},
            "risk": self.risk.to_json() if self.risk else None,
            "risk_under_prior": self.risk_natural.to_json() if self.risk_natural else None,
            "samples": self.samples.to_json() if self.samples else None,
            "agreement": self.agreement.to_json() if self.agreement else None,
            "agreement_under_prior": self.agreement_natural.to_json() if self.agreement_natural else None,
            "robustness": [flip.to_json() for flip in self.flips],
            "capability": [condition.to_json() for condition in self.conditions],
        }


def check_metrics(options: MetricsSection, rubric: Rubric) -> None:
    """Raises LoreError if metrics.gains names an unknown tier, is negative, or is all zero."""
    for tier, gain in (options.gains or {}).items():
        if tier not in rubric.tier_ids:
            raise LoreError(
                f"metrics.gains names {tier!r}, which is not a tier of rubric {rubric.name} ({', '.join(rubric.tier_ids)}), so "
                f"nDCG would ignore that gain.{nearest_hint(tier, rubric.tier_ids)}"
            )
        if gain < 0:
            raise LoreError(f"metrics.gains: {tier} is {gain:g}, and a negative gain takes nDCG out of [0, 1]. Set 0 or more.")
    if options.gains is not None and not any(options.gains.values()):
        raise LoreError("metrics.gains are all zero, so nDCG is undefined. Give some tier a positive gain, or drop metrics.gains.")


def score(
    name: str,
    kind: str,
    how: str,
    verdicts: dict[str, Verdict],
    *,
    data: EvalData,
    options: MetricsSection,
    slices: list[str],
    seed: int,
) -> Scorecard:
    """Measures a judge on the test pairs. The temperature is fitted on the dev pairs, if the judge has verdicts for all of
    them."""
    test, rubric = data.test, data.rubric
    check_metrics(options, rubric)
    answers = Answers.of(verdicts, test, rubric)
    weights = test.weights if options.label_weights else None
    temperature = _temperature(verdicts, data.dev, options)
    confidence, calibrated = answers.confidence(), None
    if temperature is not None and answers.probabilities is not None:
        calibrated = confidence_of(apply_temperature(answers.probabilities, temperature), answers.predicted)
    prior = None
    if options.prior is not None:
        prior = [options.prior.get(tier, 0.0) for tier in rubric.tier_ids]
        prior_weights(test.gold, prior, weights)  # raises if no tier of the prior has a test pair

    drawn = {"samples": options.bootstrap_samples, "seed": seed}
    everything = np.ones(len(test), dtype=bool)
    inside = {slice_name: test.in_slice(slice_name) for slice_name in slices}
    parts: dict[bool, tuple[Part, dict[str, Part], RiskCurve | None, Agreement]] = {}
    for natural in [False] if prior is None else [False, True]:
        measured = partial(_part, answers, calibrated, test, rubric, options, weights, prior if natural else None, seed)
        about = {"weights": weights, "prior": prior if natural else None} | drawn
        risk = None if confidence is None else risk_curve(test.gold, answers.predicted, confidence, test.groups, **about)
        ratings = None if natural else data.ratings  # the prior weights labels, not the labels of single raters
        agreement = judge_agreement(
            test.gold, answers.predicted, test.groups, len(rubric.tier_ids), ratings=ratings, **about
        )
        parts[natural] = measured(everything), {key: measured(mask) for key, mask in inside.items()}, risk, agreement

    def diagram(confidence: np.ndarray | None) -> list[dict[str, float | None]] | None:
        return None if confidence is None else reliability_table(test.gold, answers.predicted, confidence, weights)

    rows = [verdicts[pair_id] for pair_id in test.pair_ids]
    whole, by_slice, risk, agreement = parts[False]
    natural, slices_natural, risk_natural, agreement_natural = parts.get(True, (None, {}, None, None))
    return Scorecard(
        name=name,
        kind=kind,
        how=how,
        whole=whole,
        natural=natural,
        slices=by_slice,
        confusion=total(count(test.gold, answers.predicted, len(rubric.tier_ids), weights=weights)).confusion,
        reliability=diagram(confidence),
        reliability_calibrated=diagram(calibrated),
        temperature=temperature,
        failures=dict(Counter(row.failure for row in rows if row.tier is None).most_common()),
        no_answer=_most_frequent(Counter(why[:SHOWN_CHARACTERS] for row in rows if (why := no_answer(row)))),
        unscored=_most_frequent(Counter(why[:SHOWN_CHARACTERS] for row in rows if (why := unscored(row)))),
        photos=dict(Counter(row.photo for row in rows if row.photo != "none").most_common()),
        slices_natural=slices_natural,
        risk=risk,
        risk_natural=risk_natural,
        agreement=agreement,
        agreement_natural=agreement_natural,
    )


def _temperature(verdicts: dict[str, Verdict], dev: Labeled | None, options: MetricsSection) -> float | None:
    if dev is None or any(pair_id not in verdicts for pair_id in dev.pair_ids):
        return None
    usable = [
        i
        for i, pair_id in enumerate(dev.pair_ids)
        if verdicts[pair_id].tier is not None and verdicts[pair_id].probabilities is not None
    ]
    if not usable:
        return None
    probabilities = np.asarray([verdicts[dev.pair_ids[i]].probabilities for i in usable])
    return fit_temperature(probabilities, dev.gold[usable], dev.weights[usable] if options.label_weights else None)


def _part(
    answers: Answers,
    calibrated: np.ndarray | None,
    test: Labeled,
    rubric: Rubric,
    options: MetricsSection,
    weights: np.ndarray | None,
    prior: list[float] | None,
    seed: int,
    mask: np.ndarray,
) -> Part:
    inside = np.flatnonzero(mask)
    chosen = {"calibrated": calibrated, "probabilities": answers.probabilities, "refused": answers.refused, "weights": weights}
    gains = options.gains
    metrics = estimate(
        test.gold[inside],
        answers.predicted[inside],
        test.groups[inside],
        rubric.tier_ids,
        rubric.relevant_mask,
        **{key: None if values is None else values[inside] for key, values in chosen.items()},
        gains=None if gains is None else np.asarray([gains.get(tier, 0.0) for tier in rubric.tier_ids]),
        costs=cost_matrix(rubric.relevant_mask, border_cost=options.border_cost, optimism_cost=options.optimism_cost),
        prior=prior,
        samples=options.bootstrap_samples,
        seed=seed,
    )
    return Part(len(inside), len(np.unique(test.groups[inside])), metrics)
