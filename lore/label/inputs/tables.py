"""The tables of an input: a file, a folder, a glob or a data set of the Hugging Face hub, read in blocks of rows."""

import glob
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lore.data.parquet import MAX_BATCH_BYTES
from lore.data.rejected_rows import Rejection, is_rejected_file
from lore.data.tables.any_table import JSONL, SUFFIXES, UNPACK, other_format, suffix_of, table_records
from lore.data.tables.csv import check_delimiter
from lore.data.tables.parquet_files import open_parquet
from lore.data.tables.text_tables import KEY_ROWS, MissingColumns, need_columns, once_each
from lore.label.inputs.questions import Raw, raw_of_batch, raw_of_records
from lore.support.errors import LoreError, reason

BATCH_ROWS = 8192
MIN_ROWS = 16
HUB = "hub:"
IN_FOLDERS = (".parquet", *JSONL, ".csv", ".tsv")
"""Tables that a folder is searched for. A .txt file in a folder is rather a note."""
COLUMN_HINTS = {
    "input.path": "Name the columns of your table with --map (input.map), such as --map query=COLUMN,title=COLUMN. A log that has "
    "only the ids of the items needs the table with their titles: --catalogue FILE.",
    "input.catalogue": "Name the columns of the catalogue with 'input.catalogue_map={item_id: COLUMN, title: COLUMN}'.",
}
"""What to do about a missing column, by recipe key."""


@dataclass(frozen=True)
class Table:
    """Files with the same columns, read one after the other. where: the recipe key, for errors."""

    path: str
    where: str = "input.path"
    encoding: str | None = None
    delimiter: str | None = None
    hub_config: str | None = None
    hub_split: str = "train"

    @property
    def on_hub(self) -> bool:
        return self.path.startswith(HUB)

    @cached_property
    def files(self) -> list[Path]:
        """Raises LoreError if there are none. None for a data set of the hub."""
        return [] if self.on_hub else table_files(self.path, self.where, other=self.delimiter is not None)

    @property
    def photo_folder(self) -> Path | None:
        """Folder of the photos of a data set of the hub; other tables have them in the folder of each file."""
        return Path(self.path.removeprefix(HUB)) if self.on_hub else None

    def count(self) -> int | None:
        """Number of rows; None if only reading tells."""
        if self.on_hub or any(suffix_of(file) != ".parquet" for file in self.files):
            return None
        total = 0
        for file in self.files:
            with open_parquet(file) as parquet:
                total += parquet.metadata.num_rows
        return total

    def columns(self) -> set[str]:
        """Names of the columns of all files; of text files, those of the first rows."""
        names: set[str] = set()
        if self.on_hub:
            return set(next(iter(self._hub((), None))).columns)
        for file in self.files:
            if suffix_of(file) == ".parquet":
                with open_parquet(file) as parquet:
                    names.update(parquet.schema_arrow.names)
            else:
                for record in islice(self._records(file, (), None, ()), KEY_ROWS):
                    names.update(() if isinstance(record, Rejection) else record[1])
        return names

    def read(
        self, required: Sequence[str], optional: Collection[str] | None = (), numbers: Collection[str] = ()
    ) -> Iterator[Raw | Rejection]:
        """Blocks of at most BATCH_ROWS rows, and the rows that cannot be read. required: columns without which the table is of no
        use; optional: further ones, None for all; numbers: those that hold numbers."""
        try:
            yield from self._read(required, optional, numbers)
        except MissingColumns as error:
            hint = COLUMN_HINTS.get(self.where)
            raise LoreError(f"{error}\n{hint}" if hint else str(error)) from error

    def _read(
        self, required: Sequence[str], optional: Collection[str] | None, numbers: Collection[str]
    ) -> Iterator[Raw | Rejection]:
        if self.on_hub:
            yield from self._hub(required, optional)
        for file in self.files:
            if suffix_of(file) == ".parquet":
                yield from _parquet(file, required, optional)
            else:
                yield from _blocks(str(file), self._records(file, required, optional, numbers), [*required, *(optional or ())])

    def _records(
        self, file: Path, required: Sequence[str], optional: Collection[str] | None, numbers: Collection[str]
    ) -> Iterator[tuple[int, dict[str, Any]] | Rejection]:
        holds_numbers = set(numbers).__contains__
        return table_records(
            file,
            required,
            optional,
            what=f"{self.where}: ",
            encoding=self.encoding,
            delimiter=check_delimiter(self.delimiter) if self.delimiter else None,
            is_number=holds_numbers,
            is_grouped=holds_numbers,
        )

    def builder(self) -> Any:
        """The data set of the hub. Raises LoreError if it cannot be found."""
        import datasets  # loads torch: only for data of the hub

        with self._hub_errors():
            return datasets.load_dataset_builder(self.path.removeprefix(HUB), self.hub_config)

    def _hub(self, required: Sequence[str], optional: Collection[str] | None) -> Iterator[Raw]:
        import datasets  # loads torch: only for data of the hub

        with self._hub_errors():
            rows = datasets.load_dataset(self.path.removeprefix(HUB), self.hub_config, split=self.hub_split, streaming=True)
            names = rows.column_names
            if names is not None:
                need_columns(Path(self.path), required, names)
                rows = rows.select_columns([name for name in names if optional is None or name in {*required, *optional}])
            first = 1
            for table in rows.with_format("arrow").iter(batch_size=BATCH_ROWS):
                for batch in table.to_batches():
                    yield raw_of_batch(batch, self.path, first)
                    first += len(batch)

    def _hub_errors(self) -> "_HubErrors":
        return _HubErrors(self)


@dataclass
class _HubErrors:
    """Says what to do when a data set of the hub cannot be read."""

    table: Table

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import datasets  # loads torch: only for data of the hub

        if isinstance(error, OSError | ValueError | datasets.exceptions.DatasetsError):
            raise LoreError(
                f"{self.table.where}: {self.table.path} could not be read from the hub: {type(error).__name__}: {reason(error)}.\n"
                "Streaming needs a network, and a login (`hf auth login` or HF_TOKEN) if the data set requires one. Downloaded "
                "Parquet or jsonl files need neither. input.hub_config and input.hub_split choose a part of it."
            ) from error


def table_files(path: str, where: str = "input.path", *, other: bool = False, hub: bool = True) -> list[Path]:
    """The tables of a file, folder (with its subfolders) or glob, sorted by path. Rejected rows that an earlier job left in a
    folder and names that begin with a point or an underscore are no tables. Raises LoreError if there are none, and for a folder
    with tables of several kinds. other: a file may have any suffix, because the user has named its delimiter; hub: whether the user
    could also have named a data set of the hub."""
    place = Path(path).expanduser()
    if place.is_file():
        if suffix_of(place) not in SUFFIXES and not other:
            raise other_format(place, what=f"{where}: ")
        return [place]
    if place.is_dir():
        inside = sorted(file for file in place.rglob("*") if not _is_hidden(file.relative_to(place)) and file.is_file())
        files = [file for file in inside if suffix_of(file) in IN_FOLDERS and not is_rejected_file(file)]
        packed = [file for file in inside if suffix_of(file) in UNPACK and Path(file.stem).suffix.lower() in IN_FOLDERS]
        kinds = sorted({suffix_of(file) for file in files})
        if packed:
            raise other_format(packed[0], what=f"{where}: ")
        if len(kinds) > 1:
            raise LoreError(
                f"{where}: {path} holds {' and '.join(kinds)} files, so it is unclear which ones are the input. Name one kind, "
                f"such as '{path.rstrip('/')}/*{kinds[0]}'."
            )
    else:
        files = [Path(found) for found in sorted(glob.glob(str(place), recursive=True))]
        files = [file for file in files if not _is_hidden(Path(file.name)) and file.is_file()]
        wrong = next((file for file in files if suffix_of(file) not in SUFFIXES and not other), None)
        if wrong is not None:
            raise other_format(wrong, what=f"{where}: ")
    if not files:
        raise LoreError(
            f"{where}: no table at {path}. Name a file, a folder or a glob of .parquet, .jsonl, .csv or .tsv files"
            f"{', or hub:NAME for a data set of the Hugging Face hub' if hub else ''}."
        )
    return files


def _is_hidden(path: Path) -> bool:
    return any(part[:1] in "._" for part in path.parts)


def _parquet(file: Path, required: Sequence[str], optional: Collection[str] | None) -> Iterator[Raw]:
    with open_parquet(file) as parquet:
        names = parquet.schema_arrow.names
        need_columns(file, required, names)
        wanted = names if optional is None else [name for name in dict.fromkeys([*required, *optional]) if name in names]
        once_each(file, names, wanted)
        first = 1
        for group in range(parquet.num_row_groups):
            rows = _batch_rows(parquet.metadata.row_group(group), wanted)
            for batch in parquet.iter_batches(rows, row_groups=[group], columns=wanted, use_threads=False):
                yield raw_of_batch(batch, str(file), first)
                first += len(batch)


def _batch_rows(group: pq.RowGroupMetaData, wanted: Collection[str]) -> int:
    """Rows whose photos and texts fit into a batch, by the mean size of the group's rows."""
    columns = [group.column(index) for index in range(group.num_columns)]
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema.partition(".")[0] in wanted)
    return min(BATCH_ROWS, max(MIN_ROWS, int(MAX_BATCH_BYTES / max(1.0, size / max(1, group.num_rows)))))


def _blocks(
    file: str, records: Iterator[tuple[int, dict[str, Any]] | Rejection], names: Sequence[str]
) -> Iterator[Raw | Rejection]:
    held: list[tuple[int, dict[str, Any]]] = []
    size = 0
    for record in records:
        if isinstance(record, Rejection):
            yield record
            continue
        held.append(record)
        size += sum(len(cell) if type(cell) is str else len(str(cell)) for cell in record[1].values())
        if len(held) >= BATCH_ROWS or size >= MAX_BATCH_BYTES:
            yield raw_of_records(held, file, names)
            held, size = [], 0
    if held:
        yield raw_of_records(held, file, names)


def sized(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The rows in batches of at most BATCH_ROWS rows and MAX_BATCH_BYTES; a single row may be larger."""
    if len(batch) > BATCH_ROWS or (len(batch) > 1 and batch.nbytes > MAX_BATCH_BYTES):
        half = len(batch) // 2
        yield from sized(batch.slice(0, half))
        yield from sized(batch.slice(half))
    elif len(batch):
        yield batch
