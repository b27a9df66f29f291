"""Seconds and peak memory of importing a log of events and of reading its histories.

    python benchmarks/recommend_events.py                       1 and 10 million rows
    python benchmarks/recommend_events.py --rows 200000

A made-up log: a tenth as many users, 100,000 items, 1 % of the rows repeated, 0.1 % without a user. Each step runs in a process of
its own, so that its peak memory is measured apart. The last line of the output is one JSON object.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BLOCK = 100_000


def write_rows(path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("user_id,item_id,time\n")
        for start in range(0, rows, BLOCK):
            size = min(BLOCK, rows - start)
            users, items = rng.integers(0, max(1, rows // 10), size), (100_000 * rng.random(size) ** 3).astype(int)
            times = 1_600_000_000 + rng.integers(0, 10**8, size)
            lines = [f"u{user},i{item},{at}\n" for user, item, at in zip(users, items, times, strict=True)]
            lines[99::100] = lines[98::100][: len(lines[99::100])]
            lines[500::1000] = [f",{line.partition(',')[2]}" for line in lines[500::1000]]
            file.writelines(lines)


def run_step(step: str, folder: Path) -> dict[str, float]:
    from lore.recommend.importers import import_events
    from lore.recommend.tables import read_histories

    start = time.perf_counter()
    if step == "import":
        report = import_events(folder / "log.csv", folder / "events.parquet")
        found = {"events": report.kept, "folded": report.duplicates, "rejected": report.rejected_rows}
    else:
        histories = read_histories(folder / "events.parquet", split=step)
        found = {"users": len(histories.user_ids), "training": int(histories.in_training().sum()), "test": len(histories.test)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(time.perf_counter() - start, 1), "peak_mb": round(peak), **found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--step")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(run_step(given.step, given.folder)))
        return
    measured = {}
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder) / "log.csv", rows)
            for step in ("import", "leave_one_out", "time"):
                command = [sys.executable, __file__, "--step", step, "--folder", folder]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                measured[f"{rows:,} {step}"] = found = json.loads(done.stdout.splitlines()[-1])
                print(f"{rows:,} rows, {step}: {found}", flush=True)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
