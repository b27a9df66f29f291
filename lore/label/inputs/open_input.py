"""Opens the input of a labelling run.

    given = open_input(recipe.input, Path("labels/work"), rejected)
    for batch in given.batches():
        ...
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from lore.data.parquet import _open, count_pairs, pair_files
from lore.data.photo_places import PhotoPlaces
from lore.data.rejected_rows import Rejection
from lore.label.config import InputSection
from lore.label.schema import QUESTION_FIELDS, QUESTION_SCHEMA
from lore.support.input_files import rows_of, whole_fingerprint

BATCH_ROWS = 8192


class RejectedSink(Protocol):
    """Takes the rows that are no pairs, such as lore.data.rejected_rows.RejectedWriter."""

    def write(self, rejection: Rejection) -> None: ...


@dataclass
class LabelInput:
    """An opened input. fingerprint: of the content of all files that are read. expected_rows: None if only reading tells."""

    section: InputSection
    files: list[Path]
    rejected: RejectedSink
    fingerprint: str
    expected_rows: int | None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Rows of QUESTION_SCHEMA, in the order of the files."""
        roots = [self.section.image_root] if self.section.image_root else []
        for file in self.files:
            places = PhotoPlaces(file.parent, roots)
            with _open(file) as parquet:
                present = [name for name in QUESTION_FIELDS if name in parquet.schema_arrow.names]
                for group in range(parquet.num_row_groups):
                    for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=present):
                        columns = {name: batch.column(name) for name in present}
                        if "image" in columns:
                            columns["image"] = [places.placed(image) for image in columns["image"].to_pylist()]
                        yield pa.record_batch([_column(columns, field, len(batch)) for field in QUESTION_SCHEMA], QUESTION_SCHEMA)


def _column(columns: dict[str, Any], field: pa.Field, rows: int) -> pa.Array:
    return pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(rows, field.type)


def open_input(section: InputSection, work: Path, rejected: RejectedSink) -> LabelInput:
    """Opens an input. work: folder for what is made to read it, such as the database of a catalogue."""
    files = pair_files(section.path)
    fingerprint = whole_fingerprint(rows_of([(file.name, file) for file in files], {}))
    return LabelInput(section, files, rejected, fingerprint, count_pairs(section.path))
