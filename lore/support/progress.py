"""Progress bars for loops that take more than two seconds. Only the main process shows them."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from lore.support.processes import is_main_process

T = TypeVar("T")


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Yields `items` and shows a progress bar on stderr: count, `total` and elapsed time."""
    from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn  # only where a bar is shown

    from lore.support.console import Console, Progress, TextColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True), disable=not is_main_process(), transient=False) as bar:
        yield from bar.track(items, total=total, description=title)
