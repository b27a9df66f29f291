"""A tiny student whose batches wait for the test."""

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

from lore.data.pair import Pair
from lore.judge.verdict import Verdict
from lore.student.scorer import StudentScorer


@dataclass
class Gated:
    """A student. gate: batches wait until it is set; batches: ids of the pairs of each; tokens: of each, with padding; broken:
    titles that raise."""

    scorer: StudentScorer
    gate: threading.Event = field(default_factory=threading.Event)
    batches: list[list[str]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    def __post_init__(self):
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scorer, name)

    def score_batch(self, pairs: list[Pair], rows: list[Any]) -> list[Verdict]:
        if any(isinstance(row, dict) for row in rows):
            self.batches.append([pair.pair_id for pair in pairs])
            self.tokens.append(len(rows) * max(row["length"] for row in rows))
            self.gate.wait(20)
        if self.broken & {pair.title for pair in pairs}:
            raise ValueError("a secret of the pair")
        return self.scorer.score_batch(pairs, rows)


def pair(pair_id: str, title: str = "red mug", query: str = "red mug") -> Pair:
    return Pair(pair_id=pair_id, query=query, title=title)


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)
