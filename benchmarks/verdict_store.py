"""Puts and lookups per second of the verdict store, and of LMDB with the same rows, as the store grows.

python benchmarks/verdict_store.py sqlite FOLDER --rows 1000000 10000000
pip install lmdb==3.0.0 && python benchmarks/verdict_store.py lmdb FOLDER --rows 1000000 10000000

Keys are 16 random bytes. A row is a verdict of a judge that only scores: tier, four probabilities, no text. The store is filled in
batches of 50,000, as when it is rebuilt from label folders. At each size it then takes shards of 2,048 verdicts, one transaction
each, and answers batches of 8,192 keys: `get` of known ones in random order, `known` of half known and half unknown ones.
"""

import argparse
import json
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from lore.label.store import VerdictStore

TIERS = ["L1", "L2", "L3", "L4"]
BATCH, SHARD, ASKED, SHARDS, ROUNDS = 50_000, 2048, 8192, 20, 12
MAP_BYTES = 64 * 2**30


def verdicts(contents: list[bytes], rng: np.random.Generator) -> pa.Table:
    rows = len(contents)
    p = rng.dirichlet([1] * 4, rows)
    columns = {"content": pa.array(contents, pa.binary(16)), "tier": pa.array([TIERS[at] for at in p.argmax(1)])}
    columns |= {f"p_{tier}": pa.array(p[:, at]) for at, tier in enumerate(TIERS)}
    empty = pa.nulls(rows, pa.string())
    columns |= {"failure": empty, "rationale": pa.array([""] * rows), "mismatch": empty, "text": empty, "detail": empty}
    columns |= {"photo": pa.array(["seen"] * rows), "judge_id": pa.array(["weights:rubric:renderer"] * rows)}
    return pa.table(columns)


class Lmdb:
    """The same rows in LMDB: a value is the number of the tier, the probabilities, and the texts as JSON where there are any."""

    def __init__(self, path: Path):
        import lmdb  # not a dependency of LORE

        self.path = path
        self.env = lmdb.open(str(path), map_size=MAP_BYTES, subdir=False, metasync=False, max_dbs=2)
        self.row = struct.Struct("<B4d")

    def put(self, judge: str, table: pa.Table) -> None:
        columns = table.to_pydict()
        p = zip(*(columns[f"p_{tier}"] for tier in TIERS), strict=True)
        index = {tier: at for at, tier in enumerate(TIERS)}
        texts = zip(*(columns[name] for name in ("failure", "rationale", "mismatch", "text", "detail")), strict=True)
        rows = [
            (b"\0\0\0\1" + content, self.row.pack(index[tier], *values) + (json.dumps(more).encode() if any(more) else b""))
            for content, tier, values, more in zip(columns["content"], columns["tier"], p, texts, strict=True)
        ]
        with self.env.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(sorted(rows), overwrite=False)

    def get(self, judge: str, contents: list[bytes]) -> dict[bytes, dict]:
        found = {}
        with self.env.begin() as transaction, transaction.cursor() as cursor:
            for key, value in cursor.getmulti(sorted(b"\0\0\0\1" + content for content in contents)):
                tier, *p = self.row.unpack_from(value)
                row = {"tier": TIERS[tier], **{f"p_{name}": one for name, one in zip(TIERS, p, strict=True)}, "rationale": ""}
                found[key[4:]] = row | dict.fromkeys(("failure", "mismatch", "text", "tokens", "seconds", "detail"))
        return found

    def known(self, judge: str, contents: list[bytes]) -> set[bytes]:
        with self.env.begin() as transaction, transaction.cursor() as cursor:
            return {key[4:] for key, _ in cursor.getmulti(sorted(b"\0\0\0\1" + content for content in contents))}

    def close(self) -> None:
        self.env.close()


class Clock:
    """Items per second of wall time, and per second that this process computed: the machine may be shared."""

    def __init__(self):
        self.wall = self.cpu = 0.0

    def __enter__(self) -> "Clock":
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._began[0]
        self.cpu += time.process_time() - self._began[1]

    def rates(self, name: str, items: int) -> dict[str, int]:
        return {f"{name}_s": round(items / self.wall), f"{name}_cpu_s": round(items / self.cpu)}


def measure(store, rows: list[int], seed: int) -> Iterator[dict]:
    keys, rng, some, stored = random.Random(seed), np.random.default_rng(seed), [], 0
    for goal in rows:
        began, start, filling = time.perf_counter(), stored, Clock()
        while stored < goal:
            contents = [keys.randbytes(16) for _ in range(BATCH)]
            table = verdicts(contents, rng)
            with filling:
                store.put("judge", table)
            stored += BATCH
            some += contents[:: max(1, goal // 500_000)]
        shards = [verdicts([keys.randbytes(16) for _ in range(SHARD)], rng) for _ in range(SHARDS)]
        with Clock() as putting:
            for shard in shards:
                store.put("judge", shard)
        batches = [keys.sample(some, ASKED) for _ in range(ROUNDS)]
        with Clock() as getting:
            assert all(len(store.get("judge", batch)) == ASKED for batch in batches)
        half = ASKED // 2
        batches = [keys.sample(some, half) + [keys.randbytes(16) for _ in range(half)] for _ in range(ROUNDS)]
        with Clock() as planning:
            assert all(len(store.known("judge", batch)) == half for batch in batches)
        size = sum(path.stat().st_size for path in store.path.parent.iterdir() if not path.name.endswith(("-shm", "-lock", "-wal")))
        yield {
            "rows": stored,
            **filling.rates("puts", stored - start),
            **putting.rates("shard_puts", SHARD * SHARDS),
            **getting.rates("gets", ASKED * ROUNDS),
            **planning.rates("known", ASKED * ROUNDS),
            "bytes_a_row": round(size / (stored + SHARD * SHARDS), 1),
            "seconds": round(time.perf_counter() - began),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=("sqlite", "lmdb"))
    parser.add_argument("folder", type=Path, help="a new folder on the disk to measure")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="sizes, in ascending order")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    path = given.folder / f"verdicts.{given.engine}"
    store = VerdictStore(path) if given.engine == "sqlite" else Lmdb(path)
    for found in measure(store, given.rows, given.seed):
        print(json.dumps({"engine": given.engine} | found), flush=True)
    store.close()


if __name__ == "__main__":
    main()
