"""`lore run`, `lore check` and `lore launch`: recipes, in one process or in several. Nothing heavy is imported before a command
runs, so that `lore --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path

import typer


def run(
    arguments: list[str] = typer.Argument(
        ..., metavar="RECIPE... [KEY=VALUE]...", help="Overrides go to every recipe. x.yaml:NAME is one run of a grid."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check, print every value and what would happen, run nothing."),
) -> None:
    """Run recipes in order, each after the recipes it needs. An interrupted run resumes; a finished one is not repeated."""
    from lore.run.devices import leave
    from lore.run.runner import run_command

    leave(run_command(arguments, dry_run))


def check(paths: list[Path] = typer.Argument(..., help="Recipe files, or folders of them.")) -> None:
    """Check recipes and list every problem of each file. (`lore data check` checks pairs files.)"""
    from lore.run.runner import check_recipes

    raise typer.Exit(check_recipes(paths))


def launch(
    arguments: list[str] = typer.Argument(..., metavar="RECIPE [KEY=VALUE]... [ACCELERATE OPTIONS]..."),
    config: str = typer.Option(None, help="Name of a file in launch/accelerate (cpu2, ddp, zero2, zero3, fsdp2) or a path."),
    num_processes: int = typer.Option(None, min=1, help="Processes; by default one per GPU, else what the config says."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the recipe and accelerate's command line, run nothing."),
) -> None:
    """Run a recipe in several processes with accelerate."""
    from lore.run.launch import launch as start

    raise typer.Exit(start(arguments, config, num_processes, dry_run))
