"""Runs grids: each run in its own process, in the order of their dependencies, and one table of results at the end.

    lore run recipes/experiments/ablation.yaml              every run that is not done
    lore run recipes/experiments/ablation.yaml --dry-run    lists the runs and the state of each
    lore run recipes/experiments/ablation.yaml:eval         one run, after the runs it needs

When a run fails, the grid skips the runs that need it and continues with the others. Commands in several shells can run different
seeds of one grid: each waits for runs that another command has started, and the table lists the finished runs of all seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from lore.config.grid import Grid, of_whole_grid
from lore.config.recipe import BaseRecipe
from lore.config.stages import load_grid
from lore.run.dependencies import plan, run_in_subprocess, run_need, run_when_free, shared_overrides
from lore.run.input_hashes import check_inputs
from lore.run.nested import refuse_shared_names
from lore.run.run_folder import RunFolder
from lore.run.summary import Row, columns_of, is_interval, print_table, rows_of, shown
from lore.support.atomic_files import write_atomic
from lore.support.bounds import MAX_SEED
from lore.support.errors import LoreError
from lore.support.markdown import table_cell
from lore.support.processes import say, world_size
from lore.support.terminal import print_line

Start = Callable[[Path, Sequence[str]], None]
TABLE = "table.md"


def run_grid(path: str | Path, overrides: Sequence[str] = (), dry_run: bool = False, start: Start = run_in_subprocess) -> None:
    """Runs every run that is not done. Raises LoreError at the end when runs failed. start: runs one address with overrides."""
    if world_size() > 1:
        raise LoreError(
            f"{path} is a grid, and {world_size()} processes were started for it: each of them would start all of its runs.\n"
            f"Use `lore launch {path}`, which starts the processes of each run, or launch one run as {path}:NAME.",
            same_on_every_rank=True,
        )
    grid = load_grid(path, overrides)
    own = own_overrides(grid, overrides)
    refuse_shared_folders(grid, own)
    for recipe in grid.runs.values():
        if not RunFolder.of(recipe).is_done:
            recipe.check_packages()
    if dry_run:
        return print_runs(grid)
    refuse_other_recipes(grid)
    failed: dict[str, str] = {}
    broken: set[Path] = set()
    for name, recipe in grid.runs.items():
        if missing := [sibling for sibling in grid.siblings[name] if sibling in failed]:
            failed[name] = f"not started: it needs {missing[0]}"
            continue
        try:
            run_one(grid.address(name), recipe, own, start, broken)
        except LoreError as error:
            failed[name] = str(error).splitlines()[0]
            say(f"{name}: {error}")
    write_table(with_finished_seeds(grid, overrides), failed)
    if failed:
        rows = "\n".join(f"  {name}: {why}" for name, why in failed.items())
        count = f"{len(failed)} of the {len(grid.runs)} runs of {grid.path}"
        raise LoreError(f"{count} failed:\n{rows}\nThe same command runs them again.")


def own_overrides(grid: Grid, overrides: Sequence[str]) -> list[str]:
    """The overrides of every run, addressed as overrides of the grid, so that they also reach the runs that a run needs."""
    whole = of_whole_grid(overrides)
    return whole + [f"runs.{name}.{override}" for override in overrides if override not in whole for name in grid.names]


def refuse_shared_folders(grid: Grid, overrides: Sequence[str]) -> None:
    """Raises LoreError when two runs of the grid or of its needs would write to the same place."""
    if (grid.folder / TABLE).is_dir():
        raise LoreError(f"{grid.folder / TABLE} is a folder, and the grid writes its table there. Move it, or rename the grid.")
    folders = [RunFolder.of(recipe) for recipe in grid.runs.values()]
    for name, recipe in grid.runs.items():
        if not RunFolder.of(recipe).is_done:
            with suppress(LoreError):  # the run that has it reports it later, and the others run
                folders += [inner for _, inner in plan(grid.address(name), recipe, overrides)]
    refuse_shared_names((folder.path, folder.recipe) for folder in folders)


def refuse_other_recipes(grid: Grid) -> None:
    """Raises LoreError, before anything runs, when run folders belong to recipes with other values."""
    found = []
    for name, recipe in grid.runs.items():
        try:
            RunFolder.of(recipe).check(recipe)
        except LoreError as error:
            found.append(f"{name}: {error}")
    if found:
        raise LoreError("\n".join(found))


def run_one(address: Path, recipe: BaseRecipe, overrides: list[str], start: Start, broken: set[Path]) -> None:
    """Runs the needed recipes, then the run. Raises LoreError when one fails. broken: needed recipes that failed before."""
    folder = RunFolder.of(recipe)
    folder.check(recipe)
    if folder.is_done and not recipe.reopened(folder):
        check_inputs(recipe, folder)
        say(f"already done: {folder.path}")
        return
    for need, inner in plan(address, recipe, overrides=overrides):
        if need in broken:
            raise LoreError(f"not started: it needs {need}, which failed")
        if not inner.is_done:
            try:
                run_need(folder, need, inner, shared_overrides(address, need, overrides))
            except LoreError:
                broken.add(need)
                raise
    run_when_free(folder, lambda: start(address, overrides))


def with_finished_seeds(grid: Grid, overrides: Sequence[str]) -> Grid:
    """The grid with the finished runs of its other seeds too, which other commands ran before or run at the same time."""
    if not grid.seeds:
        return grid
    folders = re.compile(rf"(?:{'|'.join(grid.names)})-seed(\d+)")
    matches = [folders.fullmatch(done.parent.name) for done in grid.folder.glob("*/done")]
    found = {int(match[1]) for match in matches if match}
    seeds = sorted({seed for seed in found if seed <= MAX_SEED}.union(grid.seeds))
    if len(seeds) == len(grid.seeds):
        return grid
    whole = load_grid(grid.path, [*(o for o in overrides if not o.startswith("seeds=")), f"seeds={seeds}"])
    runs = {name: recipe for name, recipe in whole.runs.items() if name in grid.runs or RunFolder.of(recipe).is_done}
    return replace(whole, runs=runs)


def state_of(recipe: BaseRecipe) -> str:
    folder = RunFolder.of(recipe)
    try:
        folder.refuse_damage()
        if folder.changes(recipe) and not folder.is_unused(recipe):
            return "belongs to another recipe"
    except LoreError as error:
        return str(error).splitlines()[0]
    return "done" if folder.is_done else "would resume" if folder.exists else "new"


def print_runs(grid: Grid) -> None:
    """Lists the runs with their folders, states and needs, for a dry run."""
    cells = []
    for name, recipe in grid.runs.items():
        needs = ", ".join(need.removeprefix(f"{grid.path.name}:") for need in recipe.needs)
        cells.append([name, recipe.stage, str(RunFolder.of(recipe).path), state_of(recipe), needs])
    print_table(f"{grid.path}: {len(cells)} runs, in this order", ["run", "stage", "run folder", "state", "needs"], cells)
    print_line(f"Every value of one run: lore run {grid.address(next(iter(grid.runs)))} --dry-run")


def write_table(grid: Grid, failed: dict[str, str]) -> None:
    """Prints the results, one table per stage, and writes them to table.md in the grid's folder."""
    text = [f"# {grid.name}\n"]
    for stage in dict.fromkeys(recipe.stage for recipe in grid.runs.values()):
        recipes = {name: recipe for name, recipe in grid.runs.items() if recipe.stage == stage}
        columns, cells = stage_table(recipes, failed)
        print_table(f"{grid.name}: {stage}", columns, cells)
        lines = [columns, ["---"] * len(columns), *cells]
        text.append(f"## {stage}\n\n" + "\n".join(f"| {' | '.join(map(table_cell, line))} |" for line in lines) + "\n")
    grid.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(grid.folder / TABLE, "\n".join(text))
    say(f"table: {grid.folder / TABLE}")


def stage_table(recipes: dict[str, BaseRecipe], failed: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the runs of one stage. Means over seeds come last."""
    rows: list[tuple[str, str, Row]] = []
    for name, recipe in recipes.items():
        folder = RunFolder.of(recipe)
        try:
            state = "not run" if not folder.is_done else "belongs to another recipe" if folder.changes(recipe) else None
            summary = folder.summary
        except LoreError as error:  # a damaged run does not end the table of the others
            state = str(error).splitlines()[0]
        if name in failed or state is not None:
            rows.append((name, "", {"state": failed.get(name, state)}))
            continue
        for part, row in rows_of(summary).items():
            # Paths inside the run's folder are not results.
            values = {key: value for key, value in row.items() if not str(value).startswith(str(folder.path))}
            if values:
                rows.append((name, part, values))
    rows += seed_means(rows)
    columns = columns_of(values for _, _, values in rows)
    parts = any(part for _, part, _ in rows)
    cells = [[name, *([part] if parts else []), *(shown(values.get(column)) for column in columns)] for name, part, values in rows]
    return ["run", *([""] if parts else []), *columns], cells


def seed_means(rows: list[tuple[str, str, Row]]) -> list[tuple[str, str, Row]]:
    """A row with the mean of every number for each run that has several seeds. Means of intervals have no bounds."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for name, part, values in rows:
        run, repeated, _ = name.rpartition("-seed")
        if repeated and "state" not in values:
            groups.setdefault((run, part), []).append(values)
    means = []
    for (run, part), group in groups.items():
        if len(group) > 1:
            row = {column: _mean([values.get(column) for values in group]) for column in columns_of(group)}
            means.append((f"{run}, mean of {len(group)} seeds", part, row))
    return means


def _mean(values: list[Any]) -> Any:
    numbers = [value[0] if is_interval(value) else value for value in values]
    if not all(type(number) in (int, float) for number in numbers):
        return None
    return [fmean(numbers), None, None] if is_interval(values[0]) else fmean(numbers)
