"""The verdict store: what a judge has answered on this machine, by the content that it was asked about, in one SQLite file.

    store = open_store(None)                            $LORE_CACHE/verdicts.sqlite, or None if it is turned off
    known = store.known(judge, contents)                for a plan
    rows = store.get(judge, contents)                   instead of asking
    store.put(judge, verdicts)                          after a shard is committed

The label files are the truth and the store is an index of them: `add_missing` fills it from label folders, and deleting it loses
nothing but time. judge: everything that an answer depends on besides the pair, that is weights, rubric, renderer and mode. content:
see lore.label.schema.CONTENT.

Several processes of one machine may use a store at once (SQLite's write-ahead log). Machines cannot share one: the log lives in
shared memory. A store on a network file system is therefore turned off.
"""

import json
import os
import re
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lore.data.tables.parquet_files import open_parquet
from lore.judge.ask import NO_ANSWER
from lore.judge.verdict import UNSCORED, Verdict
from lore.support.errors import LoreError, reason
from lore.support.progress import track
from lore.support.terminal import print_note
from lore.support.text import named

CACHE, DEFAULT_CACHE, NONE = "LORE_CACHE", "~/.cache/lore", "none"
FILE = "verdicts.sqlite"
APPLICATION, VERSION = 0x4C4F5245, 1  # "LORE"
WAIT_SECONDS = 300.0  # the gc of another process copies the whole file
PAGE_BYTES = 4096
CACHE_KIB = 65_536
CHECKPOINT_PAGES = 8192  # of the log: random keys touch many pages, and a page that is written twice is copied once
ASKED_AT_ONCE = 1000
WRITTEN_AT_ONCE = 50_000
SHOWN_FILES = 20  # from so many on, adding them takes seconds
MOUNTS = Path("/proc/self/mountinfo")
NETWORK = re.compile(r"^(nfs\d?|cifs|smb\w*|lustre|gpfs|beegfs|ceph|afs|9p|glusterfs|fuse\.(?!fuse-overlayfs|overlay)\w+)")
TABLES = """
CREATE TABLE judges (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, tiers TEXT NOT NULL, used INTEGER NOT NULL);
CREATE TABLE answerers (id INTEGER PRIMARY KEY, judge_id TEXT NOT NULL UNIQUE);
CREATE TABLE shards (judge INTEGER NOT NULL, name TEXT NOT NULL, PRIMARY KEY (judge, name)) WITHOUT ROWID;
CREATE TABLE verdicts (
    judge INTEGER NOT NULL, content BLOB NOT NULL, tier INTEGER, probabilities BLOB, answerer INTEGER, photo TEXT, rationale TEXT,
    mismatch TEXT, rules TEXT, failure TEXT, text TEXT, tokens INTEGER, detail TEXT, stored REAL);
CREATE UNIQUE INDEX contents ON verdicts (judge, content);
"""
NO_ROOM = frozenset(getattr(sqlite3, f"SQLITE_{name}") for name in ("FULL", "IOERR", "CANTOPEN", "READONLY", "PERM"))
TEXTS = ("photo", "rationale", "mismatch", "failure", "text", "detail")
COLUMNS = ("tier", "probabilities", "answerer", "photo", "rationale", "mismatch", "rules", "failure", "text", "tokens", "detail")
INSERT = (
    f"INSERT OR IGNORE INTO verdicts (judge, content, {', '.join(COLUMNS)}, stored) VALUES ({', '.join('?' * (3 + len(COLUMNS)))})"
)
RENEW = INSERT.replace("OR IGNORE", "OR REPLACE")
ANSWER = "content, tier, probabilities, answerer, photo, rationale, mismatch, rules, text, tokens, detail, stored"
READ = ("content", "tier", "failure", "rationale", "mismatch", "rules", "text", "photo", "judge_id", "tokens", "detail")


@dataclass(frozen=True)
class StoredJudge:
    """A judge in the store. used: the last day on which it was asked or answered, in days since 1970."""

    name: str
    verdicts: int
    used: int


@dataclass(frozen=True)
class StoreStats:
    path: Path
    bytes: int
    judges: list[StoredJudge]


def store_path(given: str | None = None) -> Path | None:
    """The file of the store: `given`, or else verdicts.sqlite in $LORE_CACHE (~/.cache/lore). None if either is `none`."""
    if given is not None:
        return None if given == NONE else Path(given).expanduser()
    folder = named(os.environ.get(CACHE) or DEFAULT_CACHE, f"The environment variable {CACHE}")
    return None if folder == NONE else Path(folder).expanduser() / FILE


def open_store(given: str | None = None) -> "VerdictStore | None":
    """The store at `store_path`; None if there is none, or if it lies on a network file system, which is said."""
    path = store_path(given)
    if path is None:
        return None
    if kind := _network_file_system(path, MOUNTS):
        print_note(
            f"note: no verdict store: {path} is on a network file system ({kind}), where SQLite cannot lock it. Pairs that other "
            f"runs have labelled are asked again. Set {CACHE} to a folder on a local disk."
        )
        return None
    return VerdictStore(path)


class VerdictStore:
    """Answers by judge and content. The file is created by the first use. Every method may raise LoreError: for a damaged or
    foreign file, for a full disk, and if another process holds the file for more than `wait_seconds`."""

    def __init__(self, path: str | Path, wait_seconds: float | None = None):
        """wait_seconds: for other processes that write; None: WAIT_SECONDS."""
        self.path, self.wait_seconds = Path(path), WAIT_SECONDS if wait_seconds is None else wait_seconds
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._judges: dict[str, tuple[int, list[str]]] = {}
        self._answerers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._touched: set[tuple[str, int]] = set()
        self._inherited: list[sqlite3.Connection] = []

    def get(self, judge: str, contents: Iterable[bytes]) -> dict[bytes, dict[str, Any]]:
        """Answers to contents, in the columns of `lore.judge.verdict.to_row` without pair_id. Unknown contents are left out.

        source is `cache`, judge_id is who answered, and seconds is None: nobody was asked now.
        """
        with self._open() as connection:
            known = self._known_judge(connection, judge)
            if known is None:
                return {}
            number, tiers = known
            self._touch(connection, judge)
            answerers = dict(connection.execute("SELECT id, judge_id FROM answerers"))
            floats = struct.Struct(f"<{len(tiers)}d")
            scored = [f"p_{tier}" for tier in tiers]
            unscored = dict.fromkeys(scored)
            rows = self._select(connection, f"content, {', '.join(COLUMNS)}", number, contents)
            try:
                return {row[0]: _decoded(row, tiers, scored, unscored, floats, answerers) for row in rows}
            except (struct.error, ValueError, TypeError, IndexError) as error:  # a value that no version writes
                raise self._unreadable(reason(error)) from error

    def answers(self, judge: str, contents: Iterable[bytes]) -> list[tuple[bytes, Verdict, float | None]]:
        """(content, verdict, when it was stored in seconds since 1970) of the contents with a tier, for a service: without
        failures, with an empty pair_id, and without a note that the judge is in use (`touch`), which would wait for writers. The
        time is None in rows of earlier versions."""
        with self._open() as connection:
            known = self._known_judge(connection, judge)
            if known is None:
                return []
            number, tiers = known
            found: list[tuple[bytes, Verdict, float | None]] = []
            floats = struct.Struct(f"<{len(tiers)}d")
            rows = self._select(connection, ANSWER, number, contents, "AND tier IS NOT NULL AND failure IS NULL")
            try:
                for content, tier, probabilities, answerer, photo, rationale, mismatch, rules, text, tokens, detail, stored in rows:
                    if answerer is not None and answerer not in self._names:
                        self._names = dict(connection.execute("SELECT id, judge_id FROM answerers"))
                    verdict = Verdict(
                        "",
                        tiers[tier],
                        None if probabilities is None else list(floats.unpack(probabilities)),
                        rationale or "",
                        mismatch,
                        [] if rules is None else json.loads(rules),
                        None,
                        text,
                        photo or "none",
                        self._names.get(answerer),
                        tokens,
                        "cache",
                        None,
                        detail,
                    )
                    found.append((content, verdict, stored))
                return found
            except (struct.error, ValueError, TypeError, IndexError) as error:  # a value that no version writes
                raise self._unreadable(reason(error)) from error

    def judges(self) -> list[tuple[str, list[str]]]:
        """Names and tiers of the judges, without counting their verdicts. Forgets what this process knows of them: another one may
        have removed a judge and added it again."""
        with self._open() as connection:
            self._judges = {}
            return [(name, json.loads(tiers)) for name, tiers in connection.execute("SELECT name, tiers FROM judges ORDER BY id")]

    def touch(self, judge: str) -> None:
        """Notes that a judge is in use, so that `gc` keeps it."""
        with self._open() as connection:
            if self._known_judge(connection, judge) is not None:
                self._touch(connection, judge)

    def known(self, judge: str, contents: Iterable[bytes]) -> set[bytes]:
        """Which of the contents have an answer."""
        with self._open() as connection:
            known = self._known_judge(connection, judge)
            if known is None:
                return set()
            self._touch(connection, judge)
            return {content for (content,) in self._select(connection, "content", known[0], contents)}

    def put(
        self,
        judge: str,
        rows: pa.Table | pa.RecordBatch | Iterable[dict[str, Any]],
        shard: str | None = None,
        *,
        stored_seconds: float | None = None,
        renew: bool = False,
    ) -> int:
        """Stores answers and returns how many of the rows are one. Pairs without an answer, and answers whose scores the server
        refused, are left out. The first answer to a content stays, unless `renew`.

        rows: the columns of `lore.judge.verdict.to_row` with `content` (16 bytes); pair_id is not needed. shard: the name of the
        label file that holds exactly these rows, for `ingested`. stored_seconds: when they were answered, in seconds since 1970;
        None: now.
        """
        stored_seconds = time.time() if stored_seconds is None else stored_seconds
        table = _table(rows).combine_chunks()
        tiers = [name[2:] for name in table.schema.names if name.startswith("p_")]
        batches, count = table.to_batches(WRITTEN_AT_ONCE), 0
        with self._open() as connection:
            for at, batch in enumerate(batches, 1):
                last = shard if at == len(batches) else None
                count += self._write(connection, judge, tiers, batch, last, RENEW if renew else INSERT, stored_seconds)
        return count

    def ingested(self, judge: str) -> set[str]:
        """Names of the label files whose rows are in the store."""
        with self._open() as connection:
            known = self._known_judge(connection, judge)
            if known is None:
                return set()
            return {name for (name,) in connection.execute("SELECT name FROM shards WHERE judge = ?", known[:1])}

    def add_missing(self, judge: str, files: Iterable[Path]) -> int:
        """Adds the label files that are not in the store, such as those of a store that was deleted. Returns the number of their
        answers. A label file is known by its name, which holds the digest of its rows."""
        ingested, count = self.ingested(judge), 0
        missing = [path for path in files if path.name not in ingested]
        for path in track(missing, "adding labels to the verdict store") if len(missing) > SHOWN_FILES else missing:
            with open_parquet(path) as parquet:
                wanted = [n for n in parquet.schema_arrow.names if n in (*READ, "content") or n.startswith("p_")]
                table = parquet.read(columns=wanted)
            count += self.put(judge, table, path.name, stored_seconds=path.stat().st_mtime)
        return count

    def stats(self) -> StoreStats:
        """What the store holds. Reads its index once: about a second per 10 million verdicts."""
        if not self.path.is_file():
            return StoreStats(self.path, 0, [])
        with self._open() as connection:
            counts = dict(connection.execute("SELECT judge, count(*) FROM verdicts GROUP BY judge"))
            judges = connection.execute("SELECT id, name, used FROM judges ORDER BY used DESC, name").fetchall()
            return StoreStats(self.path, self._bytes(), [StoredJudge(name, counts.get(n, 0), used) for n, name, used in judges])

    def gc(self, unused_days: int = 0, keep: Callable[[str], bool] = lambda judge: False, *, dry_run: bool = False) -> StoreStats:
        """Removes the judges that were not used for that many days, except those to keep, and gives their room back to the disk.
        Returns the removed judges and the bytes by which the file shrank. dry_run: removes nothing, and the bytes are 0."""
        limit = today() - unused_days
        gone = [judge for judge in self.stats().judges if judge.used <= limit and not keep(judge.name)]
        if dry_run or not gone:
            return StoreStats(self.path, 0, gone)
        before = self._bytes()
        with self._open() as connection:
            for judge in gone:
                (number,) = connection.execute("SELECT id FROM judges WHERE name = ?", (judge.name,)).fetchone() or (None,)
                if number is None:
                    continue  # another process was faster
                connection.execute("DELETE FROM shards WHERE judge = ?", (number,))
                some = f"SELECT rowid FROM verdicts WHERE judge = ? LIMIT {WRITTEN_AT_ONCE}"
                while connection.execute(f"DELETE FROM verdicts WHERE rowid IN ({some})", (number,)).rowcount:
                    pass
                connection.execute("DELETE FROM judges WHERE id = ?", (number,))
            self._forget()
            try:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.OperationalError as error:  # in use by another process, or no room for the copy
                print_note(
                    f"note: {self.path} was not made smaller ({reason(error)}). New verdicts use the room of the removed ones."
                )
        return StoreStats(self.path, before - self._bytes(), gone)

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None
            self._forget()

    def __enter__(self) -> "VerdictStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _forget(self) -> None:
        self._judges, self._answerers, self._names, self._touched = {}, {}, {}, set()

    def _bytes(self) -> int:
        files = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        return sum(path.stat().st_size for path in files if path.is_file())

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The connection of this process, for one thread at a time."""
        with self._lock, self._explained():
            if self._connection is not None and self._process != os.getpid():
                self._inherited.append(self._connection)  # of the parent: closing it here would drop the parent's locks
                self._connection = None
                self._forget()
            if self._connection is None:
                self._process, self._connection = os.getpid(), self._connect()
            yield self._connection

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=self.wait_seconds, isolation_level=None, check_same_thread=False)
        try:
            if not self._is_own(connection):
                self._create(connection)
            self._add_times(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_own(self, connection: sqlite3.Connection) -> bool:
        """Whether the file is a store; False for an empty file. Raises LoreError for everything else."""
        # Tables are counted first: a process that creates the store at this moment commits them together with the id.
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if (application, version) == (APPLICATION, VERSION):
            return True
        if application == APPLICATION:
            raise LoreError(
                f"{self.path} is a verdict store of another version of LORE (format {version}, this one reads {VERSION}).\n"
                "Delete it, which loses nothing but time, or name another one (store in the recipe, --store, LORE_CACHE)."
            )
        if tables or application:
            raise self._unreadable("it is an SQLite file of another program")
        return False

    def _create(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        deadline = time.monotonic() + WAIT_SECONDS
        while True:  # SQLite does not wait here for another process that creates the file too
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if _code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        with _transaction(connection):
            if not self._is_own(connection):
                for statement in TABLES.split(";")[:-1]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {VERSION}")

    def _add_times(self, connection: sqlite3.Connection) -> None:
        """Adds the column `stored` to a store of an earlier version, which goes on reading and writing it."""

        def has_times() -> bool:
            return any(name == "stored" for _, name, *_ in connection.execute("PRAGMA table_info(verdicts)"))

        if not has_times():
            with _transaction(connection):
                if not has_times():
                    connection.execute("ALTER TABLE verdicts ADD COLUMN stored REAL")

    def _known_judge(self, connection: sqlite3.Connection, judge: str) -> tuple[int, list[str]] | None:
        """Number and tiers of a judge."""
        if judge not in self._judges:
            row = connection.execute("SELECT id, tiers FROM judges WHERE name = ?", (judge,)).fetchone()
            if row is None:
                return None
            self._judges[judge] = row[0], json.loads(row[1])
        return self._judges[judge]

    def _write(
        self,
        connection: sqlite3.Connection,
        judge: str,
        tiers: list[str],
        batch: pa.RecordBatch,
        shard: str | None,
        statement: str,
        stored_seconds: float,
    ) -> int:
        while True:
            number = self._new_judge(connection, judge, tiers)
            answers = [(*row, stored_seconds) for row in self._encoded(connection, number, tiers, batch)]
            with _transaction(connection):
                if connection.execute("SELECT 1 FROM judges WHERE id = ?", (number,)).fetchone() is None:
                    continue  # the gc of another process has just removed it
                connection.executemany(statement, answers)
                if shard is not None:
                    connection.execute("INSERT OR IGNORE INTO shards VALUES (?, ?)", (number, shard))
            return len(answers)

    def _new_judge(self, connection: sqlite3.Connection, judge: str, tiers: list[str]) -> int:
        """The number of a judge that rows are written for. Numbers are never used twice."""
        if not tiers:
            raise LoreError("The rows have no tier probability columns (p_TIER), so they are no labels, and the store takes none.")
        values = (judge, json.dumps(tiers), today())
        connection.execute("INSERT OR IGNORE INTO judges (name, tiers, used) VALUES (?, ?, ?)", values)
        self._judges.pop(judge, None)  # another process may have removed it and its number
        number, known = self._known_judge(connection, judge)
        if known != tiers:
            raise LoreError(
                f"The store has labels of {judge} with the tiers {', '.join(known)}, and these rows have {', '.join(tiers)}.\n"
                f"One judge has one rubric: delete {self.path}, which loses nothing but time."
            )
        self._touch(connection, judge)
        return number

    def _touch(self, connection: sqlite3.Connection, judge: str) -> None:
        """Notes the day, once a day and process."""
        day = today()
        if (judge, day) not in self._touched:
            connection.execute("UPDATE judges SET used = ? WHERE name = ? AND used < ?", (day, judge, day))
            self._touched.add((judge, day))

    def _select(
        self, connection: sqlite3.Connection, columns: str, number: int, contents: Iterable[bytes], more: str = ""
    ) -> Iterator[tuple]:
        ordered = iter(sorted(contents))  # neighbours lie in one page
        while some := list(islice(ordered, ASKED_AT_ONCE)):
            asked = min(ASKED_AT_ONCE, 1 << (len(some) - 1).bit_length())  # few statements, each of which SQLite prepares once
            some += [some[-1]] * (asked - len(some))
            yield from connection.execute(_asking(columns, asked, more), (number, *some))

    def _encoded(self, connection: sqlite3.Connection, number: int, tiers: list[str], batch: pa.RecordBatch) -> list[tuple]:
        """The answers among the rows, sorted by content, as values of INSERT."""
        batch = batch.filter(_is_answer(batch))
        if not batch.num_rows:
            return []
        columns = {name: _values(batch, name) for name in ("content", "tier", "judge_id", "rules", "tokens", *TEXTS)}
        if any(content is None or len(content) != 16 for content in columns["content"]):
            raise LoreError("A row has no content of 16 bytes (lore.label.schema.CONTENT), so it is unknown what was asked.")
        index = {tier: at for at, tier in enumerate(tiers)} | {None: None}
        if unknown := set(columns["tier"]) - index.keys():
            raise LoreError(f"Tier {', '.join(sorted(unknown))} is none of {', '.join(tiers)}, so the rows are of another rubric.")
        answerers = {judge_id: self._answerer(connection, judge_id) for judge_id in set(columns["judge_id"])}
        rows = zip(
            [number] * batch.num_rows,
            columns["content"],
            [index[tier] for tier in columns["tier"]],
            _packed(batch, tiers),
            [answerers[judge_id] for judge_id in columns["judge_id"]],
            columns["photo"],
            [text or None for text in columns["rationale"]],
            columns["mismatch"],
            [json.dumps(rules, ensure_ascii=False) if rules else None for rules in columns["rules"]],
            *(columns[name] for name in ("failure", "text", "tokens", "detail")),
            strict=True,
        )
        return sorted(rows, key=lambda row: row[1])

    def _answerer(self, connection: sqlite3.Connection, judge_id: str | None) -> int | None:
        if judge_id is None:
            return None
        if judge_id not in self._answerers:
            connection.execute("INSERT OR IGNORE INTO answerers (judge_id) VALUES (?)", (judge_id,))
            row = connection.execute("SELECT id FROM answerers WHERE judge_id = ?", (judge_id,)).fetchone()
            self._answerers[judge_id] = row[0]
        return self._answerers[judge_id]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Translates errors of SQLite. Only a damaged or foreign file is one to delete."""
        try:
            yield
        except sqlite3.Error as error:
            code = _code(error)
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise LoreError(
                    f"{self.path} was locked by another process for {self.wait_seconds:g} seconds, so its verdicts cannot be "
                    "used.\nStop that process, or name another file (store in the recipe, --store, LORE_CACHE)."
                ) from error
            if code in NO_ROOM:
                raise LoreError(
                    f"The verdict store {self.path} cannot be used: {reason(error)}.\n"
                    "Free some space or allow writing there, or name a file on another disk, or none for no store (store in the "
                    "recipe, --store, LORE_CACHE)."
                ) from error
            raise self._unreadable(reason(error)) from error

    def _unreadable(self, why: str) -> LoreError:
        return LoreError(
            f"{self.path} is damaged or no verdict store ({why}).\n"
            "A verdict store holds what label folders hold, and what a judge has told the service: deleting it (with the -wal and "
            "-shm files beside it) loses nothing but time. If the file is something else, name another one (store in the recipe, "
            "--store, LORE_CACHE)."
        )


def _decoded(
    row: tuple, tiers: list[str], scored: list[str], unscored: dict[str, None], floats: struct.Struct, answerers: dict[int, str]
) -> dict[str, Any]:
    """A row of verdicts (content, then COLUMNS) as a row of `get`."""
    _, tier, probabilities, answerer, photo, rationale, mismatch, rules, failure, text, tokens, detail = row
    return {
        "tier": None if tier is None else tiers[tier],
        **(unscored if probabilities is None else dict(zip(scored, floats.unpack(probabilities), strict=True))),
        "failure": failure,
        "rationale": rationale or "",
        "mismatch": mismatch,
        "rules": [] if rules is None else json.loads(rules),
        "text": text,
        "photo": photo,
        "judge_id": answerers.get(answerer),
        "tokens": tokens,
        "source": "cache",
        "seconds": None,
        "detail": detail,
    }


@cache
def _asking(columns: str, contents: int, more: str) -> str:
    return f"SELECT {columns} FROM verdicts WHERE judge = ? AND content IN ({', '.join('?' * contents)}) {more}"


def today() -> int:
    """Days since 1970."""
    return int(time.time() // 86_400)


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _table(rows: pa.Table | pa.RecordBatch | Iterable[dict[str, Any]]) -> pa.Table:
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    return rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows))


def _is_answer(batch: pa.RecordBatch) -> pa.Array:
    """Whether a row is an answer: a tier, or text in a wrong format. See `lore.judge.ask.incomplete`."""
    tier, failure, detail = (_column(batch, name) for name in ("tier", "failure", "detail"))
    answered = pc.or_(pc.is_valid(tier), pc.and_(pc.is_valid(failure), pc.invert(pc.is_in(failure, pa.array(NO_ANSWER)))))
    refused = pc.and_(pc.is_null(failure), pc.fill_null(pc.starts_with(detail, UNSCORED), False))
    return pc.and_not(answered, refused)


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    return batch.column(name).cast(pa.string()) if name in batch.schema.names else pa.nulls(batch.num_rows, pa.string())


def _values(batch: pa.RecordBatch, name: str) -> list:
    if name not in batch.schema.names or batch.column(name).null_count == batch.num_rows:
        return [None] * batch.num_rows
    return batch.column(name).to_pylist()


def _packed(batch: pa.RecordBatch, tiers: list[str]) -> list[bytes | None]:
    """The probabilities of each row as little-endian float64; None for a row that lacks one."""
    columns = [batch.column(f"p_{tier}").cast(pa.float64()) for tier in tiers]
    raw = np.stack([column.to_numpy(zero_copy_only=False) for column in columns], axis=1).astype("<f8").tobytes()
    width = 8 * len(tiers)
    packed: list[bytes | None] = [raw[at : at + width] for at in range(0, len(raw), width)]
    if any(column.null_count for column in columns):
        for column in columns:
            for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)):
                packed[row] = None
    return packed


def _network_file_system(path: Path, mountinfo: Path) -> str | None:
    """The type of the network file system that a path lies on; None for a local disk, or where the system does not tell."""
    try:
        lines = mountinfo.read_text(errors="replace").splitlines()
    except OSError:
        return None
    real, mounts = os.path.realpath(path), []
    for line in lines:
        before, _, after = line.partition(" - ")
        place = before.split()[4].encode().decode("unicode_escape")
        if real == place or real.startswith(place.rstrip("/") + "/"):
            mounts.append((len(place), after.split()[0]))
    kind = max(mounts, default=(0, ""))[1]
    return kind if NETWORK.match(kind) else None
