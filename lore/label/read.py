"""Reading the labels of a label folder: the one reader of report, export and students.

for batch in read_labels("labels/", ["query", "item_id", "tier"]):
    ...
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from lore.data.tables.parquet_files import open_parquet
from lore.label.ledger import RANGE, REPAIR, STAMP, Ledger
from lore.label.schema import FAILURES, VERDICTS, label_schema
from lore.support.errors import LoreError

BATCH_ROWS = 8192


def opened_labels(folder: str | Path) -> Ledger:
    """The ledger of a label folder, with the tiers and the judge of its first label file. Raises LoreError for a folder without
    labels."""
    folder = Path(folder)
    found = next((path for kind in (VERDICTS, FAILURES) for path in label_files(folder, kind)), None)
    if found is None:
        raise LoreError(
            f"{folder} has no label files in {folder / VERDICTS}, so there is nothing to read. Name the folder that `lore label` "
            "wrote, such as labels/."
        )
    with open_parquet(found, REPAIR) as parquet:
        schema = parquet.schema_arrow
    tiers = [name[2:] for name in schema.names if name.startswith("p_")]
    return Ledger(folder, tiers, (schema.metadata or {}).get(STAMP, b"").decode(errors="replace"))


def count_labels(folder: str | Path, kind: str = VERDICTS) -> int:
    """Number of rows. Reads only the ends of the files."""
    rows = 0
    for path in label_files(Path(folder), kind):
        with open_parquet(path, REPAIR) as parquet:
            rows += parquet.metadata.num_rows
    return rows


def read_labels(
    folder: str | Path, columns: list[str] | None = None, *, kind: str = VERDICTS, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """The rows of a label folder in record batches of at most batch_rows, file by file, in the columns of
    `lore.label.schema.label_schema` (or in `columns`).

    kind: VERDICTS, or FAILURES for the pairs without an answer. Nothing is skipped: raises LoreError for a damaged file, for one of
    another judge, rubric or schema, and for a file that is no label file.
    """
    for _, _, batch in label_batches(opened_labels(folder), columns, kind=kind, batch_rows=batch_rows):
        yield batch


def label_batches(
    ledger: Ledger, columns: list[str] | None = None, *, kind: str = VERDICTS, batch_rows: int = BATCH_ROWS
) -> Iterator[tuple[Path, int, pa.RecordBatch]]:
    """The batches of `read_labels`, each with its file and the number of its first row there. The folder may be empty."""
    names = ledger.schema.names if columns is None else columns
    for path in label_files(ledger.folder, kind):
        with open_parquet(path, REPAIR) as parquet:
            _check(path, parquet.schema_arrow, ledger)
            start = 0
            for batch in parquet.iter_batches(batch_rows, columns=names):
                batch = batch.select(names)
                batch.validate(full=True)  # bytes that are not UTF-8
                yield path, start, batch
                start += batch.num_rows


def label_files(folder: Path, kind: str = VERDICTS) -> list[Path]:
    """The label files of a folder, sorted by name. Raises LoreError for a file that is none."""
    place = folder / kind
    files = sorted(path for path in place.iterdir() if not path.name.startswith(".")) if place.is_dir() else []
    strangers = [path for path in files if not RANGE.match(path.name)]
    if strangers:
        raise LoreError(
            f"{strangers[0]} is no label file of `lore label`, so it is unknown whether its rows belong to the labels. Move it out "
            f"of {place}."
        )
    return files


def _check(path: Path, found: pa.Schema, ledger: Ledger) -> None:
    stamp = (found.metadata or {}).get(STAMP, b"").decode(errors="replace")
    tiers = [name for name in found.names if name.startswith("p_")]
    if stamp != ledger.stamp or tiers != [name for name in ledger.schema.names if name.startswith("p_")]:
        raise LoreError(
            f"{path} was labelled by {stamp or 'an unknown judge'} with {', '.join(tiers)}, and other files of the folder by "
            f"{ledger.stamp or 'an unknown judge'}: two judges in one folder would be one column of labels.\nMove it elsewhere."
        )
    for field in label_schema([name[2:] for name in tiers]):
        if field.name not in found.names or found.field(field.name).type != field.type:
            kind = found.field(field.name).type if field.name in found.names else "missing"
            raise LoreError(f"{path}, column {field.name}: {kind}, expected {field.type}, so it is no label file.\n{REPAIR}")
