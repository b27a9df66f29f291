"""Labels one shard: opens the judge once, asks it the questions of a shard, and returns the rows of the label files.

A shard is one call of the judge, so its batches are the same whenever and wherever it is labelled. Pairs with the same query and
item share one question.
"""

import gc
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lore.data.pair import Pair
from lore.engines.apart import engine_failed
from lore.engines.engine import MAX_WORDS, EngineUsage
from lore.judge.ask import ENGINE_DIED, RAISED, incomplete
from lore.judge.scorer import Scorer
from lore.judge.verdict import Verdict, to_columns
from lore.label.inputs import pairs_of
from lore.label.judge import asked_judge, open_scorer
from lore.label.keys import content_halves
from lore.label.recipe import LabelRecipe
from lore.label.schema import label_schema
from lore.support.errors import LoreError
from lore.support.text import encodable


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker needs to open its judge, on any machine that sees the same files. values: of the recipe, as plain data; folder:
    the label folder."""

    values: dict[str, Any]
    folder: str

    @property
    def recipe(self) -> LabelRecipe:
        return LabelRecipe.model_validate(self.values)


@dataclass(frozen=True)
class ShardResult:
    """verdicts, failures: rows of `label_schema`; usage: tokens of this shard; seconds: wall time of the call."""

    verdicts: pa.Table
    failures: pa.Table
    usage: EngineUsage
    seconds: float
    questions: int = 0
    lost: tuple[str, ...] = ()
    """Why pairs got no answer, one entry per question without one."""
    died: bool = False
    """Whether the engine died on the shard."""


class Worker(Protocol):
    """Labels shards. The stage takes any worker, so that benchmarks can measure everything but the judge."""

    def label(self, questions: pa.Table) -> ShardResult: ...

    def close(self) -> None: ...


class ShardWorker:
    """A judge in this process."""

    def __init__(self, spec: WorkerSpec, scorer: Scorer | None = None):
        """scorer: instead of the judge of the recipe."""
        self.spec, self._scorer, self._began = spec, scorer, False

    @property
    def scorer(self) -> Scorer:
        """The judge, opened at the first use."""
        if self._scorer is None:
            recipe = self.spec.recipe
            self._scorer = open_scorer(asked_judge(recipe.judge, recipe.mode), recipe, Path(self.spec.folder))
        return self._scorer

    def label(self, questions: pa.Table) -> ShardResult:
        """Labels the rows of a shard (SHARD_SCHEMA). One row of label_schema per pair, in verdicts or in failures."""
        scorer, began = self.scorer, time.perf_counter()
        if not self._began:
            # The pairs and verdicts of some shards make Python look for garbage in all that is alive, and a judge's libraries are
            # half a million objects: half of the time that it takes to make pairs.
            gc.collect()
            gc.freeze()
            self._began = True
        before = replace(scorer.usage)
        asked = questions_of(questions)
        verdicts = scored(scorer, pairs_of(questions.take(pa.array(asked))))
        seconds = time.perf_counter() - began
        for verdict in verdicts:
            verdict.seconds = None  # times differ from run to run, and the same labels must give the same file
        used = EngineUsage(*(getattr(scorer.usage, name) - getattr(before, name) for name in vars(before)))
        return shard_result(questions, asked, verdicts, scorer.tier_ids, used, seconds)

    def close(self) -> None:
        """Frees the judge's memory. The next shard opens it again."""
        if hasattr(self._scorer, "close"):
            self._scorer.close()
        self._scorer, self._began = None, False
        gc.unfreeze()
        gc.collect()


def scored(scorer: Scorer, pairs: list[Pair]) -> list[Verdict]:
    """One verdict per pair. Where the judge raises an error, the pairs are asked again in halves: the pair that it raises for fails
    alone. Errors of LORE (a server that is down, an engine that died) concern all pairs and are raised. So are those of an engine
    that answers nothing, as a LoreError: it would fail the pairs of every later shard, too."""
    try:
        return scorer.score(pairs)
    except LoreError:
        raise
    except Exception as error:
        if os.environ.get("LORE_DEBUG"):
            raise
        if engine_failed(error):
            raise LoreError(
                f"The judge's engine has failed and answers no pair: {type(error).__name__}: {str(error)[:MAX_WORDS]}\n"
                "Labels that are committed stay. Start the same command again; if it fails again, look at the device and its "
                "driver; LORE_DEBUG=1 shows where the error comes from."
            ) from error
        if len(pairs) == 1:
            detail = encodable(f"{type(error).__name__}: {error}")[:MAX_WORDS]
            return [Verdict(pairs[0].pair_id, None, failure=RAISED, detail=detail, judge_id=scorer.judge_id)]
    half = len(pairs) // 2
    return scored(scorer, pairs[:half]) + scored(scorer, pairs[half:])


def questions_of(rows: pa.Table) -> np.ndarray:
    """Indices of the rows that are asked: the first of each content. Equal contents are neighbors."""
    if not rows.num_rows:
        return np.empty(0, np.int64)
    high, low = content_halves(rows.column("content").combine_chunks())
    return np.flatnonzero(np.append(True, (np.diff(high) != 0) | (np.diff(low) != 0)))


def shard_result(
    rows: pa.Table, asked: np.ndarray, verdicts: list[Verdict], tier_ids: list[str], usage: EngineUsage, seconds: float
) -> ShardResult:
    """The label rows of a shard. verdicts: one per asked row; its copies get the same one under their own pair ids."""
    whys = [incomplete(verdict) for verdict in verdicts]
    copies = np.diff(np.append(asked, rows.num_rows))
    columns = to_columns(verdicts, tier_ids)
    if len(asked) < rows.num_rows:
        of_row = pa.array(np.repeat(np.arange(len(verdicts)), copies))
        columns = {name: column.take(of_row) for name, column in columns.items()}
    columns |= {name: rows.column(name) for name in ("pair_id", "query", "item_id", "query_frequency", "content")}
    slices = rows.column("slices")
    if slices.null_count:
        slices = pa.array([names or [] for names in slices.to_pylist()], slices.type)
    columns |= {"slices": slices, "attempts": pc.add(rows.column("asked_before"), pa.scalar(1, pa.int32()))}
    schema = label_schema(tier_ids)
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    lost = tuple(why for why in whys if why is not None)
    if lost:
        answered = pa.array(np.repeat([why is None for why in whys], copies).astype(bool))
        tables = [table.filter(chosen).combine_chunks() for chosen in (answered, pc.invert(answered))]
    else:
        tables = [table.combine_chunks(), table.slice(0, 0)]
    return ShardResult(*tables, usage, seconds, len(verdicts), lost)


def failed_shard(rows: pa.Table, tier_ids: list[str], detail: str, judge_id: str) -> ShardResult:
    """A shard without any answer, because the engine died on it. detail: its last words."""
    asked = questions_of(rows)
    verdicts = [Verdict("", None, failure=ENGINE_DIED, detail=detail[:MAX_WORDS], judge_id=judge_id) for _ in asked]
    return replace(shard_result(rows, asked, verdicts, tier_ids, EngineUsage(), 0.0), died=True)
