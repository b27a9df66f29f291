"""The contribution of each part of the reasoning: results of the grid recipes/experiments/ablation.yaml over its seeds.

    lore run recipes/experiments/ablation.yaml        seeds 0, 1 and 2
    python benchmarks/ablation.py

The table shows the mean Acc@4 over the seeds and the difference to the full judge in points. The 95 % intervals come from a paired
bootstrap over queries, which resamples all pairs of a query and all seeds together. The last column has the mean of each seed.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from seeds import evaluations, times_drawn

FULL = "full"
SLICES = ("all", "capability:knowledge", "capability:multimodal", "capability:rules", "general", "hard", "visual")


def table(files: list[Path]) -> str:
    """The Markdown table for the predictions files of all seeds."""
    judges: dict[str, dict[str, list[bool]]] = {}
    about: dict[str, tuple[str, list[str]]] = {}
    for file in files:
        for row in pq.read_table(file, columns=["judge", "pair_id", "query", "label", "slices", "tier"]).to_pylist():
            judges.setdefault(row["judge"], {}).setdefault(row["pair_id"], []).append(row["tier"] == row["label"])
            about[row["pair_id"]] = (row["query"], row["slices"])
    ids = sorted(about)
    queries, drawn = times_drawn([about[i][0] for i in ids])
    right = {name: np.array([answers[i] for i in ids], dtype=float) for name, answers in judges.items()}  # [pairs, seeds]
    lines = []
    for name in SLICES:
        member = np.array([name == "all" or name in about[i][1] for i in ids])
        weights = drawn[:, queries[member]]  # [resamples, pairs of the slice]
        for judge, values in right.items():
            part = values[member].mean(axis=1)
            means = weights @ part / weights.sum(axis=1)
            gap = weights @ (part - right[FULL][member].mean(axis=1)) / weights.sum(axis=1)
            low, high = np.percentile(means, [2.5, 97.5])
            gap_low, gap_high = 100 * np.percentile(gap, [2.5, 97.5])
            seeds = " ".join(f"{value:.2f}" for value in values[member].mean(axis=0))
            gap_text = (
                ""
                if judge == FULL
                else f"{100 * (part.mean() - right[FULL][member].mean()):+.1f} [{gap_low:+.1f}, {gap_high:+.1f}]"
            )
            lines.append(
                f"| {name} ({member.sum()}) | {judge} | {part.mean():.3f} [{low:.3f}, {high:.3f}] | {gap_text} | {seeds} |"
            )
    return "\n".join(["| slice (pairs) | judge | Acc@4 | points to full | seeds |", "|---|---|---|---|---|", *lines])


if __name__ == "__main__":
    print(table([run / "predictions.parquet" for run in evaluations("ablation")]))
