"""The weighted mean of the reward components, without torch and without state: a reward depends only on its own row."""

from collections.abc import Sequence

import numpy as np

from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.engines.engine import Completion
from lore.judge.answer import Answer, read_answer
from lore.rewards.components import PARTS, View
from lore.rewards.config import RewardsSection
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError


class Rewards:
    """Parses and rewards answers. names: the components with a weight above 0, in column order; weights: [parts].

    Raises LoreError for a section with conflicting values.
    """

    def __init__(self, section: RewardsSection, rubric: Rubric, fmt: PromptFormat):
        if problems := [f"rewards.{' and '.join(c.keys)}: found {c.found}, expected {c.expected}" for c in section.conflicts()]:
            raise LoreError("\n".join(problems))
        self.view = View(section, rubric, fmt)
        self.names = [name for name in PARTS if getattr(section, name) > 0]
        self.weights = np.array([getattr(section, name) for name in self.names])

    @property
    def needs_probabilities(self) -> bool:
        """Whether `read` needs the tier probabilities of an answer."""
        return "calibration" in self.names

    def read(self, text: str, tokens: int, *, truncated: bool = False, probabilities: Sequence[float] | None = None) -> Answer:
        """Parses a completion with lore.codec. For the arguments see Answer."""
        completion = Completion(text, tokens, "length" if truncated else "stop")
        return read_answer(completion, self.view.rubric, self.view.fmt, probabilities)

    def parts(self, answers: Sequence[Answer], pairs: Sequence[Pair]) -> np.ndarray:
        """Component values [N, parts]: the verdict in [-1, 1], all others in [0, 1]; nan where a component abstains."""
        _same_length(answers, pairs)
        out = np.full((len(answers), len(self.names)), np.nan)
        for row, (answer, pair) in enumerate(zip(answers, pairs, strict=True)):
            for column, name in enumerate(self.names):
                value = PARTS[name](answer, pair, self.view)
                if value is not None:
                    out[row, column] = _one_number(name, value)
        return out

    def totals(self, parts: np.ndarray) -> np.ndarray:
        """Rewards [N]: the weighted mean over the components that do not abstain, in [-1, 1]; nan if all abstain.

        Abstaining components are excluded from the mean, so they neither raise nor lower the reward, and pairs with more
        annotations do not get higher rewards. parts: [N, parts], the result of `parts`.
        """
        parts = np.asarray(parts, dtype=float)
        if parts.ndim != 2 or parts.shape[1] != len(self.names):
            raise LoreError(
                f"These rewards have {len(self.names)} parts ({', '.join(self.names)}), but the array has shape {parts.shape}; "
                f"expected [N, {len(self.names)}], as Rewards.parts returns it."
            )
        judged = ~np.isnan(parts)
        weight = (judged * self.weights).sum(axis=1)
        total = np.where(judged, parts * self.weights, 0.0).sum(axis=1)
        return np.divide(total, weight, out=np.full(len(parts), np.nan), where=weight > 0)

    def right(self, answers: Sequence[Answer], pairs: Sequence[Pair]) -> np.ndarray:
        """[N] bool: the verdict equals the label."""
        _same_length(answers, pairs)
        both = zip(answers, pairs, strict=True)
        return np.array([a.tier is not None and a.tier == pair.label for a, pair in both], dtype=bool)


def _same_length(answers: Sequence[Answer], pairs: Sequence[Pair]) -> None:
    if len(answers) != len(pairs):
        raise LoreError(
            f"{len(answers)} answers and {len(pairs)} pairs: rewards would be assigned to the wrong rows. Pass one pair per "
            "answer, and repeat a pair for each of its samples."
        )


def _one_number(name: str, value: float) -> float:
    if np.size(value) != 1 or not np.isfinite(value):
        raise LoreError(
            f"Reward part {name!r} returned {np.size(value)} values ({value!r:.80}); expected 1 finite number for 1 answer, "
            "or None to abstain."
        )
    return float(value)
