"""The sampled answers to one prompt, and the counts of a batch of them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lore.train.rewards import Answer


@dataclass
class Group:
    """The answers to one prompt. given: tokens at the start of each that were not sampled."""

    row: int
    prompt_ids: list[int]
    images: list | None
    completion_ids: list[list[int]]
    logprobs: list[list[float]] | None
    answers: list[Answer]
    parts: np.ndarray  # [answers, parts], nan where a part cannot judge
    totals: np.ndarray  # [answers]
    right: np.ndarray  # bool [answers]
    given: int = 0

    @property
    def spread(self) -> float:
        return float(np.nanstd(self.totals)) if np.isfinite(self.totals).any() else 0.0

    @property
    def tokens(self) -> int:
        return sum(len(ids) - self.given for ids in self.completion_ids)


@dataclass
class Tally:
    """Counts of one batch of rollouts on this process, summed over all for the metrics."""

    tokens: int = 0
    groups: int = 0
    spread: int = 0
    foreseen: int = 0
    extra: int = 0
    guided: int = 0
    solved: int = 0
    seen: list[tuple[int, int, int]] = field(default_factory=list)


def longer(value: Any, begun: list[list[int]]) -> Any:
    """A per-token field of the prompts (lists), with zeros for the tokens that the answers begin with."""
    if isinstance(value, list) and value and isinstance(value[0], list) and any(begun):
        return [list(row) + [0] * len(start) for row, start in zip(value, begun, strict=True)]
    return value
