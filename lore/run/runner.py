"""Runs recipes: recipe -> stage -> run folder.

A recipe's first line calls `main`, so `accelerate launch x.yaml`, `torchrun x.yaml` and `python x.yaml` all work;
`lore run x.yaml` does the same in this process. A finished run is not repeated; an interrupted run resumes.
"""

from __future__ import annotations

import re
from pathlib import Path

from lore.config.dry_pass import listed
from lore.config.grid import is_grid, split_address
from lore.config.recipe import BaseRecipe, resolve_need
from lore.config.secrets import mask
from lore.config.stages import called, load_grid, load_recipe, stage_function
from lore.config.yaml_text import to_yaml
from lore.run.dependencies import checked_plan, run_in_subprocess, run_needed, wait_for_needed
from lore.run.devices import close_process_group, settle_devices
from lore.run.entry import exit_status, report_error
from lore.run.grid import run_grid
from lore.run.input_hashes import check_inputs, missing_inputs, note_inputs
from lore.run.nested import refuse_shared_names
from lore.run.run_folder import RunFolder
from lore.run.summary import print_summary
from lore.support.errors import LoreError
from lore.support.full_disk import full_disk_named
from lore.support.processes import is_main_process, say
from lore.support.terminal import print_line, print_lines
from lore.support.text import named, printable

MAX_OPTIONS = 50  # that are answered in one message


def run_command(arguments: list[str], dry_run: bool = False) -> int:
    """Runs recipes with overrides, both as typed. Returns the exit status. Prints an error to stderr without a traceback."""
    return exit_status(lambda: _run_command(arguments, dry_run))


def _run_command(arguments: list[str], dry_run: bool) -> None:
    recipes, overrides, unknown = [], [], []
    for argument in arguments:
        named(argument, "An argument")
        if argument == "--dry-run":
            dry_run = True
        elif split_address(argument)[0].suffix in (".yaml", ".yml") and "=" not in argument.split("/")[0]:
            recipes.append(argument)
        elif "=" in argument and not argument.startswith("-"):
            overrides.append(argument)
        else:
            unknown.append(argument)
    if unknown:
        raise LoreError(
            f"{mask(repr(unknown[0]))} is neither a recipe (x.yaml), a run of a grid (x.yaml:run), an override "
            f"(train.lr=2e-4) nor --dry-run.{_as_overrides(unknown, recipes)}"
        )
    if not recipes:
        raise LoreError("No recipe given: lore run recipes/quickstart/eval.yaml")
    if len(recipes) == 1 or dry_run:
        for recipe in recipes:
            (run_grid if is_grid(recipe) else run_recipe)(recipe, overrides, dry_run)
    else:
        for recipe in recipes:
            # Load all first: a typo in the last recipe must not show up after hours of the first.
            (load_grid if is_grid(recipe) else load_recipe)(recipe, overrides)
        for recipe in recipes:
            run_in_subprocess(Path(recipe), overrides)


def _as_overrides(arguments: list[str], recipes: list[str]) -> str:
    """How options, such as --learning_rate of a library's script or --train.lr, are written as overrides of the first recipe."""
    lines = []
    for argument, after in zip(arguments, [*arguments[1:], "-"], strict=True):
        name, _, value = argument.partition("=")
        value = value or ("VALUE" if after.startswith("-") else after)
        if name.startswith("--") and (told := called(name, recipes[0] if recipes else None)):
            sentence, keys = told
            shown = "VALUE" if sentence else printable(value)  # a sentence says how the two differ
            written = " or ".join(f"{key}={shown}" for key in keys)
            lines.append(f"{name} is written {written} here. {sentence}".rstrip() if keys else f"{name}: {sentence}")
    return "".join(f"\n{mask(line)}" for line in lines[:MAX_OPTIONS])


def run_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = (), dry_run: bool = False) -> RunFolder:
    """Runs the recipes that a recipe needs, then the recipe. Returns its run folder: finished, or unchanged after a dry run."""
    try:
        recipe = load_recipe(path, overrides)
        if recipe.command != BaseRecipe.command and not dry_run:
            raise LoreError(f"{path} has the stage {recipe.stage}, which `lore run` does not run. Use `{recipe.command} {path}`.")
        folder = RunFolder.of(recipe)
        needed = checked_plan(path, recipe, overrides)
        if not folder.is_done:
            recipe.check_packages()
        if dry_run:
            if is_main_process():
                print_dry_run(path, recipe, folder, needed)
            return folder
        if is_finished(recipe, folder):
            return folder
    except LoreError as error:
        error.same_on_every_rank = True
        raise
    if is_main_process():
        run_needed(folder, needed, path, overrides)
    else:
        wait_for_needed(folder, needed)
    return run_in(recipe, folder, str(path))


def is_finished(recipe: BaseRecipe, folder: RunFolder) -> bool:
    """Whether a run is done and stays so; it is then reported. Raises LoreError if the folder belongs to another recipe."""
    folder.check(recipe)
    if folder.is_done and (why := recipe.reopened(folder)):
        say(f"{folder.path} resumes: {why}")
        folder.reopen()
    if folder.is_done:
        report_done(recipe, folder)
    return folder.is_done


def run_in(recipe: BaseRecipe, folder: RunFolder, named: str) -> RunFolder:
    """Runs a recipe, whose needed recipes are done, in a run folder. named: what to call the recipe."""
    folder.open(recipe)
    if is_main_process():
        recipe.prepare()
        note_inputs(recipe, folder)
    settle_devices()
    say(f"{recipe.stage}: {named} -> {folder.path}")
    with full_disk_named(folder.path, "Then run the same command again: what is complete stays."):
        stage_function(recipe.stage)(recipe, folder)
    if not folder.is_done:
        folder.finish({})
    close_process_group()
    print_summary(folder)
    return folder


def report_done(recipe: BaseRecipe, folder: RunFolder) -> None:
    """Reports a finished run, and the changed keys that it ignores. Raises LoreError when its inputs have changed."""
    check_inputs(recipe, folder)
    say(f"already done: {folder.path}")
    for key, was, now in folder.ignored(recipe):
        say(f"{key}={now} is ignored: the run finished with {key}={was}")
    print_summary(folder)


def check_recipes(paths: list[Path]) -> int:
    """Checks recipe files and folders of recipes. Prints a table and every problem. Returns 1 when there is a problem, else 0."""
    from lore.support.console import Console, Table, Text  # loads rich: only `lore check` prints this table

    given, skipped = {}, 0  # by the real path: `lore check recipes recipes/quickstart` names files twice
    for path in paths:
        if "=" in str(path) and not path.exists():
            raise LoreError(
                f"`lore check` takes recipes and folders, not an override ({mask(str(path).partition('=')[0])}=...), so nothing "
                "was checked. `lore run RECIPE KEY=VALUE --dry-run` checks a recipe with overrides."
            )
        found = sorted(path.rglob("*.y*ml")) if path.is_dir() else [path]
        recipes = [file for file in found if file == path or _may_be_recipe(file, path)]
        for file in recipes:
            given.setdefault(file.resolve(), file)
        skipped += len(found) - len(recipes)
    files = list(given.values())
    if not files:
        raise LoreError(f"There is no recipe (*.yaml) under {', '.join(map(str, paths))}.")
    table = Table(title="recipes", title_justify="left")
    for column in ("recipe", "stage", "run", "result"):
        table.add_column(column, overflow="fold")
    errors, runs = [], {}
    for file in files:
        stage = run = ""
        try:
            if is_grid(file):
                grid = load_grid(file)
                stage, run, recipes = f"grid of {len(grid.runs)} runs", grid.name, list(grid.runs.values())
            else:
                recipes = [load_recipe(file)]
                stage, run = recipes[0].stage, recipes[0].run
            for recipe in recipes:
                if recipe.run in runs:
                    raise LoreError(
                        f"{file} and {runs[recipe.run][0]} both write the run folder {recipe.run}, so only one of them can run. "
                        "Give each its own `run` name."
                    )
                for other, known in runs.values():
                    try:
                        refuse_shared_names((RunFolder.of(one).path, one) for one in (known, recipe))
                    except LoreError as error:
                        raise LoreError(f"{file} and {other}: {error}") from error
                runs[recipe.run] = file, recipe
                for need in recipe.needs:
                    other, name = split_address(resolve_need(file, need))
                    if name is not None and other.resolve() != file.resolve():
                        load_recipe(f"{other}:{name}")
            result = Text("ok", "green")
        except LoreError as error:
            errors.append(error)
            problems = getattr(error, "problems", [error])
            result = Text(f"{len(problems)} problem{'s' * (len(problems) > 1)}", "red")
        table.add_row(str(file), stage, run, result)
    Console().print(table)
    if skipped:
        print_line(f"Skipped {skipped} other YAML files: hidden, or without one of the keys lore, stage and grid.")
    for error in errors:
        report_error(error)
    return 1 if errors else 0


def _may_be_recipe(file: Path, folder: Path) -> bool:
    """False for YAML files of other kinds, and for files in hidden folders such as .venv."""
    if not file.is_file() or any(part.startswith(".") for part in file.relative_to(folder).parts[:-1]):
        return False
    return re.search(rb"^(?:lore|stage|grid)\s*:", file.read_bytes(), re.MULTILINE) is not None


def print_dry_run(path: str | Path, recipe: BaseRecipe, folder: RunFolder, needed: list[tuple[Path, RunFolder]]) -> None:
    """Prints the resolved recipe, the values derived from it, and what a real run would do. Raises LoreError for a damaged run."""
    folder.refuse_damage()
    print_line(f"# {path}, every value (defaults included)")
    print_lines(to_yaml(recipe.resolved()))
    derived = recipe.derived()
    if derived:
        print_line("# derived from these values")
        print_lines(to_yaml(derived))
    if recipe.command == BaseRecipe.command:
        _print_state(recipe, folder)
    else:
        print_line(f"# `{recipe.command} {path}` starts it; it writes no run folder")
    prepared = recipe.prepared_inputs()
    for key, lack in missing_inputs(recipe):
        if key in prepared:
            lack = f"{prepared[key]} does not exist; the run writes it first."
        print_line(f"# {key}: {lack}{' A needed recipe may write it.' if needed else ''}")
    if checks := listed(recipe.stage):
        print_line("# dry pass, before the work starts")
        for line in checks:
            print_line(f"#   {line}")
    for need, inner in needed:
        print_line(f"# needs: {need} -> {inner.path} ({'done' if inner.is_done else 'would run first'})")


def _print_state(recipe: BaseRecipe, folder: RunFolder) -> None:
    state = "new"
    if folder.is_done:
        state = "done"
    elif folder.exists:
        state = "would resume"
    changed = folder.changes(recipe)
    print_line(f"# run folder: {folder.path} ({'belongs to another recipe' if changed else state})")
    for key, old, new in changed:
        print_line(f"#   {key}: was {old!r}, now {new!r}")
