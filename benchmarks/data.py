"""Rows per second and peak memory of importing, checking and rendering pairs, on synthetic text rows.

    python benchmarks/data.py                          100 thousand and 1 million rows
    python benchmarks/data.py --rows 20000 50000

Each step runs in a separate process, so that its peak memory is measured separately. Rendering uses no tokenizer, which would
dominate the time, and no photos. The last line of the output is one JSON object.
"""

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = ("import", "check", "render")
COLUMNS = ("search_term", "product_title", "product_description", "colour", "relevance")
MAP = {
    "query": "search_term",
    "title": "product_title",
    "description": "product_description",
    "attributes.colour": "colour",
    "label": "relevance",
}
RUBRIC = "homedepot"


def write_rows(path: Path, rows: int, seed: int = 0) -> None:
    """Writes a csv with `rows` rows of about 500 characters: 2 % with HTML, 1 % repeated, 0.1 % without a query."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "il", "or")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(20_000)]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        row = None
        for number in range(rows):
            if row is None or number % 100:
                query = "" if number % 1000 == 999 else " ".join(rng.choices(words, k=3))
                description = " ".join(rng.choices(words, k=60))
                if number % 50 == 1:
                    description = f"<ul><li>{description}</li></ul>&nbsp;&amp; more"
                relevance = rng.choice(("1", "1.33", "1.67", "2", "2.33", "2.67", "3"))
                row = [query, " ".join(rng.choices(words, k=9)), description, rng.choice(words), relevance]
            writer.writerow(row)


def run_step(step: str, table: Path, pairs: Path) -> dict[str, float]:
    """Runs one step in this process and returns rows, seconds and peak_mb."""
    from lore.codec.prompt import PromptFormat, render
    from lore.data.import_pairs import import_pairs, open_pairs
    from lore.data.importers import open_source
    from lore.data.parquet import read_pairs
    from lore.rubric.rubric import load_rubric

    rubric, start = load_rubric(RUBRIC), time.perf_counter()
    if step == "import":
        rows = import_pairs(open_source("table", table, options={"map": MAP}), pairs, rubric).rows
    elif step == "check":
        rows = import_pairs(open_pairs(pairs)[0], None, rubric, tier_ids_only=True).rows
    else:
        fmt, rows = PromptFormat(order="reason_first", detail="full"), 0
        for pair in read_pairs(pairs):
            render(pair, rubric, fmt)
            rows += 1
    return {"rows": rows, "seconds": time.perf_counter() - start, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Peak resident memory of this process in MB. On Linux, getrusage would include the peak of the parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def measure(rows: int, folder: Path) -> list[dict]:
    table, pairs = folder / "table.csv", folder / "pairs.parquet"
    print(f"writing {rows:,} rows", file=sys.stderr)
    write_rows(table, rows)
    results = []
    for step in STEPS:
        command = [sys.executable, __file__, "--step", step, str(table), str(pairs)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        results.append({"step": step, "input_rows": rows, **found, "rows_per_second": found["rows"] / found["seconds"]})
    table.unlink()
    pairs.unlink()
    return results


def show(results: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*("step", "rows", "seconds", "rows/s", "peak MB"))
    for r in results:
        table.add_row(r["step"], f"{r['rows']:,}", f"{r['seconds']:.1f}", f"{r['rows_per_second']:,.0f}", f"{r['peak_mb']:.0f}")
    Console().print(table)


def growth(results: list[dict]) -> dict[str, dict[str, float]]:
    """Growth from the smallest to the largest number of rows: ratio of time per row (1 is linear) and additional megabytes."""
    grown = {}
    for step in STEPS:
        first, *_, last = sorted((r for r in results if r["step"] == step), key=lambda r: r["input_rows"])
        ratio = first["rows_per_second"] / last["rows_per_second"]
        grown[step] = {"time_per_row_ratio": round(ratio, 3), "more_mb": round(last["peak_mb"] - first["peak_mb"], 1)}
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="folder for temporary files")
    parser.add_argument("--step", nargs=3, metavar=("STEP", "TABLE", "PAIRS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        step, table, pairs = given.step
        print(json.dumps(run_step(step, Path(table), Path(pairs))))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        results = [result for rows in given.rows for result in measure(rows, Path(folder))]
    show(results)
    summary = {"benchmark": "data", "results": results}
    if len(set(given.rows)) > 1:
        summary["growth"] = growth(results)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
