"""Training rows in one Arrow file of the run folder, which every process memory-maps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from lore.support.errors import LoreError

IGNORE = -100
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_rows(
    rows: Iterator[dict[str, Any]], schema: pa.Schema, path: Path, batch: int = 1000, *, nothing: str | None = None
) -> int:
    """Streams rows into an Arrow file that `datasets.Dataset.from_file` can memory-map. Returns the number of rows.

    Raises LoreError if there are no rows; nothing: message of that error, including what the user should change.
    """
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    count, pending = 0, []
    with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for row in rows:
            pending.append(row)
            count += 1
            if len(pending) == batch:
                writer.write_table(pa.Table.from_pylist(pending, schema=schema))
                pending = []
        if pending:
            writer.write_table(pa.Table.from_pylist(pending, schema=schema))
    if not count:
        part.unlink()
        raise LoreError(
            nothing
            or f"no training rows for {path}: the recipe's inputs yield no row, so there is nothing to train on.\n"
            "Check the recipe's input files and the keys that select from them."
        )
    part.replace(path)
    return count


def rendered_rows(path: Path) -> datasets.Dataset:
    """Memory-maps the rows that the main process has rendered. Raises LoreError if the file is missing."""
    if not path.is_file():
        raise LoreError(
            f"rank 0 did not write {path}. See its error message, or check that all machines share this folder.",
            same_on_every_rank=True,
        )
    return datasets.Dataset.from_file(str(path))
