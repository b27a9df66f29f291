"""Pairs per second that the cache of the service answers: from memory, from SQLite and from Redis, with a million verdicts stored.

    redis-server --port 7900 --save "" &
    python benchmarks/online_cache.py FOLDER --redis redis://127.0.0.1:7900/0

The stores are filled from label files, as `lore cache load` does. Then they answer batches of random known pairs, in turns, one
batch at a time. sqlite_inline is the read of SQLite without its thread, which would hold up the event loop. memory is warm.
content_key is timed on pairs with a description of 300 characters: new, and with an item that was seen before.

Rates are by the CPU time of this process, because the machine may be shared; `wall` has those by the clock. The CPU time of
redis-server is not in them, and only shows by the clock.
"""

import argparse
import asyncio
import json
import random
import statistics
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from verdict_store import TIERS, Clock, verdicts

from lore.data.pair import Pair
from lore.label.keys import ContentKeys
from lore.label.ledger import STAMP
from lore.label.schema import label_schema
from lore.online.cache import MemoryCache, load_labels
from lore.online.cache_store import CachedJudge
from lore.online.config import CacheSection
from lore.online.sqlite_cache import SqliteCache

JUDGE = CachedJudge("judge", "weights:rubric:renderer", "weights:rubric:renderer verdict", TIERS)
FILE_ROWS, SIZES, WARM = 50_000, (1, 10, 100), 100_000
WORDS = "a robust mug of stoneware for coffee and tea that fits under every machine and into every hand".split()
Ask = Callable[[Sequence[bytes]], Awaitable[object]]


def write_labels(folder: Path, rows: int, rng: np.random.Generator) -> list[bytes]:
    """Label files with verdicts that have no reason. Returns their contents."""
    (folder / "verdicts").mkdir(parents=True)
    schema, kept = label_schema(TIERS), []
    for number in range(rows // FILE_ROWS):
        contents = [rng.bytes(16) for _ in range(FILE_ROWS)]
        table = verdicts(contents, rng)
        columns = [
            table.column(n).cast(schema.field(n).type) if n in table.schema.names else empty(schema, n) for n in schema.names
        ]
        whole = pa.table(columns, schema=schema).replace_schema_metadata({STAMP: JUDGE.name.encode()})
        pq.write_table(whole, folder / "verdicts" / f"00-0000-{number:020x}.parquet")
        kept += contents
    return kept


def empty(schema: pa.Schema, name: str) -> pa.Array:
    return pa.nulls(FILE_ROWS, schema.field(name).type)


def shop_pairs(count: int, seed: int) -> list[Pair]:
    draw = random.Random(seed)
    return [
        Pair(
            pair_id=str(at),
            query=" ".join(draw.choices(WORDS, k=3)),
            title=f"{' '.join(draw.choices(WORDS, k=6))} {at}".title(),
            description=" ".join(draw.choices(WORDS, k=80))[:300],
            brand="Lumo",
            category="kitchen > mugs",
            price=at / 7,
            attributes={"colour": "red", "size": "0.3 l", "material": "stoneware"},
        )
        for at in range(count)
    ]


async def measured(caches: dict[str, Ask], contents: list[bytes], pairs: int, rounds: int, seed: int) -> list[dict]:
    draw, rates = random.Random(seed), {}
    for _ in range(rounds):
        for size in SIZES:
            for name, ask in caches.items():
                known = contents[:WARM] if name == "memory" else contents
                batches = [draw.choices(known, k=size) for _ in range(pairs // size)]
                with Clock() as clock:
                    for batch in batches:
                        found = await ask(batch)
                        assert None not in found
                rates.setdefault((name, size), []).append((pairs / clock.cpu, pairs / clock.wall))
    return [
        {
            "cache": name,
            "pairs_a_request": size,
            "pairs_s": round(statistics.median(cpu for cpu, _ in found)),
            "wall": round(statistics.median(wall for _, wall in found)),
            "least": round(min(cpu for cpu, _ in found)),
            "most": round(max(cpu for cpu, _ in found)),
        }
        for (name, size), found in rates.items()
    ]


async def warmed(cache: MemoryCache, contents: list[bytes]) -> None:
    for at in range(0, WARM, 1000):
        await cache.get(contents[at : at + 1000])


async def run(given: argparse.Namespace) -> None:
    rng = np.random.default_rng(given.seed)
    contents = write_labels(given.folder / "labels", given.rows, rng)
    section = {"timeout_ms": 60_000.0, "memory_verdicts": WARM}
    sqlite = SqliteCache(given.folder / "cache.sqlite", JUDGE, CacheSection(store="cache.sqlite", **section))
    stores = {"sqlite": sqlite}
    if given.redis:
        from lore.online.redis_cache import RedisCache  # redis is an extra

        stores["redis"] = RedisCache(CacheSection(store=given.redis, **section), JUDGE)
    for name, store in stores.items():
        with Clock() as loading:
            assert await asyncio.to_thread(load_labels, store, [given.folder / "labels"]) == len(contents)
        print(json.dumps({"load": name, **loading.rates("verdicts", len(contents))}), flush=True)
    memory = MemoryCache(JUDGE, WARM, None, sqlite)
    await warmed(memory, contents)

    async def inline(batch: Sequence[bytes]) -> list:
        return sqlite._read(list(batch))

    caches = {"memory": memory.get, "sqlite_inline": inline} | {name: store.get for name, store in stores.items()}
    for row in await measured(caches, contents, given.pairs, given.rounds, given.seed):
        print(json.dumps(row), flush=True)
    keys, pairs = ContentKeys(), shop_pairs(given.pairs, given.seed)
    for kind in ("new", "seen"):
        with Clock() as clock:
            for pair in pairs:
                keys.of(pair)
        print(json.dumps({"content_key": kind, "us": round(1e6 * clock.cpu / len(pairs), 1)}))
    for store in stores.values():
        await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder on a local disk")
    parser.add_argument("--redis", metavar="URL", help="an empty Redis that may be filled")
    parser.add_argument("--rows", type=int, default=1_000_000, help=f"stored verdicts, a multiple of {FILE_ROWS:,}")
    parser.add_argument("--pairs", type=int, default=20_000, help="pairs of one turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
