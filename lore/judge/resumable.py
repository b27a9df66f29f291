"""Asks one judge all the questions of an evaluation: the tested pairs, changed pairs, changed prompts, several samples.

Every set of questions has a tag. Answers are saved under the tag chunk by chunk, so a killed run asks no saved question again. The
engine opens at the first question without a saved answer. A chunk in which too many questions get no answer stops the run and is
not saved (lore.engines.unanswered). A saved question that the server refused is asked again at the next start: the refusal may have
been the beginning of what stopped the run. A prompt that does not fit never will, and is not asked again.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from lore.codec.judgement import renderer_hash
from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.engines.config import UnansweredSection
from lore.engines.engine import EndpointFailed, EndpointStopped, Engine, Sampling
from lore.engines.unanswered import AnswerWatch
from lore.judge.ask import REFUSED, FactsOf, incomplete, predict, sample
from lore.judge.card import judge_id
from lore.judge.chunk_store import ChunkStore, in_chunks
from lore.judge.scorer import Scorer
from lore.judge.verdict import UNSCORED, Verdict, from_row, to_row, unscored, verdict_schema
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError
from lore.support.progress import track

Verdicts = dict[str, Verdict]
Samples = dict[str, list[str | None]]
"""Sampled tiers by pair_id, None for a format failure."""
SAMPLES_SCHEMA = pa.schema([("pair_id", pa.string()), ("tiers", pa.list_(pa.string())), ("failure", pa.string())])


@dataclass
class Asker:
    """One judge of an evaluation, with its engine, prompt format and sampling settings."""

    name: str
    folder: Path
    """Folder of its saved answers, with one folder per tag."""
    open_engine: Callable[[], Engine]
    rubric: Rubric
    fmt: PromptFormat
    sampling: Sampling
    chunk_pairs: int = 256
    explain: bool = False
    scores: bool = True
    """Whether to read tier probabilities. If not, the judge generates every verdict."""
    weights: str | None = None
    """See `lore.judge.card.judge_id`. None: verdicts have no judge_id, and saved answers of any judge are used."""
    unanswered: UnansweredSection = UnansweredSection()
    """When questions without an answer stop the run."""
    asked: int = field(default=0, init=False)
    """Questions that this process has asked, without those answered in earlier starts."""
    _answers: bool = field(default=False, init=False)
    """Whether the judge has answered any question yet, in this start or an earlier one."""

    def ask(
        self,
        tag: str,
        pairs: Iterable[Pair],
        *,
        total: int | None = None,
        known: Iterable[str] | None = None,
        rubric: Rubric | None = None,
        fmt: PromptFormat | None = None,
        facts: FactsOf | None = None,
    ) -> Verdicts:
        """A verdict for each pair, by pair_id.

        pairs: streamed once; pairs with a saved answer under this tag are skipped. known: the ids of the pairs; when all of them
        have one, `pairs` is not read. rubric, fmt, facts (pair -> texts shown as facts): for these questions only.
        """
        rubric, fmt = rubric or self.rubric, fmt or self.fmt
        judge, tier_ids = self._id(rubric, fmt), self.rubric.tier_ids
        store = ChunkStore(self.folder / tag, verdict_schema(tier_ids), judge, "verdicts")
        verdicts = {row["pair_id"]: from_row(row, tier_ids) for row in store.rows()}
        self._answers = self._answers or any(incomplete(verdict) is None for verdict in verdicts.values())
        again = {pair_id for pair_id, verdict in verdicts.items() if verdict.failure == REFUSED or unscored(verdict)}
        if known is not None and all(pair_id in verdicts and pair_id not in again for pair_id in known):
            return verdicts
        missing = _unless_empty(pair for pair in pairs if pair.pair_id not in verdicts or pair.pair_id in again)
        if missing is None:
            return verdicts
        chunks = predict(
            missing,
            self.open_engine(),
            rubric,
            fmt,
            self.sampling,
            chunk_pairs=self.chunk_pairs,
            explain=self.explain,
            scores=self.scores,
            facts=facts,
            judge_id=judge,
            watch=(watch := self._watch(tag)),
            again=again,
        )
        saved = _saved(self._answering(chunks, watch), store, lambda verdict: to_row(verdict, tier_ids))
        for verdict in self._tracked(saved, tag, total, len(verdicts) - len(again)):
            verdicts[verdict.pair_id] = verdict
        return verdicts

    def samples(
        self, tag: str, pairs: Iterable[Pair], n: int, *, temperature: float, seed: int, total: int | None = None
    ) -> Samples:
        """`n` sampled tiers for each pair, by pair_id."""
        store = ChunkStore(self.folder / tag, SAMPLES_SCHEMA, self._id(self.rubric, self.fmt), "samples")
        rows = {row["pair_id"]: row for row in store.rows()}
        drawn = {pair_id: row["tiers"] for pair_id, row in rows.items()}
        again = {pair_id for pair_id, row in rows.items() if row.get("failure") == REFUSED}
        missing = _unless_empty(pair for pair in pairs if pair.pair_id not in drawn or pair.pair_id in again)
        if missing is not None:
            chunks = sample(
                missing,
                self.open_engine(),
                self.rubric,
                self.fmt,
                Sampling(temperature, max_tokens=self.sampling.max_tokens, n=n, seed=seed),
                chunk_pairs=self.chunk_pairs,
                explain=self.explain,
                scores=self.scores,
                watch=self._watch(tag),
                again=again,
            )
            saved = _saved(chunks, store, lambda one: dict(zip(SAMPLES_SCHEMA.names, one, strict=True)))
            drawn |= {pair_id: tiers for pair_id, tiers, _ in self._tracked(saved, tag, total, len(drawn) - len(again))}
        if wrong := [pair_id for pair_id, tiers in drawn.items() if len(tiers) != n]:
            raise LoreError(
                f"{self.folder / tag} holds {len(drawn[wrong[0]])} samples of pair {wrong[0]}, and the recipe asks for {n}. "
                "Delete the folder, or restore sampling.samples."
            )
        return drawn

    def _id(self, rubric: Rubric, fmt: PromptFormat) -> str | None:
        return None if self.weights is None else judge_id(self.weights, rubric.hash, renderer_hash(rubric, fmt))

    def _watch(self, tag: str) -> AnswerWatch:
        advice = {
            UNSCORED: f"The answers were read; for a server that cannot score them, set judges.{self.name}.scores: false, "
            "which does without tier probabilities."
        }
        return AnswerWatch(self.unanswered, f"judge {self.name}, {tag}", advice, answered=self._answers)

    def _answering(self, chunks: Iterable[list[Verdict]], watch: AnswerWatch) -> Iterator[list[Verdict]]:
        """The chunks, from the first one with an answer on. Raises TooManyUnanswered if no question gets one."""
        held: list[list[Verdict]] = []
        for chunk in chunks:
            held.append(chunk)
            self._answers = watch.answered
            if watch.may_store:
                yield from held
                held = []
        watch.end()

    def _tracked(self, answers: Iterator[Any], tag: str, total: int | None, known: int) -> Iterator[Any]:
        try:
            for answer in track(answers, f"{self.name}: {tag}", total=None if total is None else total - known):
                self.asked += 1
                yield answer
        except (EndpointFailed, EndpointStopped) as error:
            raise type(error)(f"judge {self.name}, {tag}: {error}") from error


@dataclass
class ScorerAsker:
    """Asks a scorer that reads pairs and no prompts, such as a student. Its failures are final: it would fail again."""

    name: str
    folder: Path
    """Folder of its saved answers, with one folder per tag."""
    open_scorer: Callable[[], Scorer]
    tier_ids: list[str]
    judge_id: str
    chunk_pairs: int = 256
    asked: int = field(default=0, init=False)
    """Questions that this process has asked."""
    _scorer: Scorer | None = field(default=None, init=False)

    def ask(
        self, tag: str, pairs: Iterable[Pair], *, total: int | None = None, known: Iterable[str] | None = None
    ) -> Verdicts:
        """A verdict for each pair, by pair_id. See Asker.ask."""
        store = ChunkStore(self.folder / tag, verdict_schema(self.tier_ids), self.judge_id, "verdicts")
        verdicts = {row["pair_id"]: from_row(row, self.tier_ids) for row in store.rows()}
        if known is not None and all(pair_id in verdicts for pair_id in known):
            return verdicts
        missing = _unless_empty(pair for pair in pairs if pair.pair_id not in verdicts)
        if missing is None:
            return verdicts
        scorer = self._scorer = self._scorer or self.open_scorer()
        chunks = (scorer.score(chunk) for chunk in in_chunks(missing, self.chunk_pairs))
        saved = _saved(chunks, store, lambda verdict: to_row(verdict, self.tier_ids))
        left = None if total is None else total - len(verdicts)
        for verdict in track(saved, f"{self.name}: {tag}", total=left):
            self.asked += 1
            verdicts[verdict.pair_id] = verdict
        return verdicts


def _unless_empty(pairs: Iterator[Pair]) -> Iterator[Pair] | None:
    """The pairs, or None if there are none."""
    first = next(pairs, None)
    return None if first is None else chain((first,), pairs)


def _saved(chunks: Iterable[list[Any]], store: ChunkStore, row_of: Callable[[Any], dict[str, Any]]) -> Iterator[Any]:
    """The answers one by one. Saves each chunk before it yields its answers."""
    for answers in chunks:
        store.append(map(row_of, answers))
        yield from answers
