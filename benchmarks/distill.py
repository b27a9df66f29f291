"""What soft labels, margins, rationales and photos are worth to a student: results of the grid recipes/experiments/distill.yaml.

    lore run recipes/experiments/distill.yaml        seeds 0, 1 and 2
    python benchmarks/distill.py                     or: python benchmarks/distill.py FOLDER, that of the grid

Per slice of the test: mean Macro-F1 over the seeds, the mean as a share of the judge's, and the difference to `student` in points.
The 95 % intervals come from a paired bootstrap over queries: judge and students are measured on the same draws, and a draw takes
all seeds together. The last column has the value of each seed.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from lore.config.recipe import run_root
from lore.eval.measures.bootstrap import query_groups, values_and_draws

SLICES = ("all", "general", "visual", "hard")
TIERS = ["L1", "L2", "L3", "L4"]
SAMPLES = 2000


def measured(rows: list[dict], slice_name: str) -> tuple[float, np.ndarray]:
    """(Macro-F1, its draws) of verdicts on the pairs of a slice."""
    kept = [row for row in rows if slice_name == "all" or slice_name in row["slices"]]
    gold, predicted = (np.array([TIERS.index(row[key]) for row in kept]) for key in ("label", "tier"))
    groups = query_groups([row["query"] for row in kept])
    value, draws = values_and_draws(gold, predicted, groups, TIERS, [False, False, True, True], samples=SAMPLES)
    return value["macro_f1"], draws["macro_f1"]


def table(folder: Path) -> str:
    """The Markdown table of a grid's folder."""
    found: dict[str, list[list[dict]]] = {}
    for file in sorted(folder.glob("*-seed*/predictions.parquet")):
        rows = pq.read_table(file, columns=["judge", "pair_id", "query", "label", "slices", "tier"]).to_pylist()
        for name, of in (("judge", "judge"), (file.parent.name.partition("-seed")[0], "student")):
            answers = sorted((row for row in rows if row["judge"] == of), key=lambda row: row["pair_id"])
            if answers and (name != "judge" or name not in found):
                found.setdefault(name, []).append(answers)
    lines = ["| slice (pairs) | run | Macro-F1 | % of the judge's | points to student | seeds |", "|---|---|---|---|---|---|"]
    for name in SLICES:
        values, draws = {}, {}
        for run, answers in found.items():
            each = [measured(rows, name) for rows in answers]
            values[run], draws[run] = np.array([value for value, _ in each]), np.mean([draw for _, draw in each], axis=0)
        pairs = sum(name == "all" or name in row["slices"] for row in found["judge"][0])
        for run in sorted(found, key=["judge", "student"].__contains__, reverse=True):
            share = between(values[run].mean() / values["judge"].mean(), draws[run] / draws["judge"], 100, "")
            gap = between(values[run].mean() - values["student"].mean(), draws[run] - draws["student"], 100, "+")
            own = between(values[run].mean(), draws[run], 1, "")
            seeds = " ".join(f"{value:.3f}" for value in values[run])
            compared = ("", "") if run == "judge" else (share, "" if run == "student" else gap)
            lines.append(f"| {name} ({pairs}) | {run} | {own} | {compared[0]} | {compared[1]} | {seeds} |")
    return "\n".join(lines)


def between(value: float, draws: np.ndarray, factor: int, sign: str) -> str:
    """A value with its 95 % interval."""
    digits = f"{sign}.{3 if factor == 1 else 1}f"
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return f"{factor * value:{digits}} [{factor * low:{digits}}, {factor * high:{digits}}]"


if __name__ == "__main__":
    print(table(Path(sys.argv[1]) if len(sys.argv) > 1 else run_root() / "distill"))
