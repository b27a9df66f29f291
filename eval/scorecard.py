"""Everything that is measured about one judge: the whole test, its slices, calibration, failures."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lore.eval.findings import Agreement, Condition, Flip, RiskCurve, SampleCurves
from lore.eval.measures.bootstrap import Estimate, estimate
from lore.eval.measures.calibration import apply_temperature, fit_temperature, reliability_table
from lore.eval.measures.metrics import NO_VERDICT, confidence_of, count, prior_weights, total
from lore.eval.predictions import Verdict
from lore.eval.sections import MetricsSection
from lore.eval.testset import EvalData, Labelled
from lore.rubric import Rubric


@dataclass
class Answers:
    """A judge's verdicts in the order of the labelled pairs: tier indices [N] (NO_VERDICT for a failure), probabilities
    [N, K] or None."""

    predicted: np.ndarray
    probabilities: np.ndarray | None

    @classmethod
    def of(cls, verdicts: dict[str, Verdict], pairs: Labelled, rubric: Rubric) -> "Answers":
        rows = [verdicts[pair_id] for pair_id in pairs.pair_ids]
        predicted = np.asarray(
            [NO_VERDICT if row.tier is None else rubric.index(row.tier) for row in rows], dtype=np.int64
        )
        incomplete = any(row.tier is not None and row.probabilities is None for row in rows)
        if incomplete or all(row.probabilities is None for row in rows):
            return cls(predicted, None)
        even = [1 / len(rubric.tier_ids)] * len(rubric.tier_ids)
        return cls(predicted, np.asarray([row.probabilities or even for row in rows], dtype=np.float64))

    def confidence(self) -> np.ndarray | None:
        return None if self.probabilities is None else confidence_of(self.probabilities, self.predicted)


@dataclass
class Part:
    """Metrics over some of the pairs."""

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
    """One row of the table and what stands behind it."""

    name: str
    kind: str
    how: str
    whole: Part
    natural: Part | None
    """Under the recipe's prior; None without one."""
    slices: dict[str, Part]
    confusion: np.ndarray
    """[K, K + 1] weights: label by verdict, format failures last."""
    reliability: list[dict[str, float | None]] | None
    reliability_calibrated: list[dict[str, float | None]] | None
    temperature: float | None
    """Fitted on the calibration split; None when there is none, or the judge gives no probabilities."""
    failures: dict[str, int] = field(default_factory=dict)
    photos: dict[str, int] = field(default_factory=dict)
    slices_natural: dict[str, Part] = field(default_factory=dict)
    risk: RiskCurve | None = None
    samples: SampleCurves | None = None
    agreement: Agreement | None = None
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
            "photos": self.photos,
            "slices_under_prior": {name: part.to_json() for name, part in self.slices_natural.items()},
            "risk": self.risk.to_json() if self.risk else None,
            "samples": self.samples.to_json() if self.samples else None,
            "agreement": self.agreement.to_json() if self.agreement else None,
            "robustness": [flip.to_json() for flip in self.flips],
            "capability": [condition.to_json() for condition in self.conditions],
        }


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
    """Measures a judge on the test pairs. Its temperature comes from the dev pairs alone, where verdicts for them
    exist."""
    test, rubric = data.test, data.rubric
    answers = Answers.of(verdicts, test, rubric)
    weights = test.weights if options.label_weights else None
    temperature = _temperature(verdicts, data.dev, options)
    calibrated = None
    if temperature is not None and answers.probabilities is not None:
        calibrated = confidence_of(apply_temperature(answers.probabilities, temperature), answers.predicted)

    def part(mask: np.ndarray, part_weights: np.ndarray | None) -> Part:
        return _part(answers, calibrated, test, mask, part_weights, rubric, options.bootstrap_samples, seed)

    everything = np.ones(len(test), dtype=bool)
    natural = None
    if options.prior is not None:
        shares = [options.prior.get(tier, 0.0) for tier in rubric.tier_ids]
        natural = part(everything, prior_weights(test.gold, shares, weights))

    def diagram(confidence: np.ndarray | None) -> list[dict[str, float | None]] | None:
        if confidence is None:
            return None
        return reliability_table(test.gold, answers.predicted, confidence, len(rubric.tier_ids), weights)

    rows = [verdicts[pair_id] for pair_id in test.pair_ids]
    return Scorecard(
        name=name,
        kind=kind,
        how=how,
        whole=part(everything, weights),
        natural=natural,
        slices={slice_name: part(test.in_slice(slice_name), weights) for slice_name in slices},
        confusion=total(count(test.gold, answers.predicted, len(rubric.tier_ids), weights=weights)).confusion,
        reliability=diagram(answers.confidence()),
        reliability_calibrated=diagram(calibrated),
        temperature=temperature,
        failures=dict(Counter(row.failure for row in rows if row.tier is None).most_common()),
        photos=dict(Counter(row.photo for row in rows if row.photo != "none").most_common()),
    )


def _temperature(verdicts: dict[str, Verdict], dev: Labelled | None, options: MetricsSection) -> float | None:
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
    test: Labelled,
    mask: np.ndarray,
    weights: np.ndarray | None,
    rubric: Rubric,
    samples: int,
    seed: int,
) -> Part:
    def measured(confidence: np.ndarray | None) -> dict[str, Estimate]:
        return estimate(
            test.gold[mask],
            answers.predicted[mask],
            test.groups[mask],
            rubric.tier_ids,
            rubric.relevant_mask,
            confidence=None if confidence is None else confidence[mask],
            weights=None if weights is None else weights[mask],
            samples=samples,
            seed=seed,
        )

    metrics = measured(answers.confidence())
    if calibrated is not None:
        metrics["ece_calibrated"] = measured(calibrated)["ece"]
    return Part(int(mask.sum()), len(np.unique(test.groups[mask])), metrics)
