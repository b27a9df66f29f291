"""Consoles for tables that go to a terminal, a file or a pipe."""

from rich.console import Console


def with_room(console: Console, width: int) -> Console:
    """The console itself for a terminal. For a file or a pipe, a console of at least `width` characters: it has no width of its
    own, and a cell that is cut there cannot be recovered."""
    if console.is_terminal or console.width >= width:
        return console
    return Console(file=console.file, highlight=False, width=width)
