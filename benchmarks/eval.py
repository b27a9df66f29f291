"""Seconds and peak memory of an evaluation with existing predictions: metrics, intervals, slices, report.

    python benchmarks/eval.py                                    10,000 pairs, 5 judges, 1,000 draws
    python benchmarks/eval.py --pairs 100000 --judges 2

Runs the stage in this process on synthetic pairs (about 5 per query, 60 slices, one photo each, three raters, a prior, gains) and
predictions files with probabilities, and times its phases. Memory is the peak of the process in a phase, including earlier
allocations. The last line of the output is one JSON object. On two cores set OMP_NUM_THREADS=2.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RUBRIC = "rair"
INDUSTRIES, DIMENSIONS, KINDS = 24, 16, ("jargon", "entity", "solution", "question", "negation", "multi_attribute")
PRIOR = {"L4": 0.60, "L3": 0.07, "L2": 0.27, "L1": 0.06}
GAINS = {"L4": 1.0, "L3": 0.1, "L2": 0.01, "L1": 0.0}


def photo(rng: np.random.Generator) -> dict:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).resize((240, 240)).save(out, "JPEG")
    return {"bytes": out.getvalue(), "path": None}


def write_data(folder: Path, pairs: int, judges: int) -> dict[str, str]:
    """Writes pairs.parquet, ratings.parquet and one predictions file per judge. Returns the predictions files by judge."""
    from lore.data.pair import Pair
    from lore.data.parquet import PairWriter

    rng = np.random.default_rng(0)
    image, rows = photo(rng), []
    frequency = rng.pareto(1.1, pairs) * 10 + 1
    with PairWriter(folder / "pairs.parquet") as writer:
        for split, size in (("test", pairs), ("dev", min(max(pairs // 10, 200), 2000))):
            for index in range(size):
                query = int(index * 0.2)
                tier = int(rng.integers(0, 4))
                rows.append((f"{split}-{index}", tier))
                kind, capability = KINDS[query % 6], ("knowledge", "multimodal", "rules")[query % 3]
                writer.write(
                    Pair(
                        pair_id=rows[-1][0],
                        query=f"{split} query {query} of some words",
                        title=f"item {index} with a title of about as many words as sellers write into one",
                        category=f"industry {query % INDUSTRIES} > shelf {query % 97}",
                        mismatch=f"dimension {index % DIMENSIONS}" if tier == 1 else None,
                        query_frequency=float(frequency[query]),
                        slices=[("general", "hard", "visual")[index % 3], f"hard:{kind}", f"capability:{capability}"],
                        label=f"L{tier + 1}",
                        split=split,
                        image=image,
                    )
                )
    gold = np.asarray([tier for _, tier in rows])
    ids = [pair_id for pair_id, _ in rows]
    tested = np.tile(np.arange(pairs), 3)
    rated = (gold[tested] + rng.choice([-1, 0, 0, 0, 1], 3 * pairs)).clip(0, 3)
    raters = np.repeat(["ann", "bob", "cem"], pairs)
    ratings = {"pair_id": [ids[index] for index in tested], "rater": raters, "label": [f"L{tier + 1}" for tier in rated]}
    pq.write_table(pa.table(ratings), folder / "ratings.parquet")
    files = {}
    for judge in range(judges):
        scores = np.eye(4)[gold] * (1 + 0.5 * judge) + rng.normal(0, 1, (len(gold), 4))
        probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        tiers = [f"L{tier + 1}" if rng.random() > 0.01 else None for tier in probabilities.argmax(axis=1)]
        columns = {"pair_id": ids, "tier": tiers, "rationale": ["the colour is another one; the rest fits the query"] * len(ids)}
        columns |= {f"p_L{tier + 1}": probabilities[:, tier] for tier in range(4)}
        files[f"judge {judge}"] = str(folder / f"judge-{judge}.parquet")
        pq.write_table(pa.table(columns), files[f"judge {judge}"])
    return files


def recipe_of(folder: Path, files: dict[str, str], draws: int) -> str:
    metrics = {"bootstrap_samples": draws, "prior": PRIOR, "gains": GAINS, "ratings": str(folder / "ratings.parquet")}
    return json.dumps(
        {
            "stage": "evaluate",
            "run": "benchmark",
            "data": {"path": str(folder / "pairs.parquet"), "rubric": RUBRIC},
            "prompt": {"order": "answer_only", "detail": "name"},
            "judges": {name: {"kind": "predictions", "predictions": path} for name, path in files.items()},
            "baselines": [],
            "metrics": metrics,
        }
    )


class Phases:
    """Seconds and peak megabytes per phase."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.peak_mb: dict[str, float] = {}

    def watch(self, phase: str, module: object, name: str) -> None:
        """Adds the time and memory of every call of module.name to the phase."""
        setattr(module, name, self.timed(phase, getattr(module, name)))

    def timed(self, phase: str, function: Callable) -> Callable:
        def measured(*arguments, **options):
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
                self.peak_mb[phase] = max(self.peak_mb.get(phase, 0.0), peak_mb())

        return measured


def peak_mb() -> float:
    """Peak resident memory of this process in MB since the last reset. Linux only."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure(folder: Path, files: dict[str, str], draws: int) -> Phases:
    from lore.eval import evaluate
    from lore.eval.report import write as output
    from lore.run.runner import run_recipe

    phases = Phases()
    phases.watch("read pairs", evaluate, "load_data")
    phases.watch("read predictions", evaluate, "read_verdicts")
    phases.watch("metrics and intervals", evaluate, "score")
    phases.watch("predictions.parquet", output, "write_predictions")
    phases.watch("report.html", output, "write_report")
    path = folder / "eval.yaml"
    path.write_text(recipe_of(folder, files, draws))
    os.environ["LORE_RUNS"] = str(folder / "runs")
    phases.timed("whole stage", run_recipe)(path)
    # The phases reset the peak of the whole stage.
    phases.peak_mb["whole stage"] = max(phases.peak_mb.values())
    return phases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--judges", type=int, default=5)
    parser.add_argument("--draws", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_data(folder, given.pairs, given.judges)
        phases = measure(folder, files, given.draws)
    for phase, seconds in phases.seconds.items():
        print(f"{phase:24} {seconds:7.1f} s {phases.peak_mb[phase]:7.0f} MB")
    print(json.dumps({"benchmark": "eval", **vars(given), "seconds": phases.seconds, "peak_mb": phases.peak_mb}))


if __name__ == "__main__":
    main()
