"""Runs the recipes that a recipe needs. The main process runs each of them in its own process; the other ranks wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lore.config.grid import is_grid, of_whole_grid, split_address
from lore.config.recipe import BaseRecipe, resolve_need
from lore.config.stages import load_grid, load_recipe
from lore.run.input_hashes import check_inputs
from lore.run.nested import refuse_shared_names
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import write_atomic
from lore.support.errors import LoreError
from lore.support.processes import rank, say
from lore.support.terminal import print_note
from lore.support.untrusted_json import parse_object

POLL_SECONDS = 1.0
REPORT_EVERY_SECONDS = 30.0
STALE_AFTER_SECONDS = 60.0

# Environment variables that torchrun, accelerate and DeepSpeed set for the processes they start.
LAUNCHER_NAMES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME"}
LAUNCHER_NAMES |= {"ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CROSS_RANK", "CROSS_SIZE"}
LAUNCHER_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_", "TORCH_NCCL_ASYNC", "FSDP_", "DEEPSPEED_", "DS_", "PARALLELISM_")


def plan(path: str | Path, recipe: BaseRecipe, overrides: Sequence[str] = ()) -> list[tuple[Path, RunFolder]]:
    """Every recipe that must finish before this one, in the order in which to run them. A needed grid expands to all of its runs.

    overrides: those of this recipe; `shared_overrides` selects the ones that also apply to other runs of its grid. Raises
    LoreError for a cycle.
    """
    return list(_plan(path, recipe, overrides, (), {}).items())


def checked_plan(path: str | Path, recipe: BaseRecipe, overrides: Sequence[str] = ()) -> list[tuple[Path, RunFolder]]:
    """`plan`. Raises LoreError, before anything is written, if two of the runs would write to the same place."""
    needed = plan(path, recipe, overrides)
    own = RunFolder.of(recipe)
    refuse_shared_names((folder.path, folder.recipe) for folder in (*(inner for _, inner in needed), own))
    return needed


def _plan(
    path: str | Path,
    recipe: BaseRecipe,
    overrides: Sequence[str],
    above: tuple[Path, ...],
    known: dict[tuple, dict[Path, RunFolder]],
) -> dict[Path, RunFolder]:
    """above: the recipes that need this one. known: for each need seen so far and its overrides, its own plan with itself last."""
    own = Path(path).resolve()
    if own in above:
        circle = " -> ".join(p.name for p in (*above[above.index(own) :], own))
        raise LoreError(
            f"The recipes need one another in a cycle: {circle}. None of them can run first.\nRemove one of them from `needs`."
        )
    order: dict[Path, RunFolder] = {}
    for need_path in (one for need in recipe.needs for one in recipes_of(resolve_need(path, need))):
        shared = shared_overrides(path, need_path, overrides)
        key = (need_path, *shared)
        if key not in known:
            inner = load_recipe(need_path, shared)
            folder = RunFolder.of(inner)
            folder.check(inner)
            before = _plan(need_path, inner, shared, (*above, own), known)
            if folder.is_done:
                check_inputs(inner, folder)
                before = {}  # a finished run does not need its inputs again; they may be deleted
            else:
                inner.check_packages()
            known[key] = before | {need_path: folder}
        order.update(known[key])
    return order


def recipes_of(path: Path) -> list[Path]:
    """The recipe in a file, or the addresses of the runs of a grid."""
    if not is_grid(path):
        return [path]
    grid = load_grid(path)
    return [grid.address(name) for name in grid.runs]


def shared_overrides(path: str | Path, need: Path, overrides: Sequence[str]) -> list[str]:
    """The overrides of a run that also apply to a run it needs: those of the grid that both belong to."""
    (file, run), (other, _) = split_address(path), split_address(need)
    return of_whole_grid(overrides) if run is not None and file.resolve() == other.resolve() else []


def _failure_path(folder: RunFolder) -> Path:
    return folder / "failed.json"


def launch_id() -> str:
    """Identifies this start of a distributed job, to tell its failure notes from those of earlier starts."""
    names = (
        "MASTER_ADDR",
        "MASTER_PORT",
        "TORCHELASTIC_RUN_ID",
        "TORCHELASTIC_RESTART_COUNT",
        "SLURM_JOB_ID",
        "SLURM_STEP_ID",
    )
    parts = [os.environ.get(name, "") for name in names]
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    return "/".join([*parts, str(os.getppid()) if one_machine else ""])


def run_needed(
    folder: RunFolder, needed: list[tuple[Path, RunFolder]], path: str | Path = "", overrides: Sequence[str] = ()
) -> None:
    """Main process: runs each needed recipe that is not done, in its own process. When one fails, writes a note for the other
    ranks and raises LoreError. path, overrides: those of the run that needs them."""
    failure = _failure_path(folder)
    failure.unlink(missing_ok=True)
    for need, inner in needed:
        if inner.is_done:
            continue
        try:
            run_need(folder, need, inner, shared_overrides(path, need, overrides))
        except LoreError as error:
            with suppress(OSError):  # the reason of the failure counts more than the note
                folder.path.mkdir(parents=True, exist_ok=True)
                note = {"launch": launch_id(), "time": time.time(), "recipe": str(need)}
                write_atomic(failure, json.dumps(note) + "\n")
            raise LoreError(f"{error}\n{folder.path} needs it and cannot start.") from error


def run_need(folder: RunFolder, need: Path, inner: RunFolder, overrides: Sequence[str]) -> None:
    """Runs one needed recipe in its own process, or waits for the process that runs it. Raises LoreError when it fails."""

    def start() -> None:
        say(f"{folder.path} needs {need}: running it first")
        run_in_subprocess(need, overrides)

    run_when_free(inner, start)


def run_when_free(folder: RunFolder, start: Callable[[], None]) -> None:
    """Calls `start`, which runs a recipe in its own process, as soon as no other process uses the folder. Commands in several
    shells can share runs this way. When the other process has finished the run, `start` only checks it."""
    while True:
        wait_while_in_use(folder)
        was_done = folder.is_done
        try:
            return start()
        except LoreError:
            finished_by_other = folder.is_done and not was_done
            if folder.user is None and not finished_by_other:
                raise  # otherwise another process took the folder between the wait and the start


def wait_while_in_use(folder: RunFolder) -> None:
    started = reported = time.time()
    said = False
    while (user := folder.user) is not None:
        if not said:
            say(f"{folder.path} is in use by process {user}: waiting for it")
            said = True
        if time.time() - reported > REPORT_EVERY_SECONDS:
            reported = time.time()
            say(f"waiting {reported - started:.0f} s for process {user} to finish {folder.path}")
        time.sleep(POLL_SECONDS)


def wait_for_needed(folder: RunFolder, needed: list[tuple[Path, RunFolder]]) -> None:
    """Other ranks: wait until the main process has run the needed recipes. Raises LoreError when one of them failed."""
    started = reported = time.time()
    while missing := [inner.path for _, inner in needed if not inner.is_done]:
        failure = _failure_path(folder)
        if failure.is_file():
            note = _failure_note(failure)
            if note.get("launch") == launch_id() and note.get("time", 0) > started - STALE_AFTER_SECONDS:
                raise LoreError(
                    f"{note.get('recipe')} failed on rank 0, and {folder.path} needs it. See the output of rank 0 for the reason.",
                    same_on_every_rank=True,
                )
        if time.time() - reported > REPORT_EVERY_SECONDS:
            reported = time.time()
            waited = f"waiting {reported - started:.0f} s for rank 0 to finish {missing[0]}"
            print_note(f"rank {rank()}: {waited} (every machine must share this folder)")
        time.sleep(POLL_SECONDS)


def _failure_note(path: Path) -> dict[str, Any]:
    """The note of `run_needed`; empty for a file that it did not write."""
    try:
        note = parse_object(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return note if type(note.get("time")) in (int, float) else {}


def plain_environment() -> dict[str, str]:
    """The environment without a launcher's variables: a needed recipe runs as one ordinary process."""
    environment = dict(os.environ)
    if "RANK" not in environment and "ACCELERATE_MIXED_PRECISION" not in environment:
        return environment
    if int(environment.get("WORLD_SIZE") or 1) > 1 and environment.get("OMP_NUM_THREADS") == "1":
        del environment["OMP_NUM_THREADS"]  # the launchers' default for processes that share a machine
    return {k: v for k, v in environment.items() if k not in LAUNCHER_NAMES and not k.startswith(LAUNCHER_PREFIXES)}


def run_in_subprocess(path: Path, overrides: Sequence[str], command: str = "run", options: Sequence[str] = ()) -> None:
    """Runs (or launches) a recipe in its own process. Raises LoreError when it fails."""
    command = [sys.executable, "-m", "lore", command, str(path), *overrides, *options]
    status = subprocess.run(command, env=plain_environment()).returncode
    if status != 0:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        raise LoreError(f"{path} ended with {how}; see its message above. The same command resumes where it stopped.")
