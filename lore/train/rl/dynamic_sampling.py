"""Which prompts a step asks: a schedule over the pool, and a guess which of them would teach nothing.

A group of answers whose rewards are all alike has no advantage to learn from. How likely that is follows from the prompt's
earlier answers: with r right and w wrong ones behind it, the next group's right answers are beta-binomial. What was seen long
ago counts less, since the judge has moved on. But it moves on with prompts too that were not asked again, and grows surer of
most: `sharp` corrects the guess by how often groups of late had spread where it said they would, among prompts with about the
same share of right answers, and goes for the likeliest prompts.

Close to GRESO (arXiv 2506.02177), which skips prompts by their last groups; the beta-binomial chance, the pool's samples as its
beginning and the correction are ours.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from scipy.special import betaln

from lore.train.rl.config import DynamicSection

PRIOR = 0.5  # right and wrong answers that every prompt begins with
POOL_WEIGHT = 0.5  # the pool's samples came from another judge: the one before training
WINDOW = 0.2  # share of the pool that a curriculum shows at a time
LEAST = 0.02  # chance that every prompt is granted, or none could be drawn where nothing better is left
SHARPNESS = 4  # power of the chance by which `sharp` draws and keeps: the many that promise little would outweigh the few else
EDGES = (0.05, 0.15, 0.35, 0.65, 0.85, 0.95)  # of the shares of right answers, between which a correction is shared
MEMORY = 64  # groups after which most of a correction has been learnt anew
DOUBT = 2.0  # groups with spread, as foreseen, that every correction begins with


def schedule(rows: int, steps: int, prompts: int, seed: int, *, curriculum: bool) -> np.ndarray:
    """Row numbers [steps, prompts]. Without a curriculum pass after pass, each shuffled anew; with one the rows' order is kept:
    a window moves over it from the first to the last."""
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
    """The rows [n] that a curriculum shows at a step."""
    width = max(1, round(WINDOW * rows))
    first = round((rows - width) * step / max(1, steps - 1))
    return np.arange(first, first + width)


class PromptChoice:
    """What is known of every prompt of the pool, and draws by it.

    pass_rate [N]: share of the pool's samples with the rater's verdict; samples: how many those were; group: answers to a
    prompt. seen [N, 2]: right and wrong answers; tried [bins, 2]: groups of late with spread, foreseen and found.
    """

    def __init__(self, pass_rate: np.ndarray, samples: int, group: int, section: DynamicSection):
        self.group, self.section = group, section
        self.seen = np.stack([pass_rate, 1 - pass_rate], axis=1) * samples * POOL_WEIGHT
        self.tried = np.zeros((len(EDGES) + 1, 2))

    def chance(self) -> np.ndarray:
        """Probability [N] that the next group of each prompt has spread: right and wrong answers both."""
        chance = self._foreseen(self.seen)
        if not self.section.sharp:
            return chance
        foreseen, found = (self.tried + DOUBT).T
        return np.clip(chance * (found / foreseen)[self._bins(self.seen)], 0, 1)

    def _foreseen(self, seen: np.ndarray) -> np.ndarray:
        """Beta-binomial chance [n] from counts [n, 2]."""
        right, wrong = (seen + PRIOR).T
        start = betaln(right, wrong)
        return 1 - np.exp(betaln(right + self.group, wrong) - start) - np.exp(betaln(right, wrong + self.group) - start)

    def _bins(self, seen: np.ndarray) -> np.ndarray:
        right, wrong = (seen + PRIOR).T
        return np.digitize(right / (right + wrong), EDGES)

    def observe(self, row: int, right: int, asked: int, spread: bool) -> None:
        """A group was rolled: `right` of its `asked` answers had the rater's verdict; spread: its rewards differed."""
        before = self.seen[row : row + 1]
        place = self._bins(before)[0]
        self.tried[place] = (1 - 1 / MEMORY) * self.tried[place] + (self._foreseen(before)[0], spread)
        self.seen[row] = (1 - self.section.forget) * self.seen[row] + (right, asked - right)

    def keep(self, rows: np.ndarray, among: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Which of the scheduled rows are asked, bool [n]: those with an even chance of spread always, others less often; sharp:
        those that promise as much as a draw from `among`."""
        chance = self.chance()[rows]
        odds = (chance / self.hit_rate(among)) ** SHARPNESS if self.section.sharp else 2 * chance
        return rng.random(len(rows)) < np.clip(odds, self.section.explore, 1)

    @property
    def _power(self) -> int:
        return SHARPNESS if self.section.sharp else 1

    def _likely(self, rows: np.ndarray) -> np.ndarray:
        return np.maximum(self.chance()[rows], LEAST)

    def hit_rate(self, among: np.ndarray) -> float:
        """Expected share of groups with spread among prompts that `draw` gives."""
        likely = self._likely(among)
        weights = likely**self._power
        return float(weights @ likely / weights.sum())

    def draw(self, count: int, among: np.ndarray, taken: Collection[int], rng: np.random.Generator) -> list[int]:
        """`count` rows out of `among`, likelier where spread is likelier; none of `taken`, none twice, while others are left."""
        drawn: list[int] = []
        free = np.setdiff1d(among, list(taken))
        while len(drawn) < count:
            free = free if len(free) else among
            weights = self._likely(free) ** self._power
            size = min(count - len(drawn), len(free))
            drawn += rng.choice(free, size, replace=False, p=weights / weights.sum()).tolist()
            free = np.setdiff1d(among, drawn)
        return drawn

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"seen": self.seen.tolist(), "tried": self.tried.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        self.seen, self.tried = np.asarray(state["seen"]), np.asarray(state["tried"])
