"""Benchmark definitions: data, prompt, slices and metrics of one benchmark in one file that recipes name.

A file in eval/benchmarks holds `about` (what the benchmark is and where its data comes from) and `recipe`, the part of an
evaluation recipe that the benchmark sets. The keys of the user's recipe take precedence. `world` describes test pairs that
the embedded shop generates.
"""

import fcntl
import os
import re
from pathlib import Path
from typing import Any

from lore.config.recipe import VARIABLES
from lore.config.yaml_text import read_yaml
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

BENCHMARKS = Path(__file__).parent / "benchmarks"
KEYS = ("name", "about", "recipe", "world")


def benchmark_names() -> list[str]:
    return sorted(path.stem for path in BENCHMARKS.glob("*.yaml"))


def load_benchmark(name_or_path: str) -> dict[str, Any]:
    """Reads a definition and expands ${LORE_DATA} and ${LORE_RUNS}. Raises LoreError for an unknown or malformed one."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in benchmark_names():
            known = ", ".join(benchmark_names())
            raise LoreError(
                f"There is no benchmark {name_or_path!r}; the shipped ones are {known}."
                f"{nearest_hint(name_or_path, benchmark_names())} Give your own definition by its path, which ends in .yaml."
            )
        path = BENCHMARKS / f"{name_or_path}.yaml"
    content = read_yaml(path, aliases=True)
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
        raise LoreError(f"Benchmark {path} is not a mapping with the key recipe. Expected keys: {', '.join(KEYS)}.")
    if unknown := [key for key in content if key not in KEYS]:
        raise LoreError(f"Benchmark {path} has the unknown key {unknown[0]}. Allowed keys: {', '.join(KEYS)}.")
    return _expanded(content)


def with_benchmark(recipe: Any) -> Any:
    """Merges a recipe's raw values over those of the benchmark that it names."""
    if not isinstance(recipe, dict) or not isinstance(recipe.get("benchmark"), str):
        return recipe
    try:
        definition = load_benchmark(recipe["benchmark"])
    except LoreError as error:
        raise ValueError(str(error)) from error
    data, own = definition["recipe"].get("data", {}), recipe.get("data")
    if isinstance(own, dict) and own.get("source", data.get("source")) != data.get("source"):
        data.pop("options", None)  # they belong to the benchmark's importer, which the recipe replaces
    return _merged(definition["recipe"], recipe)


def _merged(below: dict, above: dict) -> dict:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        # A prior or a table of gains is one value: merging two of them would make one that nobody wrote.
        merged[key] = _merged(merged[key], value) if both and key not in ("prior", "gains") else value
    return merged


def _expanded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expanded(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return re.sub(
        r"\$\{(\w+)\}", lambda found: (os.environ.get(found[1]) or VARIABLES.get(found[1]) or found[0]).rstrip("/"), value
    )


def generates(name_or_path: str | None, path: str) -> bool:
    """Whether the benchmark generates its pairs at `path` with the embedded shop. False for a path that the user chose."""
    definition = load_benchmark(name_or_path) if name_or_path else {}
    return bool(definition.get("world")) and path == definition["recipe"]["data"]["path"]


def write_benchmark_pairs(name_or_path: str | None, path: str) -> None:
    """Writes the pairs of a generated benchmark that are missing. Recipes that make training pairs refuse these seeds."""
    if not generates(name_or_path, path):
        return
    # Loads numpy and pyarrow: only where the shop writes the pairs; every evaluation recipe loads this module.
    from lore.data_synth.shop.world import World
    from lore.data_synth.shop.write import TEST_SUBSETS, write_pairs

    world, folder = load_benchmark(name_or_path)["world"], Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        counts = world["pairs"]
        own = {(seed, split): f"{split}-{seed}-{counts[split]}.parquet" for seed in world["seeds"] for split in counts}
        if foreign := sorted({file.name for file in folder.glob("*.parquet")} - set(own.values())):
            raise LoreError(
                f"{path} holds {', '.join(foreign[:5])}, which benchmark {name_or_path} does not generate, so they would be tested "
                "together with its own pairs. Set another data.path in your definition, or delete the folder to regenerate it."
            )
        for seed in world["seeds"]:
            shop = World(seed, world.get("language", "en"), subsets=TEST_SUBSETS)
            for split, count in counts.items():
                write_pairs(shop, split, count, folder / own[seed, split])
