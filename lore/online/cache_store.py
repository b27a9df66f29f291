"""What the stores of the cache share: the judge whose verdicts they hold, how old a verdict may be, and writing behind."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lore.judge.verdict import Verdict
from lore.label.config import LabelJudgeSection
from lore.label.judge import asked_judge, stamp_of
from lore.label.read import opened_labels
from lore.online.answer import Cache, Cached
from lore.support.errors import LoreError, reason
from lore.support.terminal import print_note

MAX_WAITING = 64
"""Reads of one worker that may wait for a slow store; more are answered with nothing at once."""
MAX_QUEUED = 20_000
"""Verdicts of one worker that may wait to be written; more are dropped, and counted."""
WRITTEN_AT_ONCE = 1000
WRITE_EVERY_SECONDS, CLOSE_SECONDS = 0.2, 10.0
SAY_AGAIN_SECONDS = 60.0
New = tuple[bytes, Verdict, float]
"""Content, verdict, and when it was given in seconds since 1970."""


Late = Callable[[Sequence[bytes], Sequence[Cached | None]], None]


@dataclass(frozen=True)
class CachedJudge:
    """The judge whose verdicts are answered. path: its folder; name: what `lore label` calls its labels (stamp_of)."""

    path: str
    judge_id: str
    name: str
    tier_ids: list[str]


class CacheObserver(Protocol):
    """What the cache reports to lore.online.metrics.Metrics."""

    def cache_asked(self, layer: str, hits: int, misses: int) -> None:
        """layer: memory or store. A miss in memory is asked of the store."""

    def cache_failed(self, why: str, pairs: int) -> None:
        """why: timeout, busy, unreachable, unreadable (a value of another program) or dropped (a verdict was not written)."""


class Unobserved:
    """Nobody is told."""

    def cache_asked(self, layer: str, hits: int, misses: int) -> None: ...

    def cache_failed(self, why: str, pairs: int) -> None: ...


class FilledCache(Cache, Protocol):
    """A cache that label files can be loaded into, outside of an event loop."""

    judge: CachedJudge | None

    def tell_late(self, late: Late) -> None:
        """late: is told of what a read has found after its time."""

    def add_labels(self, stamp: str, files: Sequence[Path]) -> int:
        """Adds the label files that were not added before. Returns the number of their verdicts. Raises LoreError if the store
        cannot be written."""

    def known_judges(self) -> list[str]:
        """The judges that the store has verdicts of, as judge_ids. Raises LoreError for what is no store, and StoreUnreachable if
        there is no connection now."""


class StoreUnreachable(LoreError):
    """The store does not answer now. The service runs without it and tries again."""


def cached_judge(path: str, base: str | None = None) -> CachedJudge:
    """The judge in a folder, named as `lore label` names its verdicts. base: see OnlineJudgeSection. Raises LoreError if there is
    none."""
    asked = asked_judge(LabelJudgeSection(path=path, base=base, engine="transformers"), "auto")
    return CachedJudge(path, asked.judge_id, stamp_of(asked), asked.rubric.tier_ids)


def judge_in_labels(folder: str | Path) -> CachedJudge:
    """The judge that has labelled a folder, by its ledger. Raises LoreError if it is no folder of `lore label`."""
    ledger = opened_labels(folder)
    return CachedJudge(str(folder), ledger.stamp.partition(" ")[0], ledger.stamp, ledger.tier_ids)


def is_fresh(stored_seconds: float | None, max_age_seconds: float | None, now: float) -> bool:
    """Whether a verdict of this time may be answered. Where there is a limit, one of an unknown time is too old."""
    return max_age_seconds is None or stored_seconds is not None and now - stored_seconds <= max_age_seconds


class BoundedReads:
    """Reads a store in bounded time and number, without exceptions. For one event loop.

    late: is told of what a read has found after its time, for later requests.
    """

    def __init__(self, timeout_seconds: float, observer: CacheObserver, trouble: "Trouble"):
        self.timeout_seconds, self.observer, self.trouble = timeout_seconds, observer, trouble
        self.late: Late = lambda contents, found: None
        self._waiting = 0

    async def read(
        self, contents: Sequence[bytes], start: Callable[[], "asyncio.Future[list[Cached | None]]"]
    ) -> list[Cached | None]:
        """What the read that `start` begins finds; nothing if it fails or takes too long. The read itself goes on: ending it would
        leave a half-read reply, and the next request waits for the same thread or connection."""
        nothing: list[Cached | None] = [None] * len(contents)
        if self._waiting >= MAX_WAITING:
            self.observer.cache_failed("busy", len(contents))
            return nothing
        self._waiting += 1
        is_late = False

        def ended(read: "asyncio.Future[list[Cached | None]]") -> None:
            self._waiting -= 1
            if not read.cancelled() and read.exception() is None and is_late:
                self.late(contents, read.result())

        reading = start()
        reading.add_done_callback(ended)
        try:
            async with asyncio.timeout(self.timeout_seconds):
                return await asyncio.shield(reading)
        except TimeoutError:
            is_late = True
            self.observer.cache_failed("timeout", len(contents))
        except asyncio.CancelledError:
            is_late = True
            raise
        except LoreError as error:
            self.observer.cache_failed("unreachable", len(contents))
            self.trouble.say(error)
        return nothing


class WriteBehind:
    """Collects new verdicts and writes them together, so that no request waits for a write. For one event loop.

    write: writes some verdicts; may raise LoreError, then they are dropped and counted. takes: whether a verdict may be written.
    """

    def __init__(
        self,
        write: Callable[[Sequence[New]], Awaitable[None]],
        takes: Callable[[Verdict], bool],
        observer: CacheObserver,
        trouble: "Trouble",
    ):
        self._write, self._takes, self.observer, self.trouble = write, takes, observer, trouble
        self._queue: list[New] = []
        self._writing: asyncio.Task[None] | None = None

    def add(self, contents: Sequence[bytes], verdicts: Sequence[Verdict]) -> None:
        now, given = time.time(), zip(contents, verdicts, strict=True)
        new = [(content, verdict, now) for content, verdict in given if self._takes(verdict)]
        room = max(0, MAX_QUEUED - len(self._queue))
        if len(new) > room:
            self.observer.cache_failed("dropped", len(new) - room)
        self._queue += new[:room]
        if self._queue and (self._writing is None or self._writing.done()):
            self._writing = asyncio.get_running_loop().create_task(self._write_all())

    async def _write_all(self) -> None:
        while self._queue:
            await asyncio.sleep(WRITE_EVERY_SECONDS)
            await self._write_some()

    async def _write_some(self) -> None:
        some, self._queue = self._queue[:WRITTEN_AT_ONCE], self._queue[WRITTEN_AT_ONCE:]
        try:
            await self._write(some)
        except LoreError as error:
            self.observer.cache_failed("dropped", len(some))
            self.trouble.say(error)

    async def close(self) -> None:
        """Writes what waits to be written, for at most CLOSE_SECONDS."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._writing is not None and not self._writing.done():
                    await self._writing
        if self._queue:
            self.observer.cache_failed("dropped", len(self._queue))


class Trouble:
    """Says what is wrong with a store, at most once a minute."""

    def __init__(self, what: str):
        self.what, self._quiet_until = what, 0.0

    def say(self, error: Exception) -> None:
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + SAY_AGAIN_SECONDS
            print_note(f"warning: {self.what} cannot be used, and pairs are answered without it: {reason(error)}")
