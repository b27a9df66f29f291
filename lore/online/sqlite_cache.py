"""The verdict store of `lore label` (one SQLite file) as a cache. Verdicts that `lore label` adds while the service runs are
answered at once.

Reading happens in a thread of its own: a page that is not in memory would hold up the event loop. Writing is collected and happens
in another thread with another connection, which may wait for other processes; readers of the file wait for no writer.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lore.judge.verdict import Verdict, to_row
from lore.label.judge import is_stamp_of
from lore.label.store import VerdictStore, today
from lore.online.answer import Cached
from lore.online.cache_store import BoundedReads, CachedJudge, CacheObserver, Late, New, Trouble, Unobserved, WriteBehind, is_fresh
from lore.online.config import CacheSection
from lore.online.verdict_bytes import VerdictBytes
from lore.support.errors import LoreError

REFRESH_SECONDS = 5.0
"""How often the file is looked at for labels of the same judge in other modes."""
READ_WAIT_SECONDS, WRITE_WAIT_SECONDS = 1.0, 30.0


class SqliteCache:
    """See lore.online.cache_store.FilledCache. section: its max_age_seconds and timeout_ms."""

    def __init__(self, path: str | Path, judge: CachedJudge, section: CacheSection, observer: CacheObserver | None = None):
        self.judge, self.observer = judge, observer or Unobserved()
        self.max_age_seconds = section.max_age_seconds
        self.packing = VerdictBytes(judge.judge_id, judge.tier_ids)
        self._reader = VerdictStore(path, READ_WAIT_SECONDS)
        self._writer = VerdictStore(path, WRITE_WAIT_SECONDS)
        self._read_thread = ThreadPoolExecutor(1, "cache-read")
        self._write_thread = ThreadPoolExecutor(1, "cache-write")
        self._closed = False
        self._names, self._names_until, self._touched = [judge.name], 0.0, 0
        trouble = Trouble(f"the cache in {path}")
        self._reads = BoundedReads(section.timeout_ms / 1000, self.observer, trouble)
        self._behind = WriteBehind(self._write, self.packing.takes, self.observer, trouble)

    async def get(self, contents: Sequence[bytes]) -> list[Cached | None]:
        asked, loop = list(contents), asyncio.get_running_loop()
        if self._closed:
            return [None] * len(asked)
        return await self._reads.read(asked, lambda: loop.run_in_executor(self._read_thread, self._read, asked))

    def tell_late(self, late: Late) -> None:
        self._reads.late = late

    def _read(self, contents: list[bytes]) -> list[Cached | None]:
        now = time.time()
        if now > self._names_until:
            self._refresh(now)
        found: dict[bytes, Cached] = {}
        for name in self._names:
            left = [content for content in contents if content not in found] if found else contents
            if not left:
                break
            for content, verdict, stored in self._reader.answers(name, left):
                # A cascade's labels have the judge's name and, where the student was sure, the student's verdict.
                if self.packing.takes(verdict) and is_fresh(stored, self.max_age_seconds, now):
                    found[content] = Cached(verdict, stored)
        return [found.get(content) for content in contents]

    def _refresh(self, now: float) -> None:
        modes = [name for name, _ in self._reader.judges() if is_stamp_of(name, self.judge.judge_id)]
        self._names, self._names_until = list(dict.fromkeys([self.judge.name, *modes])), now + REFRESH_SECONDS
        if self._touched != today():
            self._touched = today()
            with suppress(RuntimeError):  # the cache is being closed
                self._write_thread.submit(self._touch, self._names)

    def _touch(self, names: list[str]) -> None:
        with suppress(LoreError):  # only `lore labels gc` reads the day
            for name in names:
                self._writer.touch(name)

    async def put(self, contents: Sequence[bytes], verdicts: Sequence[Verdict]) -> None:
        self._behind.add(contents, verdicts)

    async def _write(self, some: Sequence[New]) -> None:
        def put() -> None:
            rows = [to_row(verdict, self.judge.tier_ids) | {"content": content} for content, verdict, _ in some]
            self._writer.put(self.judge.name, rows, stored_seconds=some[0][2], renew=True)

        await asyncio.get_running_loop().run_in_executor(self._write_thread, put)

    def add_labels(self, stamp: str, files: Sequence[Path]) -> int:
        return self._writer.add_missing(stamp, files)

    def known_judges(self) -> list[str]:
        return list(dict.fromkeys(name.partition(" ")[0] for name, _ in self._reader.judges()))

    async def close(self) -> None:
        """Writes what waits to be written, and closes the file."""
        await self._behind.close()
        self._closed = True
        for thread, store in ((self._read_thread, self._reader), (self._write_thread, self._writer)):
            thread.submit(store.close)
            thread.shutdown(wait=False)
