"""Results about a judge beyond its row in the results table, as plain values that metrics.json and the report share."""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from lore.eval.measures.bootstrap import Estimate


class Finding:
    """Base of the results below: converts itself to JSON."""

    def to_json(self) -> dict[str, Any]:
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.to_json() if is_dataclass(value) else value


@dataclass(frozen=True)
class Flip(Finding):
    """How verdicts change under one perturbation of the input. Each rate is a share of the pairs that can change that way."""

    name: str
    kind: str
    """injection, rewrite or shuffle."""
    pairs: int
    queries: int
    up: Estimate
    """Share of the pairs below the best tier whose verdict rises."""
    down: Estimate
    """Share of the pairs above the worst tier whose verdict falls."""
    accuracy: Estimate
    """Acc@K under the perturbation."""
    clean_accuracy: Estimate
    """Acc@K of the same pairs without the perturbation."""
    failures: int
    """Number of answers without a verdict under the perturbation."""


@dataclass(frozen=True)
class Condition(Finding):
    """One condition of one capability test."""

    capability: str
    """knowledge, photo or rules."""
    condition: str
    """For example: with facts, without photo, swapped photo, size-near 10 % -> 30 %."""
    pairs: int
    queries: int
    accuracy: Estimate
    """Acc@K against the label under this condition."""
    against: str | None = None
    """The condition that `difference` compares with."""
    difference: Estimate | None = None
    """Paired difference in Acc@K: this condition minus `against`."""
    follows: Estimate | None = None
    """Changed rules: share of the pairs whose label changes with the rule and whose verdict changes to the new label."""
    note: str = ""


@dataclass(frozen=True)
class SampleCurves(Finding):
    """pass@k and majority@k of n sampled answers, by k."""

    n: int
    temperature: float
    pairs: int
    pass_at: dict[int, Estimate]
    majority_at: dict[int, Estimate]


@dataclass(frozen=True)
class RiskCurve(Finding):
    """Error rate among the most confident verdicts, by coverage (the share of pairs that are kept)."""

    coverage: list[float]
    risk: list[Estimate]
    area: Estimate
    """Mean risk over all coverages (AURC); lower is better."""


@dataclass(frozen=True)
class Ceiling(Finding):
    """Agreement among raters. Agreement of a judge above this ceiling cannot be measured."""

    pairs: int
    raters: int
    alpha: Estimate
    """Krippendorff's alpha for ordinal labels."""
    kappa: Estimate
    """Quadratically weighted Cohen's kappa, mean over pairs of raters."""
    acc_2: Estimate
    acc_k: Estimate
    """A single rater against the median of the others."""


@dataclass(frozen=True)
class Agreement(Finding):
    """Agreement of a judge with raters."""

    kappa: Estimate
    """Unweighted Cohen's kappa with the labels."""
    quadratic_kappa: Estimate
    alpha: Estimate
    """Krippendorff's alpha with judge and label as the two raters."""
    with_raters: Estimate | None = None
    """Quadratically weighted kappa with single raters, mean over raters; None without ratings."""
