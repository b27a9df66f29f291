"""Prints the leaderboard, and writes leaderboard.md, .csv and .json."""

import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path

from lore.data.tables.csv import csv_text
from lore.eval.compare.leaderboard import STEM, SUFFIXES, Board, Row, check_metrics
from lore.eval.compare.safe_output import open_console, text
from lore.eval.measures.bootstrap import Estimate
from lore.eval.measures.metrics import metric_names
from lore.eval.report.console import best_value, column_titles, print_table, shown_columns
from lore.support.atomic_files import written_whole
from lore.support.console import Console
from lore.support.errors import LoreError
from lore.support.markdown import table_cell
from lore.support.outputs import Output, begins_with, checked_outputs

MARKS = {".md": "<!-- lore leaderboard -->", ".csv": "test_set,rubric,rubric_hash,", ".json": '{"lore": "leaderboard", '}
NOTHING = Estimate(float("nan"))


def report(
    boards: list[Board], passed_over: dict[str, str], out: Path, *, by: str, metrics: Sequence[str] = (), force: bool = False
) -> None:
    """Prints the tables and writes them: a folder gets all three files, a path ending in .md, .csv or .json that one file. force:
    replace files that are no earlier output."""
    check_metrics(boards, metrics, by)
    runs = [row.run.folder for found in boards for row in found.rows if row.run.folder is not None]
    files = [Output(path, begins_with(MARKS[path.suffix])) for path in _files(out)]
    targets = checked_outputs(files, runs, force=force)
    console = open_console()
    for found in boards:
        _print(console, found, by, metrics)
    damage = {path: why for path, why in passed_over.items() if "damaged" in why or "is missing" in why}
    for path, why in damage.items():
        console.print(text(f"not ranked: {path}: {why}", "bold", limit=2000), soft_wrap=True)
    if named := ", ".join(f"{path} ({why})" for path, why in passed_over.items() if path not in damage):
        console.print(text(f"skipped: {named}", limit=2000), soft_wrap=True)
    for path, target in zip((file.path for file in files), targets, strict=True):
        content = {
            ".md": lambda: to_markdown(boards, by, metrics),
            ".csv": lambda: to_csv(boards, by),
            ".json": lambda: to_json(boards, passed_over, by),
        }[path.suffix]()
        with written_whole(target) as file:
            file.write(content.encode("utf-8", errors="backslashreplace"))
        console.print(text(f"leaderboard: {path}"), soft_wrap=True)


def _files(out: Path) -> list[Path]:
    if out.suffix in SUFFIXES and not out.is_dir():
        return [out]
    if out.is_file() or (out.suffix[1:].isalpha() and not out.is_dir()):
        raise LoreError(f"--out {out}: expected a folder, or a path that ends in {', '.join(SUFFIXES)}.")
    return [out / f"{STEM}{suffix}" for suffix in SUFFIXES]


def _weightings(found: Board) -> list[bool]:
    """[False] for the plain test, and True if rows have values under a prior."""
    return [False] + [True] * any(row.card.natural is not None for row in found.rows)


def _columns(found: Board, rows: list[Row], natural: bool, metrics: Sequence[str]) -> dict[str, str]:
    """Metric name to title."""
    chosen = [name for name in metrics if name in metric_names(found.tiers)] or None
    return shown_columns([row.card.natural if natural else row.card.whole for row in rows], found.tiers, chosen)


def _print(console: Console, found: Board, by: str, metrics: Sequence[str]) -> None:
    console.print(text(found, "bold", limit=2000), soft_wrap=True)
    for natural in _weightings(found):
        rows = found.sorted_by(by, natural=natural)
        title = f"{'under the prior, ' * natural}by {column_titles(found.tiers).get(by, by)}; bold: best value of the column"
        shown = list(_columns(found, rows, natural, metrics))
        print_table([row.card for row in rows], found.tiers, title, console=console, natural=natural, shown=shown)
    for row in found.rows:
        if row.also_in:
            console.print(text(f"{row.card.name}: the same in {', '.join([row.run.name, *row.also_in])}"), soft_wrap=True)
    console.print()


def to_markdown(boards: list[Board], by: str, metrics: Sequence[str] = ()) -> str:
    """Markdown tables, each below a line that describes the test set."""
    lines = [MARKS[".md"], ""]
    for found in boards:
        titles = column_titles(found.tiers)
        for natural in _weightings(found):
            rows = found.sorted_by(by, natural=natural)
            columns = _columns(found, rows, natural, metrics)
            parts = {row.card.name: row.card.natural if natural else row.card.whole for row in rows}
            best = {name: best_value(name, parts) for name in columns}
            about = "The same, with the tiers weighted by the prior" if natural else str(found)[0].upper() + str(found)[1:]
            lines += [f"{table_cell(about)}. By {titles.get(by, by)}; 95 % intervals over queries; the best value is bold.", ""]
            lines += [f"| judge | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
            for row in rows:
                values = {name: parts[row.card.name].metrics.get(name, NOTHING) for name in columns}
                cells = [f"**{value}**" if value.value == best[name] else str(value) for name, value in values.items()]
                lines.append(f"| {table_cell(row.card.name)} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


def to_csv(boards: list[Board], by: str) -> str:
    """One line per row and weighting, with every metric."""
    names = list(dict.fromkeys(name for found in boards for name in metric_names(found.tiers)))
    keys = ["rubric", "rubric_hash", "data_fingerprint", "tested", "split", "pairs", "queries"]
    own = ["weighting", "name", "judge", "run", "kind", "also_in"]
    header = ["test_set", *keys, *own, *(column for name in names for column in (name, f"{name}_low", f"{name}_high"))]
    lines = []
    for found in boards:
        for natural in _weightings(found):
            for row in found.sorted_by(by, natural=natural):
                part = row.card.natural if natural else row.card.whole
                numbers = [
                    "" if isnan(number) else round(number, 6)
                    for estimate in (part.metrics.get(name, NOTHING) for name in names)
                    for number in (estimate.value, estimate.low, estimate.high)
                ]
                about = [row.card.name, row.judge, row.run.name, row.card.kind, "; ".join(row.also_in)]
                lines.append([found.id, *(found.test_set[key] for key in keys), "prior" if natural else "test", *about, *numbers])
    return csv_text(header, lines)


def to_json(boards: list[Board], passed_over: dict[str, str], by: str) -> str:
    """All results as one object."""
    content = {
        "lore": "leaderboard",
        "by": by,
        "test_sets": [
            {"id": found.id, **found.test_set, "rows": [row.to_json() for row in found.sorted_by(by)]} for found in boards
        ],
        "passed_over": passed_over,
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"
