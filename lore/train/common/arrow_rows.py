"""Training rows in one Arrow file of the run folder, which every process memory-maps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from lore.support.atomic_files import written_whole
from lore.support.errors import LoreError, reason

IGNORE = -100
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_rows(
    rows: Iterator[dict[str, Any]], schema: pa.Schema, path: Path, batch: int = 1000, *, nothing: str | None = None
) -> int:
    """Streams rows into an Arrow file that `datasets.Dataset.from_file` can memory-map. Returns the number of rows.

    Raises LoreError if there are no rows; nothing: message of that error, including what the user should change.
    """
    count, pending = 0, []
    with written_whole(path) as file:
        with pa.ipc.new_stream(file, schema) as writer:
            for row in rows:
                pending.append(row)
                count += 1
                if len(pending) == batch:
                    writer.write_table(pa.Table.from_pylist(pending, schema=schema))
                    pending = []
            if pending:
                writer.write_table(pa.Table.from_pylist(pending, schema=schema))
        if not count:
            raise LoreError(
                nothing
                or f"no training rows for {path}: the recipe's inputs yield no row, so there is nothing to train on.\n"
                "Check the recipe's input files and the keys that select from them."
            )
    return count


def rendered_rows(path: Path) -> datasets.Dataset:
    """Memory-maps the rows that the main process has rendered. Raises LoreError if the file is missing."""
    if not path.is_file():
        raise LoreError(
            f"rank 0 did not write {path}. See its error message, or check that all machines share this folder.",
            same_on_every_rank=True,
        )
    with whole_rows(path):
        return datasets.Dataset.from_file(str(path))


@contextmanager
def whole_rows(path: Path) -> Iterator[None]:
    """Translates the errors of a damaged Arrow file. The run has made the file from its inputs, so it can be made again."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise LoreError(
            f"{path} is damaged ({reason(error)}), so the rows that this run has prepared cannot be read.\n"
            f"Delete the folder {path.parent} and run the recipe again: it makes them from its inputs.",
            same_on_every_rank=True,
        ) from error
