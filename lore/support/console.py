"""Tables, colors and progress bars on a terminal, a file or a pipe: rich without its markup.

rich takes `[draft]` for a style and `:x:` for an emoji, and passes control sequences on. Use the classes of this module instead of
rich's: a str is one line of data, printed as it is. `Text` gives it a style, and keeps line ends.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import rich.console
import rich.progress
import rich.table
import rich.text
from rich.segment import Segment

from lore.support.terminal import TerminalStream, unguarded
from lore.support.text import printable, printable_lines


class Text(rich.text.Text):
    """Text of one or several lines with a style, without control characters."""

    def __init__(self, text: object = "", style: Any = "", **options: Any):
        super().__init__(printable_lines(text), style, **options)

    def append(self, text: Any, style: Any = None) -> Text:
        return super().append(printable_lines(text) if isinstance(text, str) else text, style)


class Table(rich.table.Table):
    """A table whose title, headers and cells are data: each str is one line."""

    def __init__(self, *headers: Any, title: Any = None, caption: Any = None, **options: Any):
        shown = {"title": _line(title, "table.title"), "caption": _line(caption, "table.caption")}
        super().__init__(*map(_line, headers), **shown, **options)

    def add_column(self, header: Any = "", footer: Any = "", **options: Any) -> None:
        super().add_column(_line(header), _line(footer), **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*map(_line, cells), **options)


class Console(rich.console.Console):
    """A console that prints a str as one line of data. It writes to any encoding, and ends quietly if nobody reads."""

    def __init__(self, **options: Any):
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    @property
    def file(self) -> Any:
        return TerminalStream(unguarded(super().file))

    @file.setter
    def file(self, new_file: Any) -> None:
        self._file = new_file

    def render_str(self, text: str, *, style: Any = "", justify: Any = None, overflow: Any = None, **_: Any) -> rich.text.Text:
        return Text(printable(text), style, justify=justify, overflow=overflow)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """The last guard: what others print while a progress bar is shown arrives here with their styles and links."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                style = segment.style.update_link(None) if segment.style and segment.style.link else segment.style
                yield Segment(printable_lines(segment.text), style)


class Progress(rich.progress.Progress):
    """A progress bar whose descriptions are data. What is printed meanwhile appears above it, if it goes to the terminal too."""

    def __init__(self, *columns: Any, console: Console | None = None, **options: Any):
        shared = {f"redirect_{name}": bool((s := getattr(sys, name)) and s.isatty()) for name in ("stdout", "stderr")}
        super().__init__(*columns, console=console or Console(), **shared, **options)

    def add_task(self, description: str, *arguments: Any, **fields: Any) -> Any:
        return super().add_task(printable(description), *arguments, **fields)


class TextColumn(rich.progress.TextColumn):
    """A column of a progress bar without markup."""

    def __init__(self, text_format: str):
        super().__init__(text_format, markup=False)


def with_room(console: rich.console.Console, width: int) -> rich.console.Console:
    """The console itself for a terminal. For a file or a pipe, a console of at least `width` characters: it has no width of its
    own, and a cell that is cut there cannot be recovered."""
    if console.is_terminal or console.width >= width:
        return console
    return Console(file=console.file, width=width)


def _line(value: Any, style: str = "") -> Any:
    return Text(printable(value), style) if isinstance(value, str) else value
