"""`lore runs`: list the runs below a folder. Imports inside functions keep `lore --help` fast.

A run is read from a few small files: its recipe, its done marker and the end of metrics.jsonl. Whatever is wrong with one run is
shown in its row, so one damaged run never hides the others. Nothing is hashed, and no checkpoint is opened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import typer

from lore.support.terminal import print_json, print_line

TAIL_BYTES = 65_536  # the end of metrics.jsonl that is read
MAX_FILES = 50_000  # files of one run whose sizes are added up
MAX_DEPTH = 16
OWN_MARKS = ("recipe.yaml", ".lock")  # in a folder within a run: the marks of another run
MARKS = (*OWN_MARKS, "manifest.json", "metrics.jsonl", "done", "failed.json")
LAST = ("loss", "reward", "kl")  # of the last training line
UNSHOWN = {"seconds", "train_seconds", "rejected", "parameters", "vocabulary", "tokens"}
BASELINES = ("lexical", "majority")  # of every evaluation, and alike in all
UNITS = {"d": 86_400, "h": 3600, "min": 60, "s": 1}


def runs(
    patterns: list[str] = typer.Argument(
        None, metavar="[PATTERN]...", help="Only runs with this in their name, such as sft or 'exp/*'."
    ),
    root: Path = typer.Option(None, help="Folder of the runs; default: $LORE_RUNS or runs."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for programs."),
) -> None:
    """List runs: state, key numbers, age and size."""
    from lore.config.recipe import run_root
    from lore.support.errors import LoreError

    if root is not None and not root.is_dir():
        raise LoreError(f"{root} is not a folder, so it holds no runs. --root names the folder above the run folders.")
    folder = root or run_root()
    wanted = [name_of(pattern, folder) for pattern in patterns or []]
    found = sorted((row for row in rows(folder) if matches(row.run, wanted)), key=lambda row: -row.updated)
    if as_json:
        print_json([row.plain() for row in found])
        return
    if not found:
        print_line(f"There are no runs{' of this name' if patterns else ''} under {folder}.")
        return
    print_runs(folder, found)


@dataclass
class Row:
    """One run. state: running, stopped, done, failed, damaged or empty; why: what is damaged or failed; step, steps: the last
    recorded step of a training run and the number planned; updated: seconds since 1970; partial: the size is a lower bound."""

    run: str
    path: Path
    stage: str = ""
    state: str = "empty"
    why: str = ""
    step: int | None = None
    steps: int | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    updated: float = 0.0
    bytes: int = 0
    files: int = 0
    partial: bool = False

    def plain(self) -> dict[str, Any]:
        """The row for --json."""
        when = datetime.fromtimestamp(self.updated, UTC).isoformat(timespec="seconds")
        kept = ("run", "stage", "state", "why", "step", "steps", "numbers")
        return {
            **{name: getattr(self, name) for name in kept},
            "path": str(self.path),
            "updated": when,
            "age_seconds": round(max(0.0, time.time() - self.updated)),
            "bytes": self.bytes,
            "bytes_are_partial": self.partial,
        }


def name_of(pattern: str, root: Path) -> str:
    """A pattern without the folder of the runs: a shell makes runs/sft of runs/*, as `lore leaderboard` takes it."""
    name = os.path.relpath(pattern, root)
    return pattern.rstrip(os.sep) if name.startswith(os.pardir) else "" if name == os.curdir else name


def matches(run: str, patterns: list[str]) -> bool:
    """Whether a name contains one of the patterns, or fits one with * ? or [."""
    return not patterns or any(pattern in run or fnmatch(run, pattern) for pattern in patterns)


def rows(root: Path) -> Iterator[Row]:
    """Every run below a folder, nested ones too."""
    found: list[Row] = []
    _walk(root, root, None, found, set(), 0)
    for row in found:
        try:
            _read(row)
        except Exception as error:  # whatever a damaged file causes: a row of its own, never the end of the list
            row.state, row.why = "damaged", f"{type(error).__name__}: {error}"[:200]
        yield row


def _walk(root: Path, folder: Path, owner: Row | None, found: list[Row], seen: set[tuple[int, int]], depth: int) -> None:
    """Adds the runs at and below `folder`, and the sizes of files to the run that they belong to. Follows links to folders only
    outside of runs."""
    try:
        about = folder.stat()
        entries = list(os.scandir(folder))
    except OSError:
        if owner is not None:
            owner.partial = True
        return
    if (about.st_dev, about.st_ino) in seen or depth > MAX_DEPTH:
        return
    seen.add((about.st_dev, about.st_ino))
    marks = MARKS if owner is None else OWN_MARKS
    if any(entry.name in marks and entry.is_file() for entry in entries):  # a run may be called `done`: that is a folder
        owner = Row(os.path.relpath(folder, root), folder, updated=about.st_mtime)
        found.append(owner)
    folders = []
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=owner is None):
                folders.append(Path(entry.path))
            elif owner is not None:
                status = entry.stat(follow_symlinks=False)
                owner.bytes += status.st_size
                owner.files += 1
                owner.updated = max(owner.updated, status.st_mtime)
        except OSError:
            continue  # deleted meanwhile
    for inner in folders:
        if owner is not None and owner.files > MAX_FILES:
            owner.partial = True
            # Still looks for other runs, which lie one folder below.
            if not any((inner / mark).is_file() for mark in OWN_MARKS):
                continue
        _walk(root, inner, owner, found, seen, depth + 1)


def _read(row: Row) -> None:
    from lore.config.recipe import values_fingerprint
    from lore.run.run_folder import RunFolder

    folder = RunFolder(row.path)
    problems: list[str] = []
    recipe = _recipe(folder, problems)
    row.stage = str(recipe.get("stage", ""))
    train = recipe.get("train")
    row.steps = train.get("steps") if isinstance(train, dict) else None
    summary = _json_object(folder.done_path, problems)
    lines = _last_lines(folder.metrics_path, problems)
    manifest = _json_object(folder.manifest_path, problems) or {}
    if recipe and values_fingerprint(recipe) != manifest.get("recipe_hash", values_fingerprint(recipe)):
        problems.append("recipe.yaml is not as the run wrote it")
    trained = next((line for line in reversed(lines) if "loss" in line), {})
    probe = next((line["probe"] for line in reversed(lines) if isinstance(line.get("probe"), dict)), {})
    row.step = max((line["step"] for line in lines if isinstance(line.get("step"), int)), default=None)
    row.numbers = key_numbers(trained, probe, summary or {})
    if not folder.exists and (summary is not None or lines or row.files > 1):
        problems.insert(0, "recipe.yaml is gone")
    if problems:
        row.state, row.why = "damaged", "; ".join(problems)
    elif summary is not None:
        row.state = "done"
    elif (user := folder.user) is not None:
        row.state, row.why = "running", f"process {user}"
    elif (row.path / "failed.json").is_file():
        failed = _json_object(row.path / "failed.json", problems) or {}
        row.state, row.why = "failed", f"needs {failed.get('recipe', 'a recipe')}, which failed"
    elif row.step is not None or _has_results(row.path):
        row.state = "stopped"


def _has_results(path: Path) -> bool:
    """Whether a run without a done marker holds something beside its own small files: chunks, weights, rows."""
    for entry in os.scandir(path):
        if entry.name not in MARKS and (not entry.is_dir() or any(os.scandir(entry.path))):
            return True
    return False


def _recipe(folder: Any, problems: list[str]) -> dict[str, Any]:
    from lore.config.yaml_text import RecipeError, read_record

    if not folder.exists:
        return {}
    try:
        return read_record(folder.recipe_path)
    except RecipeError:
        problems.append("recipe.yaml cannot be read")
        return {}


def _json_object(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """The JSON object of a file; None if there is none. Notes a damaged file."""
    from lore.support.untrusted_json import parse_object

    if not path.is_file():
        return None
    try:
        return parse_object(path.read_bytes())
    except (OSError, ValueError):
        problems.append(f"{path.name} cannot be read")
        return None


def _last_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The last whole lines of metrics.jsonl. A last line without its end is normal for a run that is running or was killed."""
    from lore.support.untrusted_json import parse_object

    if not path.is_file():
        return []
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            raw = file.read()
        lines = raw[: raw.rfind(b"\n") + 1].split(b"\n")
        lines = lines[1:] if size > TAIL_BYTES else lines
        return [parse_object(line) for line in lines if line]
    except (OSError, ValueError):
        problems.append("metrics.jsonl cannot be read")
        return []


def key_numbers(trained: dict[str, Any], probe: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """What tells runs apart: the last loss and reward, the last evaluation during training, and the run's summary. For an
    evaluation: each judge's accuracy over all tiers and Macro-F1."""
    found = {name: trained[name] for name in LAST if _is_number(trained.get(name))}
    if _is_number(probe.get("pass_at_1")):
        found["pass_at_1"] = probe["pass_at_1"]
    for name, value in summary.items():
        if isinstance(value, dict):
            if name in BASELINES:
                continue
            accuracies = [key for key in value if key.startswith("Acc@")]
            for key in (*accuracies[-1:], "Macro-F1"):
                middle = value[key][0] if isinstance(value.get(key), list) and value[key] else value.get(key)
                if _is_number(middle):
                    found[f"{name} {key}"] = middle
        elif name not in UNSHOWN and (_is_number(value) or name == "stopped"):
            found[name] = value
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def print_runs(root: Path, found: list[Row]) -> None:
    from lore.run.summary import print_table

    now = time.time()
    columns = ["run", "stage", "state", "numbers", "age", "size"]
    cells = [
        [row.run, row.stage, shown_state(row), shown_numbers(row.numbers), age(now - row.updated), shown_size(row)] for row in found
    ]
    print_table(str(root), columns, cells)


def shown_state(row: Row) -> str:
    at = "" if row.step is None else f" at step {row.step}" + (f" of {row.steps}" if row.steps else "")
    if row.state in ("running", "stopped"):
        return row.state + at
    return f"{row.state}: {row.why}" if row.why else row.state


def shown_numbers(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in numbers.items())


def age(seconds: float) -> str:
    """Seconds in the largest unit that fits, such as 3 h."""
    return next((f"{int(seconds // length)} {unit}" for unit, length in UNITS.items() if seconds >= length), "0 s")


def shown_size(row: Row) -> str:
    return f"{'over ' * row.partial}{shown_bytes(row.bytes)}"


def shown_bytes(size: int) -> str:
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
