"""How often a GRPO run opens its input CSV, how many bytes it reads from it, and the seconds until step 0.

    python benchmarks/input_reads.py FOLDER                      writes model, data and recipe to FOLDER, then measures
    OTHER/.venv/bin/python benchmarks/input_reads.py FOLDER      the same for another version of LORE
    python -m torch.distributed.run --nproc-per-node 2 benchmarks/input_reads.py FOLDER      with two processes, one line each

The data are 20,000 pairs of the embedded shop as a CSV; the model is the tiny model of the tests. The run stops right before
training: by then it has imported the data and built prompts, replay rows and the pairs of the periodic evaluation. Opens by
pyarrow, whose reads are not visible in Python, are counted separately.
"""

import argparse
import builtins
import csv
import io
import json
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

ROWS, TEST_ROWS, POOL = 20_000, 500, 48
COLUMNS = ["pair_id", "query", "title", "description", "category", "brand", "label", "mismatch", "rationale", "split"]


class Step0(Exception):
    """Raised to end the run right before training."""


def prepare(folder: Path) -> None:
    """Writes pairs.csv, pool.parquet, the tiny model and grpo.yaml."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import pyarrow as pa
    import pyarrow.parquet as pq
    import tiny

    from lore.data_synth.shop.world import World
    from lore.train.pool.pool import POOL_SCHEMA

    made, world, rows = tiny.make(folder / "tiny"), World(seed=0), []
    with open(folder / "pairs.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for split, count in (("train", ROWS - TEST_ROWS), ("test", TEST_ROWS)):
            for pair in world.pairs(split, count):
                writer.writerow(vars(pair) if hasattr(pair, "__dict__") else {name: getattr(pair, name) for name in COLUMNS})
                if len(rows) < POOL:
                    samples = [{"text": "", "tokens": 9, "tier": None, "truncated": False}]
                    row = {"pair_id": pair.pair_id, "query": pair.query, "label": pair.label, "label_weight": 1.0, "slices": []}
                    rows.append(row | {"samples": samples, "pass_rate": 0.5, "confidence": 0.6, "agrees": True, "tier": pair.label})
    pq.write_table(pa.Table.from_pylist(rows, schema=POOL_SCHEMA), folder / "pool.parquet")
    sections = {
        "data": {"path": str(folder / "pairs.csv"), "source": "table"},
        "pool": {"path": str(folder / "pool.parquet")},
        "replay": {"rows": 4},
        "watch": {"every": 1, "split": "test"},
    }
    (folder / "grpo.yaml").write_text(made.align("grpo", made.text, **sections))


class CountedFile(io.FileIO):
    """A file that counts the bytes read from it."""

    reads: Counter = Counter()

    def readinto(self, buffer) -> int:
        count = super().readinto(buffer)
        self.reads[Path(self.name).name] += count or 0
        return count

    def readall(self) -> bytes:
        data = super().readall()
        self.reads[Path(self.name).name] += len(data)
        return data


def count_opens() -> Counter:
    """Starts counting all opens of the CSV and of the imported pairs."""
    import pyarrow.parquet as pq

    opens, counted, plain_open = Counter(), {"pairs.csv", "pairs.parquet"}, builtins.open

    def counting_open(file, mode="r", *rest, **options):
        if mode == "rb" and isinstance(file, str | os.PathLike) and Path(file).name in counted:
            opens[Path(file).name] += 1
            return io.BufferedReader(CountedFile(os.fspath(file)))
        return plain_open(file, mode, *rest, **options)

    def counting_parquet(self, source, *rest, **options):
        if isinstance(source, str | os.PathLike) and Path(source).name in counted:
            opens[f"{Path(source).name} (pyarrow)"] += 1
        original(self, source, *rest, **options)

    original, pq.ParquetFile.__init__ = pq.ParquetFile.__init__, counting_parquet
    builtins.open = counting_open
    return opens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    rank = int(os.environ.get("RANK") or 0)
    if not (folder / "grpo.yaml").is_file():
        prepare(folder)
    os.environ["LORE_RUNS"] = str(folder / f"runs-{os.environ.get('TORCHELASTIC_RUN_ID', os.getpid())}")
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    import transformers
    import trl  # noqa: F401  load both before the timer starts

    try:
        from lore.run.runner import run_recipe
    except ImportError:  # versions that had run_recipe in lore.run
        from lore.run import run_recipe

    def stop(*_, **__):
        raise Step0

    transformers.Trainer.train = stop
    opens, started, used = count_opens(), time.perf_counter(), time.process_time()
    try:
        run_recipe(folder / "grpo.yaml")
    except Step0:
        seconds = {'wall': round(time.perf_counter() - started, 2), 'processor': round(time.process_time() - used, 2)}
    size = (folder / "pairs.csv").stat().st_size
    read = {name: f"{count / 2**20:.1f} MiB" for name, count in CountedFile.reads.items()}
    shown = {"rank": rank, "seconds to step 0": seconds, "csv": f"{size / 2**20:.1f} MiB", "opens": dict(opens), "read": read}
    print(json.dumps(shown), flush=True)
    if rank == 0 and "TORCHELASTIC_RUN_ID" not in os.environ:
        shutil.rmtree(os.environ["LORE_RUNS"])
    os._exit(0)  # skips the shutdown of the process group; all processes of a launch exit here


if __name__ == "__main__":
    main()
