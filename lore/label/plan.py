"""The plan: every pair of the input that is still to be asked, once, in shards, with flat memory.

1. Spill: the rows go to files by their query's hash, with their keys (lore.label.keys).
2. Ids: a pair_id that names two different pairs keeps the one with the smaller content; the other rows are rejected. A pair whose
   text has changed since it was labelled loses its old label, and a pair that two runs have labelled at once keeps one label.
3. Each file: equal rows are folded, pairs with a label or a final failure are dropped, pairs of the verdict store are labelled from
   it, and the rest is sorted: pairs asked before and long items last, then by query, then by content.
4. The sorted rows are cut into shards of `shard_pairs`. A shard is a record batch of work/shards/<range>.arrow.

None of this depends on the order of the input, and shards are cut at multiples of `shard_pairs`. When some shards of an unchanged
input are committed, the rest therefore forms the same shards as before: a restart asks the same batches.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lore.data.rejected_rows import Rejection
from lore.label.keys import KEY_COLUMNS, Keys, content_bytes, content_halves, id_hashes
from lore.label.ledger import HashRange, Ledger, contains, is_final, keys_of, mixed
from lore.label.schema import CONTENT, QUESTION_SCHEMA
from lore.support.atomic_files import write_atomic, written_whole
from lore.support.errors import LoreError, reason
from lore.support.progress import track
from lore.support.read_ahead import read_ahead
from lore.support.untrusted_json import read_object

PARTITION_ROWS = 200_000  # rows per spilled file, about
PARTITION_BYTES = 256 * 2**20  # a larger file is split once more
MAX_BITS = 9  # 512 open files; the usual limit is 1,024
SPLIT_BITS = 4
BUFFER_ROWS, BUFFER_BYTES = 262_144, 128 * 2**20
ID_FILES = 64
MAX_CONFLICTS = 1_000_000
SPILL_SCHEMA = pa.schema([*QUESTION_SCHEMA, *(pa.field(name, kind) for name, kind in KEY_COLUMNS)])
SHARD_SCHEMA = pa.schema([*QUESTION_SCHEMA, pa.field("content", CONTENT), pa.field("asked_before", pa.int32())])
"""Rows of a shard: the question, its content, and how often it was asked without an answer."""
SPELLINGS = ["query", "title", "item_id", "description", "category", "brand", "shop"]
COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")
PLAN = "plan.json"
VERSION = 2


class Input(Protocol):
    """See lore.label.inputs.LabelInput."""

    fingerprint: str
    expected_rows: int | None

    def batches(self) -> Iterator[pa.RecordBatch]: ...


class Known(Protocol):
    """Labels from elsewhere, such as a verdict store bound to one judge."""

    def label(self, name: str, questions: pa.Table) -> np.ndarray:
        """Commits the labels that are known, under the name of a shard, and returns which rows have one now: bool [rows]."""


@dataclass(frozen=True)
class Shard:
    """Pairs that are asked and committed together. name: of its label file; file: of its rows; batch: record batch in that file."""

    name: str
    file: str
    batch: int
    pairs: int

    def read(self, work: Path) -> pa.Table:
        """Rows of SHARD_SCHEMA. Raises LoreError if they are not those that the shard is named after."""
        path = work / "shards" / self.file
        repair = f"Delete {work} and run the same command again: the rest of the input is planned anew, and no label is lost."
        try:
            with pa.OSFile(str(path)) as source:
                found = pa.ipc.open_file(source).get_batch(self.batch)
            found.validate(full=True)
            if found.schema.equals(SHARD_SCHEMA):
                high, _ = content_halves(found.column("content"))
                name = _named(id_hashes(found.column("pair_id")), high, found.column("asked_before").to_numpy())
                if self.name.endswith(f"-{name}"):
                    return pa.Table.from_batches([found])
            why = f"not the pairs of shard {self.name}"
        except (pa.ArrowException, OSError, ValueError) as error:
            why = reason(error)
        raise LoreError(f"{path}, batch {self.batch}: {why}, so the plan is damaged.\n{repair}")


@dataclass
class Counts:
    """Pairs of the input by what becomes of them."""

    rows: int = 0
    """Rows that were read and are pairs."""
    rejected: int = 0
    """Rows that are no pairs, and the conflicting ones: those in rejected.jsonl."""
    conflicting: int = 0
    """Rows rejected because their pair_id names another pair too."""
    folded: int = 0
    """Rows that repeat another one."""
    unique: int = 0
    """Pairs with different ids."""
    labelled: int = 0
    """Pairs that this folder has a label for."""
    changed: int = 0
    """Pairs whose text has changed since they were labelled. Their old labels are removed."""
    absent: int = 0
    """Pairs without an answer that may be asked again, but are not in the input."""
    given_up: int = 0
    """Pairs without an answer that are not asked again."""
    stored: int = 0
    """Pairs labelled from the verdict store."""
    again: int = 0
    """Pairs that got no answer before and are asked again."""
    to_label: int = 0
    """Pairs in the shards."""
    questions: int = 0
    """Different questions in the shards: pairs with the same query and item share one."""


@dataclass
class Plan:
    """A finished plan. pending: pairs that get another try at the next start."""

    work: Path
    fingerprint: str
    stamp: str
    counts: Counts
    shards: list[Shard] = field(default_factory=list)

    def save(self) -> None:
        value = {"version": VERSION, "fingerprint": self.fingerprint, "stamp": self.stamp, "counts": asdict(self.counts)}
        value["shards"] = [[one.name, one.file, one.batch, one.pairs] for one in self.shards]
        write_atomic(self.work / PLAN, json.dumps(value))

    @classmethod
    def load(cls, work: Path) -> "Plan | None":
        """The saved plan; None if there is none, or one of another version. A damaged one is made again."""
        if not (work / PLAN).is_file():
            return None
        try:
            value = read_object(work / PLAN, "the plan", "It is made again.")
            if value["version"] != VERSION:
                return None
            shards, counts = [Shard(*one) for one in value["shards"]], Counts(**value["counts"])
            whole = sum(shard.pairs for shard in shards) == counts.to_label
            if not whole or not all((work / "shards" / file).is_file() for file in {shard.file for shard in shards}):
                return None
            return cls(work, value["fingerprint"], value["stamp"], counts, shards)
        except (LoreError, KeyError, TypeError):
            return None


def make_plan(
    work: Path,
    given: Input,
    ledger: Ledger,
    rejected: Any,
    *,
    shard_pairs: int,
    max_attempts: int,
    known: Known | None = None,
    dry_run: bool = False,
) -> Plan:
    """Plans the input. rejected: gets the rows whose pair_id names two pairs. dry_run: no label is removed. A plan that was killed
    is made anew."""
    (work / PLAN).unlink(missing_ok=True)  # first: a plan without its shards would be taken for whole
    for name in ("spill", "shards", "ids"):
        shutil.rmtree(work / name, ignore_errors=True)
    (work / "shards").mkdir(parents=True)
    counts = Counts()
    bits = int(np.clip(np.ceil(np.log2(max(given.expected_rows or 1, 1) / PARTITION_ROWS)), 0, MAX_BITS))
    keys, ids = Keys(), _Ids(work / "ids")
    with _Spill(work / "spill", HashRange(0, 0), bits) as spill, ids, closing(read_ahead(given.batches())) as batches:
        for batch in track(batches, "reading batches of the input"):
            found = keys.of(batch)
            counts.rows += batch.num_rows
            ids.add("input", found["id"], found["high"])
            columns = [pa.array(found[name], kind) for name, kind in KEY_COLUMNS]
            spill.add(pa.record_batch([*batch.columns, *columns], schema=SPILL_SCHEMA))
        for _, table in ledger.tables("verdicts", ["pair_id", "content"]):
            ids.add("ledger", *keys_of(table))
        for _, table in ledger.tables("failures", ["pair_id", "content", "attempts", "failure"]):
            tried = zip(table.column("attempts").to_pylist(), table.column("failure").to_pylist(), strict=True)
            final = np.array([is_final(times or 1, why or "", max_attempts) for times, why in tried], bool)
            one, high = keys_of(table)
            ids.add("final", one[final], high[final])
            ids.add("tried", one[~final], high[~final])
    found = ids.compare()
    losers = found.losers
    shutil.rmtree(work / "ids")
    counts.changed, counts.absent = len(found.stale[0]), found.absent
    if not dry_run:
        ledger.remove(*found.stale, *found.failures)
        ledger.remove_doubled(found.doubled)
    plan = Plan(work, given.fingerprint, ledger.stamp, counts)
    partition = _Partition(plan, ledger, rejected, losers, shard_pairs, max_attempts, known)
    with ledger.listed_once("verdicts", "failures"):
        for within, path in track(spill.files, "planning", total=len(spill.files)):
            partition.plan(within, path)
    shutil.rmtree(work / "spill")
    plan.save()
    return plan


class _Spill:
    """Writes rows to one Arrow file per range of query hashes."""

    def __init__(self, folder: Path, within: HashRange, bits: int):
        self.within, self.bits, self.folder = within, within.bits + bits, folder
        self.files: list[tuple[HashRange, Path]] = []
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        self._held: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self._stack = ExitStack()
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "_Spill":
        return self

    def add(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        self._rows, self._bytes = self._rows + batch.num_rows, self._bytes + batch.nbytes
        if self._rows >= BUFFER_ROWS or self._bytes >= BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        table = pa.Table.from_batches(self._held, SPILL_SCHEMA)
        self._held, self._rows, self._bytes = [], 0, 0
        if self.bits == 0:
            self._writer(0).write_table(table)
            return
        prefixes = (table.column("hash").to_numpy() >> np.uint64(64 - self.bits)).astype(np.int64)
        order = np.argsort(prefixes, kind="stable")
        table, prefixes = table.take(pa.array(order)), prefixes[order]
        starts = np.flatnonzero(np.diff(prefixes, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(prefixes)], strict=True):
            self._writer(int(prefixes[start])).write_table(table.slice(start, end - start))

    def _writer(self, prefix: int) -> Any:
        if prefix not in self._writers:
            within = HashRange(self.bits, prefix)
            path = self.folder / f"{within}.arrow"
            sink = self._stack.enter_context(pa.OSFile(str(path), "wb"))
            self._writers[prefix] = self._stack.enter_context(pa.ipc.new_stream(sink, SPILL_SCHEMA, options=COMPRESSED))
            self.files.append((within, path))
        return self._writers[prefix]

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._stack.close()
            self._writers.clear()
        self.files.sort()


@dataclass(frozen=True)
class _Found:
    """losers: sorted keys of input rows to reject; stale: (id hashes, contents) of labels whose pair has changed; failures: the
    same for pairs without an answer; doubled: sorted id hashes of pairs with several labels; absent: see Counts."""

    losers: np.ndarray
    stale: tuple[np.ndarray, np.ndarray]
    failures: tuple[np.ndarray, np.ndarray]
    doubled: np.ndarray
    absent: int


class _Ids:
    """Finds pair ids with two contents. Keys go to files by id hash, so that each fits into memory."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[tuple[str, int], Any] = {}

    def __enter__(self) -> "_Ids":
        return self

    def __exit__(self, *_: Any) -> None:
        for file in self._files.values():
            file.close()

    def add(self, kind: str, ids: np.ndarray, high: np.ndarray) -> None:
        if not len(ids):
            return
        rows, part = np.stack([ids, high], axis=1), (ids >> np.uint64(58)).astype(np.int64)
        order = np.argsort(part, kind="stable")
        rows, part = rows[order], part[order]
        starts = np.flatnonzero(np.diff(part, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(part)], strict=True):
            key = kind, int(part[start])
            if key not in self._files:
                self._files[key] = open(self.folder / f"{kind}-{key[1]:02d}.bin", "wb")  # noqa: SIM115  (closed by __exit__)
            self._files[key].write(rows[start:end].tobytes())

    def compare(self) -> _Found:
        """Compares the input with the ledger. Every key has been added."""
        losers, stale, failures, doubled, absent = [], [], [], [], 0
        for part in range(ID_FILES):
            given = _unique(self._rows("input", part))
            first = np.diff(given[:, 0], prepend=given[:1, 0] + np.uint64(1)) != 0
            lost = given[~first]
            losers.append(mixed(lost[:, 0], lost[:, 1]))
            if sum(map(len, losers)) > MAX_CONFLICTS:
                raise LoreError(
                    f"More than {MAX_CONFLICTS:,} rows of the input have a pair_id that also names another pair, so the column "
                    "does not identify pairs. Leave it out: ids are then made from query and item."
                )
            kept, old = given[first], self._rows("ledger", part)
            _, changed = _changed(kept, old)
            stale.append(old[changed])
            ids, times = np.unique(old[~changed, 0], return_counts=True)
            doubled.append(ids[times > 1])
            final, tried = (_unique(self._rows(kind, part)) for kind in ("final", "tried"))
            for rows in (final, tried):
                failures.append(rows[_changed(kept, rows)[1]])
            again = ~contains(np.sort(mixed(*final.T)), mixed(*tried.T))
            absent += int((again & ~_changed(kept, tried)[0]).sum())
        gone, lost = np.concatenate(stale), np.concatenate(failures)
        return _Found(np.sort(np.concatenate(losers)), (*gone.T,), (*lost.T,), np.concatenate(doubled), absent)

    def _rows(self, kind: str, part: int) -> np.ndarray:
        path = self.folder / f"{kind}-{part:02d}.bin"
        return np.fromfile(path, np.uint64).reshape(-1, 2) if path.is_file() else np.empty((0, 2), np.uint64)


def _unique(rows: np.ndarray) -> np.ndarray:
    """The different rows (id, content), by id and then by content. np.unique is slower along an axis."""
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    return rows[np.append(np.ones(min(len(rows), 1), bool), (rows[1:] != rows[:-1]).any(axis=1))]


def _changed(kept: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows (id, content) have an id of the input, and which of them have another content there. kept: sorted."""
    if not len(kept):
        return np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    at = np.minimum(np.searchsorted(kept[:, 0], rows[:, 0]), len(kept) - 1)
    there = kept[at, 0] == rows[:, 0]
    return there, there & (kept[at, 1] != rows[:, 1])


@dataclass
class _Partition:
    """Plans one spilled file after the other."""

    built: Plan
    ledger: Ledger
    rejected: Any
    losers: np.ndarray
    shard_pairs: int
    max_attempts: int
    known: Known | None

    def plan(self, within: HashRange, path: Path) -> None:
        """Adds the shards of one spilled file. A file that is too large is split first, unless it holds one query."""
        if path.stat().st_size > PARTITION_BYTES and within.bits + SPLIT_BITS <= 16:
            with _Spill(path.with_suffix(""), within, SPLIT_BITS) as spill, pa.memory_map(str(path)) as source:
                for batch in pa.ipc.open_stream(source):
                    spill.add(batch)
            path.unlink()
            for inner, part in spill.files:
                self.plan(inner, part)
            return
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_stream(source).read_all()
        self._plan(within, table)
        path.unlink()

    def _plan(self, within: HashRange, table: pa.Table) -> None:
        counts = self.built.counts
        columns = {name: table.column(name).to_numpy() for name, _ in KEY_COLUMNS}
        ids, high, low = columns["id"], columns["high"], columns["low"]
        rows = np.lexsort((low, high, ids))
        rows = rows[~self._conflicts(table, rows, mixed(ids, high)[rows])]
        first = np.diff(ids[rows], prepend=ids[rows[:1]] + np.uint64(1)) != 0
        rows = _smallest_first(table, rows, first)
        counts.folded, counts.unique = counts.folded + int((~first).sum()), counts.unique + int(first.sum())
        frequency = _largest(table.column("query_frequency").to_numpy(), rows, first)
        rows = rows[first]

        key = mixed(ids, high)[rows]
        labelled = contains(np.sort(mixed(*self.ledger.known(within))), key)
        counts.labelled += int(labelled.sum())
        before = np.zeros(len(rows), np.int32)
        final = np.zeros(len(rows), bool)
        if failed := self.ledger.failed(within):
            for row, pair in enumerate(zip(ids[rows].tolist(), high[rows].tolist(), strict=True)):
                if not labelled[row] and (tried := failed.get(pair)):
                    before[row], final[row] = tried[0], is_final(*tried, self.max_attempts)
        counts.given_up += int(final.sum())
        left = ~(labelled | final)
        rows, before, frequency = rows[left], before[left], frequency[left]

        order = np.lexsort((ids[rows], low[rows], high[rows], columns["hash"][rows], columns["long"][rows], before > 0))
        rows, before, frequency = rows[order], before[order], frequency[order]
        questions = self._questions(table, rows, before, frequency)
        if self.known is not None and len(rows):
            stored = self.known.label(self._name(within, ids[rows], high[rows], before), questions)
            counts.stored += int(stored.sum())
            rows, before, questions = rows[~stored], before[~stored], questions.filter(pa.array(~stored))
        if len(rows):
            self._write(within, questions, ids[rows], high[rows], before)
            counts.to_label, counts.again = counts.to_label + len(rows), counts.again + int((before > 0).sum())

    def _conflicts(self, table: pa.Table, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        lost = contains(self.losers, keys)
        if lost.any():
            for row in table.select(["pair_id", "query", "title"]).take(pa.array(rows[lost])).to_pylist():
                self.rejected.write(
                    Rejection(
                        "input", 0, "pair_id", "names another pair too", row["pair_id"], "one query and item per pair_id", row
                    )
                )
            self.built.counts.conflicting += int(lost.sum())
        return lost

    def _questions(self, table: pa.Table, rows: np.ndarray, before: np.ndarray, frequency: np.ndarray) -> pa.Table:
        taken = table.take(pa.array(rows)).combine_chunks()
        contents = content_bytes(taken.column("high").to_numpy(), taken.column("low").to_numpy())
        taken = taken.select(QUESTION_SCHEMA.names)
        at = taken.schema.get_field_index("query_frequency")
        taken = taken.set_column(at, "query_frequency", pa.array(frequency, pa.float64(), mask=np.isnan(frequency)))
        return taken.append_column("content", contents).append_column("asked_before", pa.array(before)).cast(SHARD_SCHEMA)

    def _write(self, within: HashRange, questions: pa.Table, ids: np.ndarray, high: np.ndarray, before: np.ndarray) -> None:
        file, size = f"{within}.arrow", self.shard_pairs
        path = self.built.work / "shards" / file
        with written_whole(path) as sink, pa.ipc.new_file(sink, SHARD_SCHEMA, options=COMPRESSED) as writer:
            for batch, start in enumerate(range(0, len(ids), size)):
                rows = slice(start, start + size)
                writer.write_batch(questions.slice(start, size).combine_chunks().to_batches()[0])
                name = self._name(within, ids[rows], high[rows], before[rows])
                self.built.shards.append(Shard(name, file, batch, len(ids[rows])))
                self.built.counts.questions += 1 + int((np.diff(high[rows]) != 0).sum())

    @staticmethod
    def _name(within: HashRange, ids: np.ndarray, high: np.ndarray, before: np.ndarray) -> str:
        return f"{within}-{_named(ids, high, before)}"


def _named(ids: np.ndarray, high: np.ndarray, before: np.ndarray) -> str:
    """The end of a shard's name, from its pairs."""
    digest = hashlib.blake2b(np.stack([ids, high, before.astype(np.uint64)]).tobytes(), digest_size=10)
    return f"{digest.hexdigest()}.parquet"


def _smallest_first(table: pa.Table, rows: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Sorts the rows of each pair by their texts, where these differ (in case, spacing or item_id), so that the order of the input
    does not decide which of them is asked. first: where a pair begins."""
    if first.all():
        return rows
    pair = np.cumsum(first) - 1
    repeated = np.flatnonzero(np.bincount(pair)[pair] > 1)
    texts = table.select(SPELLINGS).take(pa.array(rows[repeated])).combine_chunks()
    differ, again = np.zeros(len(repeated) - 1, bool), ~first[repeated][1:]
    for column in texts.columns:
        values = pc.fill_null(column.combine_chunks(), "")
        differ |= pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    mixed_pairs = np.unique(pair[repeated][1:][differ & again])
    at = np.isin(pair[repeated], mixed_pairs)
    if not at.any():
        return rows
    places, texts = repeated[at], texts.filter(pa.array(at)).append_column("pair", pa.array(pair[repeated][at]))
    order = pc.sort_indices(texts, [("pair", "ascending"), *((name, "ascending") for name in SPELLINGS)]).to_numpy()
    rows = rows.copy()
    rows[places] = rows[places[order]]
    return rows


def _largest(frequency: np.ndarray, rows: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The largest frequency among equal rows, NaN where none has one. One value per first row."""
    if not len(rows):
        return np.empty(0)
    values = frequency.astype(np.float64)[rows]
    return np.fmax.reduceat(values, np.flatnonzero(first))
