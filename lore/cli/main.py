"""The command line, assembled from one module per command group. Imports inside functions keep `lore --help` fast."""

from __future__ import annotations

import io
import sys
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from lore import __version__
from lore.cli import cache, data, export, goodrate, label, labels, monitor, nearby, serve, teacher, traces
from lore.cli.compare import compare, leaderboard
from lore.cli.doctor import doctor
from lore.cli.init import init
from lore.cli.plan import plan
from lore.cli.recommend import recommend
from lore.cli.run import check, launch, run
from lore.cli.runs import runs
from lore.cli.world import world
from lore.run.entry import exit_status
from lore.support.errors import LoreError
from lore.support.terminal import guarded_streams, print_line, print_note, print_note_lines
from lore.support.text import named, printable


class LoreGroup(TyperGroup):
    """The commands. Their texts and the errors of typer, which quote an argument, pass lore.support.terminal."""

    def main(self, *arguments: Any, standalone_mode: bool = True, **options: Any) -> Any:
        with guarded_streams():
            if not standalone_mode:
                return super().main(*arguments, standalone_mode=False, **options)
            try:
                status = super().main(*arguments, standalone_mode=False, **options)
            except TyperException as error:
                shown = io.StringIO()
                error.show(shown)
                message = error.format_message()
                print_note_lines(shown.getvalue().replace(message, printable(message)))
                sys.exit(error.exit_code)
            except typer.Abort:
                print_note("Aborted!")
                sys.exit(1)
            sys.exit(status if isinstance(status, int) else 0)


app = typer.Typer(cls=LoreGroup, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
PASSES_OPTIONS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def print_version(wanted: bool = True) -> None:
    """Print the version."""
    if wanted:
        print_line(__version__)
        raise typer.Exit


@app.callback()
def lore(
    version: bool = typer.Option(False, "--version", callback=print_version, is_eager=True, help="Print the version."),
) -> None:
    """Train and evaluate search relevance judges from human ratings and a rubric."""
    for argument in sys.argv[1:]:
        named(argument, "An argument")


app.command()(init)
app.command(context_settings={"ignore_unknown_options": True})(run)  # run_command answers --learning_rate and the like
app.command()(check)
app.command(context_settings=PASSES_OPTIONS_ON)(launch)
app.command()(runs)
app.add_typer(data.app, name="data")
app.command()(world)
app.add_typer(traces.app, name="traces")
app.add_typer(teacher.app, name="teacher")
app.add_typer(serve.app, name="serve")
app.add_typer(export.app, name="export")
app.add_typer(label.app, name="label")
app.add_typer(labels.app, name="labels")
app.command()(plan)
app.command()(recommend)
app.add_typer(nearby.app, name="nearby")
app.add_typer(cache.app, name="cache")
app.add_typer(monitor.app, name="monitor")
app.command()(compare)
app.command()(leaderboard)
app.add_typer(goodrate.app, name="goodrate")
app.command()(doctor)


@app.command()
def version() -> None:
    """Print the version, same as lore --version."""
    print_version()


@app.command(hidden=True, add_help_option=False, context_settings=PASSES_OPTIONS_ON)
def draw() -> None:
    """Former name of `lore goodrate sample`."""
    raise LoreError("`lore draw` was renamed, so nothing was drawn. Use `lore goodrate sample` with the same arguments.")


def main() -> None:
    """Entry point of `lore`. Prints a LoreError or OSError as a message and exits with status 1."""
    sys.exit(exit_status(app))
