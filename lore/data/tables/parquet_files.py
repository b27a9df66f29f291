"""Parquet files: opened with one error for damage, written atomically."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lore.support.atomic_files import written_whole
from lore.support.bounds import most_unpacked
from lore.support.errors import LoreError
from lore.support.text import encodable

if TYPE_CHECKING:  # keeps pyarrow out of start-up
    import pyarrow as pa


@contextmanager
def open_parquet(path: str | Path, hint: str = "") -> Iterator[Any]:
    """An open ParquetFile. Raises LoreError for damage found on opening or while reading. hint: what to change, for that error."""
    # Only where Parquet is read or written: every recipe loads this module.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # pyarrow refuses names that are not UTF-8, such as any name beyond ASCII under LC_ALL=C.
        odd = encodable(str(path)) != str(path)
        with open(path, "rb") if odd else nullcontext(path) as source, pq.ParquetFile(source) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())[:300]
        raise LoreError(
            f"{path} is not a readable Parquet file ({why}). It may be damaged, partly downloaded, or a Git LFS pointer."
            f"{hint and ' '}{hint}"
        ) from error


def check_rows(parquet: Any, path: str | Path, row_bytes: int, hint: str) -> None:
    """For a file whose rows are held as a whole. Raises LoreError if they need far more memory than a table of its size: equal rows
    pack to almost nothing. row_bytes: of a row in memory, at least."""
    size, rows = Path(path).stat().st_size, parquet.metadata.num_rows
    if rows * row_bytes > most_unpacked(size):
        raise LoreError(f"{path} has {size:,} bytes and {rows:,} rows, as no table does: it could fill the memory. {hint}")


def already_written(path: Path) -> bool:
    """Whether an earlier start has written a Parquet file. Reads it once: raises LoreError if it was damaged since."""
    if not path.is_file():
        return False
    with open_parquet(path, "Delete it and run the same command again, which makes it anew.") as parquet:
        for _ in parquet.iter_batches():
            pass
    return True


def write_table(path: Path, rows: Iterable[dict[str, Any]], schema: "pa.Schema") -> None:
    """Writes rows to a Parquet file atomically."""
    # Only where Parquet is read or written: every recipe loads this module.
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(list(rows), schema=schema)
    with written_whole(path) as file:
        pq.write_table(table, file, compression="zstd")
