"""Progress bars for loops over two seconds; silent outside the main process and where the output is no terminal."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """`items` with a bar on stderr: count, rate and, with `total`, the time that remains."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from lore.support.processes import is_main_process

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True), disable=not is_main_process(), transient=False) as bar:
        yield from bar.track(items, total=total, description=title)
