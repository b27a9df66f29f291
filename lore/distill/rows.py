"""Labels of judge and raters, joined with the texts of their pairs, as the training rows of a student.

    <run>/data/rows.arrow       one row per pair: the pair, its labels, how strongly each counts
    <run>/data/lengths.npy      tokens of each row
    <run>/targets/              the same labels to look at (targets.parquet), and what was used and left out (summary.json)

The texts of labelled pairs come from the train split of the human pairs, or from the input of the label folder. A label belongs to
a text only if the text is still the one that the judge was asked about. No pair of a query in the dev or test split is a row.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lore.codec.pair_text import PairTextFormat, pair_texts
from lore.data.pair import PAIR_SCHEMA, Pair, query_key
from lore.data.parquet import read_pairs, to_pairs
from lore.data.rejected_rows import RejectedWriter, Rejection
from lore.distill.config import DistillRecipe, TargetsSection
from lore.distill.labels import ChosenLabels, Human, chosen_labels, labelled_input
from lore.distill.targets import even_rates, expected_gain, human_targets, traffic_weights
from lore.label.inputs.open_input import open_input
from lore.label.keys import ContentKeys, Keys, content_bytes
from lore.rubric.rubric import Rubric
from lore.run.run_folder import RunFolder
from lore.student.encode import PairEncoder, QueryTooLong
from lore.support.atomic_files import write_atomic, written_whole
from lore.support.errors import LoreError
from lore.support.processes import say
from lore.support.progress import track
from lore.support.text import normalize
from lore.train.common.arrow_rows import whole_rows, write_rows

MAX_RATIONALE = 2000  # characters
CHANGED = "whose text is gone or has changed"
"""Of labels: key of the summary."""
AT_ONCE = 512  # pairs in memory
TEXT_FIELDS = ("pair_id", "query", "title", "item_id", "attributes", "description", "category", "brand", "shop", "price", "image")
"""What a student can read of a pair."""
ROWS = pa.schema(
    [
        *(PAIR_SCHEMA.field(name) for name in TEXT_FIELDS),
        ("query_number", pa.int64()),
        ("frequency", pa.float64()),
        ("judge", pa.list_(pa.float64())),
        ("judge_weight", pa.float64()),
        ("rank", pa.int64()),
        ("human", pa.list_(pa.float64())),
        ("human_weight", pa.float64()),
        ("label", pa.int64()),
        ("judge_rationale", pa.string()),
        ("human_rationale", pa.string()),
    ]
)
"""judge, human: targets over the tiers, zeros where there is none (its weight is 0). rank: place of the judge's label in the order
in which labels are added when there are more of them; -1 without a label. label: tier of the human label, -1 without one; where
raters differ widely, it is not their most frequent tier. human_rationale: beside the human label."""


@dataclass(frozen=True)
class Rows:
    """The training rows, memory-mapped. Arrays have one entry per row; a row of length 0 cannot be read by the student."""

    table: pa.Table
    judge: np.ndarray
    judge_weight: np.ndarray
    human: np.ndarray
    human_weight: np.ndarray
    label: np.ndarray
    query: np.ndarray
    frequency: np.ndarray
    rank: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.query)

    def pairs(self, places: list[int] | np.ndarray) -> list[Pair]:
        """These rows as pairs."""
        chosen = self.table.select(TEXT_FIELDS).take(pa.array(places, pa.int64())).combine_chunks()
        return [pair for batch in chosen.to_batches() for pair in to_pairs(batch, TEXT_FIELDS, "rows.arrow")]

    def rationales(self, judged: np.ndarray) -> list[str | None]:
        """The rationale of each row: the judge's where `judged`, else the one beside the human label."""
        both = (self.table.column(f"{whose}_rationale").to_pylist() for whose in ("judge", "human"))
        return [judge if seen and judge else human for judge, human, seen in zip(*both, judged, strict=True)]

    def rates_and_weights(
        self, targets: TargetsSection, gains: np.ndarray, kept: np.ndarray, judged: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(visits per epoch, weights) of the rows `kept`, as the targets section says. judged: which of them have the judge's
        grade; the others have the raters'."""
        best_known = np.where(judged[:, None], self.judge[kept], self.human[kept])
        rates = np.ones(len(kept))
        if targets.sampling == "even":
            rates = even_rates(expected_gain(best_known, gains), targets.bins, targets.most_repeats)
        return rates, traffic_weights(rates, self.frequency[kept], targets.traffic, targets.most_weight)


def write_training_rows(recipe: DistillRecipe, folder: RunFolder, human: Human) -> None:
    """Writes rows.arrow and targets/, unless they are there. Only for the main process."""
    path = folder / "data" / "rows.arrow"
    if path.is_file() and (folder / "targets" / "summary.json").is_file():
        return
    rubric, summary = human.source.rubric, {}
    chosen = None if recipe.labels is None else chosen_labels(recipe, human, summary)
    joined = _Join(recipe, folder, human, chosen)
    write_rows(joined.rows(), ROWS, path, batch=256, nothing=_nothing(recipe))
    summary |= joined.counts
    say(f"targets: {_described(summary)}")
    _write_targets(folder, rubric, unmeasured_rows(folder))
    write_atomic(folder / "targets" / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def _described(summary: dict[str, Any]) -> str:
    """The summary in one line: what is used, and what is left out."""
    parts = [f"{summary['rows']:,} pairs", f"{summary['human labels']:,} with labels of raters"]
    if "labelled" in summary:
        parts.append(f"{summary['labels of the judge']:,} with labels of the judge at temperature {summary['temperature']:g}")
        parts[-1] += f" ({summary['temperature is']})"
        for key in ("of queries in dev or test", CHANGED):
            parts += [f"{summary[key]:,} labels left out {key}"] if summary.get(key) else []
    return ", ".join(parts)


class _Join:
    """The rows, each pair once: pairs of the train split with a label of either kind, then pairs from the labels' input."""

    def __init__(self, recipe: DistillRecipe, folder: RunFolder, human: Human, chosen: ChosenLabels | None):
        self.recipe, self.folder, self.human, self.chosen = recipe, folder, human, chosen
        self.photos = recipe.student.photo == "tower"
        self.tiers = len(human.source.rubric.tier_ids)
        self.left = {} if chosen is None else dict(chosen.labels.place)
        self.contents = None if chosen is None else chosen.labels.table.column("content")
        self.queries: dict[str, int] = {}
        self.counts = {"rows": 0, "human labels": 0, "labels of the judge": 0, "both": 0, CHANGED: 0}

    def rows(self) -> Iterator[dict[str, Any]]:
        yield from self._of_train()
        if self.left:
            found = len(self.left)
            yield from self._of_input()
            self.counts[CHANGED] += len(self.left)
            if len(self.left) == found and not self.counts["rows"]:
                raise LoreError(
                    f"None of the {found:,} labelled pairs of {self.recipe.labels.path} has its text in the labels' input, so "
                    "there is nothing to learn from.\nName the table that was labelled as labels.pairs."
                )

    def _of_train(self) -> Iterator[dict[str, Any]]:
        source, gold, wanted = self.human.source, self.human.train, set(self.recipe.data.slices or [])
        rubric, done, keys = source.rubric, set(), ContentKeys()
        for pair in track(read_pairs(source.path, split="train", image_roots=source.image_roots), "human pairs"):
            if wanted and not wanted & set(pair.slices) or pair.pair_id in done:
                continue
            at = self.left.pop(pair.pair_id, None)
            if at is not None:
                self._same_query(pair, at)
                if self.contents[at].as_py() != keys.of(pair):
                    self.counts[CHANGED], at = self.counts[CHANGED] + 1, None
            if pair.pair_id not in gold.position and at is None:
                continue
            done.add(pair.pair_id)
            human, weight, label = None, None, -1
            if pair.pair_id in gold.position:
                label = rubric.index(pair.label)
                human = human_targets(np.asarray([label]), [pair.label_distribution], rubric.tier_ids)[0]
                weight = pair.label_weight
            yield self._row(pair, at, human, weight, label) | {"human_rationale": _short(pair.rationale) if weight else None}

    def _same_query(self, pair: Pair, at: int) -> None:
        asked = self.chosen.labels.table.column("query")[at].as_py()
        if normalize(asked) != normalize(pair.query):
            raise LoreError(
                f"Pair {pair.pair_id} is about the query {pair.query[:80]!r} in {self.recipe.data.path} and about {asked[:80]!r} "
                f"in {self.recipe.labels.path}: one id names two pairs, and the judge's label would go to the wrong one.\nLabel "
                "these pairs again, or give one of the tables other ids."
            )

    def _of_input(self) -> Iterator[dict[str, Any]]:
        keys = Keys()
        opened = open_input(labelled_input(self.recipe.labels), self.folder / "data" / "labelled", _Unlisted())
        for batch in track(opened.batches(), "labelled pairs"):
            mask = [pair_id in self.left for pair_id in batch.column("pair_id").to_pylist()]
            batch = batch.filter(pa.array(mask))
            if not len(batch):
                continue
            found = keys.of(batch)
            asked = content_bytes(found["high"], found["low"]).to_pylist()
            for pair, content in zip(to_pairs(batch, batch.schema.names, self.recipe.labels.path), asked, strict=True):
                at = self.left.get(pair.pair_id)
                if at is not None and self.contents[at].as_py() == content:
                    del self.left[pair.pair_id]
                    yield self._row(pair, at, None, None, -1)
            if not self.left:
                return

    def _row(self, pair: Pair, at: int | None, human: np.ndarray | None, weight: float | None, label: int) -> dict[str, Any]:
        row: dict[str, Any] = {name: getattr(pair, name) for name in TEXT_FIELDS}
        row["attributes"] = [{"key": key, "value": value} for key, value in pair.attributes.items()]
        if not self.photos:
            row["image"] = None
        key = query_key(pair.query, pair.slices)
        row["query_number"] = self.queries.setdefault(key, len(self.queries))
        row |= {"frequency": pair.query_frequency, "judge": [0.0] * self.tiers, "judge_weight": 0.0, "rank": -1}
        row |= {"judge_rationale": None, "human_rationale": None}
        row |= {"human": [0.0] * self.tiers if human is None else human.tolist(), "human_weight": weight or 0.0}
        row["label"] = label
        if at is not None:
            chosen = self.chosen
            row |= {"judge": chosen.targets[at].tolist(), "judge_weight": float(chosen.weights[at]), "rank": int(chosen.ranks[at])}
            row["judge_rationale"] = _short(chosen.labels.table.column("rationale")[at].as_py())
            if row["frequency"] is None:
                row["frequency"] = chosen.labels.table.column("query_frequency")[at].as_py()
        self.counts["rows"] += 1
        self.counts["human labels"] += human is not None
        self.counts["labels of the judge"] += at is not None
        self.counts["both"] += human is not None and at is not None
        return row


def _short(rationale: str | None) -> str | None:
    return (rationale or "")[:MAX_RATIONALE] or None


class _Unlisted:
    """Takes the rows of the labels' input that are no pairs: the labelling has listed them."""

    def write(self, rejection: Rejection) -> None:
        pass


def _nothing(recipe: DistillRecipe) -> str:
    where = f" and {recipe.labels.path} no label of a query outside of dev and test" if recipe.labels else ""
    return f"no training rows: split train of {recipe.data.path} has no labeled pair{where}.\nCheck both with `lore data stats`."


def training_rows(folder: RunFolder) -> Rows:
    """The rows that the main process has written."""
    return _opened(folder / "data" / "rows.arrow", np.load(folder / "data" / "lengths.npy", allow_pickle=False))


def unmeasured_rows(folder: RunFolder) -> Rows:
    """The rows before their lengths are known."""
    return _opened(folder / "data" / "rows.arrow", np.zeros(0))


def _opened(path: Path, lengths: np.ndarray) -> Rows:
    if not path.is_file():
        raise LoreError(
            f"rank 0 did not write {path}. See its error message, or check that all machines share this folder.",
            same_on_every_rank=True,
        )
    with whole_rows(path):
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()

        def array(name: str) -> np.ndarray:
            return table.column(name).to_numpy()

        def matrix(name: str) -> np.ndarray:
            return table.column(name).combine_chunks().flatten().to_numpy().reshape(len(table), -1)

        frequency = table.column("frequency").fill_null(np.nan).to_numpy()
        return Rows(
            table,
            matrix("judge"),
            array("judge_weight"),
            matrix("human"),
            array("human_weight"),
            array("label"),
            array("query_number"),
            frequency,
            array("rank"),
            lengths,
        )


def write_lengths(folder: RunFolder, encoder: PairEncoder) -> None:
    """Writes lengths.npy, and the pairs that the student cannot read into rejected.jsonl. Only for the main process."""
    out = folder / "data" / "lengths.npy"
    if out.is_file():
        return
    path = folder / "data" / "rows.arrow"
    with RejectedWriter(folder / "rows.arrow", folder / "rejected.jsonl") as rejected:

        def reject(place: int, pair: Pair, error: QueryTooLong) -> None:
            about = f"pair {pair.pair_id}, query"
            rejected.write(Rejection(str(path), place + 1, about, "query_too_long", str(error), "a shorter query"))

        lengths = lengths_of(unmeasured_rows(folder), encoder, reject)
        rejected.publish()
    if rejected.count:
        say(f"{rejected.count:,} pairs have a query that is too long for the student; {rejected.path} lists them")
    with written_whole(out) as file:
        np.save(file, lengths)


def lengths_of(rows: Rows, encoder: PairEncoder, reject: Callable[[int, Pair, QueryTooLong], None] | None = None) -> np.ndarray:
    """Tokens of each row; 0 for one that the student cannot read."""
    lengths = np.zeros(len(rows), dtype=np.int64)
    for place, pairs in track(_chunks(rows), "measuring pairs", total=-(-len(rows) // AT_ONCE)):
        for pair, found in zip(pairs, encoder.rows(pairs), strict=True):
            if not isinstance(found, QueryTooLong):
                lengths[place] = found["length"]
            elif reject is not None:
                reject(place, pair, found)
            place += 1
    return lengths


def _chunks(rows: Rows) -> Iterator[tuple[int, list[Pair]]]:
    """All rows as pairs, with the number of the first row of each chunk."""
    for start in range(0, len(rows), AT_ONCE):
        yield start, rows.pairs(np.arange(start, min(start + AT_ONCE, len(rows))))


def texts_of(rows: Rows, fmt: PairTextFormat) -> Iterator[str]:
    """Queries and items of all rows, to train a tokenizer on."""
    for _, pairs in _chunks(rows):
        for pair in pairs:
            yield from pair_texts(pair, fmt)


def _write_targets(folder: RunFolder, rubric: Rubric, rows: Rows) -> None:
    """targets.parquet: ids, queries and labels of the rows, without texts and photos."""
    columns: dict[str, Any] = {name: rows.table.column(name) for name in ("pair_id", "query")}
    for kind, values, weight in (("judge", rows.judge, rows.judge_weight), ("human", rows.human, rows.human_weight)):
        for place, tier in enumerate(rubric.tier_ids):
            columns[f"{kind}_{tier}"] = pa.array(values[:, place], mask=weight == 0)
        columns[f"{kind}_weight"] = pa.array(weight)
    path = folder / "targets" / "targets.parquet"
    path.parent.mkdir(exist_ok=True)
    with written_whole(path) as file:
        pq.write_table(pa.table(columns), file)
