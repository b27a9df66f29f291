"""The effect of alignment: results of the grid recipes/experiments/align.yaml over its seeds.

    lore run recipes/experiments/align.yaml        seeds 0, 1 and 2
    python benchmarks/align.py
    python benchmarks/align.py --spread            two more runs per seed: groups with non-zero advantages under dynamic sampling

The table shows means over the seeds and paired differences to the SFT start in points. The 95 % intervals come from a bootstrap
over the test queries, which resamples all pairs of a query and all seeds together. The last column has pass@1 of each seed.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from seeds import RECIPES, evaluations, times_drawn

from lore.eval.measures.samples import pass_at
from lore.judge.chunk_store import ChunkStore
from lore.judge.confusion import NO_VERDICT, confusion_matrix, macro_f1
from lore.judge.resumable import SAMPLES_SCHEMA
from lore.run.dependencies import run_in_subprocess
from lore.run.run_folder import RunFolder

GRID = RECIPES / "align.yaml"
START = "sft"
WHOLE_STEPS = 144  # of 32 prompts each: three passes over the pool of 1,536


def judged(run: Path) -> dict[str, dict[str, np.ndarray]]:
    """For each judge, arrays over the pairs in the same order: right, failed, query, label, tier, id, and pass@k of the samples."""
    table = pq.read_table(run / "predictions.parquet").to_pylist()
    found: dict[str, dict[str, list]] = {}
    for row in sorted(table, key=lambda row: row["pair_id"]):
        one = found.setdefault(row["judge"], {"right": [], "failed": [], "query": [], "label": [], "tier": [], "id": []})
        one["right"].append(row["tier"] == row["label"])
        one["failed"].append(row["tier"] is None)
        for key in ("query", "label", "tier"):
            one[key].append(row[key])
        one["id"].append(row["pair_id"])
    for judge, one in found.items():
        store = ChunkStore(run / "verdicts" / judge / "samples", SAMPLES_SCHEMA, holds="samples")
        drawn = {row["pair_id"]: row["tiers"] for row in store.rows()}
        if not drawn:
            continue
        # Only some of the pairs have samples.
        known = [(drawn.get(i, []), label) for i, label in zip(one["id"], one["label"], strict=True)]
        counts = [(len(tiers), sum(tier == label for tier in tiers)) for tiers, label in known]
        one["pass@1"] = [right / n if n else np.nan for n, right in counts]
        one["pass@8"] = [pass_at(n, right, 8) if n else np.nan for n, right in counts]
        one["failed, sampled"] = [sum(tier is None for tier in tiers) / len(tiers) if tiers else np.nan for tiers, _ in known]
    return {judge: {key: np.asarray(value) for key, value in one.items()} for judge, one in found.items()}


def weighted_macro_f1(label: np.ndarray, tier: np.ndarray, groups: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Macro-F1 [draws]. label, tier [pairs]: names of tiers, None for no verdict. groups [pairs]: query indices. times [draws,
    queries]: how often each query counts."""
    names = sorted({*label, *tier} - {None})
    index = {None: NO_VERDICT} | {name: at for at, name in enumerate(names)}
    gold, predicted = (np.array([index[name] for name in values]) for values in (label, tier))
    return macro_f1(np.tensordot(times, confusion_matrix(gold, predicted, len(names), groups=groups), 1))


def tables(runs: list[Path]) -> str:
    """The Markdown table for the evaluations of all seeds."""
    seeds = [judged(run) for run in runs]
    ece = [{name: one["metrics"]["ece_calibrated"]["value"] for name, one in metrics(run).items()} for run in runs]
    first = seeds[0][START]
    groups, drawn = times_drawn(first["query"])
    times = np.concatenate([np.ones((1, drawn.shape[1])), drawn])
    weights = times[:, groups]
    columns = ["judge", "pass@1", "points to SFT", "pass@8", "points to SFT", "Acc@4", "points to SFT", "Macro-F1"]
    lines = ["| " + " | ".join([*columns, "no verdict", "of samples", "ECE after T", "pass@1 by seed"]) + " |"]
    lines.append("|---" * 12 + "|")
    start = {key: mean(seeds, START, key, weights) for key in ("pass@1", "pass@8", "right")}
    names = [name for name in seeds[0] if all(name in one and "pass@1" in one[name] for one in seeds)]
    for name in names:
        cells = [name]
        for key in ("pass@1", "pass@8", "right"):
            value = mean(seeds, name, key, weights)
            cells += [shown(value, 1), "" if name == START else shown(100 * (value - start[key]), 2)]
        f1 = np.mean([weighted_macro_f1(one[name]["label"], one[name]["tier"], groups, times) for one in seeds], axis=0)
        failed, sampled = mean(seeds, name, "failed", weights), mean(seeds, name, "failed, sampled", weights)
        cells += [shown(f1, 1), f"{failed[0]:.2%}", f"{sampled[0]:.2%}", f"{np.mean([one[name] for one in ece]):.3f}"]
        cells.append(" ".join(f"{np.nanmean(one[name]['pass@1']):.3f}" for one in seeds))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))["judges"]


def mean(seeds: list[dict], judge: str, key: str, weights: np.ndarray) -> np.ndarray:
    """Mean [1 + draws] over the seeds of the mean over the pairs with a value. The first entry is the estimate itself."""
    means = []
    for one in seeds:
        values = one[judge][key]
        known = np.isfinite(values)
        means.append(weights[:, known] @ values[known] / weights[:, known].sum(axis=1))
    return np.mean(means, axis=0)


def shown(values: np.ndarray, kind: int) -> str:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return f"{values[0]:.3f} [{low:.3f}, {high:.3f}]" if kind == 1 else f"{values[0]:+.1f} [{low:+.1f}, {high:+.1f}]"


def spread(seeds: list[int], runs: Path) -> str:
    """Groups with reward spread per generated token late in training, with and without sharp dynamic sampling: means over the last
    third of three passes over the whole pool. The runs of the grid instead leave out prompts that were easy before training."""
    arms = {"without": ("no_dynamic", []), "sharp": ("grpo", ["dynamic.sharp=true"])}
    columns = ("seed", "per 1,000 tokens: sharp", "without", "ratio", "share with spread, without", "probe, sharp", "without")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for seed in seeds:
        folders = {arm: runs / "align" / f"whole_{arm}-seed{seed}" for arm in arms}
        for arm, (run, overrides) in arms.items():
            whole = ["pool.pass_rate=null", f"train.steps={WHOLE_STEPS}", "watch.every=48", *overrides]
            run_in_subprocess(Path(f"{GRID}:{run}-seed{seed}"), [f"run=align/whole_{arm}-seed{seed}", *whole])
        found = {arm: late(folder, "rollout/spread_per_1000_tokens") for arm, folder in folders.items()}
        cells = [f"{found['sharp']:.2f}", f"{found['without']:.2f}", f"{found['sharp'] / found['without']:.2f}"]
        cells.append(f"{late(folders['without'], 'rollout/share_with_spread'):.2f}")
        for arm in ("sharp", "without"):
            probes = [line["probe"]["pass_at_1"] for line in RunFolder(folders[arm]).metrics() if "probe" in line]
            cells.append(" ".join(f"{value:.3f}" for value in probes))
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def late(run: Path, key: str) -> float:
    """Mean of a metric over the last third of a run's logged steps."""
    values = [row[key] for row in RunFolder(run).metrics() if key in row]
    return float(np.mean(values[-(len(values) // 3) :]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spread", action="store_true", help="compare sharp dynamic sampling with none, over the whole pool")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="for --spread")
    options = parser.parse_args()
    if options.spread:
        print(spread(options.seeds, Path(os.environ.get("LORE_RUNS") or "runs")))
    else:
        print(tables(evaluations("align")))


if __name__ == "__main__":
    main()
