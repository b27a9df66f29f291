"""Helpers for benchmarks over several seeds: the evaluations of a grid, one per seed, and bootstrap weights."""

import os
import sys
from pathlib import Path

import numpy as np

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "experiments"
RESAMPLES = 2000


def evaluations(grid: str) -> list[Path]:
    """Run folders of the finished evaluations of a grid, one per seed. Exits if there are none."""
    found = sorted(done.parent for done in Path(os.environ.get("LORE_RUNS") or "runs").glob(f"{grid}/eval-seed*/done"))
    if not found:
        sys.exit(f"No evaluation of the grid {grid} has finished. First run: lore run {RECIPES / grid}.yaml")
    print(f"{len(found)} seeds: {', '.join(map(str, found))}", file=sys.stderr)
    return found


def times_drawn(queries: list[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap over queries: the query index of each pair [pairs], and how often each query is drawn [RESAMPLES, queries]."""
    groups = np.unique(queries, return_inverse=True)[1]
    count = groups.max() + 1
    return groups, np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
