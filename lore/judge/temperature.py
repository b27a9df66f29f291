"""Temperature scaling (Guo et al. 2017) divides the log-probabilities of a judge by one number, which is fitted on labeled pairs.

It changes the confidence and never the verdict. Log-probabilities replace the logits, from which they differ by a constant per
pair.
"""

import numpy as np

from lore.support.errors import LoreError

SMALLEST_PROBABILITY = 1e-12
TEMPERATURES = (0.05, 20.0)


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / temperature) of probabilities [N, K]."""
    scaled = np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), SMALLEST_PROBABILITY)) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    powers = np.exp(scaled)
    return powers / powers.sum(axis=1, keepdims=True)


def negative_log_likelihood(probabilities: np.ndarray, gold: np.ndarray, weights: np.ndarray | None = None) -> float:
    chosen = np.take_along_axis(np.asarray(probabilities, dtype=np.float64), np.asarray(gold)[:, None], axis=1)[:, 0]
    return float(np.average(-np.log(np.maximum(chosen, SMALLEST_PROBABILITY)), weights=weights))


def fit_temperature(probabilities: np.ndarray, gold: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The temperature, within TEMPERATURES, with the highest likelihood of labels [N] under probabilities [N, K].

    A judge that is right on every dev pair has no finite best temperature and gets the lower bound. Raises LoreError without
    pairs.
    """
    if not len(gold):
        raise LoreError(
            "no dev pair has probabilities, so no temperature can be fitted. "
            "Give the data a dev split, or set metrics.calibrate_on: null"
        )
    from scipy.optimize import minimize_scalar  # a student in service applies a temperature and fits none

    low, high = np.log(TEMPERATURES)
    grid = np.linspace(low, high, 25)
    losses = [
        negative_log_likelihood(apply_temperature(probabilities, float(np.exp(point))), gold, weights) for point in grid
    ]
    best = int(np.argmin(losses))
    # The grid finds the right valley, then the bounded search its minimum: alone, the search can stop where clipping
    # flattens the loss.
    found = minimize_scalar(
        lambda point: negative_log_likelihood(apply_temperature(probabilities, float(np.exp(point))), gold, weights),
        bounds=(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))
