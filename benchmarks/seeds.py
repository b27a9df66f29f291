"""What benchmarks over several seeds share: a recipe run in a process of its own, its text with a seed, bootstrap weights."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

RESAMPLES = 2000


def lore(recipe: Path, runs: Path, *overrides: str) -> None:
    command = [sys.executable, "-m", "lore", "run", str(recipe), *overrides]
    subprocess.run(command, env={**os.environ, "LORE_RUNS": str(runs)}, check=True)


def with_seed(text: str, seed: int) -> str:
    """A recipe's text with a seed in it."""
    return re.sub(r"^stage: ", f"seed: {seed}\nstage: ", text, count=1, flags=re.MULTILINE)


def times_drawn(queries: list[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(query number of each pair [pairs], how often each query is drawn [RESAMPLES, queries]) of a bootstrap over queries."""
    groups = np.unique(queries, return_inverse=True)[1]
    count = groups.max() + 1
    return groups, np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
