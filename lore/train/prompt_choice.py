"""Which prompts a step asks: a schedule over the pool, and a guess which of them would teach nothing.

A group of answers whose rewards are all alike has no advantage to learn from. How likely that is follows from the prompt's
earlier answers: with r right and w wrong ones behind it, the next group's right answers are beta-binomial. What was seen long
ago counts less, since the judge has moved on. Close to GRESO (arXiv 2506.02177), which skips prompts by their last groups; the
beta-binomial chance and the pool's samples as its beginning are ours.
"""

from collections.abc import Collection

import numpy as np
from scipy.special import betaln

from lore.train.align_config import DynamicSection

PRIOR = 0.5  # right and wrong answers that every prompt begins with
POOL_WEIGHT = 0.5  # the pool's samples came from another judge: the one before training
WINDOW = 0.2  # share of the pool that a curriculum shows at a time
LEAST = 0.02  # weight of a prompt that will hardly have spread, so that none is lost for good


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
    prompt.
    """

    def __init__(self, pass_rate: np.ndarray, samples: int, group: int, section: DynamicSection):
        self.group, self.section = group, section
        self.begin = np.stack([pass_rate, 1 - pass_rate], axis=1) * samples * POOL_WEIGHT
        self.seen = self.begin.copy()

    def chance(self) -> np.ndarray:
        """Probability [N] that the next group of each prompt holds right and wrong answers both."""
        right, wrong = (self.seen + PRIOR).T
        start = betaln(right, wrong)
        return 1 - np.exp(betaln(right + self.group, wrong) - start) - np.exp(betaln(right, wrong + self.group) - start)

    def observe(self, row: int, right: int, asked: int) -> None:
        """A group was rolled: `right` of its `asked` answers had the rater's verdict."""
        self.seen[row] = (1 - self.section.forget) * self.seen[row] + (right, asked - right)

    def keep(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Which of the scheduled rows are asked, bool [n]: those with an even chance of spread always, others less often."""
        odds = np.clip(2 * self.chance()[rows], self.section.explore, 1)
        return rng.random(len(rows)) < odds

    def hit_rate(self, among: np.ndarray) -> float:
        """Expected share of groups with spread among prompts that `draw` gives."""
        weights = np.maximum(self.chance()[among], LEAST)
        return float((weights**2).sum() / weights.sum())

    def draw(self, count: int, among: np.ndarray, taken: Collection[int], rng: np.random.Generator) -> list[int]:
        """`count` rows out of `among`, likelier where spread is likelier; none of `taken`, none twice, while others are left."""
        drawn: list[int] = []
        free = np.setdiff1d(among, list(taken))
        while len(drawn) < count:
            free = free if len(free) else among
            weights = np.maximum(self.chance()[free], LEAST)
            size = min(count - len(drawn), len(free))
            drawn += rng.choice(free, size, replace=False, p=weights / weights.sum()).tolist()
            free = np.setdiff1d(among, drawn)
        return drawn
