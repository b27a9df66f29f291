"""Redis as a cache, for several servers. Verdicts have keys `lore:1:<hash of the judge_id>:<16 bytes of content>` and the values of
lore.online.verdict_bytes; they expire at cache.max_age_seconds.

A read is one MGET in bounded time. While Redis cannot be reached, pairs are answered without it at once, and one request a second
tries it again. A Redis that comes back without its data is filled by `lore cache load`, and by the judge's answers.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import redis
from redis.asyncio import BlockingConnectionPool as AsyncPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from lore.data.tables.parquet_files import open_parquet
from lore.judge.verdict import Verdict, from_row
from lore.label.ledger import REPAIR
from lore.label.store import READ
from lore.online.answer import Cached
from lore.online.cache_store import (
    BoundedReads,
    CachedJudge,
    CacheObserver,
    Late,
    New,
    StoreUnreachable,
    Trouble,
    Unobserved,
    WriteBehind,
    is_fresh,
)
from lore.online.config import CacheSection
from lore.online.verdict_bytes import MAX_BYTES, VerdictBytes
from lore.support.errors import LoreError, reason
from lore.support.progress import track

PREFIX = "lore:1"
"""Of all keys. The number is that of the layout of keys and values."""
JUDGES = f"{PREFIX}:judges"
"""A Redis hash: hash of the judge_id -> judge_id."""
RETRY_SECONDS = 1.0
CONNECTIONS = 16
LEAST_SOCKET_SECONDS = 0.5
"""A read that came too late for its request may still end, and its connection stay."""
START_SECONDS, LOAD_SECONDS = 2.0, 30.0
LOADED_AT_ONCE = 1000
SENT_AT_ONCE = 100
"""Verdicts of the running service: packing and sending them holds up the event loop for 2 ms."""
SHOWN_FILES = 20


class RedisCache:
    """See lore.online.cache_store.FilledCache. Raises LoreError if the password's variable is not set."""

    def __init__(self, section: CacheSection, judge: CachedJudge, observer: CacheObserver | None = None):
        self.judge, self.observer = judge, observer or Unobserved()
        self.max_age_seconds = section.max_age_seconds
        self.url, self._password = section.store, password_of(section)
        self.packing = VerdictBytes(judge.judge_id, judge.tier_ids)
        self.hashed = hashlib.blake2b(judge.judge_id.encode(), digest_size=10).hexdigest()
        self._prefix = f"{PREFIX}:{self.hashed}:".encode()
        self._files = self._prefix + b"files"
        self._tried_again, self._down, self._named = 0.0, False, False
        trouble = Trouble(f"the cache at {section.store}")
        self._reads = BoundedReads(section.timeout_ms / 1000, self.observer, trouble)
        self._behind = WriteBehind(self._write, self.packing.takes, self.observer, trouble)
        seconds = max(section.timeout_ms / 1000, LEAST_SOCKET_SECONDS)
        try:
            pool = AsyncPool.from_url(
                self.url,
                password=self._password,
                max_connections=CONNECTIONS,
                timeout=seconds,
                socket_timeout=seconds,
                socket_connect_timeout=seconds,
                retry=AsyncRetry(NoBackoff(), 0),
                maint_notifications_config=MaintNotificationsConfig(enabled=False),
            )
        except ValueError as error:
            raise LoreError(f"cache.store: {self.url} is no address of Redis ({error}).\nName redis://HOST:PORT/DB.") from error
        self._client = AsyncRedis.from_pool(pool)

    async def get(self, contents: Sequence[bytes]) -> list[Cached | None]:
        if not contents:
            return []
        if self._down:
            if time.monotonic() < self._tried_again + RETRY_SECONDS:
                self.observer.cache_failed("unreachable", len(contents))
                return [None] * len(contents)
            self._tried_again = time.monotonic()  # the other requests do not wait for this one
        asked, loop = list(contents), asyncio.get_running_loop()
        return await self._reads.read(asked, lambda: loop.create_task(self._read(asked)))

    def tell_late(self, late: Late) -> None:
        self._reads.late = late

    async def _read(self, contents: Sequence[bytes]) -> list[Cached | None]:
        """Ends by the socket's timeout. Raises LoreError, and notes whether Redis can be read."""
        try:
            with self._translated():
                values = await self._client.mget([self._prefix + content for content in contents])
        except LoreError:
            self._down, self._tried_again = True, time.monotonic()
            raise
        self._down = False
        return self._unpacked(contents, values)

    def _unpacked(self, contents: Sequence[bytes], values: Sequence[bytes | None]) -> list[Cached | None]:
        now = time.time()
        found: list[Cached | None] = []
        for content, value in zip(contents, values, strict=True):
            one = None
            if value is not None:
                one = self.packing.unpack(content, value)
                if one is None:
                    self.observer.cache_failed("unreadable", 1)
                elif not is_fresh(one.stored_seconds, self.max_age_seconds, now):
                    one = None
            found.append(one)
        return found

    async def put(self, contents: Sequence[bytes], verdicts: Sequence[Verdict]) -> None:
        self._behind.add(contents, verdicts)

    async def _write(self, some: Sequence[New]) -> None:
        if self._down and time.monotonic() < self._tried_again + RETRY_SECONDS:
            raise StoreUnreachable(f"{self.url} cannot be reached")
        for at in range(0, len(some), SENT_AT_ONCE):
            pipeline = self._client.pipeline(transaction=False)
            if not self._named:
                pipeline.hset(JUDGES, self.hashed, self.judge.judge_id)
            self._add(pipeline, some[at : at + SENT_AT_ONCE])
            with self._translated():
                await pipeline.execute()
            self._named = True

    def _add(self, pipeline: Any, some: Sequence[New]) -> int:
        """Adds the commands that store verdicts to a pipeline, and returns their number."""
        now, count = time.time(), 0
        for content, verdict, stored in some:
            value = self.packing.pack(content, verdict, stored)
            if len(value) <= MAX_BYTES and is_fresh(stored, self.max_age_seconds, now):
                ends = None if self.max_age_seconds is None else int((stored + self.max_age_seconds) * 1000) + 1
                pipeline.set(self._prefix + content, value, pxat=ends)
                count += 1
        return count

    def add_labels(self, stamp: str, files: Sequence[Path]) -> int:
        count, names = 0, [f"p_{tier}" for tier in self.judge.tier_ids]
        with self._sync(LOAD_SECONDS) as client:
            loaded = {name.decode(errors="replace") for name in client.smembers(self._files)}
            client.hset(JUDGES, self.hashed, self.judge.judge_id)
            missing = [path for path in files if path.name not in loaded]
            for path in track(missing, "adding labels to Redis") if len(missing) > SHOWN_FILES else missing:
                stored = path.stat().st_mtime
                with open_parquet(path, REPAIR) as parquet:
                    for batch in parquet.iter_batches(LOADED_AT_ONCE, columns=[*READ, *names]):
                        verdicts = [
                            (row["content"], from_row(row | {"pair_id": ""}, self.judge.tier_ids)) for row in batch.to_pylist()
                        ]
                        pipeline = client.pipeline(transaction=False)
                        count += self._add(pipeline, [(key, one, stored) for key, one in verdicts if self.packing.takes(one)])
                        pipeline.execute()
                client.sadd(self._files, path.name)
        return count

    def known_judges(self) -> list[str]:
        with self._sync(START_SECONDS) as client:
            return [judge.decode(errors="replace") for judge in client.hvals(JUDGES)]

    @contextmanager
    def _sync(self, seconds: float) -> Iterator[redis.Redis]:
        """A client for use outside of an event loop."""
        with self._translated():
            client = redis.Redis.from_url(
                self.url, password=self._password, socket_timeout=seconds, socket_connect_timeout=min(seconds, START_SECONDS)
            )
            try:
                yield client
            finally:
                client.close()

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self.url, self._password is not None)

    async def close(self) -> None:
        """Writes what waits to be written, and closes the connections."""
        await self._behind.close()
        await self._client.aclose()
        await self._client.connection_pool.disconnect()


def password_of(section: CacheSection) -> str | None:
    """Redis' password, from its environment variable."""
    if section.has_password:
        raise LoreError(
            "cache.store: the address of Redis holds a password, which logs would show.\nPut it into an environment variable, and "
            "name that in cache.password_variable (--password-variable)."
        )
    if section.password_variable is None:
        return None
    password = os.environ.get(section.password_variable)
    if not password:
        raise LoreError(
            f"cache.password_variable: the environment variable {section.password_variable} is not set, so there is no password "
            "for Redis. Set it, or leave cache.password_variable out for a Redis without one."
        )
    return password


@contextmanager
def translated(url: str, has_password: bool) -> Iterator[None]:
    """Translates errors of Redis. has_password: whether one is sent."""
    try:
        yield
    except redis.AuthenticationError as error:
        if not has_password:
            said = f"Redis at {url} asks for a password, and cache.password_variable names none"
            advice = "Put it into an environment variable, and name that in cache.password_variable (--password-variable)."
        else:
            said = f"Redis at {url} refuses the password"
            advice = "Correct the environment variable that cache.password_variable names."
        raise LoreError(f"{said} ({reason(error)}).\n{advice}") from error
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        raise StoreUnreachable(f"Redis at {url} cannot be reached ({reason(error)}).\nStart it, or correct cache.store.") from error
    except redis.RedisError as error:
        raise LoreError(f"Redis at {url} refuses a command ({reason(error)}).") from error
