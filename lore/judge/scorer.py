"""Scorer: anything that gives a Verdict to each pair, such as a large judge, a student or a cache."""

from dataclasses import dataclass, replace
from typing import Protocol

from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.engines.engine import Engine, EngineUsage, Sampling
from lore.judge.ask import judge_chunk
from lore.judge.verdict import Verdict, guided
from lore.rubric.rubric import Rubric


class Scorer(Protocol):
    """tier_ids: tiers of its rubric in order; judge_id: see lore.judge.card.judge_id."""

    tier_ids: list[str]
    judge_id: str

    def score(self, pairs: list[Pair]) -> list[Verdict]:
        """One verdict per pair, in the order of the pairs. A pair without an answer gets a failure, never an exception."""

    @property
    def usage(self) -> EngineUsage:
        """Tokens so far."""


@dataclass
class JudgeScorer:
    """A judge in an engine. explain: generate the rationale too; scores: read tier probabilities; guided: read the verdict of an
    unreadable answer from the tier tokens (see lore.judge.ask). guided_verdicts: how many were read so."""

    engine: Engine
    rubric: Rubric
    fmt: PromptFormat
    sampling: Sampling
    judge_id: str
    explain: bool = False
    scores: bool = True
    guided: bool = False
    guided_verdicts: int = 0

    def __post_init__(self):
        if not getattr(self.engine, "takes_images", True):
            self.fmt = replace(self.fmt, photo=False)

    @property
    def tier_ids(self) -> list[str]:
        return self.rubric.tier_ids

    @property
    def usage(self) -> EngineUsage:
        return self.engine.usage

    def score(self, pairs: list[Pair]) -> list[Verdict]:
        """See Scorer.score."""
        verdicts = judge_chunk(
            pairs,
            self.engine,
            self.rubric,
            self.fmt,
            self.sampling,
            explain=self.explain,
            scores=self.scores,
            guided=self.guided,
        )
        self.guided_verdicts += sum(guided(verdict) is not None for verdict in verdicts)
        for verdict in verdicts:
            verdict.judge_id = self.judge_id
        return verdicts

    def close(self) -> None:
        """Frees the engine's memory."""
        if hasattr(self.engine, "close"):
            self.engine.close()
