"""Rows in numbered Parquet parts, each written whole: a run that is killed loses the chunk under way and no more.

    part-000000.parquet, part-000001.parquet, ...

Parts are written by number, where a chunk of the input has one, or appended. A stamp in the parts' metadata tells those of
other prompts or of another judge.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from lore.support.atomic_files import written_whole
from lore.support.errors import LoreError

PART = re.compile(r"^part-(\d{6})\.parquet$")
STAMP = b"lore.stamp"
BATCH_ROWS = 256
T = TypeVar("T")


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one of what is left."""
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk


@dataclass(frozen=True)
class ChunkStore:
    """The parts of one folder, which is made when the first part is written."""

    folder: Path
    schema: pa.Schema
    stamp: str | None = None
    """What the rows depend on, such as the judge's id; None: parts are taken whatever made them."""
    holds: str = "answers"
    """What the rows are, for messages."""
    repair: str = "run the recipe again: only the pairs in it are asked again"
    """What to do after a damaged part is deleted, for messages."""

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def numbers(self) -> list[int]:
        """Of all parts that are there, in order."""
        names = (path.name for path in self.folder.iterdir()) if self.folder.is_dir() else ()
        return sorted(int(found[1]) for found in map(PART.match, names) if found)

    def is_current(self, number: int) -> bool:
        """Whether a part is there and carries this store's stamp. A part that cannot be read is an error."""
        path = self.path(number)
        if not path.is_file():
            return False
        return self.stamp is None or self._stamp_of(path) == self.stamp

    def write(self, number: int, rows: Iterable[dict[str, Any]]) -> None:
        """The whole part or nothing, in place of an older one."""
        metadata = {**(self.schema.metadata or {}), STAMP: self.stamp.encode()} if self.stamp is not None else None
        write_table(self.path(number), rows, self.schema.with_metadata(metadata) if metadata else self.schema)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """A part behind the last one."""
        numbers = self.numbers()
        self.write(numbers[-1] + 1 if numbers else 0, rows)

    def rows(self, numbers: Iterable[int] | None = None) -> Iterator[dict[str, Any]]:
        """Rows of these parts, or of all, a batch in memory at a time; columns that a part lacks are absent from its rows."""
        for number in self.numbers() if numbers is None else numbers:
            for batch in self.batches(number):
                yield from batch.to_pylist()

    def batches(self, number: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """A part, batch after batch. columns: these only, and all have to be there.

        Raises LoreError for a part that is damaged, carries another stamp or lacks a column.
        """
        path = self.path(number)
        if self.stamp is not None and (found := self._stamp_of(path)) != self.stamp:
            raise LoreError(
                f"{path} was made with {found or 'no stamp'} and this run is {self.stamp}: its {self.holds} are of another judge "
                f"or to other prompts.\nUse these again, or delete {self.folder} to start over."
            )
        try:
            with pq.ParquetFile(path) as file:
                missing = [name for name in columns or () if name not in file.schema_arrow.names]
                if missing:
                    raise LoreError(
                        f"{path} has no column {', '.join(missing)}, so it holds no {self.holds} of this version. Delete it and "
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
        return None if found is None else found.decode()

    def _damaged(self, path: Path, error: Exception) -> LoreError:
        why = " ".join(str(error).split())
        return LoreError(f"{path} cannot be read ({why}), so its {self.holds} are lost. Delete it and {self.repair}.")


def write_table(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> None:
    """A Parquet file of rows: the whole file or nothing."""
    table = pa.Table.from_pylist(list(rows), schema=schema)
    with written_whole(path) as file:
        pq.write_table(table, file, compression="zstd")
