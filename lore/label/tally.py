"""Counts of one label folder: tiers, confidence and P(relevant) by query frequency, slices, failures, sources.

The label files are streamed: once for the traffic of the queries, once for everything else. What is needed per query or per pair
(its frequency, its tier) goes to files in a scratch folder by hash, so memory stays flat.

Bands of query frequency: the head is the most searched queries that make up the first third of all searches, the torso the second
third, the tail the rest, as `frequency:head`, `frequency:middle` and `frequency:tail` in evaluations. Pairs of unknown frequency
have their own row, and so have all pairs if every query is searched equally often. Frequencies are rounded to three digits.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from lore.data.pair import MARKETS, query_key
from lore.data.statistics import OTHERS
from lore.data.tables.parquet_files import open_parquet
from lore.eval.derived_slices import traffic_thirds
from lore.label.drift import RELEVANCE_BINS, relevance_counts
from lore.label.keys import content_halves, id_hashes
from lore.label.ledger import REPAIR, is_final
from lore.label.read import label_batches, opened_labels
from lore.label.schema import FAILURES, VERDICTS
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError
from lore.support.progress import track
from lore.support.read_ahead import read_ahead
from lore.support.text import shortened

BANDS = ("head", "torso", "tail", "unknown")
ALL = "all"
MAX_NAMES, MAX_REASONS, MAX_JUDGES = 10_000, 50, 20
EXAMPLES, FAILURE_EXAMPLES = 20, 3
MAX_CHARACTERS = 2000
BATCH_ROWS = 65_536
SCRATCH_FILES, HELD_RECORDS = 64, 65_536

Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Band(Part):
    """The labels of one band of query frequency."""

    tiers: dict[str, Count]
    """Pairs by tier, worst tier first."""
    failed: Count = 0
    """Pairs without a tier."""
    confidence: float | None = None
    """Mean probability of the verdict's tier, over the pairs with probabilities."""
    entropy: float | None = None
    """Mean entropy of the probabilities, in bits."""
    relevance: Annotated[list[Count], Field(min_length=RELEVANCE_BINS, max_length=RELEVANCE_BINS)]
    """Pairs by P(relevant), see lore.label.drift."""

    @property
    def pairs(self) -> int:
        """Pairs with a tier."""
        return sum(self.tiers.values())


class Failures(Part):
    """Pairs without a verdict for one reason. pending: asked again at the next start; final: not asked again."""

    reason: str
    pending: Count = 0
    final: Count = 0
    examples: list[dict[str, str]] = []
    """pair_id, query, item_id and detail of the first ones."""


class Example(Part):
    """A labelled pair, as it is shown in the report."""

    pair_id: str
    query: str
    item_id: str
    tier: str
    probability: float | None
    rationale: str
    mismatch: str
    rules: list[str]
    source: str


class Spill:
    """Records of a 64-bit key and a value in files by key, each of which fits into memory."""

    def __init__(self, folder: Path, value: str):
        folder.mkdir(parents=True)
        self.folder, self.dtype = folder, np.dtype([("key", "<u8"), ("value", value)])
        self._held: list[np.ndarray] = []

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        records = np.empty(len(keys), self.dtype)
        records["key"], records["value"] = keys, values
        self._held.append(records)
        if sum(map(len, self._held)) >= HELD_RECORDS:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        records = np.concatenate(self._held)
        self._held.clear()
        part = (records["key"] >> np.uint64(58)).astype(np.int64)
        order = np.argsort(part, kind="stable")
        ends = np.searchsorted(part[order], np.arange(SCRATCH_FILES + 1))
        for number in range(SCRATCH_FILES):
            if ends[number] < ends[number + 1]:
                with open(self.folder / f"{number:02d}.bin", "ab") as file:
                    records[order[ends[number] : ends[number + 1]]].tofile(file)

    def part(self, number: int) -> np.ndarray:
        self._flush()
        path = self.folder / f"{number:02d}.bin"
        return np.fromfile(path, self.dtype) if path.is_file() else np.empty(0, self.dtype)


class Labels:
    """One label folder, counted."""

    def __init__(self, folder: Path, rubric: Rubric, scratch: Path, max_attempts: int | None = None):
        self.folder, self.rubric, self.scratch, self.max_attempts = folder, rubric, scratch, max_attempts
        tiers = len(rubric.tier_ids)
        self.tier_counts = np.zeros((len(BANDS), tiers), np.int64)
        self.failed = np.zeros(len(BANDS), np.int64)
        self.sure = np.zeros((len(BANDS), 3))  # pairs with probabilities, sum of confidence, sum of entropy
        self.relevance = np.zeros((len(BANDS), RELEVANCE_BINS), np.int64)
        self.slices: Counter[str] = Counter()
        self._slice_tiers: dict[str, np.ndarray] = {}
        self.sources: Counter[str] = Counter()
        self.judges: Counter[str] = Counter()
        self.photos: Counter[str] = Counter()
        self.failures: dict[str, Failures] = {}
        self.tokens, self.seconds, self.queries = 0, 0.0, 0
        self.head_from: float | None = None
        self.torso_from: float | None = None
        self.tiers_by_id: Spill | None = None
        self._chosen: list[tuple[int, Path, int]] = []  # key, file and row of the pairs that the report shows

    def read(self, *, keep_tiers: bool) -> None:
        """keep_tiers: also the tier of each pair, for `changed`."""
        self._read_traffic()
        if keep_tiers:
            self.tiers_by_id = Spill(self.scratch / "tiers", "<i2")
        probabilities = [f"p_{tier}" for tier in self.rubric.tier_ids]
        columns = ["pair_id", "query", "item_id", "tier", *probabilities, "failure", "photo", "judge_id", "tokens", "source"]
        columns += ["seconds", "detail", "query_frequency", "slices", "content", "attempts"]
        for kind in (VERDICTS, FAILURES):
            for path, start, batch in _batches(self.folder, kind, columns):
                self._count(path, start, batch, kind)

    def _read_traffic(self) -> None:
        """Sets the number of queries and the frequencies at which head and torso begin."""
        spill = Spill(self.scratch / "traffic", "<f8")
        for _, _, batch in _batches(self.folder, VERDICTS, ["query", "query_frequency", "slices"]):
            spill.add(*_traffic(batch))
        counts: Counter[float] = Counter()
        for number in range(SCRATCH_FILES):
            records = spill.part(number)
            records = records[np.argsort(records["key"], kind="stable")]
            starts = np.flatnonzero(np.diff(records["key"], prepend=~records["key"][:1]) != 0)
            self.queries += len(starts)
            if len(starts):
                most = np.maximum.reduceat(records["value"], starts)
                levels, queries = np.unique(most[most > 0], return_counts=True)
                counts.update(dict(zip(levels.tolist(), queries.tolist(), strict=True)))
        if len(counts) > 1:
            levels = np.asarray(sorted(counts))
            thirds = traffic_thirds(levels, np.asarray([counts[level] for level in levels]))
            self.head_from, self.torso_from = float(levels[thirds == 0][0]), float(levels[thirds <= 1][0])

    def _count(self, path: Path, start: int, batch: pa.RecordBatch, kind: str) -> None:
        tier_ids = self.rubric.tier_ids
        given = batch.column("tier")
        tier = pc.fill_null(pc.index_in(given, pa.array(tier_ids)), -1).to_numpy(zero_copy_only=False)
        if (tier >= 0).sum() != len(given) - given.null_count:
            wrong = next(name for name in given.to_pylist() if name is not None and name not in tier_ids)
            raise LoreError(
                f"{path} has labels of tier {shortened(wrong, 80)!r}, and rubric {self.rubric.name} has the tiers "
                f"{', '.join(tier_ids)}: they cannot be counted together.\nSummarize a folder with the rubric of its labels."
            )
        band = self._bands(batch.column("query_frequency"))
        has = tier >= 0
        self.tier_counts += np.bincount(band[has] * len(tier_ids) + tier[has], minlength=self.tier_counts.size).reshape(
            self.tier_counts.shape
        )
        self.failed += np.bincount(band[~has], minlength=len(BANDS))
        self._count_probabilities(batch, tier, band)
        self._count_slices(batch.column("slices"), tier)
        for name, counter in (("source", self.sources), ("photo", self.photos), ("judge_id", self.judges)):
            _add_names(counter, batch.column(name), has, MAX_JUDGES)
        self.tokens += pc.sum(batch.column("tokens")).as_py() or 0
        self.seconds += pc.sum(batch.column("seconds")).as_py() or 0.0
        if not has.all():
            self._count_failures(batch, np.flatnonzero(~has), kind)
        if self.tiers_by_id is not None and has.any():
            self.tiers_by_id.add(id_hashes(batch.column("pair_id").filter(pa.array(has))), tier[has])
        self._choose(path, start, batch.column("content"), has)

    def _count_probabilities(self, batch: pa.RecordBatch, tier: np.ndarray, band: np.ndarray) -> None:
        columns = [batch.column(f"p_{name}").to_numpy(zero_copy_only=False) for name in self.rubric.tier_ids]
        rows = np.stack(columns, axis=1).astype(np.float64)
        known = (tier >= 0) & ~np.isnan(rows).any(axis=1)
        if not known.any():
            return
        rows, tier, band = rows[known], tier[known], band[known]
        confidence = np.take_along_axis(rows, tier[:, None], axis=1)[:, 0]
        positive = np.maximum(rows, 1e-300)
        entropy = -(rows * np.log2(positive)).sum(axis=1)
        relevant = rows[:, self.rubric.relevant_mask].sum(axis=1)
        for column, values in enumerate((np.ones(len(rows)), confidence, entropy)):
            self.sure[:, column] += np.bincount(band, values, len(BANDS))
        for number in np.unique(band):
            self.relevance[number] += relevance_counts(relevant[band == number])

    def _count_slices(self, slices: pa.Array, tier: np.ndarray) -> None:
        names = pc.list_flatten(slices).dictionary_encode()
        if not len(names):
            return
        own = tier[pc.list_parent_indices(slices).to_numpy(zero_copy_only=False)]
        codes = names.indices.to_numpy(zero_copy_only=False)
        width = len(self.rubric.tier_ids) + 1
        table = np.bincount(codes * width + own + 1, minlength=len(names.dictionary) * width).reshape(-1, width)
        for name, counts in zip(names.dictionary.to_pylist(), table, strict=True):
            name = name if name in self.slices or len(self.slices) < MAX_NAMES else OTHERS
            self.slices[name] += int(counts[1:].sum())
            self._slice_tiers[name] = self._slice_tiers.get(name, 0) + counts[1:]

    def _count_failures(self, batch: pa.RecordBatch, rows: np.ndarray, kind: str) -> None:
        columns = ["pair_id", "query", "item_id", "failure", "detail", "attempts"]
        for row in batch.select(columns).take(pa.array(rows)).to_pylist():
            reason = shortened(row["failure"] or "no reason", 80)
            if reason not in self.failures and len(self.failures) >= MAX_REASONS:
                reason = OTHERS
            found = self.failures.setdefault(reason, Failures(reason=reason))
            final = kind == VERDICTS or (
                self.max_attempts is not None and is_final(row["attempts"] or 1, row["failure"] or "", self.max_attempts)
            )
            found.final, found.pending = found.final + final, found.pending + (not final)
            if len(found.examples) < FAILURE_EXAMPLES:
                shown = ("pair_id", "query", "item_id", "detail")
                found.examples.append({name: shortened(row[name] or "", 300) for name in shown})

    def _bands(self, frequency: pa.Array) -> np.ndarray:
        """[N] index in BANDS."""
        values = _rounded(frequency.to_numpy(zero_copy_only=False).astype(np.float64))
        if self.head_from is None:
            return np.full(len(values), BANDS.index("unknown"))
        known = values > 0  # False for nan
        return np.where(~known, 3, np.where(values >= self.head_from, 0, np.where(values >= self.torso_from, 1, 2)))

    def _choose(self, path: Path, start: int, contents: pa.Array, has: np.ndarray) -> None:
        """Keeps the pairs with the smallest content digests: a random choice, the same in every order of the files."""
        rows = np.flatnonzero(has)
        if not len(rows):
            return
        keys = content_halves(contents)[0][rows]
        least = np.argpartition(keys, EXAMPLES)[:EXAMPLES] if len(keys) > EXAMPLES else np.arange(len(keys))
        self._chosen += [(int(keys[one]), path, start + int(rows[one])) for one in least]
        self._chosen = sorted(self._chosen)[:EXAMPLES]

    def bands(self) -> dict[str, Band]:
        """The bands that have pairs, after all of them together."""
        found = {ALL: self._band(slice(None))}
        for number, name in enumerate(BANDS):
            if self.tier_counts[number].any() or self.failed[number]:
                found[name] = self._band(slice(number, number + 1))
        return found

    def _band(self, rows: slice) -> Band:
        pairs, confidence, entropy = self.sure[rows].sum(axis=0)
        return Band(
            tiers=dict(zip(self.rubric.tier_ids, self.tier_counts[rows].sum(axis=0).tolist(), strict=True)),
            failed=int(self.failed[rows].sum()),
            confidence=round(confidence / pairs, 6) if pairs else None,
            entropy=round(entropy / pairs, 6) + 0.0 if pairs else None,
            relevance=self.relevance[rows].sum(axis=0).tolist(),
        )

    def slice_tiers(self, name: str) -> dict[str, int]:
        return dict(zip(self.rubric.tier_ids, self._slice_tiers[name].tolist(), strict=True))

    def examples(self) -> list[Example]:
        """The chosen pairs, in the order of their digests."""
        wanted: dict[Path, list[int]] = {}
        for _, path, row in self._chosen:
            wanted.setdefault(path, []).append(row)
        rows = {(path, at): row for path, ats in wanted.items() for at, row in _rows_at(path, ats).items()}
        return [self._example(rows[path, row]) for _, path, row in self._chosen]

    def _example(self, row: dict[str, Any]) -> Example:
        texts = ("pair_id", "query", "item_id", "tier", "rationale", "mismatch", "source")
        return Example(
            **{name: shortened(row[name] or "", MAX_CHARACTERS) for name in texts},
            probability=row[f"p_{row['tier']}"],
            rules=[shortened(rule, 80) for rule in (row["rules"] or [])[:MAX_JUDGES]],
        )


def _batches(folder: Path, kind: str, columns: list[str]) -> Iterator[tuple[Path, int, pa.RecordBatch]]:
    """The label files of a folder in batches: the file, the number of the batch's first row, the batch."""
    if not any(any((folder / name).glob("[!.]*")) for name in (VERDICTS, FAILURES)):
        return
    found = label_batches(opened_labels(folder), columns, kind=kind, batch_rows=BATCH_ROWS)
    with closing(read_ahead(found)) as ahead:
        yield from track(ahead, f"reading {kind}")


def _rows_at(path: Path, rows: list[int]) -> dict[int, dict[str, Any]]:
    """Whole rows of a label file by their numbers. Reads only their row groups."""
    found, start = {}, 0
    with open_parquet(path, REPAIR) as parquet:
        for group in range(parquet.num_row_groups):
            end = start + parquet.metadata.row_group(group).num_rows
            inside = [row for row in rows if start <= row < end]
            if inside:
                taken = parquet.read_row_group(group).take(pa.array([row - start for row in inside])).to_pylist()
                found |= dict(zip(inside, taken, strict=True))
            start = end
    return found


def _traffic(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """The different queries of a batch: hashes of their keys and their largest rounded frequency, 0 if unknown."""
    frequency = np.nan_to_num(_rounded(batch.column("query_frequency").to_numpy(zero_copy_only=False).astype(np.float64)))
    slices, texts = batch.column("slices"), batch.column("query").dictionary_encode()
    codes, names = texts.indices.to_numpy(zero_copy_only=False), texts.dictionary.to_pylist()
    flat = pc.list_flatten(slices)
    if len(flat) and any(pc.any(pc.starts_with(flat, f"{market}:")).as_py() for market in MARKETS):
        names = [query_key(names[code], given or ()) for code, given in zip(codes, slices.to_pylist(), strict=True)]
        codes = np.arange(len(names))
    else:
        names = [query_key(name) for name in names]
    order: dict[str, int] = {}
    at = np.asarray([order.setdefault(key, len(order)) for key in names], dtype=np.int64)[codes]
    most = np.zeros(len(order))
    np.maximum.at(most, at, frequency)
    return id_hashes(pa.array(list(order), pa.string())), most


def _rounded(values: np.ndarray) -> np.ndarray:
    """Numbers rounded to 1 / 1024 of themselves, so that any traffic has few different frequencies. Counts below 1,024 stay."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 1024) / 1024, exponent)


def _add_names(counter: Counter[str], column: pa.Array, has: np.ndarray, most: int) -> None:
    counts = pc.value_counts(column.filter(pa.array(has)))
    for found in counts.to_pylist():
        name = shortened(found["values"] or "unknown", 200)
        counter[name if name in counter or len(counter) < most else OTHERS] += found["counts"]
