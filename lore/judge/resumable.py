"""Asks one judge as often as a measurement needs: the tested pairs, changed pairs, changed prompts, several samples.

Every set of questions has a tag, and answers are kept under it, so that a killed run asks nothing twice. The engine is
opened when the first question is really asked.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.engines.engine import Engine, Sampling
from lore.judge.answer_store import SampleShards, Shards
from lore.judge.ask import predict_saved, sample_saved
from lore.judge.verdicts import Verdict
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError
from lore.support.progress import track

Verdicts = dict[str, Verdict]


@dataclass
class Asker:
    """One judge of an evaluation, with how it is asked."""

    name: str
    folder: Path
    """Where its answers are kept: one folder per tag."""
    open_engine: Callable[[], Engine]
    rubric: Rubric
    fmt: PromptFormat
    sampling: Sampling
    chunk_pairs: int = 256
    explain: bool = False
    scores: bool = True
    """Whether tier probabilities are read; without them every verdict is written."""
    asked: int = field(default=0, init=False)
    """Questions put in this process, answered ones of earlier starts not among them."""

    def ask(
        self,
        tag: str,
        pairs: Iterable[Pair],
        *,
        total: int | None = None,
        known: Iterable[str] | None = None,
        **changed: Any,
    ) -> Verdicts:
        """A verdict for each pair, by pair_id.

        pairs: streamed once; those answered earlier under this tag are passed over. known: the ids of the pairs, where
        they need not be read when all of them have an answer. changed: `fmt`, `rubric` or `facts` (pair -> texts shown
        as facts) for these questions alone.
        """
        return self._answers(Shards(self.folder / tag, self.rubric.tier_ids), predict_saved, tag, pairs, total, known, changed)

    def samples(
        self, tag: str, pairs: Iterable[Pair], n: int, *, temperature: float, seed: int, total: int | None = None
    ) -> dict[str, list[str | None]]:
        """`n` sampled tiers for each pair, None for a format failure, by pair_id."""
        sampling = Sampling(temperature, max_tokens=self.sampling.max_tokens, n=n, seed=seed)
        rows = self._answers(
            SampleShards(self.folder / tag), sample_saved, tag, pairs, total, None, {"sampling": sampling}
        )
        if wrong := [pair_id for pair_id, row in rows.items() if len(row.tiers) != n]:
            raise LoreError(
                f"{self.folder / tag} holds {len(rows[wrong[0]].tiers)} samples of pair {wrong[0]}, and {n} are wanted. "
                "Delete the folder, or set sampling.samples back."
            )
        return {pair_id: row.tiers for pair_id, row in rows.items()}

    def _answers(self, shards, asking, tag, pairs, total, known, changed) -> dict[str, Any]:
        answers = shards.read()
        if known is not None and all(pair_id in answers for pair_id in known):
            return answers
        options = {
            "rubric": self.rubric,
            "fmt": self.fmt,
            "sampling": self.sampling,
            "chunk_pairs": self.chunk_pairs,
            "explain": self.explain,
            "scores": self.scores,
        } | changed
        missing = (pair for pair in pairs if pair.pair_id not in answers)
        first = next(missing, None)
        if first is None:
            return answers
        found = asking(shards, chain((first,), missing), self.open_engine(), **options)
        for answer in track(found, f"{self.name}: {tag}", total=None if total is None else total - len(answers)):
            answers[answer.pair_id] = answer
            self.asked += 1
        return answers
