"""Selective prediction: error of a judge on the pairs with its most confident verdicts (Geifman and El-Yaniv 2017)."""

import numpy as np

from lore.eval.measures.bootstrap import Estimate, interval, pair_weights, times_drawn
from lore.eval.measures.metrics import NO_VERDICT
from lore.eval.measures.ranking import SAME
from lore.eval.measures.results import RiskCurve

COVERAGES = np.arange(1, 21) / 20


def risk_curve(
    gold: np.ndarray,
    predicted: np.ndarray,
    confidence: np.ndarray,
    groups: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    prior: list[float] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> RiskCurve:
    """Share of wrong verdicts among the most confident 5 %, 10 %, … 100 % of the pairs' weight, with intervals over queries.

    A format failure is wrong and less sure than every verdict. Pairs of one confidence are taken in together, each for the
    same part, so that their order does not count. gold, predicted, confidence, groups, weights [N]; prior [K].
    """
    wrong = predicted != gold
    sure = np.where(predicted == NO_VERDICT, -1.0, np.round(confidence, SAME))
    order = np.argsort(-sure, kind="stable")
    ends = np.flatnonzero(np.diff(sure[order], append=-2.0) != 0)
    groups = np.unique(groups, return_inverse=True)[1].reshape(-1)
    queries = int(groups.max()) + 1

    def curves(times) -> tuple[np.ndarray, np.ndarray]:
        """[S, coverages] risks and [S] areas."""
        risks, areas = [], []
        for drawn in pair_weights(times, groups[order], None if weights is None else weights[order], gold[order], prior):
            kept = np.cumsum(drawn, axis=1)[:, ends]
            errors = np.cumsum(drawn * wrong[order], axis=1)[:, ends]
            sums = zip(np.pad(kept, ((0, 0), (1, 0))), np.pad(errors, ((0, 0), (1, 0))), strict=True)
            risks.append([np.interp(COVERAGES * weight[-1], weight, wrongs) / weight[-1] for weight, wrongs in sums])
            areas.append(area_under(kept, errors))
        return np.concatenate(risks) / COVERAGES, np.concatenate(areas)

    with np.errstate(divide="ignore", invalid="ignore"):
        risk, area = curves(iter([np.ones((1, queries))]))
        drawn = None
        if samples and queries > 1:
            drawn = curves(times_drawn(queries, samples, seed))

    def estimated(value: float, draws: np.ndarray | None) -> Estimate:
        return interval("risk", float(value), draws, queries)

    points = [estimated(risk[0, at], None if drawn is None else drawn[0][:, at]) for at in range(len(COVERAGES))]
    return RiskCurve(COVERAGES.tolist(), points, estimated(area[0], None if drawn is None else drawn[1]))


def area_under(kept: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """[S] mean risk over all coverages, from kept [S, B] and wrong [S, B] weight up to the end of each block of equally confident
    pairs. Inside a block errors grow with slope s, so the integral of errors / kept is s · width + (errors at its start - s ·
    start) · log(end / start)."""
    start, began = np.pad(kept, ((0, 0), (1, 0)))[:, :-1], np.pad(errors, ((0, 0), (1, 0)))[:, :-1]
    width = kept - start
    slope = np.divide(errors - began, width, out=np.zeros_like(width), where=width > 0)
    ratio = np.divide(kept, start, out=np.ones_like(kept), where=start > 0)
    return (slope * width + (began - slope * start) * np.log(ratio)).sum(axis=1) / kept[:, -1]
