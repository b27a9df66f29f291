"""The command line. Only light imports at the top, so that `lore --help` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

import typer

from lore.cli.compare import compare, leaderboard
from lore.cli.data import app as data
from lore.cli.goodrate import draw, goodrate
from lore.cli.teacher import app as teacher
from lore.cli.traces import app as traces
from lore.support.errors import LoreError

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(data, name="data")
app.add_typer(traces, name="traces")
app.add_typer(teacher, name="teacher")


@app.callback()
def _lore() -> None:
    """Relevance judges from ratings and a rule book."""


@app.command()
def run(
    arguments: list[str] = typer.Argument(
        ..., metavar="RECIPE... [KEY=VALUE]...", help="Overrides go to every recipe. x.yaml:NAME is one run of a grid."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check, print every value and what would happen, run nothing."),
) -> None:
    """Run recipes in order, each after what it needs. An interrupted run goes on, a finished one is not repeated."""
    from lore.run.devices import leave
    from lore.run.runner import run_command

    leave(run_command(arguments, dry_run))


@app.command()
def check(paths: list[Path] = typer.Argument(..., help="Recipe files, or folders of them.")) -> None:
    """Check many recipes at once and list what is wrong with each."""
    from lore.run.runner import check_recipes

    raise typer.Exit(check_recipes(paths))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def launch(
    arguments: list[str] = typer.Argument(..., metavar="RECIPE [KEY=VALUE]... [ACCELERATE OPTIONS]..."),
    config: str = typer.Option(None, help="Name of a file in launch/accelerate (cpu2, ddp, zero2, zero3, fsdp2) or a path."),
    num_processes: int = typer.Option(None, min=1, help="Processes; by default one per GPU, else what the config says."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the recipe and accelerate's command line, run nothing."),
) -> None:
    """Run a recipe in several processes with accelerate."""
    from lore.run.launch import launch as start

    raise typer.Exit(start(arguments, config, num_processes, dry_run))


@app.command()
def world(
    out: Path = typer.Option(..., help="Folder to write; a file that is there is kept, so a killed run goes on."),
    pairs: int = typer.Option(100_000, min=1, help="Rated pairs over all splits."),
    seed: int = typer.Option(0, min=0, help="The same seed writes the same shop, on any machine."),
    language: str = typer.Option("en", help="Lexicon: en or zh."),
    prior: Literal["balanced", "natural"] = typer.Option(
        "balanced", help="Tiers in equal shares (balanced) or as in search traffic (natural)."
    ),
) -> None:
    """Write the embedded shop: pairs with photos, reasons and labels, and its search log. Streams at any size."""
    from lore.data_synth.shop.write import write_world

    write_world(out, pairs=pairs, seed=seed, language=language, prior=prior)


@app.command()
def export(
    run: Path = typer.Argument(..., help="Run folder of a trained judge."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder to write the model to."),
    merge: bool = typer.Option(False, "--merge", help="Fold the adapter into the weights and re-score a sample."),
    dtype: Literal["float32", "bfloat16"] = typer.Option(None, help="Of the merged weights; by default the base's own."),
    tolerance: float = typer.Option(None, min=0, help="How far rounding to the dtype may move a tier probability."),
) -> None:
    """Write a trained judge as one model folder. A merge that moves a tier probability by more than 0.001 is refused."""
    from lore.train.export import export as write

    write(run, out, merge=merge, dtype=dtype, tolerance=tolerance)


app.command("goodrate")(goodrate)
app.command("draw")(draw)
app.command()(compare)
app.command()(leaderboard)


@app.command()
def doctor() -> None:
    """Versions, devices, and what is missing for which stage."""
    from lore.cli.doctor import main as examine

    raise typer.Exit(examine())


@app.command()
def version() -> None:
    """Print the version."""
    from lore import __version__

    typer.echo(__version__)


def main() -> None:
    """Entry point of `lore`: an error meant for people is a message and status 1."""
    try:
        app()
    except (LoreError, OSError) as error:  # OSError: no room, no permission, a file in place of a folder
        if os.environ.get("LORE_DEBUG"):
            raise
        from lore.run.runner import report_error

        report_error(error if isinstance(error, LoreError) else LoreError(f"{error}. LORE_DEBUG=1 shows where."))
        sys.exit(1)
