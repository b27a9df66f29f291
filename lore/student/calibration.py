"""Calibration of a student on human labels, and thresholds for its uses.

A student learns the judge's probabilities. Whether they are shares of right answers only human labels can tell, so both kinds are
fitted on labeled pairs of dev:

- temperature: one number, see lore.judge.temperature. It changes no verdict.
- isotonic: for each border between two tiers a rising step function of the probability of being above it (Zadrozny and Elkan 2002).
  It needs more pairs, repairs more, and can change a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from lore.config.sections import Share, StrictModel
from lore.judge.temperature import TEMPERATURES, apply_temperature, fit_temperature
from lore.support.errors import LoreError

CalibrationKind = Literal["none", "temperature", "isotonic"]
MAX_POINTS = 100_000


class Steps(StrictModel):
    """A rising function through points, with straight lines between them. x, y: as many numbers in [0, 1], neither falls."""

    x: list[Share] = Field(min_length=1, max_length=MAX_POINTS)
    y: list[Share] = Field(min_length=1, max_length=MAX_POINTS)

    @model_validator(mode="after")
    def _rises(self) -> Steps:
        if len(self.x) != len(self.y) or any((np.diff(values) < 0).any() for values in (self.x, self.y)):
            raise ValueError("as many x as y, neither of which falls")
        return self


class Calibration(StrictModel):
    """What happens to a student's probabilities. Plain JSON in its card."""

    kind: CalibrationKind = "none"
    temperature: Annotated[float, Field(ge=TEMPERATURES[0] / 2, le=TEMPERATURES[1] * 2)] | None = None
    """For kind: temperature."""
    borders: list[Steps] = Field([], max_length=1000)
    """For kind: isotonic. One function per border between two tiers, from the lowest."""
    floor: Annotated[float, Field(gt=0, le=0.1)] = 1e-3
    """For kind: isotonic. Smallest probability of a tier: finitely many pairs make nothing impossible."""

    @model_validator(mode="after")
    def _has_its_parameters(self) -> Calibration:
        if (self.kind == "temperature") != (self.temperature is not None) or (self.kind == "isotonic") != bool(self.borders):
            raise ValueError(f"the parameters of kind {self.kind} and no others")
        return self

    def check_tiers(self, tiers: int) -> None:
        """Raises ValueError unless it fits this number of tiers."""
        if self.borders and len(self.borders) != tiers - 1:
            raise ValueError(f"calibration for {len(self.borders) + 1} tiers, and the student has {tiers}")

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities [N, K] of probabilities [N, K]."""
        if self.kind == "temperature":
            return apply_temperature(probabilities, self.temperature)
        if self.kind == "none":
            return np.asarray(probabilities, dtype=np.float64)
        above = _above(probabilities)
        mapped = np.stack([np.interp(above[:, at], one.x, one.y) for at, one in enumerate(self.borders)], axis=1)
        mapped = np.minimum.accumulate(mapped, axis=1)  # the borders are fitted apart and may cross
        ends = np.pad(mapped, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
        found = np.maximum(ends[:, :-1] - ends[:, 1:], self.floor)
        return found / found.sum(axis=1, keepdims=True)


def fit_calibration(
    probabilities: np.ndarray, gold: np.ndarray, weights: np.ndarray | None = None, kind: CalibrationKind = "temperature"
) -> Calibration:
    """Fits a calibration of probabilities [N, K] on human labels. gold: tier indices [N], or the raters' distribution [N, K];
    weights [N]. Raises LoreError without pairs."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    gold, weights, rows = _one_label_each(np.asarray(gold), weights)
    probabilities = probabilities[rows]
    if kind == "none":
        return Calibration()
    if not len(gold):
        raise LoreError(
            f"No labeled pair of dev has probabilities, so no {kind} can be fitted.\nGive the data a dev split with human labels, "
            "or set calibration to none."
        )
    if kind == "temperature":
        return Calibration(kind=kind, temperature=fit_temperature(probabilities, gold, weights))
    from sklearn.isotonic import IsotonicRegression  # a student in service applies a calibration and fits none

    above, borders = _above(probabilities), []
    for at in range(above.shape[1]):
        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(above[:, at], gold > at, weights)
        x, y = (np.clip(values, 0, 1).astype(float) for values in (fitted.X_thresholds_, fitted.y_thresholds_))
        borders.append(Steps(x=x.tolist(), y=y.tolist()))
    return Calibration(kind=kind, borders=borders, floor=float(np.clip(1 / (2 * len(np.unique(rows))), 1e-6, 0.1)))


def _above(probabilities: np.ndarray) -> np.ndarray:
    """[N, K - 1] probability of a tier above each border."""
    sums = np.asarray(probabilities, dtype=np.float64)[:, ::-1].cumsum(axis=1)[:, ::-1]
    return np.clip(sums[:, 1:] / sums[:, :1], 0, 1)


def _one_label_each(gold: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """(labels, weights, rows): a distribution becomes one row per tier, weighted by its share."""
    if gold.ndim == 1:
        return gold.astype(np.int64), weights, np.arange(len(gold))
    rows, labels = np.nonzero(gold > 0)
    shares = gold[rows, labels]
    return labels, shares if weights is None else shares * np.asarray(weights)[rows], rows


class Threshold(StrictModel):
    """A threshold on the probability of relevant, and what it did on the pairs that it was chosen on."""

    target: Share
    """Wanted recall (filter) or precision (page_quality)."""
    threshold: Share | None
    """A pair counts where its probability reaches this. null: no threshold reaches the target."""
    recall: Share
    """Share of the relevant pairs that are kept."""
    precision: Share
    """Share of the kept pairs that are relevant."""
    kept: Share
    """Share of all pairs that are kept."""
    pairs: Annotated[int, Field(ge=1)]


def fit_thresholds(
    relevance: np.ndarray,
    relevant: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    recall: float = 0.95,
    precision: float = 0.9,
) -> dict[str, Threshold]:
    """Thresholds per use, from probabilities of relevant [N], calibrated, and human labels [N] (true: relevant).

    filter: drops items in front of a costlier step; the largest threshold that keeps `recall` of the relevant pairs.
    page_quality: counts items as good without a rater; the smallest threshold above which `precision` of the pairs are relevant.
    {} where the labels are all relevant, or none is: then nothing can be chosen.
    """
    relevance, relevant = np.asarray(relevance, dtype=np.float64), np.asarray(relevant, dtype=bool)
    weights = np.ones(len(relevance)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not (weights[relevant].sum() > 0 and weights[~relevant].sum() > 0):
        return {}
    order = np.argsort(-relevance, kind="stable")
    ends = np.flatnonzero(np.diff(relevance[order], append=-1.0) != 0)  # pairs of one probability are kept together
    kept, good = (np.cumsum(values[order])[ends] for values in (weights, weights * relevant))
    found = {
        "filter": (recall, int(np.argmax(good >= recall * good[-1] - 1e-12)) if recall > 0 else 0),
        "page_quality": (precision, _last(good >= precision * kept - 1e-12)),
    }
    return {
        use: Threshold(
            target=target,
            threshold=None if at is None else _between(relevance[order[ends]], at),
            recall=0.0 if at is None else float(good[at] / good[-1]),
            precision=0.0 if at is None else float(good[at] / kept[at]),
            kept=0.0 if at is None else float(kept[at] / kept[-1]),
            pairs=len(relevance),
        )
        for use, (target, at) in found.items()
    }


def _last(holds: np.ndarray) -> int | None:
    found = np.flatnonzero(holds)
    return int(found[-1]) if len(found) else None


def _between(probabilities: Sequence[float], at: int) -> float:
    """A threshold below probability `at` of a falling list: halfway to the next, so that the last digit decides nothing."""
    return 0.0 if at + 1 >= len(probabilities) else float(min(1.0, max(0.0, (probabilities[at] + probabilities[at + 1]) / 2)))
