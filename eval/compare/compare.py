"""Compares judges by paired differences over the same pairs: which one is better, in which metrics and slices, and how surely.

    lore compare runs/a runs/b --out changed.jsonl

Both judges are resampled with the same draws (whole queries, with replacement), so effects that make a query hard for both
cancel out. The interval of the difference is shorter than two separate intervals suggest (Smucker, Allan and Carterette 2007
compare such tests for search). Two rules keep noise from being called a difference:

- A difference counts only if its interval excludes zero and the verdicts of at least MIN_QUERIES queries differ. With fewer than
  six queries that all changed the same way, a two-sided sign test stays above 0.05, whatever the bootstrap says.
- Slices and tiers are many comparisons on one test. Their verdicts use p-values adjusted after Benjamini and Hochberg (1995):
  about one in twenty of the parts called better or worse is expected to be wrong. Holm's stricter adjustment guards against
  a single wrong one and finds little among sixty slices. Slices overlap and are positively correlated; the method also holds
  for such dependence, strictly for one-sided tests (Benjamini and Yekutieli 2001).

Metrics of the whole test are not adjusted: choose the one that decides before you look.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isnan, sqrt

import numpy as np
from scipy.special import stdtr
from scipy.stats import false_discovery_control

from lore.eval.compare.sides import Side, Sides
from lore.eval.measures.bootstrap import LEVEL, Estimate, interval, summed_draws, values_and_draws
from lore.eval.measures.metrics import NO_VERDICT, prior_weights, tier_scale
from lore.eval.measures.results import Finding
from lore.eval.report.console import LOWER_IS_BETTER
from lore.rubric.cost_matrix import cost_matrix
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

BETTER, WORSE, UNCLEAR, SAME = "better", "worse", "inconclusive", "the same"
MIN_QUERIES = 6
MAX_SLICES = 60
OF_PROBABILITIES = ("auc", "ndcg", "brier", "ece", "ece_calibrated")
DISTANCES = ("ece", "ece_calibrated")
TABLE_CELLS = 20_000_000  # 160 MB of per-query sums at a time


@dataclass(frozen=True)
class Difference(Finding):
    """One metric of two judges, and their difference."""

    baseline: Estimate
    compared: Estimate
    difference: Estimate
    """compared - baseline, over the same draws of queries."""
    verdict: str
    p: float | None = None
    """Two-sided; see `_p_value`."""
    p_adjusted: float | None = None
    """After Benjamini and Hochberg, over tiers and slices."""


@dataclass(frozen=True)
class PartDifference(Finding):
    """The differences over a subset of the pairs."""

    pairs: int
    queries: int
    acc_k: Difference
    acc_2: Difference


@dataclass
class Comparison:
    """One judge compared with the baseline."""

    baseline: Side
    compared: Side
    metrics: dict[str, Difference]
    tiers: dict[str, PartDifference]
    """Over the pairs with that label; Acc@K is then the recall of the tier."""
    slices: dict[str, PartDifference]
    costs: np.ndarray = field(repr=False)
    """[K, K + 1], see lore.rubric.cost_matrix.cost_matrix."""

    @property
    def parts(self) -> list[PartDifference]:
        return [*self.tiers.values(), *self.slices.values()]


@dataclass(frozen=True)
class Options:
    samples: int = 1000
    seed: int = 0
    prior: bool = False
    """Weight the tiers by the baseline's metrics.prior."""
    slices: Sequence[str] = ()
    """Empty: the slices of the baseline's run, at most MAX_SLICES."""


def compare(sides: Sides, options: Options) -> list[Comparison]:
    """Compares every other judge with the first. Raises LoreError for a missing prior or an unknown slice."""
    run, predictions = sides.first.run, sides.first.predictions
    shares = _shares(sides) if options.prior else None
    names = _slices(sides, options.slices)
    measured = run.measured
    relevant = np.asarray(run.rubric["relevant"], dtype=bool)
    costs = cost_matrix(relevant, border_cost=measured.border_cost, optimism_cost=measured.optimism_cost)
    gains = None if measured.gains is None else np.asarray([measured.gains.get(tier, 0.0) for tier in run.tiers])

    def drawn(side: Side) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        return values_and_draws(
            predictions.gold,
            side.predictions.predicted,
            sides.groups,
            run.tiers,
            list(relevant),
            calibrated=side.calibrated,
            probabilities=side.predictions.probabilities,
            gains=gains,
            costs=costs,
            weights=sides.weights,
            prior=shares,
            samples=options.samples,
            seed=options.seed,
        )

    baseline = drawn(sides.first)
    found = []
    for side in sides.others:
        metrics = _metrics(sides, side, baseline, drawn(side))
        tiers, slices = _parts(sides, side, names, shares, options)
        found.append(Comparison(sides.first, side, metrics, tiers, slices, costs))
    return found


def _shares(sides: Sides) -> list[float]:
    prior, tiers = sides.first.run.measured.prior, sides.first.run.tiers
    if not prior:
        others = [side.run.name for side in sides.others if side.run.measured.prior]
        instead = f"Name {others[0]} first, which has one" if others else "Evaluate with metrics.prior, or drop --prior"
        raise LoreError(f"{sides.first.run.name} was evaluated without metrics.prior, so --prior has no shares to use. {instead}.")
    shares = [float(prior.get(tier, 0.0)) for tier in tiers]
    prior_weights(sides.first.predictions.gold, shares, sides.weights)  # raises if no tier of the prior has a test pair
    return shares


def _slices(sides: Sides, wanted: Sequence[str]) -> list[str]:
    sizes: dict[str, int] = {}
    for names in sides.first.predictions.slices:
        for name in set(names):
            sizes[name] = sizes.get(name, 0) + 1
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))
    for name in wanted:
        if name not in sizes:
            known = ", ".join(largest[:20]) or "none"
            raise LoreError(f"--slice {name}: no test pair is in it. Slices of the test: {known}.{nearest_hint(name, largest)}")
    of_run = sides.first.run.judges[sides.first.judge].get("slices")
    return list(wanted) or [name for name in (largest if of_run is None else of_run) if name in sizes][:MAX_SLICES]


def _metrics(sides: Sides, side: Side, first: tuple, second: tuple) -> dict[str, Difference]:
    """Every metric that both judges have."""
    (value_a, draws_a), (value_b, draws_b) = first, second
    queries = int(sides.groups.max()) + 1
    differs = sides.first.predictions.predicted != side.predictions.predicted
    moved = _moved(sides, differs)
    first_probabilities, side_probabilities = sides.first.predictions.probabilities, side.predictions.probabilities
    for ours, theirs in ((first_probabilities, side_probabilities), (sides.first.calibrated, side.calibrated)):
        if ours is not None and theirs is not None:
            differs = differs | (ours != theirs).reshape(len(differs), -1).any(axis=1)
    failed = [judge.predictions.predicted == NO_VERDICT for judge in (sides.first, side)]
    moved_by = dict.fromkeys(OF_PROBABILITIES, _moved(sides, differs)) | {"failure_rate": _moved(sides, failed[0] != failed[1])}
    found = {}
    for name in value_a:
        a, b = value_a[name], value_b.get(name, float("nan"))
        if isnan(a) or isnan(b) or (name == "failure_rate" and a == b == 0):
            continue
        draws = draws_b[name] - draws_a[name] if name in draws_a and name in draws_b else None
        if draws is not None and name in DISTANCES:
            # Noise adds to a binned distance, and more for one judge than for the other: shift the draws back to the value.
            draws = draws - (np.nanmean(draws) - (b - a))
        found[name] = _difference(
            interval(name, a, draws_a.get(name), queries),
            interval(name, b, draws_b.get(name), queries),
            draws,
            queries,
            moved=moved_by.get(name, moved),
            lower_is_better=name in LOWER_IS_BETTER,
        )
    return found


def _moved(sides: Sides, differs: np.ndarray) -> int:
    """Number of queries with a pair for which `differs` [N] holds."""
    return len(np.unique(sides.groups[differs]))


def _difference(
    first: Estimate, second: Estimate, draws: np.ndarray | None, queries: int, *, moved: int, lower_is_better: bool = False
) -> Difference:
    value = second.value - first.value
    estimate = interval("difference", value, draws, queries)
    p = None if draws is None or isnan(estimate.low) else _p_value(value, float(np.nanstd(draws)), queries, moved)
    verdict = UNCLEAR
    if moved == 0:
        verdict = SAME
    elif moved >= MIN_QUERIES and not isnan(estimate.low) and not estimate.low <= 0 <= estimate.high:
        verdict = BETTER if (value > 0) != lower_is_better else WORSE
    return Difference(first, second, estimate, verdict, p)


def _p_value(value: float, error: float, queries: int, moved: int) -> float:
    """Two-sided p-value of Student's t, from a difference and its bootstrap standard error. Unlike a share of draws, it can become
    small without thousands of draws. At least the p-value of a sign test in which all changed queries changed the same way."""
    if value == 0:
        return 1.0
    error *= sqrt(queries / (queries - 1))  # corrects the bootstrap's standard error, which is too small by this factor
    p = 2 * float(stdtr(queries - 1, -abs(value) / error)) if error else 0.0
    return min(1.0, max(p, 2.0 ** (1 - moved)))


def _parts(
    sides: Sides, side: Side, names: list[str], shares: list[float] | None, options: Options
) -> tuple[dict[str, PartDifference], dict[str, PartDifference]]:
    """Differences by label and by slice; their p-values are adjusted together."""
    predictions, tiers = sides.first.predictions, sides.first.run.tiers
    labels = {tier: mask for at, tier in enumerate(tiers) if (mask := predictions.gold == at).any()}
    slices = {name: np.asarray([name in of for of in predictions.slices], dtype=bool) for name in names}
    found = _part_differences(sides, side, list(labels.values()), None, options)  # a prior does not affect recall
    found += _part_differences(sides, side, list(slices.values()), shares, options)
    found = _adjusted(found)
    return dict(zip(labels, found, strict=False)), dict(zip(slices, found[len(labels) :], strict=True))


def _part_differences(
    sides: Sides, side: Side, masks: list[np.ndarray], shares: list[float] | None, options: Options
) -> list[PartDifference]:
    """One entry per mask [N]. A table of per-query sums serves many parts at once, so all parts share the draws."""
    queries, tiers = int(sides.groups.max()) + 1, len(sides.first.run.tiers)
    first, second = _right(sides, sides.first), _right(sides, side)
    at_once = max(1, TABLE_CELLS // (queries * tiers * (1 + len(first) + len(second))))
    found = []
    for start in range(0, len(masks), at_once):
        block = masks[start : start + at_once]
        table = np.stack([_sums(sides, mask, [*first, *second]) for mask in block], axis=1)
        drawn = _accuracies(summed_draws(table, options.samples, options.seed), shares)
        value = _accuracies(table.sum(axis=0), shares)
        for at, mask in enumerate(block):
            count = _moved(sides, mask)
            draws = drawn[:, at] if count > 1 else None
            differences = []
            for column, (ours, theirs) in enumerate(zip(first, second, strict=True)):
                columns = (column, column + len(first))
                a, b = (interval("", float(value[at, c]), None if draws is None else draws[:, c], count) for c in columns)
                paired = None if draws is None else draws[:, columns[1]] - draws[:, columns[0]]
                differences.append(_difference(a, b, paired, count, moved=_moved(sides, mask & (ours != theirs))))
            found.append(PartDifference(int(mask.sum()), count, *differences))
    return found


def _right(sides: Sides, side: Side) -> tuple[np.ndarray, np.ndarray]:
    """[N] whether the tier is exact, [N] whether relevance is right; both False without a verdict."""
    gold, predicted = sides.first.predictions.gold, side.predictions.predicted
    relevant = np.asarray(sides.first.run.rubric["relevant"], dtype=bool)
    return predicted == gold, (relevant[predicted] == relevant[gold]) & (predicted != NO_VERDICT)


def _sums(sides: Sides, mask: np.ndarray, right: list[np.ndarray]) -> np.ndarray:
    """[Q, K, 1 + len(right)] weights by query and label: of all pairs in the mask, then of those where each of `right` holds."""
    tiers, queries = len(sides.first.run.tiers), int(sides.groups.max()) + 1
    weights = mask.astype(np.float64) if sides.weights is None else mask * sides.weights
    cell = sides.groups * tiers + sides.first.predictions.gold
    columns = [np.bincount(cell, values, queries * tiers) for values in (weights, *(weights * hits for hits in right))]
    return np.stack(columns, axis=-1).reshape(queries, tiers, -1)


def _accuracies(sums: np.ndarray, shares: list[float] | None) -> np.ndarray:
    """[..., parts, columns] weighted shares, from sums [..., parts, K, 1 + columns]. With a prior, the tiers of each part are
    reweighted."""
    if shares is not None:
        sums = sums * tier_scale(sums[..., 0], shares)[..., None]
    summed = sums.sum(axis=-2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return summed[..., 1:] / summed[..., :1]


def _adjusted(parts: list[PartDifference]) -> list[PartDifference]:
    """Replaces the verdicts of the parts by those after Benjamini and Hochberg."""
    for name in ("acc_k", "acc_2"):
        differences = [getattr(part, name) for part in parts]
        known = [at for at, difference in enumerate(differences) if difference.p is not None]
        if not known:
            continue
        adjusted = dict(zip(known, false_discovery_control([differences[at].p for at in known]), strict=True))
        for at, p in adjusted.items():
            kept = differences[at].verdict in (SAME, UNCLEAR) or p <= 1 - LEVEL
            verdict = differences[at].verdict if kept else UNCLEAR
            parts[at] = replace(parts[at], **{name: replace(differences[at], verdict=verdict, p_adjusted=float(p))})
    return parts
