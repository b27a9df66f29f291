"""Seconds and peak memory of `lore label export` and `lore labels stats` over a label folder of N pairs.

python benchmarks/label_export.py FOLDER --pairs 1000000 4000000

The folder is written first: shards of 2,048 pairs by the hash of the query, 20 items a query. Each measurement is a process of its
own; memory is its largest resident set.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lore.label.schema import label_schema

TIERS = ["L1", "L2", "L3", "L4"]
SHARD, ITEMS = 2048, 20


def write(folder: Path, pairs: int) -> None:
    (folder / "verdicts").mkdir(parents=True)
    schema = label_schema(TIERS)
    for shard, start in enumerate(range(0, pairs, SHARD)):
        numbers = range(start, min(pairs, start + SHARD))
        # 7919 is no divisor of the number of queries: the pairs of a query are spread over several shards.
        queries = [f"shoes of kind {number * 7919 % (pairs // ITEMS)}" for number in numbers]
        columns = {
            "pair_id": [f"p{number:016x}" for number in numbers],
            "tier": [TIERS[number % 4] for number in numbers],
            **{f"p_{tier}": [0.25] * len(numbers) for tier in TIERS},
            "judge_id": ["weights:rubric:renderer"] * len(numbers),
            "query": queries,
            "item_id": [f"B{number:09d}" for number in numbers],
            "slices": [[]] * len(numbers),
            "content": [hashlib.blake2b(str(number).encode(), digest_size=16).digest() for number in numbers],
            "attempts": [1] * len(numbers),
        }
        arrays = [pa.array(columns.get(field.name, [None] * len(numbers)), field.type) for field in schema]
        pq.write_table(pa.table(arrays, schema=schema), folder / "verdicts" / f"00-0000-{shard:020x}.parquet", compression="zstd")


def measured(*arguments: object) -> dict[str, float]:
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "lore", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, arguments
    cpu = usage.ru_utime + usage.ru_stime
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mb": round(usage.ru_maxrss / 1000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1_000_000])
    given = parser.parse_args()
    for pairs in given.pairs:
        folder = given.folder / str(pairs)
        write(folder, pairs)
        for to in ("qrels", "quepid", "opensearch"):
            out = given.folder / f"{pairs}.{to}"
            found = measured("label", "export", folder, "--format", to, "-o", out)
            print(json.dumps({"pairs": pairs, "export": to} | found), flush=True)
        print(json.dumps({"pairs": pairs, "stats": True} | measured("labels", "stats", folder)), flush=True)


if __name__ == "__main__":
    main()
