"""Rows in numbered Parquet parts. Each part is written atomically, so a killed run loses at most one chunk.

    part-000000.parquet, part-000001.parquet, ...

The caller writes a part by its number or appends one. A stamp in the metadata of each part identifies the judge and the prompts.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from lore.data.tables.parquet_files import write_table
from lore.support.errors import LoreError

PART = re.compile(r"^part-(\d{6})\.parquet$")
STAMP = b"lore.stamp"
BATCH_ROWS = 256
T = TypeVar("T")


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last list may be shorter."""
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk


@dataclass(frozen=True)
class ChunkStore:
    """The parts in one folder. Writing the first part creates the folder."""

    folder: Path
    schema: pa.Schema
    stamp: str | None = None
    """What the rows depend on, such as the judge's id. None accepts every part."""
    holds: str = "answers"
    """What to call the rows in error messages."""
    repair: str = "run the recipe again: only the pairs in it are asked again"
    """What to do after deleting a damaged part, for error messages."""

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def numbers(self) -> list[int]:
        """Numbers of the existing parts, sorted."""
        names = (path.name for path in self.folder.iterdir()) if self.folder.is_dir() else ()
        return sorted(int(found[1]) for found in map(PART.match, names) if found)

    def is_current(self, number: int) -> bool:
        """Whether a part exists and has this store's stamp. Raises LoreError for a damaged part."""
        path = self.path(number)
        if not path.is_file():
            return False
        return self.stamp is None or self._stamp_of(path) == self.stamp

    def write(self, number: int, rows: Iterable[dict[str, Any]]) -> None:
        """Writes a part atomically and replaces an older one."""
        metadata = {**(self.schema.metadata or {}), STAMP: self.stamp.encode()} if self.stamp is not None else None
        write_table(self.path(number), rows, self.schema.with_metadata(metadata) if metadata else self.schema)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Writes a part after the last one."""
        numbers = self.numbers()
        self.write(numbers[-1] + 1 if numbers else 0, rows)

    def rows(self, numbers: Iterable[int] | None = None) -> Iterator[dict[str, Any]]:
        """Rows of these parts, or of all, with one batch in memory at a time. Rows omit columns that their part lacks."""
        for number in self.numbers() if numbers is None else numbers:
            for batch in self.batches(number, needed=self.schema.names[:1]):
                try:
                    rows = batch.to_pylist()
                except UnicodeDecodeError as error:
                    raise self._damaged(self.path(number), error) from error
                yield from rows

    def batches(
        self, number: int, columns: list[str] | None = None, needed: Iterable[str] = ()
    ) -> Iterator[pa.RecordBatch]:
        """The record batches of a part. columns: reads only these. needed: columns that the part must have, if all are read.

        Raises LoreError for a part that is damaged, has another stamp or lacks a column.
        """
        path = self.path(number)
        if self.stamp is not None and (found := self._stamp_of(path)) != self.stamp:
            raise LoreError(
                f"{path} was made with {found or 'no stamp'} and this run is {self.stamp}: its {self.holds} are from another judge "
                f"or for other prompts.\nUse that judge and those prompts again, or delete {self.folder} to start over."
            )
        try:
            with pq.ParquetFile(path) as file:
                missing = [name for name in columns or needed if name not in file.schema_arrow.names]
                if missing:
                    raise LoreError(
                        f"{path} has no column {', '.join(missing)}, so this version cannot read its {self.holds}. Delete it and "
                        f"{self.repair}."
                    )
                yield from file.iter_batches(BATCH_ROWS, columns=columns)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._damaged(path, error) from error

    def _stamp_of(self, path: Path) -> str | None:
        try:
            found = (pq.read_schema(path).metadata or {}).get(STAMP)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(path, error) from error
        return None if found is None else found.decode(errors="replace")

    def _damaged(self, path: Path, error: Exception) -> LoreError:
        why = " ".join(str(error).split())
        return LoreError(f"{path} cannot be read ({why}), so its {self.holds} are lost. Delete it and {self.repair}.")
