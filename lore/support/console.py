"""Consoles for tables that are read in a terminal, a file or a pipe."""

from rich.console import Console


def with_room(console: Console, width: int) -> Console:
    """The console; where it is no terminal, one of at least that width: a file or a pipe has none of its own, and a line that is
    cut there is lost."""
    if console.is_terminal or console.width >= width:
        return console
    return Console(file=console.file, highlight=False, width=width)
