"""A source of raw rows, opened by an importer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lore.data.rejected_rows import Rejection
from lore.data.tables.any_table import UNPACK
from lore.support.errors import LoreError


class SourceRow(NamedTuple):
    """One raw row: file, row number, and values keyed by the field names of Pair."""

    file: str
    row: int
    values: dict[str, Any]


@dataclass
class Source:
    """An opened source. Its rows can be iterated once."""

    name: str
    rubric: str | None
    rows: "Iterator[SourceRow | Rejection]"
    files: list[Path]
    total: int | None = None
    image_folder: Path | None = None
    extra_columns: Callable[[], list[str]] = list
    """Returns the columns that the importer does not read."""


def missing_file(path: Path, where: str) -> LoreError:
    """The error for missing data: the path, where to get the data (`where`), and how to point to it."""
    return LoreError(
        f"{path} does not exist.{packed_hint(path)}\n{where}\nPut it there, or set LORE_DATA to the folder that holds your data "
        f"(recipes use ${{LORE_DATA}}, default data/)."
    )


def packed_hint(path: Path) -> str:
    """A sentence, with a space before it, if the missing file is there but packed, as Kaggle delivers it; otherwise empty."""
    packed = next((file for suffix in UNPACK if (file := path.with_name(path.name + suffix)).is_file()), None)
    return f" Unpack {packed.name} first: {UNPACK[packed.suffix]} {packed.name}" if packed else ""
