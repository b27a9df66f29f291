"""Shadow mode: a share of the student's answers is written down, to be judged later.

    shadow = Shadow(recipe.shadow, tier_ids)
    shadow.start()
    shadow.offer(pairs, answers)        after the reply went out; never waits
    shadow.close()                      writes what is left

The folder has one folder a day (UTC), which is an input of `lore label` as it is:

    shadow/2026-11-30/<milliseconds>-<machine>-<process>-<number>.parquet
    lore label shadow/2026-11-30 --judge runs/grpo -o shadow_labels/2026-11-30

A row is the pair, the Verdict row of the student, and the columns of MORE. Its pair_id comes from the content of the pair, so a
pair has the same one in every request, worker and day. Which pairs are taken is decided by the content too: all workers and
machines take the same ones, and each writes a pair once a day. With `rotate_days`, other pairs are taken after so many days: the
days are then independent samples of the traffic, which `lore monitor report` relies on.

A thread does the work. The queue in front of it is bounded in pairs and bytes; what does not fit, and what the folder has no room
for, is dropped and counted.
"""

import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lore.data.pair import Pair
from lore.data.parquet import to_column
from lore.judge.verdict import to_columns, verdict_schema
from lore.label.keys import ContentKeys
from lore.label.schema import QUESTION_FIELDS, QUESTION_SCHEMA
from lore.online.answer import Answer
from lore.online.config import ShadowSection
from lore.support.atomic_files import machine, written_whole
from lore.support.errors import LoreError, reason
from lore.support.terminal import print_note

MORE = pa.schema([("band", pa.string()), ("late", pa.bool_()), ("score", pa.float64()), ("time", pa.float64())])
"""time: of the answer, in seconds since 1970."""
REMEMBERED_PAIRS = 200_000
"""Pairs of a day that a worker does not write twice. Beyond it, some are; the report folds them."""
REMEMBERED_BYTES = 16 * 2**20
MOST_BYTES = 32 * 2**20
"""Of texts and photos in the queue of one worker, and as many again that wait for the next file."""
CLOSE_SECONDS = 5.0
DAY_SECONDS = 86_400


@dataclass(slots=True)
class _Offer:
    pairs: list[Pair]
    answers: list[Answer]
    time: float
    bytes: int


@dataclass(slots=True)
class ShadowRow:
    pair: Pair
    answer: Answer
    time: float


class Shadow:
    """Writes the shadow folder of one worker. count: is told what happened to pairs, by an outcome (written, queue_full,
    folder_full, large_photo, failed) and a number. `offer` is for one thread; the rest may be called from any."""

    def __init__(
        self, section: ShadowSection, tier_ids: Sequence[str], count: Callable[[str, int], None] = lambda outcome, pairs: None
    ):
        self.section, self.tier_ids, self.folder = section, list(tier_ids), Path(section.folder or "")
        self.counts: Counter[str] = Counter()
        self._count = count
        self._queue: queue.SimpleQueue[_Offer | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pairs = self._bytes = 0
        self._rows: list[ShadowRow] = []
        self._row_bytes = 0
        self._due = self._rest = float("inf")
        self._keys = ContentKeys(REMEMBERED_BYTES)
        self._seen: set[bytes] = set()
        self._day = self._files = 0
        self._noted: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        """Raises LoreError if the folder cannot be written to."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError("it is read-only")
        except OSError as error:
            raise LoreError(
                f"{self.folder} (shadow.folder) cannot be written to: {reason(error)}.\n"
                "Name another folder, or set shadow.share: 0."
            ) from error
        self._thread.start()

    def offer(self, pairs: Sequence[Pair], answers: Sequence[Answer]) -> None:
        """Hands over what was answered. Only answers of the student are taken. Never waits and never raises."""
        taken = [
            (pair, answer)
            for pair, answer in zip(pairs, answers, strict=False)
            if answer.source == "student" and answer.verdict.failure is None and isinstance(pair, Pair)
        ]
        if not taken:
            return
        size = sum(_size(pair) for pair, _ in taken)
        with self._lock:
            fits = self._pairs + len(taken) <= self.section.queued_pairs and self._bytes + size <= MOST_BYTES
            if fits:
                self._pairs += len(taken)
                self._bytes += size
        if not fits:
            self._note_count("queue_full", len(taken))
            return
        self._queue.put(_Offer([pair for pair, _ in taken], [answer for _, answer in taken], time.time(), size))

    def close(self) -> None:
        """Writes what has been offered, and ends the thread."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(CLOSE_SECONDS)

    # In the thread

    def _run(self) -> None:
        self._rest = self.section.max_bytes - _bytes_below(self.folder)
        while True:
            try:
                wait = max(0.0, self._due - time.monotonic())
                offer = self._queue.get(timeout=None if wait == float("inf") else wait)
            except queue.Empty:
                self._write()
                continue
            if offer is None:
                self._write()
                return
            try:
                self._take(offer)
            except Exception as error:  # one pair must not end shadow mode, and nothing here may reach a request
                self._lost("failed", len(offer.pairs), f"{type(error).__name__}")
            with self._lock:
                self._pairs -= len(offer.pairs)
                self._bytes -= offer.bytes
            if len(self._rows) >= self.section.shard_pairs or self._row_bytes > MOST_BYTES or time.monotonic() >= self._due:
                self._write()

    def _take(self, offer: _Offer) -> None:
        """Keeps the pairs of the share that this day has not seen."""
        day = int(offer.time // DAY_SECONDS)
        if day != self._day or len(self._seen) >= REMEMBERED_PAIRS:
            self._day = day
            self._seen.clear()
        salt = rotation(day, self.section.rotate_days)
        for pair, answer in zip(offer.pairs, offer.answers, strict=True):
            content = self._keys.of(pair)
            if not is_taken(content, self.section.share, salt) or content in self._seen:
                continue
            self._seen.add(content)
            if len((pair.image or {}).get("bytes") or b"") > self.section.max_photo_bytes:
                self._note_count("large_photo", 1)
                continue
            if not self._rows:
                self._due = time.monotonic() + self.section.shard_seconds
            self._rows.append(ShadowRow(replace(pair, pair_id=f"s{content.hex()}"), answer, offer.time))
            self._row_bytes += _size(pair)

    def _write(self) -> None:
        rows, self._rows, self._row_bytes, self._due = self._rows, [], 0, float("inf")
        for day, found in groupby(rows, lambda row: int(row.time // DAY_SECONDS)):
            self._write_day(day, list(found))

    def _write_day(self, day: int, rows: list[ShadowRow]) -> None:
        if self._rest <= 0:
            self._rest = self.section.max_bytes - _bytes_below(self.folder)  # somebody may have removed old days
        if self._rest <= 0:
            self._lost("folder_full", len(rows), f"{self.folder} has shadow.max_bytes; remove days that are labelled")
            return
        self._files += 1
        name = f"{int(rows[0].time * 1000):013d}-{machine()}-{os.getpid()}-{self._files}.parquet"
        path = self.folder / day_name(day) / name
        try:
            with written_whole(path) as file:
                pq.write_table(shadow_table(rows, self.tier_ids), file, compression="zstd")
            self._rest -= path.stat().st_size
            self._note_count("written", len(rows))
        except (OSError, pa.ArrowException, LoreError) as error:
            self._lost("failed", len(rows), reason(error) if isinstance(error, OSError) else type(error).__name__)

    def _lost(self, outcome: str, pairs: int, why: str) -> None:
        self._note_count(outcome, pairs)
        if outcome not in self._noted:
            self._noted.add(outcome)
            print_note(f"warning: shadow mode drops pairs ({outcome}): {why}")

    def _note_count(self, outcome: str, pairs: int) -> None:
        self.counts[outcome] += pairs
        self._count(outcome, pairs)


def shadow_schema(tier_ids: Sequence[str]) -> pa.Schema:
    """Columns of the files: those of `lore label`'s questions, the student's Verdict row, and MORE."""
    return pa.schema([*QUESTION_SCHEMA, *(field for field in verdict_schema(list(tier_ids)) if field.name != "pair_id"), *MORE])


def shadow_table(rows: Sequence[ShadowRow], tier_ids: Sequence[str]) -> pa.Table:
    """Rows (pair, answer, time) as a table of `shadow_schema`."""
    columns = to_columns([row.answer.verdict for row in rows], list(tier_ids))
    columns |= {name: to_column(name, [getattr(row.pair, name) for row in rows]) for name in QUESTION_FIELDS}
    columns |= {name: pa.array([getattr(row.answer, name) for row in rows], MORE.field(name).type) for name in MORE.names[:3]}
    columns["time"] = pa.array([row.time for row in rows], pa.float64())
    schema = shadow_schema(tier_ids)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def is_taken(content: bytes, share: float, salt: int = 0) -> bool:
    """Whether a pair belongs to the share. content: 16 bytes, see lore.label.keys; salt: other salts take other pairs."""
    # Steps of the golden ratio: small shares of neighboring salts do not overlap.
    return (int.from_bytes(content[:8]) + salt * 0x9E3779B97F4A7C15) % 2**64 < share * 2**64


def rotation(day: int, rotate_days: int) -> int:
    """The salt of a day, in days since 1970; always 0 without rotation."""
    return day // rotate_days if rotate_days else 0


def day_name(day: int) -> str:
    """2026-11-30. day: in days since 1970."""
    return datetime.fromtimestamp(day * DAY_SECONDS, UTC).strftime("%Y-%m-%d")


def _size(pair: Pair) -> int:
    texts = (pair.query, pair.title, pair.description, *pair.attributes, *pair.attributes.values())
    return sum(map(len, filter(None, texts))) + len((pair.image or {}).get("bytes") or b"")


def _bytes_below(folder: Path) -> int:
    return sum(size for size in map(_file_bytes, folder.rglob("*.parquet")) if size)


def _file_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # removed by now
        return 0


def shadow_files(folder: Path) -> Iterator[Path]:
    """The files of a shadow folder, by day."""
    return (path for path in sorted(folder.glob("*/*.parquet")) if not path.name.startswith("."))
