"""`lore compare` and `lore leaderboard`: compare and rank finished evaluations. Imports inside functions keep `lore --help` fast.

lore compare "runs/quickstart/eval:judge" "runs/quickstart/eval:judge without photo"
lore leaderboard runs/*
"""

from __future__ import annotations

from pathlib import Path

import typer

from lore.cli.options import FORCE
from lore.support.bounds import MAX_COUNT, MAX_SEED
from lore.support.errors import LoreError


def compare(
    runs: list[str] = typer.Argument(
        ..., metavar="RUN[:JUDGE]...", help="Run folders of finished evaluations; the first is the baseline."
    ),
    metric: list[str] = typer.Option([], help="Show only this metric, such as macro_f1. Repeatable. Default: all."),
    slice: list[str] = typer.Option([], help="Show only this slice. Repeatable. Default: the slices of the baseline's run."),
    samples: int = typer.Option(1000, min=100, max=1_000_000, help="Number of paired bootstrap resamples of the queries."),
    seed: int = typer.Option(0, min=0, max=MAX_SEED, help="Seed of the bootstrap."),
    prior: bool = typer.Option(False, "--prior", help="Weight the tiers by metrics.prior of the baseline's run."),
    examples: int = typer.Option(3, min=0, max=MAX_COUNT, help="Number of changed pairs to print per kind."),
    out: str = typer.Option(None, "--out", "-o", metavar="FILE", help="Write all changed pairs to this file: .jsonl or .csv."),
    as_json: str = typer.Option(None, "--json", metavar="FILE", help="Write all results to this file as one JSON object."),
    force: bool = FORCE,
    across_rubrics: bool = typer.Option(False, "--across-rubrics", help="Allow rubrics that share only their tiers."),
) -> None:
    """Compare judges with a baseline judge on the same pairs. Shows differences with intervals, by metric and by slice."""
    if len(runs) < 2:
        raise LoreError('A comparison needs two judges: lore compare runs/a runs/b, or "runs/a:one" "runs/a:other" for one run.')
    from lore.eval.compare.compare import Options
    from lore.eval.compare.compare import compare as compared
    from lore.eval.compare.compare_output import output_files, report
    from lore.eval.compare.sides import open_sides
    from lore.support.outputs import output_path

    files = {
        "out": None if out is None else output_path(out, "--out"),
        "as_json": None if as_json is None else output_path(as_json, "--json"),
        "force": force,
    }
    sides = open_sides(runs, across_rubrics=across_rubrics)
    output_files(sides, **files)  # before the resampling, which takes long
    options = Options(samples, seed, prior, tuple(slice))
    report(sides, compared(sides, options), options, metrics=metric, shown=examples, **files)


def leaderboard(
    runs: list[Path] = typer.Argument(
        ..., metavar="RUN...", help="Run folders, or folders that contain run folders, such as runs/*."
    ),
    by: str = typer.Option("macro_f1", help="Metric to sort the rows by."),
    metric: list[str] = typer.Option(
        [], help="Metric to show as a column. Repeatable. Default: the main metrics that have values."
    ),
    out: str = typer.Option(
        None,
        "--out",
        "-o",
        metavar="PATH",
        help="Folder for leaderboard.md, .csv and .json, or the path of one of these files; default: runs.",
    ),
    force: bool = FORCE,
) -> None:
    """Rank finished evaluations, one table per test set. The tables are also written as Markdown, CSV and JSON."""
    from lore.config.recipe import run_root
    from lore.eval.compare.leaderboard import leaderboard as ranked
    from lore.eval.compare.leaderboard_output import report
    from lore.support.outputs import output_path

    target = run_root() if out is None else output_path(out, "--out", folder=True)
    report(*ranked(runs), target, by=by, metrics=metric, force=force)
