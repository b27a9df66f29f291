"""`lore run`, `lore check` and `lore launch`: run and check recipes, in one process or several. Imports inside
functions keep `lore --help` fast.
"""

from __future__ import annotations

from pathlib import Path

import typer


def run(
    arguments: list[str] = typer.Argument(
        ..., metavar="RECIPE... [KEY=VALUE]...", help="KEY=VALUE overrides apply to every recipe. x.yaml:NAME is one run of a grid."
    ),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Check the recipes and print all values and the planned runs, without running them."
    ),
) -> None:
    """Run recipes in order, each after the recipes it needs. Interrupted runs resume; finished runs are skipped."""
    from lore.run.devices import leave
    from lore.run.runner import run_command

    leave(run_command(arguments, dry_run))


def check(paths: list[Path] = typer.Argument(..., help="Recipe files, or folders with recipes.")) -> None:
    """Check recipes and list all problems of each file. (`lore data check` checks pairs files.)"""
    from lore.run.runner import check_recipes

    raise typer.Exit(check_recipes(paths))


def launch(
    arguments: list[str] = typer.Argument(..., metavar="RECIPE [KEY=VALUE]... [ACCELERATE OPTIONS]..."),
    config: str = typer.Option(None, help="Name of a config in launch/accelerate (cpu2, ddp, zero2, zero3, fsdp2) or a path."),
    num_processes: int = typer.Option(
        None, min=1, max=65_536, help="Number of processes; default: one per GPU, without GPUs the number in the config."
    ),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print the recipe and the accelerate command line, without running them."
    ),
) -> None:
    """Run a recipe in several processes with accelerate."""
    from lore.run.launch import launch as start

    raise typer.Exit(start(arguments, config, num_processes, dry_run))
