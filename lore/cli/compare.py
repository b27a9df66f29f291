"""`lore compare` and `lore leaderboard`: what finished evaluations say together. Nothing heavy is imported before they run.

lore compare "runs/quickstart/eval:judge" "runs/quickstart/eval:judge without photo"
lore leaderboard runs/*
"""

from __future__ import annotations

from pathlib import Path

import typer

from lore.support.errors import LoreError


def compare(
    runs: list[str] = typer.Argument(
        ..., metavar="RUN[:JUDGE]...", help="Run folders of finished evaluations; the first is the baseline."
    ),
    metric: list[str] = typer.Option([], help="Show this metric, such as macro_f1; may be given again. Default: all."),
    slice: list[str] = typer.Option([], help="Show this slice; may be given again. Default: those of the baseline's run."),
    samples: int = typer.Option(1000, min=100, help="Paired resamples of the queries behind the intervals."),
    seed: int = typer.Option(0, min=0, help="The same seed draws the same queries."),
    prior: bool = typer.Option(False, "--prior", help="Weigh the tiers as the baseline's metrics.prior says."),
    examples: int = typer.Option(3, min=0, help="Changed pairs printed of each kind."),
    out: Path = typer.Option(None, "--out", "-o", help="File for every changed pair: .jsonl or .csv."),
    as_json: Path = typer.Option(None, "--json", help="File for everything, as one JSON object."),
    across_rubrics: bool = typer.Option(False, "--across-rubrics", help="Allow rule books that differ in all but their tiers."),
) -> None:
    """Compare judges on the same pairs, each with the first. Every difference comes with its interval, by metric and by slice."""
    if len(runs) < 2:
        raise LoreError("A comparison needs two judges: lore compare runs/a runs/b, or of one run \"runs/a:one\" \"runs/a:other\".")
    from lore.eval.compare.compare import Options
    from lore.eval.compare.compare import compare as compared
    from lore.eval.compare.compare_output import report
    from lore.eval.compare.sides import open_sides

    sides = open_sides(runs, across_rubrics=across_rubrics)
    options = Options(samples, seed, prior, tuple(slice))
    report(sides, compared(sides, options), options, metrics=metric, shown=examples, out=out, as_json=as_json)


def leaderboard(
    runs: list[Path] = typer.Argument(..., metavar="RUN...", help="Run folders, or folders that hold them, such as runs/*."),
    by: str = typer.Option("macro_f1", help="Metric that orders the rows."),
    metric: list[str] = typer.Option([], help="Column; may be given again. Default: the usual ones that have values."),
    out: Path = typer.Option(None, "--out", "-o", help="Folder for leaderboard.md, .csv, .json, or one such file; default: runs."),
) -> None:
    """Rank finished evaluations, one table a test set. The tables are also written as Markdown, CSV and JSON."""
    from lore.config.recipe import run_root
    from lore.eval.compare.leaderboard import leaderboard as ranked
    from lore.eval.compare.leaderboard_output import report

    report(*ranked(runs), out or run_root(), by=by, metrics=metric)
