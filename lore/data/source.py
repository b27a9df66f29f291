"""A source of raw rows, as an importer opens it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lore.data.rejected_rows import Rejection
from lore.support.errors import LoreError


class SourceRow(NamedTuple):
    """One raw row: where it stands and its values, keyed as the fields of Pair."""

    file: str
    row: int
    values: dict[str, Any]


@dataclass
class Source:
    """An opened source, ready to stream once."""

    name: str
    rubric: str | None
    rows: "Iterator[SourceRow | Rejection]"
    files: list[Path]
    total: int | None = None
    image_folder: Path | None = None
    extra_columns: Callable[[], list[str]] = list
    """Looks up the columns that are not read."""


def missing_file(path: Path, where: str) -> LoreError:
    """The error for data that is not there: what was looked for, where a user gets it, how to point to it."""
    return LoreError(
        f"{path} does not exist.\n{where}\nPut it there, or set LORE_DATA to the folder that holds your data "
        f"(recipes use ${{LORE_DATA}}, default data/)."
    )
