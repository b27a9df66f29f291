"""Benchmark definitions: data, prompt, slices and metrics of one benchmark in one file that recipes name.

A file in eval/benchmarks holds `about` (what the benchmark is and where its data comes from) and `recipe`, the part of an
evaluation recipe that the benchmark sets. The keys of the user's recipe take precedence. `world` describes test pairs that
the embedded shop or the made-up town generates. A definition may come from somebody else, so it names no judges and sets
nothing but the test set.
"""

import fcntl
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lore.config.recipe import run_root
from lore.config.sections import Seed, StrictModel
from lore.config.validation import expand, validate
from lore.config.yaml_text import RecipeError, RecipeText, read_yaml, short
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

BENCHMARKS = Path(__file__).parent / "benchmarks"
KEYS = ("name", "about", "recipe", "world")
SECTIONS = ("data", "prompt", "metrics")
SETS = (*SECTIONS, "slices", "baselines")
"""Keys of a recipe that a benchmark sets: the test set, how it is asked and measured, and which baselines it has pairs for."""


class WorldSection(StrictModel):
    kind: Literal["shop", "town"] = "shop"
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=100)]
    """Seeds of the shops or towns."""
    pairs: dict[Literal["train", "dev", "test"], Annotated[int, Field(ge=1, le=1_000_000)]]
    """Number of pairs of each split and seed."""
    language: Literal["en", "zh"] = "en"
    """Language of the shop. A town is asked in both."""


class WorldOfBenchmark(StrictModel):
    world: WorldSection


def benchmark_names() -> list[str]:
    return sorted(path.stem for path in BENCHMARKS.glob("*.yaml"))


def load_benchmark(name_or_path: str) -> dict[str, Any]:
    """Reads a definition and expands ${LORE_DATA} and ${LORE_RUNS}. Raises LoreError for an unknown or malformed one, and for one
    that sets more than the test set."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in benchmark_names():
            known = ", ".join(benchmark_names())
            raise LoreError(
                f"There is no benchmark {name_or_path!r}; the shipped ones are {known}."
                f"{nearest_hint(name_or_path, benchmark_names())} Give your own definition by its path, which ends in .yaml."
            )
        path = BENCHMARKS / f"{name_or_path}.yaml"
    if not path.is_file():
        raise LoreError(f"Benchmark {path} is not a file. Correct the path, or name one of: {', '.join(benchmark_names())}.")
    content = read_yaml(path, aliases=True)
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
        raise LoreError(f"Benchmark {path} is not a mapping with the key recipe. Expected keys: {', '.join(KEYS)}.")
    if unknown := [key for key in content if key not in KEYS]:
        raise LoreError(f"Benchmark {path} has the unknown key {unknown[0]}. Allowed keys: {', '.join(KEYS)}.")
    text = RecipeText(path, content)
    content = expand(content, (), text, text.problems)
    if text.problems:
        raise RecipeError(text.problems, path)
    if foreign := [key for key in content["recipe"] if key not in SETS]:
        raise LoreError(
            f"Benchmark {path} sets {', '.join(foreign[:5])}, but a benchmark may come from somebody else and sets only "
            f"{', '.join(SETS)}.\nDelete {'this key' if len(foreign) == 1 else 'these keys'} under its recipe, and write what you "
            "want of them into your own recipe."
        )
    if flat := [key for key in SECTIONS if not isinstance(content["recipe"].get(key, {}), dict)]:
        raise LoreError(f"Benchmark {path}: recipe.{flat[0]} is {short(content['recipe'][flat[0]])}, expected a section with keys.")
    if content["recipe"].get("data", {}).get("image_root") is not None:
        raise LoreError(
            f"Benchmark {path} sets data.image_root, but a benchmark may come from somebody else, and photos of any folder that it "
            "names would go into prompts and reports.\nDelete the key; if you want to allow that folder, set data.image_root in "
            "your own recipe."
        )
    if "world" in content:
        _check_world(path, content)
    return content


def _check_world(path: Path, content: dict[str, Any]) -> None:
    """Raises LoreError unless the generated pairs are of a size and at a place that somebody else's file may choose."""
    place = content["recipe"].get("data", {}).get("path")
    below = run_root() / "benchmarks"
    if not isinstance(place, str) or below.absolute() not in Path(os.path.abspath(place)).parents:
        raise LoreError(
            f"Benchmark {path} generates its pairs at {place}. Generated pairs are written below {below}.\n"
            "Set its data.path to ${LORE_RUNS}/benchmarks/NAME."
        )
    validate(RecipeText(path, {"world": content["world"]}), WorldOfBenchmark)


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


def generates(name_or_path: str | None, path: str) -> bool:
    """Whether the benchmark generates its pairs at `path`. False for a path that the user chose."""
    definition = load_benchmark(name_or_path) if name_or_path else {}
    return bool(definition.get("world")) and path == definition["recipe"]["data"]["path"]


def write_benchmark_pairs(name_or_path: str | None, path: str) -> None:
    """Writes the pairs of a generated benchmark that are missing. Recipes that make training pairs refuse these seeds."""
    if not generates(name_or_path, path):
        return
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
            _write_pairs(world, seed, {folder / own[seed, split]: (split, count) for split, count in counts.items()})


def _write_pairs(world: dict[str, Any], seed: int, files: dict[Path, tuple[str, int]]) -> None:
    if world.get("kind") == "town":
        # They load numpy and pyarrow: only where pairs are written; every evaluation recipe loads this module.
        from lore.data_synth.local_life.pairs import Questions
        from lore.data_synth.local_life.town import MadeUpTown
        from lore.data_synth.local_life.write import write_pairs

        made = Questions(MadeUpTown(seed))
    else:
        # They load numpy and pyarrow: only where pairs are written; every evaluation recipe loads this module.
        from lore.data_synth.shop.world import World
        from lore.data_synth.shop.write import TEST_SUBSETS, write_pairs

        made = World(seed, world.get("language", "en"), subsets=TEST_SUBSETS)
    for file, (split, count) in files.items():
        write_pairs(made, split, count, file)
