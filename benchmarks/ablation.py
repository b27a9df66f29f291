"""What each part of the reasoning is worth: the recipes of recipes/ablation over several seeds, and a table.

    python benchmarks/ablation.py                     seeds 0, 1 and 2, one after the other
    python benchmarks/ablation.py --jobs 2            two seeds at a time (set OMP_NUM_THREADS to share the cores)

All seeds share the shop and the base model of the quickstart; teacher's mistakes, order of the rows and training differ. Every run
folder lies under <runs>/ablation-seeds/<seed>, so a killed run goes on.

The table: Acc@4, mean over the seeds, and the difference to the full judge in points, with 95 % intervals by a paired
bootstrap over queries (each query's pairs and all seeds together). The spread of the seeds' means stands beside it.
"""

import argparse
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from seeds import lore, times_drawn, with_seed

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
FULL = "full"
SLICES = ("all", "capability:knowledge", "capability:multimodal", "capability:rules", "general", "hard", "visual")


def run_seed(seed: int, root: Path, shared: Path) -> Path:
    """One seed's recipes, copied with their seed and the shared shop and base, and its runs. Returns the predictions."""
    runs, recipes = root / str(seed), root / str(seed) / "recipes"
    recipes.mkdir(parents=True, exist_ok=True)
    for source in RECIPES.glob("ablation/*.yaml"):
        text = source.read_text(encoding="utf-8").replace("${LORE_RUNS}/quickstart", str(shared.resolve() / "quickstart"))
        text = re.sub(r"\.\./quickstart/\w+\.yaml(, )?", "", text)  # done by then
        (recipes / source.name).write_text(with_seed(text, seed), encoding="utf-8")
    lore(recipes / "eval.yaml", runs)
    return runs / "ablation/eval/predictions.parquet"


def table(files: list[Path]) -> str:
    """The markdown table over the seeds' predictions."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    options = parser.parse_args()
    shared = Path(os.environ.get("LORE_RUNS") or "runs")
    lore(RECIPES / "quickstart/pretrain.yaml", shared)
    root = shared / "ablation-seeds"
    with ThreadPoolExecutor(options.jobs) as pool:
        files = list(pool.map(lambda seed: run_seed(seed, root, shared), options.seeds))
    print(table(files))


if __name__ == "__main__":
    main()
