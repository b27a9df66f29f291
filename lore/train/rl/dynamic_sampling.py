"""Dynamic sampling: the schedule of prompts, and the prediction which prompts would give a zero-advantage group.

A group of answers with equal rewards has zero advantage, so it adds no policy gradient. Its probability follows from the prompt's
earlier answers: after r correct and w incorrect ones, the number of correct answers in the next group is beta-binomial. Older
answers count less, because the judge has changed since.

The judge also changes on prompts that it was not asked again, and usually becomes more certain. `sharp` therefore corrects the
prediction: it compares the predicted and observed numbers of recent groups with spread, among prompts with a similar share of
correct answers. It also prefers the prompts with the highest predictions.

Similar to GRESO (arXiv 2506.02177), which skips prompts by their last groups. New here: the beta-binomial
prediction, its prior from the pool's samples, and the correction.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from scipy.special import betaln

from lore.train.rl.config import DynamicSection

PRIOR_COUNT = 0.5  # pseudo-counts of correct and of incorrect answers to every prompt
POOL_WEIGHT = 0.5  # weight of the pool's samples, which come from the judge before training
WINDOW_SHARE = 0.2  # share of the pool in the window of a curriculum
MIN_PROBABILITY = 0.02  # floor for draws: keeps every prompt drawable when no better prompt is left
SHARP_EXPONENT = 4  # exponent of the probability with `sharp`; with 1, many unlikely prompts would outweigh the few likely ones
BIN_EDGES = (0.05, 0.15, 0.35, 0.65, 0.85, 0.95)  # bins by share of correct answers; each bin has its own correction
CORRECTION_DECAY_GROUPS = 64  # decay constant of the corrections, in observed groups
CORRECTION_PRIOR = 2.0  # pseudo-count of groups with spread, predicted and observed, in every correction


def schedule(rows: int, steps: int, prompts: int, seed: int, *, curriculum: bool) -> np.ndarray:
    """Row numbers [steps, prompts]. Without a curriculum: consecutive passes over the rows, each shuffled. With a curriculum:
    samples from a window that moves over the rows in their order."""
    rng = np.random.default_rng([seed, 1])
    if not curriculum:
        passes = -(-steps * prompts // rows)
        return np.concatenate([rng.permutation(rows) for _ in range(passes)])[: steps * prompts].reshape(steps, prompts)
    chosen = []
    for step in range(steps):
        inside = window(rows, steps, step)
        chosen.append(rng.choice(inside, prompts, replace=prompts > len(inside)))
    return np.stack(chosen)


def window(rows: int, steps: int, step: int) -> np.ndarray:
    """Row numbers [n] inside the curriculum's window at a step."""
    width = max(1, round(WINDOW_SHARE * rows))
    first = round((rows - width) * step / max(1, steps - 1))
    return np.arange(first, first + width)


class PromptChoice:
    """Predicts which of the pool's N prompts give a group with spread, and draws prompts accordingly.

    pass_rate [N]: share of the pool's samples with the rater's verdict. samples: number of the pool's samples per prompt. group:
    answers per prompt in a rollout. seen [N, 2]: decayed counts of correct and incorrect answers. tried [bins, 2]: decayed counts
    of groups with spread, predicted and observed.
    """

    def __init__(self, pass_rate: np.ndarray, samples: int, group: int, section: DynamicSection):
        self.group, self.section = group, section
        self.seen = np.stack([pass_rate, 1 - pass_rate], axis=1) * samples * POOL_WEIGHT
        self.tried = np.zeros((len(BIN_EDGES) + 1, 2))

    def spread_probability(self) -> np.ndarray:
        """Probability [N] that the next group of each prompt has spread, that is, both correct and incorrect answers."""
        probability = self._beta_binomial(self.seen)
        if not self.section.sharp:
            return probability
        predicted, observed = (self.tried + CORRECTION_PRIOR).T
        return np.clip(probability * (observed / predicted)[self._bins(self.seen)], 0, 1)

    def _beta_binomial(self, seen: np.ndarray) -> np.ndarray:
        """Beta-binomial probability [n] of a group with spread, from counts [n, 2]."""
        right, wrong = (seen + PRIOR_COUNT).T
        start = betaln(right, wrong)
        return 1 - np.exp(betaln(right + self.group, wrong) - start) - np.exp(betaln(right, wrong + self.group) - start)

    def _bins(self, seen: np.ndarray) -> np.ndarray:
        right, wrong = (seen + PRIOR_COUNT).T
        return np.digitize(right / (right + wrong), BIN_EDGES)

    def observe(self, row: int, right: int, asked: int, spread: bool) -> None:
        """Records a group: `right` of its `asked` answers had the rater's verdict. spread: whether its rewards differed."""
        before = self.seen[row : row + 1]
        place = self._bins(before)[0]
        self.tried[place] = (1 - 1 / CORRECTION_DECAY_GROUPS) * self.tried[place] + (self._beta_binomial(before)[0], spread)
        self.seen[row] = (1 - self.section.forget) * self.seen[row] + (right, asked - right)

    def keep(self, rows: np.ndarray, among: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Which of the scheduled rows to keep, bool [n]. A row stays with probability 2p, where p is its probability of spread.
        sharp: a row always stays if p is at least the hit rate of a draw from `among`, otherwise less often."""
        probability = self.spread_probability()[rows]
        keep_probability = (probability / self.hit_rate(among)) ** SHARP_EXPONENT if self.section.sharp else 2 * probability
        return rng.random(len(rows)) < np.clip(keep_probability, self.section.explore, 1)

    @property
    def _exponent(self) -> int:
        return SHARP_EXPONENT if self.section.sharp else 1

    def _floored_probability(self, rows: np.ndarray) -> np.ndarray:
        return np.maximum(self.spread_probability()[rows], MIN_PROBABILITY)

    def hit_rate(self, among: np.ndarray) -> float:
        """Expected share of groups with spread among prompts that `draw` returns."""
        probability = self._floored_probability(among)
        weights = probability**self._exponent
        return float(weights @ probability / weights.sum())

    def draw(self, count: int, among: np.ndarray, taken: Collection[int], rng: np.random.Generator) -> list[int]:
        """Draws `count` rows from `among`, weighted by their probability of spread. Avoids `taken` and repeats while other rows are
        left."""
        drawn: list[int] = []
        free = np.setdiff1d(among, list(taken))
        while len(drawn) < count:
            free = free if len(free) else among
            weights = self._floored_probability(free) ** self._exponent
            size = min(count - len(drawn), len(free))
            drawn += rng.choice(free, size, replace=False, p=weights / weights.sum()).tolist()
            free = np.setdiff1d(among, drawn)
        return drawn

    def state(self) -> dict[str, Any]:
        """The counts, for a checkpoint."""
        return {"seen": self.seen.tolist(), "tried": self.tried.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError for what is no state of these prompts."""
        seen, tried = np.asarray(state["seen"], float), np.asarray(state["tried"], float)
        if (seen.shape, tried.shape) != (self.seen.shape, self.tried.shape):
            raise ValueError(f"counts of {len(seen)} prompts instead of {len(self.seen)}")
        self.seen, self.tried = seen, tried
