"""Runs inside the folder of another run: `exp/check` lies in the folder of `exp`.

Two runs must not share a name: `exp/data` would lie at the folder that `exp` fills and deletes. Such names are refused before a run
starts, and `remove_own` deletes nothing that holds another run.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from lore.config.recipe import BaseRecipe
from lore.config.stages import RENAMED, STAGES, recipe_class
from lore.support.errors import LoreError

MARKS = ("recipe.yaml", "manifest.json", "done")
TRACES = {*MARKS, ".lock", "inputs.json", "metrics.jsonl"}
"""Two of these make a folder too precious to delete: a run that has lost other files."""


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, even if one of its files is lost. Other programs write such names too, but not two of them."""
    return sum((folder / mark).is_file() for mark in MARKS) > 1


def runs_in(folder: Path) -> Iterator[Path]:
    """The folder if it is a run, and every run inside it. Links inside the folder are not followed."""
    for place, _, files in os.walk(folder):
        if "recipe.yaml" in files or len(TRACES.intersection(files)) > 1:
            yield Path(place)


def refuse_runs_in(folder: Path) -> None:
    """Raises LoreError if a folder that is to be removed or replaced is a run or holds one."""
    if run := next(runs_in(folder), None):
        raise LoreError(
            f"{folder} was not removed, because {'it is a run' if run == folder else f'it holds the run {run}'}.\n"
            f"Move {run} out of {folder.parent}, or give the run that writes {folder} another `run` name."
        )


def remove_own(path: Path) -> None:
    """Deletes a file or folder that a run has written. Of a link only the link goes. Raises LoreError if it holds another run."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    refuse_runs_in(path)
    shutil.rmtree(path)


def refuse_shared_names(recipes: Iterable[tuple[Path, BaseRecipe]]) -> None:
    """Raises LoreError if recipes that belong together write to the same place, or write where a run on disk writes.

    recipes: run folder and recipe of the runs that one command may start. Pairs of finished runs are not looked at: neither of them
    writes again.
    """
    problems: list[str] = []
    known: dict[str, tuple[Path, BaseRecipe]] = {}
    for folder, recipe in recipes:
        path, other = known.setdefault(str(folder).lower(), (folder, recipe))
        if path != folder:
            problems.append(
                f"The runs {other.run} and {recipe.run} differ only in upper and lower case, and some file systems take them for "
                "one folder. Give one of them another `run` name."
            )
        elif _values(other) != _values(recipe):
            problems.append(
                f"Two recipes with other values write the run folder {folder}, so only one of them can run. Give each its own "
                "`run` name."
            )
    for folder, recipe in known.values():
        done = (folder / "done").is_file()
        for parent in folder.parents:
            above = known.get(str(parent).lower())
            name = folder.relative_to(parent).parts[0]
            if above and above[1].writes(name) and not (done and (above[0] / "done").is_file()):
                problems.append(_shared(folder, above[0], above[1].stage, name))
        if not done:
            problems += [problem for problem in shared_on_disk(folder, recipe) if problem not in problems]
    if problems:
        raise LoreError("\n".join(problems), same_on_every_rank=True)


def shared_on_disk(folder: Path, recipe: BaseRecipe) -> list[str]:
    """Problems of a run that is about to write `folder`: a run above it that writes the same name, runs inside at its own names."""
    problems = []
    for start in dict.fromkeys((Path(os.path.abspath(folder)), _real(folder))):
        for parent in start.parents:
            name, stage = start.relative_to(parent).parts[0], _stage_of(parent)
            if stage is not None and _writes(stage, name):
                problems.append(_shared(folder, parent, stage, name))
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if recipe.writes(path.name) and path.is_dir() and (run := _run_at(path, folder)):
            problems.append(_shared(run, folder, recipe.stage, path.name))
    return list(dict.fromkeys(problems))


def _values(recipe: BaseRecipe) -> dict:
    return {key: value for key, value in recipe.resolved().items() if not recipe.may_change(key)}


def _run_at(path: Path, own: Path) -> Path | None:
    """A run at or below a name of the run `own`. A link may also point into another run."""
    if path.is_symlink():
        target = _real(path)
        return next((place for place in (target, *target.parents) if place != _real(own) and is_run(place)), None)
    return next(runs_in(path), None)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises RuntimeError for links in a circle


def _stage_of(folder: Path) -> str | None:
    """The stage of a run on disk, "" if its recipe.yaml does not say it, None for a folder that is no run."""
    if not is_run(folder):
        return None
    try:
        text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    found = re.search(r"^stage: *(\w+)", text, re.MULTILINE)
    stage = found[1] if found else ""
    stage = RENAMED.get(stage, stage)
    return stage if stage in STAGES else ""


def _writes(stage: str, name: str) -> bool:
    """Whether a stage writes a name in its run folder. An unknown stage may write whatever any stage writes."""
    return any(recipe_class(known).writes(name) for known in ([stage] if stage else STAGES))


def _shared(inner: Path, outer: Path, stage: str, name: str) -> str:
    return (
        f"The run {inner} lies at {name}, which the run {outer}{f' (stage {stage})' if stage else ''} writes in its own folder: "
        f"each would overwrite or delete the other's files. Give one of them another `run` name, for example {inner.name} outside "
        f"{outer.name}; a run that is on disk can be moved with its folder."
    )
