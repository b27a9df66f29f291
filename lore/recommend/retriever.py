"""The recommender as a retriever: candidates for a query with a history, each with the past items that speak for it.

    lore recommend runs/recommend/finetune --history B00D3QFHN8,B002SQJL9U

The evidence is about the data and not about the inside of a model: how many codes a candidate shares with a past item, and how many
training histories hold both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from scipy import sparse

from lore.config.stages import recipe_class
from lore.recommend.codes import Codes, read_codes
from lore.recommend.evaluate import recommenders, trained
from lore.recommend.histories import Histories, Recommender
from lore.recommend.metrics import best, checked_scores
from lore.recommend.section import HistoriesSection
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint
from lore.support.text import printable

RECOMMENDER, EVALUATION = "recommender", "recommend_eval"

MOST_PAST, MOST_CANDIDATES = 1000, 10_000
SHOWN_EVIDENCE = 3


@dataclass(frozen=True)
class Query:
    """What a shopper types, and what she took before: item ids, the oldest first. This retriever reads the history alone."""

    text: str = ""
    history: Sequence[str] = ()


@dataclass(frozen=True)
class Evidence:
    """A past item that speaks for a candidate. shared: codes that both begin with; together: training histories that hold both."""

    item_id: str
    shared: int
    together: int


@dataclass(frozen=True)
class Candidate:
    item_id: str
    score: float
    evidence: list[Evidence]


@dataclass(frozen=True)
class Retrieved:
    """candidates: best first. unknown: items of the history that the catalogue lacks."""

    candidates: list[Candidate]
    unknown: list[str]


class NextItemRetriever:
    """Ranks the catalogue for the history of a query. codes: those that are shown as evidence; None: none."""

    def __init__(self, recommender: Recommender, histories: Histories, codes: Codes | None = None):
        self.recommender, self.item_ids, self.codes = recommender, histories.item_ids, codes
        self.rows = {item: row for row, item in enumerate(histories.item_ids)}
        there = np.flatnonzero(histories.in_training())
        shape = (len(histories.user_ids), len(histories.item_ids))
        where = histories.users()[there], histories.items[there]
        self.taken = sparse.csc_matrix((np.ones(len(there), dtype=np.int32), where), shape=shape)
        self.taken.data[:] = 1

    def retrieve(self, query: Query, k: int = 10, *, repeats: bool = False) -> Retrieved:
        """The k best items, without those of the history unless `repeats`. Unknown items of the history are left out; without any
        known one there are no candidates. Of a long history the last MOST_PAST events are read."""
        history = list(query.history)[-MOST_PAST:]
        unknown = list(dict.fromkeys(item for item in history if item not in self.rows))
        past = np.asarray([self.rows[item] for item in history if item in self.rows], dtype=np.int64)
        if not len(past):
            return Retrieved([], unknown)
        scores = checked_scores(self.recommender, [past], len(self.item_ids))[0]
        if not repeats:
            scores[past] = -np.inf
        found = best(scores, min(k, MOST_CANDIDATES))
        evidence = self._evidence(found, past)
        listed = zip(found, evidence, strict=True)
        return Retrieved([Candidate(self.item_ids[row], float(scores[row]), why) for row, why in listed], unknown)

    def _evidence(self, found: np.ndarray, past: np.ndarray) -> list[list[Evidence]]:
        """The past items that share the most codes with each candidate, then those that were taken together with it most often."""
        past = np.unique(past)
        together = (self.taken[:, found].T @ self.taken[:, past]).toarray()
        shared = np.zeros(together.shape, dtype=np.int64)
        if self.codes is not None:
            same = self.codes.values[found][:, None, :] == self.codes.values[past][None, :, :]
            shared = np.cumprod(same, axis=2).sum(axis=2)
        why = []
        for row in range(len(found)):
            order = np.lexsort((-together[row], -shared[row]))
            named = [at for at in order if (shared[row, at] or together[row, at]) and past[at] != found[row]][:SHOWN_EVIDENCE]
            why.append([Evidence(self.item_ids[past[at]], int(shared[row, at]), int(together[row, at])) for at in named])
        return why


def open_retriever(run: str | Path, row: str | None = None) -> tuple[NextItemRetriever, Histories, HistoriesSection]:
    """The retriever of a run of stage recommender, or of a row of a run of stage recommend_eval (default: its reference), with the
    histories of its recipe and where they come from. Raises LoreError for another folder, and for data that have changed since."""
    folder = RunFolder(run)
    values = folder.recipe_values
    stage = values.get("stage")
    if stage not in (RECOMMENDER, EVALUATION):
        raise LoreError(
            f"{run} is {f'a run of stage {printable(stage)}' if stage else 'no run folder'}, so it recommends nothing.\nName a run "
            f"of stage {RECOMMENDER} or {EVALUATION}."
        )
    if row is not None and stage == RECOMMENDER:
        raise LoreError(f"{run} is one model and has no rows. Leave --row out, or name a run of stage {EVALUATION}.")
    try:
        recipe = recipe_class(stage).model_validate(values)
    except ValidationError as error:
        differ = f"{error.error_count()} keys differ"
        raise LoreError(f"{folder.recipe_path} is of another version of LORE ({differ}).\nRun it again.") from error
    histories = recipe.data.histories()
    if folder.fingerprints.get("data_fingerprint", histories.fingerprint) != histories.fingerprint:
        raise LoreError(
            f"{recipe.data.events} or the catalogue has changed since {run}, so its items may be others.\nRestore the files, or "
            "run the recipe again under another name."
        )
    if stage == RECOMMENDER:
        recommender = trained(run, histories)
        return NextItemRetriever(recommender, histories, next(iter(recommender.codes), None)), histories, recipe.data
    name = row or recipe.compared_with()
    makers = recommenders(recipe, histories)
    if name not in makers:
        raise LoreError(f"{run} has no row {printable(name)}.{nearest_hint(name, makers)} Its rows: {', '.join(makers)}.")
    codes = None if recipe.prefixes is None else read_codes(recipe.prefixes.codes, histories.item_ids)
    return NextItemRetriever(makers[name](), histories, codes), histories, recipe.data
