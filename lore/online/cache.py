"""The cache: verdicts of one judge that are answered without a model, by the content of the pair.

    cache = open_cache(recipe.cache, judge_path)      a file of `lore label` (SQLite), Redis, or none
    load_labels(cache, ["labels/"])                   verdicts of `lore label`; what is loaded already is skipped
    found = await cache.get([content_key(pair) for pair in pairs])

A verdict is found under its judge (weights, adapter, rubric and renderer, see `lore.judge.card.judge_id`) and the content that
`lore label` computes for the same pair. A judge that was trained again, another rubric or another prompt is another judge, so a
stale verdict cannot be answered.

In front of every store, `MemoryCache` keeps the newest verdicts of this process. It keeps no misses: verdicts that another
process adds to the store are answered at once.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lore.judge.verdict import Verdict, to_row
from lore.label.config import LabelJudgeSection
from lore.label.judge import asked_judge, is_stamp_of, stamp_of
from lore.label.keys import ContentKeys
from lore.label.read import opened_labels
from lore.label.store import VerdictStore, open_store, today
from lore.online.answer import Cache, Cached
from lore.online.config import CacheSection
from lore.online.verdict_bytes import MAX_BYTES, VerdictBytes
from lore.support.errors import LoreError, reason
from lore.support.processes import say
from lore.support.terminal import print_note
from lore.support.text import counted

REDIS = ("redis://", "rediss://")
MAX_WAITING = 64
"""Reads that may wait for a slow file; more are answered with nothing at once."""
MAX_QUEUED = 20_000
"""Verdicts that may wait to be written; more are dropped, and counted."""
WRITTEN_AT_ONCE = 1000
WRITE_EVERY_SECONDS = 0.2
REFRESH_SECONDS = 5.0
"""How often a file is looked at for labels of the same judge in other modes."""
READ_WAIT_SECONDS, WRITE_WAIT_SECONDS, CLOSE_SECONDS = 1.0, 30.0, 10.0
SAY_AGAIN_SECONDS = 60.0

content_key = ContentKeys().of
"""content_key(pair) -> 16 bytes: the content that `lore label` stores for the same pair (lore.label.keys)."""


@dataclass(frozen=True)
class CachedJudge:
    """The judge whose verdicts are answered. path: its folder; name: what `lore label` calls its labels (stamp_of)."""

    path: str
    judge_id: str
    name: str
    tier_ids: list[str]


class Observer(Protocol):
    """What the cache reports to lore.online.metrics.Metrics."""

    def cache_asked(self, layer: str, hits: int, misses: int) -> None:
        """layer: memory or store. A miss in memory is asked of the store."""

    def cache_failed(self, why: str, pairs: int) -> None:
        """why: timeout, busy, unreachable, unreadable (a value of another program) or dropped (a verdict was not written)."""


class Unobserved:
    def cache_asked(self, layer: str, hits: int, misses: int) -> None: ...

    def cache_failed(self, why: str, pairs: int) -> None: ...


class FilledCache(Cache, Protocol):
    """A cache that label files can be loaded into, outside of an event loop."""

    judge: CachedJudge | None

    def add_labels(self, stamp: str, files: Sequence[Path]) -> int:
        """Adds the label files that were not added before. Returns the number of their verdicts. Raises LoreError if the store
        cannot be written."""

    def known_judges(self) -> list[str]:
        """The judges that the store has verdicts of, as judge_ids. Raises LoreError if the store cannot be read."""


def cached_judge(path: str, base: str | None = None) -> CachedJudge:
    """The judge in a folder, named as `lore label` names its verdicts. base: see OnlineJudgeSection. Raises LoreError if there is
    none."""
    asked = asked_judge(LabelJudgeSection(path=path, base=base, engine="transformers"), "auto")
    return CachedJudge(path, asked.judge_id, stamp_of(asked), asked.rubric.tier_ids)


def open_cache(
    section: CacheSection, judge: str | None, *, base: str | None = None, observer: Observer | None = None
) -> FilledCache:
    """The cache of a recipe. judge: folder of the judge (judge.path), unless cache.judge names another one; base: see
    OnlineJudgeSection. Says so if the store has no verdict of the judge. Raises LoreError for a file that is no verdict store.
    Needs no event loop."""
    if section.store == "none":
        return NullCache()
    path = section.judge or judge
    if path is None:
        raise LoreError("The cache has no judge whose verdicts it answers. Set cache.judge, or judge.path.")
    found, observer = cached_judge(path, None if section.judge else base), observer or Unobserved()
    below: FilledCache
    if section.store.startswith(REDIS):
        from lore.online.redis_cache import RedisCache  # loads redis: only where a recipe names it

        below = RedisCache(section, found, observer)
    else:
        if open_store(section.store) is None:
            raise LoreError(
                f"cache.store: {section.store} cannot be used, so nothing would be cached.\nName a file on a local disk, or "
                "redis://HOST:PORT/DB."
            )
        below = SqliteCache(section.store, found, section, observer)
    say_what_is_there(below, section.store)
    return MemoryCache(found, section.memory_verdicts, section.max_age_seconds, below, observer)


def say_what_is_there(cache: FilledCache, store: str) -> None:
    """Says if a store has no verdict of the cache's judge, and of which other judges it has some."""
    known = cache.known_judges()
    if cache.judge.judge_id not in known:
        others = f" It has verdicts of {', '.join(known[:4])}{', ...' * (len(known) > 4)}." if known else ""
        say(
            f"cache: {store} has no verdict of {cache.judge.path} ({cache.judge.judge_id}) yet.{others} Fill it with `lore label` "
            "and `lore cache load`; answers of the judge are added as they come."
        )


def load_labels(cache: FilledCache, folders: Iterable[str | Path]) -> int:
    """Loads the verdicts of label folders. Files that were loaded before are skipped, and so are pairs without a verdict. Returns
    the number of new verdicts. Raises LoreError for a folder without labels and for labels of another judge.

    May run at any time, also beside a running service on the same store, which answers them at once.
    """
    count = 0
    for folder in folders:
        ledger, judge = opened_labels(folder), cache.judge
        if judge is None:
            raise LoreError(f"cache.store is none, so there is nothing to load {folder} into. Name a file or redis://HOST:PORT/DB.")
        if not is_stamp_of(ledger.stamp, judge.judge_id):
            raise LoreError(
                f"{folder} was labelled by {ledger.stamp or 'an unknown judge'}, and the cache answers with verdicts of "
                f"{judge.path}, which is {judge.judge_id}.\nAnother judge's verdicts are never answered, so nothing was loaded. "
                f"Label the pairs again with `lore label PAIRS --judge {judge.path}`, or set cache.judge to the labels' judge."
            )
        files = ledger.files()
        added = cache.add_labels(ledger.stamp, files)
        say(f"cache: {counted(added, 'verdict')} added from {folder} ({counted(len(files), 'label file')})")
        count += added
    return count


class NullCache:
    """No cache."""

    judge: CachedJudge | None = None

    async def get(self, contents: Sequence[bytes]) -> list[Cached | None]:
        return [None] * len(contents)

    async def put(self, contents: Sequence[bytes], verdicts: Sequence[Verdict]) -> None: ...

    def add_labels(self, stamp: str, files: Sequence[Path]) -> int:
        return 0

    def known_judges(self) -> list[str]:
        return []

    async def close(self) -> None: ...


class MemoryCache:
    """The verdicts of this process that were asked or given last, in front of a store. For one event loop.

    entries: how many are kept, as bytes. max_age_seconds: older verdicts, and those whose age nobody knows, are not answered.
    below: the store; None: there is none.
    """

    def __init__(
        self,
        judge: CachedJudge,
        entries: int,
        max_age_seconds: float | None = None,
        below: FilledCache | None = None,
        observer: Observer | None = None,
    ):
        self.judge, self.entries, self.max_age_seconds = judge, entries, max_age_seconds
        self.below, self.observer = below, observer or Unobserved()
        self.packing = VerdictBytes(judge.judge_id, judge.tier_ids)
        self._held: OrderedDict[bytes, bytes] = OrderedDict()

    async def get(self, contents: Sequence[bytes]) -> list[Cached | None]:
        now, held = time.time(), self._held
        found: list[Cached | None] = [None] * len(contents)
        for at, content in enumerate(contents):
            if (packed := held.get(content)) is not None:
                one = self.packing.unpack(content, packed)
                if one is not None and is_fresh(one.stored_seconds, self.max_age_seconds, now):
                    held.move_to_end(content)
                    found[at] = one
                else:
                    del held[content]
        missing = [at for at, one in enumerate(found) if one is None]
        self.observer.cache_asked("memory", len(found) - len(missing), len(missing))
        if missing and self.below is not None:
            asked = [contents[at] for at in missing]
            stored = await self.below.get(asked)
            for at, content, one in zip(missing, asked, stored, strict=True):
                if one is not None:
                    found[at] = one
                    self._keep(content, one.verdict, one.stored_seconds)
            hits = sum(one is not None for one in stored)
            self.observer.cache_asked("store", hits, len(stored) - hits)
        return found

    async def put(self, contents: Sequence[bytes], verdicts: Sequence[Verdict]) -> None:
        now = time.time()
        for content, verdict in zip(contents, verdicts, strict=True):
            if self.packing.takes(verdict):
                self._keep(content, verdict, now)
        if self.below is not None:
            await self.below.put(contents, verdicts)

    def add_labels(self, stamp: str, files: Sequence[Path]) -> int:
        return self.below.add_labels(stamp, files) if self.below is not None else 0

    def known_judges(self) -> list[str]:
        return self.below.known_judges() if self.below is not None else []

    async def close(self) -> None:
        self._held.clear()
        if self.below is not None:
            await self.below.close()

    def _keep(self, content: bytes, verdict: Verdict, stored_seconds: float | None) -> None:
        packed = self.packing.pack(content, verdict, stored_seconds)
        if self.entries and len(packed) <= MAX_BYTES:
            self._held[content] = packed
            self._held.move_to_end(content)
            if len(self._held) > self.entries:
                self._held.popitem(last=False)


def is_fresh(stored_seconds: float | None, max_age_seconds: float | None, now: float) -> bool:
    """Whether a verdict of this time may be answered."""
    return max_age_seconds is None or stored_seconds is not None and now - stored_seconds <= max_age_seconds


class SqliteCache:
    """The verdict store of `lore label` as a cache. Verdicts that `lore label` adds while the service runs are answered at once.

    Reading happens in a thread of its own: a page that is not in memory would hold up the event loop. Writing is collected and
    happens in another thread with another connection, which may wait for other processes; readers of the file wait for no writer.
    """

    def __init__(self, path: str | Path, judge: CachedJudge, section: CacheSection, observer: Observer | None = None):
        self.judge, self.observer = judge, observer or Unobserved()
        self.max_age_seconds, self.timeout_seconds = section.max_age_seconds, section.timeout_ms / 1000
        self.packing = VerdictBytes(judge.judge_id, judge.tier_ids)
        self._reader = VerdictStore(path, READ_WAIT_SECONDS)
        self._writer = VerdictStore(path, WRITE_WAIT_SECONDS)
        self._read_thread = ThreadPoolExecutor(1, "cache-read")
        self._write_thread = ThreadPoolExecutor(1, "cache-write")
        self._reading = 0
        self._names, self._names_until = [judge.name], 0.0
        self._touched = 0
        self._queue: list[tuple[bytes, Verdict]] = []
        self._flushing: asyncio.Task | None = None
        self._trouble = Trouble(f"the cache in {path}")

    async def get(self, contents: Sequence[bytes]) -> list[Cached | None]:
        nothing: list[Cached | None] = [None] * len(contents)
        if self._reading >= MAX_WAITING:
            self.observer.cache_failed("busy", len(contents))
            return nothing
        self._reading += 1
        read = self._read_thread.submit(self._read, list(contents))
        loop = asyncio.get_running_loop()
        waited = asyncio.wrap_future(read, loop=loop)
        waited.add_done_callback(self._read_ended)
        try:
            async with asyncio.timeout(self.timeout_seconds):
                found = await asyncio.shield(waited)
        except TimeoutError:
            self.observer.cache_failed("timeout", len(contents))
            return nothing
        except LoreError as error:
            self.observer.cache_failed("unreachable", len(contents))
            self._trouble.say(error)
            return nothing
        return [found.get(content) for content in contents]

    def _read_ended(self, read: "asyncio.Future[Any]") -> None:
        self._reading -= 1
        if not read.cancelled():
            read.exception()  # of a read that nobody waits for any more

    def _read(self, contents: list[bytes]) -> dict[bytes, Cached]:
        now = time.time()
        if now > self._names_until:
            modes = [name for name, _ in self._reader.judges() if is_stamp_of(name, self.judge.judge_id)]
            self._names, self._names_until = list(dict.fromkeys([self.judge.name, *modes])), now + REFRESH_SECONDS
            if self._touched != today():
                self._touched = today()
                self._write_thread.submit(self._touch, self._names)
        found: dict[bytes, Cached] = {}
        for name in self._names:
            left = [content for content in contents if content not in found] if found else contents
            if not left:
                break
            for content, verdict, stored in self._reader.answers(name, left):
                # A cascade's labels have the judge's name and, where the student was sure, the student's verdict.
                if self.packing.takes(verdict) and is_fresh(stored, self.max_age_seconds, now):
                    found[content] = Cached(verdict, stored)
        return found

    def _touch(self, names: list[str]) -> None:
        with suppress(LoreError):  # only `lore labels gc` reads the day
            for name in names:
                self._writer.touch(name)

    async def put(self, contents: Sequence[bytes], verdicts: Sequence[Verdict]) -> None:
        new = [(content, verdict) for content, verdict in zip(contents, verdicts, strict=True) if self.packing.takes(verdict)]
        room = max(0, MAX_QUEUED - len(self._queue))
        if len(new) > room:
            self.observer.cache_failed("dropped", len(new) - room)
        self._queue += new[:room]
        if self._queue and (self._flushing is None or self._flushing.done()):
            self._flushing = asyncio.get_running_loop().create_task(self._flush(WRITE_EVERY_SECONDS))

    async def _flush(self, pause_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            await asyncio.sleep(pause_seconds)
            some, self._queue = self._queue[:WRITTEN_AT_ONCE], self._queue[WRITTEN_AT_ONCE:]
            try:
                await loop.run_in_executor(self._write_thread, self._write, some)
            except LoreError as error:
                self.observer.cache_failed("dropped", len(some))
                self._trouble.say(error)

    def _write(self, some: list[tuple[bytes, Verdict]]) -> None:
        rows = [to_row(verdict, self.judge.tier_ids) | {"content": content} for content, verdict in some]
        self._writer.put(self.judge.name, rows, renew=True)

    def add_labels(self, stamp: str, files: Sequence[Path]) -> int:
        return self._writer.add_missing(stamp, files)

    def known_judges(self) -> list[str]:
        return list(dict.fromkeys(name.partition(" ")[0] for name, _ in self._reader.judges()))

    async def close(self) -> None:
        """Writes what waits to be written, and closes the file."""
        if self._flushing is not None and not self._flushing.done():
            self._flushing.cancel()
            await asyncio.wait([self._flushing])
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._flush(0.0)
        if self._queue:
            self.observer.cache_failed("dropped", len(self._queue))
        for thread, store in ((self._read_thread, self._reader), (self._write_thread, self._writer)):
            thread.submit(store.close)
            thread.shutdown(wait=False)


class Trouble:
    """Says what is wrong with a store, at most once a minute."""

    def __init__(self, what: str):
        self.what, self._quiet_until = what, 0.0

    def say(self, error: Exception) -> None:
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + SAY_AGAIN_SECONDS
            print_note(f"warning: {self.what} cannot be used; pairs are answered without it: {reason(error)}")
