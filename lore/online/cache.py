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
from pathlib import Path

from lore.judge.verdict import Verdict
from lore.label.judge import is_stamp_of
from lore.label.keys import ContentKeys
from lore.label.read import opened_labels
from lore.label.store import open_store
from lore.online.answer import Cached
from lore.online.cache_store import (
    CachedJudge,
    CacheObserver,
    FilledCache,
    Late,
    StoreUnreachable,
    Unobserved,
    cached_judge,
    is_fresh,
    judge_in_labels,
)
from lore.online.config import CacheSection
from lore.online.sqlite_cache import SqliteCache
from lore.online.verdict_bytes import MAX_BYTES, VerdictBytes
from lore.support.errors import LoreError
from lore.support.processes import say
from lore.support.terminal import print_note
from lore.support.text import counted

REDIS = ("redis://", "rediss://")

content_key = ContentKeys().of
"""content_key(pair) -> 16 bytes: the content that `lore label` stores for the same pair (lore.label.keys)."""


def open_cache(
    section: CacheSection, judge: str | None, *, base: str | None = None, observer: CacheObserver | None = None
) -> FilledCache:
    """The cache of a recipe. judge: folder of the judge (judge.path), unless cache.judge names another one; base: see
    OnlineJudgeSection. Raises LoreError for a file that is no verdict store. Needs no event loop."""
    if section.store == "none":
        return NullCache()
    path = section.judge or judge
    if path is None:
        raise LoreError("The cache has no judge whose verdicts it answers. Set cache.judge, or judge.path.")
    found, observer = cached_judge(path, None if section.judge else base), observer or Unobserved()
    below = open_store_of(section, found, observer)
    return MemoryCache(found, section.memory_verdicts, section.max_age_seconds, below, observer)


def open_store_of(section: CacheSection, judge: CachedJudge, observer: CacheObserver | None = None) -> FilledCache:
    """The store of a recipe, which is not none, without the memory in front of it."""
    if section.store.startswith(REDIS):
        try:
            from lore.online.redis_cache import RedisCache  # loads redis: only where a recipe names it
        except ImportError as error:
            raise LoreError(
                "The cache is in Redis, and its client is not installed.\nInstall it: pip install 'lore-relevance[online]'"
            ) from error
        return RedisCache(section, judge, observer)
    if open_store(section.store) is None:
        raise LoreError(
            f"cache.store: {section.store} cannot be used, so nothing would be cached.\nName a file on a local disk, or "
            "redis://HOST:PORT/DB."
        )
    return SqliteCache(section.store, judge, section, observer)


def load_folders(section: CacheSection, folders: Sequence[str | Path], judge: CachedJudge | None = None) -> int:
    """Loads label folders into a store without a service. judge: whose labels they have to be; None: each folder's own."""
    if section.store == "none":
        raise LoreError("The store is none, so there is nothing to load labels into. Name a file or redis://HOST:PORT/DB.")
    count = 0
    for folder in folders:
        cache = open_store_of(section, judge or judge_in_labels(folder))
        try:
            count += load_labels(cache, [folder])
        finally:
            asyncio.run(cache.close())
    return count


def say_what_is_there(cache: FilledCache, store: str) -> None:
    """Says if a store has no verdict of the cache's judge, and of which other judges it has some."""
    try:
        known = cache.known_judges()
    except StoreUnreachable as error:
        print_note(f"warning: the service starts without its cache and tries it again: {error}")
        return
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

    def tell_late(self, late: Late) -> None: ...

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
        observer: CacheObserver | None = None,
    ):
        self.judge, self.entries, self.max_age_seconds = judge, entries, max_age_seconds
        self.below, self.observer = below, observer or Unobserved()
        self.packing = VerdictBytes(judge.judge_id, judge.tier_ids)
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        if below is not None:
            below.tell_late(self._keep_found)

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
            self._keep_found(asked, stored)
            for at, one in zip(missing, stored, strict=True):
                found[at] = one
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

    def tell_late(self, late: Late) -> None: ...

    def known_judges(self) -> list[str]:
        return self.below.known_judges() if self.below is not None else []

    async def close(self) -> None:
        self._held.clear()
        if self.below is not None:
            await self.below.close()

    def _keep_found(self, contents: Sequence[bytes], found: Sequence[Cached | None]) -> None:
        for content, one in zip(contents, found, strict=True):
            if one is not None:
                self._keep(content, one.verdict, one.stored_seconds)

    def _keep(self, content: bytes, verdict: Verdict, stored_seconds: float | None) -> None:
        packed = self.packing.pack(content, verdict, stored_seconds)
        if self.entries and len(packed) <= MAX_BYTES:
            self._held[content] = packed
            self._held.move_to_end(content)
            if len(self._held) > self.entries:
                self._held.popitem(last=False)
