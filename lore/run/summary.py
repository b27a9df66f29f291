"""Tables of the summaries that runs store in their done markers.

A list of three numbers is a value with its confidence interval. A nested section becomes a row: the summary of an evaluation has
one section per judge.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lore.run.run_folder import RunFolder
from lore.support.processes import is_main_process

Row = dict[str, Any]


def shown(value: Any) -> str:
    if is_interval(value):
        # Round first: a tiny negative number would print as -0.00.
        middle, low, high = ("" if number is None else f"{round(number, 2) + 0.0:.2f}" for number in value)
        return f"{middle} [{low}, {high}]" if low else middle
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(n is None or type(n) in (int, float) for n in value)


def rows_of(summary: dict[str, Any]) -> dict[str, Row]:
    """The values of each section by its name. Values outside any section are under ""."""
    rows = {name: value for name, value in summary.items() if isinstance(value, dict)}
    own = {name: value for name, value in summary.items() if not isinstance(value, dict)}
    return rows | ({"": own} if own else {})


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The keys of all rows, in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def print_table(title: str, columns: list[str], cells: list[list[str]]) -> None:
    """Prints a table at its full width, also into pipes and files, which rich would cut at 80 columns."""
    from rich.measure import Measurement  # loads rich: a dry run prints no table

    from lore.support.console import Console, Table, with_room

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in cells:
        table.add_row(*row)
    console = Console()
    width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    with_room(console, width).print(table)


def print_summary(folder: RunFolder) -> None:
    """Prints the summary from the done marker of a run."""
    if not is_main_process():
        return
    from lore.support.console import Console, Table  # loads rich: a dry run prints no table

    rows = rows_of(folder.summary)
    own = rows.pop("", {})
    if rows:
        columns = columns_of(rows.values())
        print_table(str(folder.path), ["", *columns], [[name, *(shown(row.get(c)) for c in columns)] for name, row in rows.items()])
    if own:
        table = Table(show_header=False, title=None if rows else str(folder.path), title_justify="left")
        for key, value in own.items():
            table.add_row(key, shown(value))
        Console().print(table)
