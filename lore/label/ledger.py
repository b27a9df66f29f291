"""The ledger: which pairs of a label folder have a verdict. The label files themselves are the ledger, so the two cannot disagree.

A shard becomes visible with one name in verdicts/: the file is written under a temporary name, flushed, linked to its name, and the
folder is flushed. The name holds the digest of the shard's pair ids, contents and attempts. A shard that was labelled twice, by two
workers or by two machines, therefore has one name, and only the first is kept. Pairs without an answer go to failures/ before that.

Names begin with the range of query hashes of the shard (`RANGE`), so that a partition of the plan reads only its own files.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lore.data.tables.parquet_files import open_parquet
from lore.judge.ask import TOO_LONG
from lore.label.keys import MULTIPLIER, content_halves, id_hashes
from lore.label.schema import FAILURES, VERDICTS, label_schema
from lore.support.atomic_files import clear_parts, open_part, part_of, publish_once, remove, written_whole
from lore.support.errors import LoreError

STAMP = b"lore.stamp"
RANGE = re.compile(r"^(\d\d)-([0-9a-f]{4})-([0-9a-f]{20})\.parquet$")
"""bits, the first `bits` bits of the query hashes, digest."""
REPAIR = "Delete it and run the same command again: the pairs in it are asked again."
FINAL = frozenset({TOO_LONG})
"""Failures that another try cannot change."""


@dataclass(frozen=True, order=True)
class HashRange:
    """All query hashes that begin with the same bits."""

    bits: int
    prefix: int

    def __str__(self) -> str:
        return f"{self.bits:02d}-{self.prefix:04x}"

    def meets(self, other: "HashRange") -> bool:
        """Whether one of the ranges lies in the other."""
        bits = min(self.bits, other.bits)
        return self.prefix >> (self.bits - bits) == other.prefix >> (other.bits - bits)

    def holds(self, hashes: np.ndarray) -> np.ndarray:
        """Which of the hashes lie in this range."""
        if self.bits == 0:
            return np.ones(len(hashes), bool)
        return (hashes >> np.uint64(64 - self.bits)) == np.uint64(self.prefix)


class Ledger:
    """The label files of one folder."""

    def __init__(self, folder: Path, tier_ids: list[str], stamp: str):
        """stamp: what the labels depend on, stored in each file."""
        self.folder, self.tier_ids, self.schema, self.stamp = folder, tier_ids, label_schema(tier_ids), stamp
        self._listed: dict[str, dict[HashRange, list[Path]]] = {}
        self._metadata = self.schema.with_metadata({STAMP: stamp.encode()})

    def open(self) -> None:
        """Creates the folders and clears the part files of killed runs."""
        for name in (VERDICTS, FAILURES):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            clear_parts(self.folder / name)

    def has(self, name: str) -> bool:
        """Whether a shard is committed."""
        return (self.folder / VERDICTS / name).exists() or (self.folder / FAILURES / name).exists()

    def files(self, kind: str = VERDICTS, within: HashRange | None = None) -> list[Path]:
        """Label files, sorted by name; `within`: only those that can hold its query hashes."""
        listed = self._listed.get(kind)
        if listed is None:
            listed = self._list(kind)
        return sorted(path for inside, paths in listed.items() if within is None or within.meets(inside) for path in paths)

    @contextmanager
    def listed_once(self, *kinds: str) -> Iterator[None]:
        """Inside the context the folders are listed once: for many calls of `files` that need no later files."""
        self._listed = {kind: self._list(kind) for kind in kinds}
        try:
            yield
        finally:
            self._listed = {}

    def _list(self, kind: str) -> dict[HashRange, list[Path]]:
        found: dict[HashRange, list[Path]] = {}
        place = self.folder / kind
        for path in place.iterdir() if place.is_dir() else ():
            if match := RANGE.match(path.name):
                found.setdefault(HashRange(int(match[1]), int(match[2], 16)), []).append(path)
        return found

    def tables(self, kind: str, columns: list[str], within: HashRange | None = None) -> Iterator[tuple[Path, pa.Table]]:
        """The rows of each label file. Raises LoreError for a damaged file and for one of another judge."""
        for path in self.files(kind, within):
            with open_parquet(path, REPAIR) as parquet:
                found = (parquet.schema_arrow.metadata or {}).get(STAMP, b"").decode(errors="replace")
                if found != self.stamp:
                    raise LoreError(
                        f"{path} was labelled with {found or 'no stamp'}, and this run is {self.stamp}: two judges in one folder "
                        f"would be one column of labels.\nLabel into another folder, or remove {path}."
                    )
                yield path, parquet.read(columns=columns)

    def known(self, within: HashRange | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(id hash, high half of the content) of every pair with a verdict."""
        return _concat([keys_of(table) for _, table in self.tables(VERDICTS, ["pair_id", "content"], within)])

    def failed(self, within: HashRange | None = None) -> dict[tuple[int, int], tuple[int, str]]:
        """(attempts, failure) of pairs without an answer, by (id hash, high half of the content), the most attempts of each."""
        found: dict[tuple[int, int], tuple[int, str]] = {}
        for _, table in self.tables(FAILURES, ["pair_id", "content", "attempts", "failure"], within):
            ids, high = keys_of(table)
            rows = zip(ids.tolist(), high.tolist(), *(table.column(n).to_pylist() for n in ("attempts", "failure")), strict=True)
            for one, content, attempts, failure in rows:
                found[one, content] = max(found.get((one, content), (0, "")), (attempts or 1, failure or ""))
        return found

    def commit(self, name: str, verdicts: pa.Table, failures: pa.Table) -> bool:
        """Publishes the labels of a shard. False if the shard has been committed before: then nothing is written.

        name: as RANGE. The failures come first: a kill between the two repeats the shard and costs its failures one attempt.
        """
        if (self.folder / VERDICTS / name).exists():
            return False
        if failures.num_rows:
            published = self._publish(FAILURES, name, failures)
            if not verdicts.num_rows:
                return published
        return self._publish(VERDICTS, name, verdicts)

    def _publish(self, kind: str, name: str, table: pa.Table) -> bool:
        path = self.folder / kind / name
        part = part_of(path)
        try:
            with open_part(part, path) as file:
                pq.write_table(table.cast(self._metadata), file, compression="zstd")
            return publish_once(part, path)
        finally:
            part.unlink(missing_ok=True)

    def remove(self, ids: np.ndarray, high: np.ndarray, failed_ids: np.ndarray, failed_high: np.ndarray) -> None:
        """Removes verdicts, and pairs without an answer, by (id hash, high half of the content): their text has changed."""
        for kind, gone in ((VERDICTS, np.sort(mixed(ids, high))), (FAILURES, np.sort(mixed(failed_ids, failed_high)))):
            if len(gone):
                for path, table in self.tables(kind, ["pair_id", "content"]):
                    self._keep(path, ~contains(gone, mixed(*keys_of(table))))

    def remove_doubled(self, doubled: np.ndarray) -> None:
        """Leaves one verdict per pair, the one in the first file. Two machines that work in one folder, on a file system without
        locks, may have labelled a pair twice. doubled: sorted id hashes of pairs with several verdicts."""
        seen = np.zeros(len(doubled), bool)
        for path, table in self.tables(VERDICTS, ["pair_id", "content"]) if len(doubled) else ():
            ids = keys_of(table)[0]
            at = np.minimum(np.searchsorted(doubled, ids), len(doubled) - 1)
            held = np.flatnonzero(doubled[at] == ids)
            later = np.ones(len(held), bool)
            later[np.unique(at[held], return_index=True)[1]] = False
            keep = np.ones(len(ids), bool)
            keep[held[later | seen[at[held]]]] = False
            seen[at[held]] = True
            self._keep(path, keep)

    def _keep(self, path: Path, keep: np.ndarray) -> None:
        """Rewrites a label file with some of its rows."""
        if keep.all():
            return
        if not keep.any():
            remove(path)
            return
        with open_parquet(path, REPAIR) as parquet:
            table = parquet.read(columns=self.schema.names)
        with written_whole(path) as file:
            pq.write_table(table.filter(pa.array(keep)).cast(self._metadata), file, compression="zstd")

    def count_failures(self, most: int) -> tuple[int, int]:
        """(pairs without an answer, those of them that are not asked again). After `settle_failures`."""
        rows = final = 0
        for _, table in self.tables(FAILURES, ["attempts", "failure"]):
            tried = zip(table.column("attempts").to_pylist(), table.column("failure").to_pylist(), strict=True)
            rows, final = rows + table.num_rows, final + sum(is_final(times or 1, why or "", most) for times, why in tried)
        return rows, final

    def settle_failures(self) -> None:
        """Rewrites failures/ with one row per pair that still has no answer, with its most attempts."""
        with self.listed_once(VERDICTS):
            for inside, paths in sorted(self._list(FAILURES).items()):
                latest, answered = self.failed(inside), np.sort(mixed(*self.known(inside)))
                for path in sorted(paths):
                    self._settle(path, latest, answered)

    def _settle(self, path: Path, latest: dict[tuple[int, int], tuple[int, str]], answered: np.ndarray) -> None:
        with open_parquet(path, REPAIR) as parquet:
            table = parquet.read()
        ids, high = keys_of(table)
        rows = zip(ids.tolist(), high.tolist(), table.column("attempts").to_pylist(), strict=True)
        last = np.array([latest[one, content][0] == attempts for one, content, attempts in rows], bool)
        keep = last & ~contains(answered, mixed(ids, high))
        self._keep(path, keep)


def is_final(attempts: int, failure: str, most: int) -> bool:
    """Whether a pair without an answer is not asked again."""
    return attempts >= most or failure in FINAL


def mixed(ids: np.ndarray, high: np.ndarray) -> np.ndarray:
    """One 64-bit key of id and content."""
    return ids * MULTIPLIER ^ high


def contains(known: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Which keys are among the sorted `known`."""
    if not len(known):
        return np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return known[at] == keys


def keys_of(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(id hashes, high halves of the contents) of label rows."""
    if not table.num_rows:
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    contents = pc.cast(table.column("content").combine_chunks(), pa.binary(16))
    return id_hashes(table.column("pair_id")), content_halves(contents)[0]


def _concat(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if not parts:
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    return np.concatenate([one for one, _ in parts]), np.concatenate([one for _, one in parts])
