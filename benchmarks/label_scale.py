"""Rows per second and peak memory of `lore label` without a judge: reading, planning, folding, committing, summarizing.

    python benchmarks/label_scale.py                                  100 thousand, 1 million and 5 million input rows
    python benchmarks/label_scale.py --pairs 100000 --profile         the functions that take most of the time
    python benchmarks/label_scale.py --pairs 1000000 5000000 --folder /big/disk

A scorer that answers at once takes the judge's place; everything else is the stage. 20 items a query, one row in twenty repeated,
the rows in random order, items from a catalogue of 100,000. Each size runs in a process of its own. Its memory is the largest sum
of the resident memory of the process and its children, read ten times per second. CPU seconds: of all threads; on a machine
that others use, they say more than the clock. Commits run beside the next shard, so the seconds of the phases add up to more than
those of all. The phases:

- read: the input's rows as batches, alone, in another process
- plan: reading, keys, spilling, folding, sorting, writing shards
- shards: reading a shard back and making its label rows
- score: what the stub costs, which is not counted in the goal
- commit: label files, flushed and linked
- finish: summary and report
- main thread: CPU seconds of all that the other threads do not do, which is what bounds the clock on two free cores
"""

import argparse
import cProfile
import io
import json
import pstats
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ITEMS_PER_QUERY, CATALOGUE, FILE_ROWS, REPEATED = 20, 100_000, 500_000, 20
GOAL = 50_000
PHASES = ("read", "plan", "shards", "commit", "finish", "all")


def write_pairs(folder: Path, rows: int, seed: int) -> None:
    """Pairs of a search log in random order: query, item with title, brand, category, price and two attributes."""
    from lore.data.pair import PAIR_SCHEMA

    rng = np.random.default_rng(seed)
    syllables = np.array([a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "il", "or")])
    words = pa.array(["".join(rng.choice(syllables, rng.integers(2, 4))) for _ in range(20_000)])

    def texts(count: int, length: int) -> pa.Array:
        columns = [words.take(pa.array(rng.integers(0, len(words), count))) for _ in range(length)]
        return pc.binary_join_element_wise(*columns, " ")

    items = min(CATALOGUE, rows)
    catalogue = {"title": texts(items, 9), "brand": texts(items, 1), "category": texts(items, 2)}
    catalogue["price"] = pa.array(rng.integers(100, 90_000, items) / 100)
    colours = [
        [("colour", colour), ("material", material)] for colour in ("red", "blue", "grey") for material in ("wool", "cotton")
    ]
    catalogue["attributes"] = pa.array(colours, PAIR_SCHEMA.field("attributes").type).take(pa.array(rng.integers(0, 6, items)))
    unique = rows - rows // REPEATED
    queries = texts(-(-unique // ITEMS_PER_QUERY), 3)
    order = rng.permutation(np.concatenate([np.arange(unique), rng.integers(0, unique, rows - unique)]))
    folder.mkdir()
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        here = order[start : start + FILE_ROWS]
        query, item = here // ITEMS_PER_QUERY, (here * 7919 + 13) % items
        columns = {name: column.take(pa.array(item)) for name, column in catalogue.items()}
        columns |= {"query": queries.take(pa.array(query)), "query_frequency": pa.array(1e6 / (1 + query))}
        for name, values in (("pair_id", here), ("item_id", item)):
            columns[name] = pc.binary_join_element_wise(name[0], pa.array(values).cast(pa.string()), "")
        schema = pa.schema([field for field in PAIR_SCHEMA if field.name in columns])
        pq.write_table(pa.table([columns[name] for name in schema.names], schema=schema), folder / f"{number:03d}.parquet")


def stub_scorer() -> Any:
    """A Scorer that answers L4 at once."""
    from lore.engines.engine import EngineUsage
    from lore.judge.verdict import Verdict

    class StubScorer:
        tier_ids, judge_id, usage = ["L1", "L2", "L3", "L4"], "stub", EngineUsage()

        def score(self, pairs: list) -> list:
            return [Verdict(pair.pair_id, "L4", [0.1, 0.1, 0.1, 0.7], judge_id="stub") for pair in pairs]

    return StubScorer()


def run_stage(pairs: Path, out: Path, profile: bool) -> dict[str, Any]:
    """Runs the stage in this process and returns the seconds of its phases."""
    import lore.label.label as stage
    from lore.config.stages import load_recipe
    from lore.label.ledger import Ledger
    from lore.label.plan import Shard
    from lore.label.worker import ShardWorker
    from lore.run.input_hashes import note_inputs
    from lore.run.run_folder import RunFolder

    seconds = {phase: np.zeros(2) for phase in ("plan", "read_shards", "label", "score", "commit", "finish")}

    def timed(phase: str, function: Callable, cpu_clock: Callable[[], float] = time.thread_time) -> Callable:
        @wraps(function)
        def measured(*arguments: Any, **options: Any) -> Any:
            began = clocks(cpu_clock)
            try:
                return function(*arguments, **options)
            finally:
                seconds[phase] += clocks(cpu_clock) - began

        return measured

    scorer = stub_scorer()
    scorer.score = timed("score", scorer.score)
    stage.make_plan = timed("plan", stage.make_plan, time.process_time)
    stage.finish = timed("finish", stage.finish, time.process_time)
    Shard.read, Ledger.commit = timed("read_shards", Shard.read), timed("commit", Ledger.commit)
    ShardWorker.label = timed("label", ShardWorker.label)
    recipe = load_recipe(Path(stage.__file__).with_name("command.yaml"), overrides(pairs))
    folder = RunFolder(out, recipe)
    folder.open(recipe)
    note_inputs(recipe, folder)
    profiler = cProfile.Profile()
    began, main_began = clocks(), time.thread_time()
    if profile:
        profiler.enable()
    stage.run(recipe, folder, lambda spec: ShardWorker(spec, scorer))
    profiler.disable()
    total = clocks() - began - seconds["score"]
    main = time.thread_time() - main_began - seconds["score"][1]
    if profile:
        text = io.StringIO()
        pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(30)
        print(text.getvalue(), file=sys.stderr)
    labels = sum(pq.read_metadata(file).num_rows for file in (out / "verdicts").glob("*.parquet"))
    phases = {"plan": seconds["plan"], "shards": seconds["read_shards"] + seconds["label"] - seconds["score"]}
    phases |= {name: seconds[name] for name in ("score", "commit", "finish")}
    phases["all"] = total
    return {"labels": labels, "seconds": {name: both[0] for name, both in phases.items()}} | {
        "cpu_seconds": {name: both[1] for name, both in phases.items()} | {"main thread": main}
    }


def clocks(cpu_clock: Callable[[], float] = time.process_time) -> np.ndarray:
    """[wall seconds, CPU seconds]."""
    return np.array([time.perf_counter(), cpu_clock()])


class Nothing:
    """Takes no rejected rows."""

    def write(self, rejection: Any) -> None:
        pass


def overrides(pairs: Path) -> list[str]:
    """The recipe: a server that is never asked."""
    judge = {"endpoint": {"url": "http://127.0.0.1:9/v1", "model": "stub"}, "rubric": "shop"}
    judge["prompt"] = {"order": "answer_only", "detail": "name"}
    return [f"input.path={pairs}", f"judge={json.dumps(judge)}", "store=none"]


def read_only(pairs: Path) -> dict[str, Any]:
    """Seconds of reading the input's batches."""
    from lore.config.stages import load_recipe
    from lore.label import label as stage
    from lore.label.inputs import open_input

    recipe = load_recipe(Path(stage.__file__).with_name("command.yaml"), overrides(pairs))
    began = clocks()
    with tempfile.TemporaryDirectory() as work:
        rows = sum(batch.num_rows for batch in open_input(recipe.input, Path(work), Nothing()).batches())
    seconds, cpu_seconds = (clocks() - began).tolist()
    return {"rows": rows, "seconds": seconds, "cpu_seconds": cpu_seconds}


def peak_of(command: list[str]) -> tuple[dict[str, Any], float]:
    """Runs a command that prints JSON last. Returns that, and the peak of the resident memory of its process tree in MB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        root = psutil.Process(process.pid)
        while not ended.wait(0.1):
            total = 0
            try:
                for one in (root, *root.children(recursive=True)):
                    total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            peak = max(peak, total / 2**20)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    text, _ = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return json.loads(text.splitlines()[-1]), peak


def measure(rows: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    print(f"writing {rows:,} rows", file=sys.stderr, flush=True)
    pairs, out = folder / "pairs", folder / "labels"
    write_pairs(pairs, rows, options.seed)
    this = [sys.executable, __file__]
    read, read_peak = peak_of([*this, "--step", "read", str(pairs), str(out)])
    found, peak = peak_of([*this, "--step", "label", str(pairs), str(out), *(["--profile"] if options.profile else [])])
    wanted = rows - rows // REPEATED
    if found["labels"] != wanted or read["rows"] != rows:
        sys.exit(f"{found['labels']:,} labels of {wanted:,} pairs, {read['rows']:,} rows read of {rows:,}")
    for clock in ("seconds", "cpu_seconds"):
        found[clock]["read"] = read[clock]
    return {"rows": rows, **found, "peak_mb": peak, "read_mb": read_peak}


def report(results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("input rows", "rows per", title=f"without the stub; seed {options.seed}; goal {GOAL:,} rows/s in all")
    for column in (*PHASES, "main thread", "seconds", "peak MB"):
        table.add_column(column, justify="right")
    for one in results:
        for clock, name in (("seconds", "second"), ("cpu_seconds", "CPU second")):
            timed = [one[clock].get(phase) for phase in (*PHASES, "main thread")]
            cells = ["" if seconds is None else f"{one['rows'] / max(seconds, 1e-9):,.0f}" for seconds in timed]
            table.add_row(f"{one['rows']:,}", name, *cells, f"{one[clock]['all']:.1f}", f"{one['peak_mb']:.0f}")
    Console(width=140).print(table)
    summary: dict[str, Any] = {"benchmark": "label_scale", "seed": options.seed, "results": results}
    if len(results) > 1:
        first, last = results[0], results[-1]
        per_row = [one["cpu_seconds"]["all"] / one["rows"] for one in (first, last)]
        summary["growth"] = {"cpu_per_row_ratio": per_row[1] / per_row[0], "more_mb": last["peak_mb"] - first["peak_mb"]}
    print(json.dumps(summary))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000], help="input rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="folder for temporary files")
    parser.add_argument("--profile", action="store_true", help="print the functions that take most of the time")
    parser.add_argument("--step", nargs=3, metavar=("STEP", "PAIRS", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step, pairs, out = options.step
        print(json.dumps(read_only(Path(pairs)) if step == "read" else run_stage(Path(pairs), Path(out), options.profile)))
        return
    results = []
    for rows in options.pairs:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            results.append(measure(rows, Path(folder), options))
    report(results, options)


if __name__ == "__main__":
    main()
