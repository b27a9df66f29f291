"""Benchmark definitions: what is tested, shown how, and measured by what, as one file that recipes name.

A file of eval/benchmarks holds `about` (what it is, where its data come from) and `recipe`, the part of an evaluation recipe
that makes the benchmark; a recipe's own keys win. `world` describes test pairs that the embedded shop generates.
"""

import fcntl
import os
import re
from pathlib import Path
from typing import Any

from lore.config.recipe import VARIABLES
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

BENCHMARKS = Path(__file__).parent / "benchmarks"
KEYS = ("name", "about", "recipe", "world")


def benchmark_names() -> list[str]:
    return sorted(path.stem for path in BENCHMARKS.glob("*.yaml"))


def load_benchmark(name_or_path: str) -> dict[str, Any]:
    """The definition, with ${LORE_DATA} and ${LORE_RUNS} filled in. Raises LoreError."""
    import yaml

    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in benchmark_names():
            known = ", ".join(benchmark_names())
            raise LoreError(
                f"There is no benchmark {name_or_path!r}; there are {known}.{nearest_hint(name_or_path, benchmark_names())} "
                "Name your own by its path, ending in .yaml."
            )
        path = BENCHMARKS / f"{name_or_path}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise LoreError(f"Benchmark {path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
        raise LoreError(f"Benchmark {path}: found no mapping with the key recipe; expected {', '.join(KEYS)}.")
    if unknown := [key for key in content if key not in KEYS]:
        raise LoreError(f"Benchmark {path}: unknown key {unknown[0]}; expected some of {', '.join(KEYS)}.")
    return _expanded(content)


def with_benchmark(recipe: Any) -> Any:
    """A recipe's raw values with those of the benchmark that it names below them."""
    if not isinstance(recipe, dict) or not isinstance(recipe.get("benchmark"), str):
        return recipe
    try:
        definition = load_benchmark(recipe["benchmark"])
    except LoreError as error:
        raise ValueError(str(error)) from error
    data, own = definition["recipe"].get("data", {}), recipe.get("data")
    if isinstance(own, dict) and own.get("source", data.get("source")) != data.get("source"):
        data.pop("options", None)  # switches of the other importer
    return _merged(definition["recipe"], recipe)


def _merged(below: dict, above: dict) -> dict:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        # Shares, gains and the like are one value: mixing two of them would make a third that nobody wrote.
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
    """Whether a benchmark of the embedded shop writes the pairs at `path` itself; a path of the user's own is left alone."""
    definition = load_benchmark(name_or_path) if name_or_path else {}
    return bool(definition.get("world")) and path == definition["recipe"]["data"]["path"]


def write_benchmark_pairs(name_or_path: str | None, path: str) -> None:
    """Writes those pairs where they are missing. Their seeds are sealed: no recipe that makes training pairs takes them."""
    if not generates(name_or_path, path):
        return
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
                f"{path} holds {', '.join(foreign[:5])}, which benchmark {name_or_path} does not make, and they would be tested "
                "with its own pairs. Give your definition a data.path of its own, or delete the folder: its pairs are made anew."
            )
        for seed in world["seeds"]:
            shop = World(seed, world.get("language", "en"), subsets=TEST_SUBSETS)
            for split, count in counts.items():
                write_pairs(shop, split, count, folder / own[seed, split])
