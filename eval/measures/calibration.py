"""Calibration: are verdicts with 80 % confidence right in 80 % of the cases? lore.judge.temperature changes the confidence so that
they are.
"""

import numpy as np

from lore.eval.measures.metrics import CALIBRATION_BINS, bin_of
from lore.judge.temperature import (
    TEMPERATURES,
    apply_temperature,
    fit_temperature,
    negative_log_likelihood,
)

__all__ = [
    "TEMPERATURES",
    "apply_temperature",
    "fit_temperature",
    "negative_log_likelihood",
    "reliability_table",
]


def reliability_table(
    gold: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, weights: np.ndarray | None = None
) -> list[dict[str, float | None]]:
    """One row per confidence bin: its limits, weight, mean confidence and accuracy (None for an empty bin)."""
    weights = np.ones(len(gold)) if weights is None else weights
    columns = (weights, weights * confidence, weights * (gold == predicted))
    bins = np.stack([np.bincount(bin_of(confidence), column, CALIBRATION_BINS) for column in columns], axis=1)
    rows = []
    for index, (weight, confidences, correct) in enumerate(bins):
        rows.append(
            {
                "low": round(index / CALIBRATION_BINS, 4),
                "high": round((index + 1) / CALIBRATION_BINS, 4),
                "weight": round(float(weight), 4),
                "confidence": round(float(confidences / weight), 6) if weight else None,
                "accuracy": round(float(correct / weight), 6) if weight else None,
            }
        )
    return rows
