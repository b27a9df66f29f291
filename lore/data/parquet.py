"""Pairs on disk: a Parquet file, a folder of them, or a glob. Reads and writes are streamed, and `datasets` can load the photos.

with PairWriter("pairs.parquet") as writer:
    writer.write(Pair(pair_id=make_pair_id(query, title), query=query, title=title))
for pair in read_pairs("pairs.parquet", split="train"):
    ...
"""

import glob
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lore.data.pair import DEMAND_FIELDS, FIELDS, PAIR_SCHEMA, REQUIRED, Pair
from lore.data.photo_places import PhotoPlaces, as_stored
from lore.data.tables.parquet_files import open_parquet
from lore.data.tables.text_tables import once_each
from lore.rubric.demand import Demand
from lore.support.atomic_files import open_part, part_of, replace_file
from lore.support.errors import LoreError
from lore.support.fingerprint import content_fingerprint
from lore.support.processes import is_main_process
from lore.support.terminal import print_note
from lore.support.text import printable

WITHOUT_PHOTO = [name for name in FIELDS if name != "image"]
_warned: set[str] = set()
WRITTEN = {"pair_id", "attributes", "label_weight", "slices", "query_frequency", "source"}  # by every version, also when empty
MAX_BATCH_BYTES = 32 * 2**20  # bounds the bytes of a row group, and so a reader's memory, when pairs have photos


class PairWriter:
    """Writes pairs to one Parquet file. The file appears when the `with` block ends. After an exception in the block there is no
    file. schema: ITEM_SCHEMA for a catalogue, whose items are pairs without a query.
    """

    def __init__(
        self, path: str | Path, batch_rows: int = 4096, metadata: dict[str, str] | None = None, schema: pa.Schema = PAIR_SCHEMA
    ):
        self.path, self.batch_rows, self.schema, self.count = Path(path), batch_rows, schema, 0
        self._metadata = metadata or {}
        self._part = part_of(self.path)
        self._kept = True
        self._batch: list[Pair] = []
        self._bytes = 0

    def __enter__(self) -> "PairWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        schema = self.schema.with_metadata({**self.schema.metadata, **self._metadata})
        self._file = open_part(self._part, self.path)
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")
        return self

    def write(self, pair: Pair) -> None:
        self._batch.append(pair)
        self.count += 1
        if pair.image and pair.image.get("bytes"):
            self._bytes += len(pair.image["bytes"])
        self._bytes += _characters(pair)
        if len(self._batch) >= self.batch_rows or self._bytes >= MAX_BATCH_BYTES:
            self._flush()

    def discard(self) -> None:
        """Discards everything written so far. An existing file stays."""
        self._kept = False

    def __exit__(self, kind, error, trace) -> None:
        try:
            try:
                if kind is None:
                    self._flush()
            finally:
                self._writer.close()
            self._file.close()
            if kind is None and self._kept:
                replace_file(self._part, self.path)
        finally:
            try:
                self._file.close()  # on a full disk this fails too
            finally:
                self._part.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._batch:
            columns = [to_column(name, [getattr(pair, name) for pair in self._batch]) for name in self.schema.names]
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self.schema))
            self._batch, self._bytes = [], 0


def _characters(pair: Pair) -> int:
    """Number of characters in the fields that can be long."""
    texts = [pair.title, pair.description, pair.rationale, *pair.attributes, *pair.attributes.values()]
    texts += [*pair.slices, *pair.rules]
    texts += [getattr(demand, name) for demand in pair.demands for name in DEMAND_FIELDS]
    return sum(len(text) for text in texts if text)


def to_column(name: str, values: list[Any]) -> pa.Array:
    """A field of pairs as a column of PAIR_SCHEMA. Raises LoreError for a value that is not of its type."""
    kind = PAIR_SCHEMA.field(name).type
    if name == "attributes":
        values = [[{"key": key, "value": value} for key, value in item.items()] for item in values]
    elif name == "image":
        values = [as_stored(image) for image in values]
    elif name == "demands":
        values = [[{key: getattr(demand, key) for key in DEMAND_FIELDS} for demand in item] for item in values]
    elif name == "label_distribution":
        values = [item and [{"tier": tier, "probability": share} for tier, share in item.items()] for item in values]
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, UnicodeError, TypeError) as error:
        raise LoreError(
            f"Pair field {name} cannot be stored as {kind}: {error}. Validate raw rows with row_validation.RowChecker first."
        ) from error


def read_pairs(
    path: str | Path,
    *,
    split: str | None = None,
    columns: list[str] | None = None,
    limit: int | None = None,
    batch_rows: int = 4096,
    image_roots: Iterable[str | Path] | None = None,
) -> Iterator[Pair]:
    """Streams pairs in file order. `columns`: fill only these fields, plus pair_id, query and title. `limit`: maximum number of
    pairs after the split filter.

    image_roots: for whoever opens the photos: folders below which they may lie, besides the folder of their file. Opening any other
    photo raises ImageError. None: paths as they are stored.
    """
    unknown = set(columns or ()) - set(FIELDS)
    if unknown:
        raise LoreError(f"read_pairs: {', '.join(sorted(unknown))} is not a field of Pair; its fields are {', '.join(FIELDS)}.")
    wanted = [name for name in FIELDS if columns is None or name in columns or name in REQUIRED]
    files = pair_files(path)
    return islice(_read(files, split, wanted, batch_rows, None if image_roots is None else tuple(image_roots)), limit)


def _read(
    files: list[Path], split: str | None, wanted: list[str], batch_rows: int, image_roots: tuple[str | Path, ...] | None
) -> Iterator[Pair]:
    for file in files:
        places = None if image_roots is None else PhotoPlaces(file.parent, image_roots)
        with _open(file) as parquet:
            present = [name for name in wanted if name in parquet.schema_arrow.names]
            loaded = present if split is None else [*dict.fromkeys([*present, "split"])]
            if split is not None and "split" not in parquet.schema_arrow.names:
                continue
            # One row group at a time: a batch that spans row groups would hold the photos of all of them in memory.
            for group in range(parquet.num_row_groups):
                for batch in parquet.iter_batches(batch_rows, row_groups=[group], columns=loaded):
                    if split is not None:
                        batch = batch.filter(pc.equal(batch.column("split"), split))
                    if batch.num_rows:
                        for pair in to_pairs(batch, present, file):
                            if places is not None and pair.image is not None:
                                pair.image = places.placed(pair.image)
                                _warn_of_refused(pair, file)
                            yield pair


def _warn_of_refused(pair: Pair, file: Path) -> None:
    """Says once per file that its photos lie elsewhere. The rows go on, as with any photo that cannot be read."""
    if str(file) in _warned or not is_main_process() or as_stored(pair.image) is pair.image:
        return
    _warned.add(str(file))
    print_note(
        f"warning: {file}: photos outside of its folder are not read, such as {printable(pair.image['path'][:200])} of pair "
        f"{printable(pair.pair_id[:80])}. If they are yours, name their folder as data.image_root in the recipe."
    )


def to_pairs(
    batch: pa.RecordBatch, names: Iterable[str], file: str | Path, given: dict[str, str] | None = None
) -> Iterator[Pair]:
    """The pairs of a batch with these fields. file: where it comes from, for errors. given: values of all rows, of items without a
    query and a pair_id."""
    filled, values, given = [], [], given or {}
    for name in names:
        column = batch.column(name)
        if column.null_count == len(column):
            continue  # the field's default
        if column.type != PAIR_SCHEMA.field(name).type:
            column = _cast(column, name, file)
        try:
            values.append(_FROM_COLUMN.get(name, pa.Array.to_pylist)(column))
        except UnicodeDecodeError as error:
            raise LoreError(
                f"{file}, column {name}: bytes that are not UTF-8 ({error}). `lore data check {file} -o "
                "clean.parquet` moves such rows to a separate file."
            ) from error
        filled.append(name)
    if absent := {*REQUIRED} - {*filled, *given}:
        raise LoreError(
            f"{file}: {', '.join(sorted(absent))} is empty in a whole batch of rows, but every pair needs a value."
        )
    for row in zip(*values, strict=True):
        yield Pair(**given, **dict(zip(filled, row, strict=True)))


def _cast(column: pa.Array, name: str, file: str | Path) -> pa.Array:
    expected = PAIR_SCHEMA.field(name).type
    try:
        return column.cast(expected)
    except pa.ArrowException as error:
        raise LoreError(
            f"{file}, column {name}: type {column.type}, expected {expected}. Import other tables "
            "with `lore data import table`."
        ) from error


def _lists(column: pa.ListArray, flat: list[Any], build: Callable[[Any], Any] = list) -> list[Any]:
    items = iter(flat)
    return [build(islice(items, length)) if length else build(()) for length in column.value_lengths().to_pylist()]


def _texts(column: pa.ListArray) -> list[list[str]]:
    return _lists(column, column.flatten().to_pylist())


def _attributes(column: pa.ListArray) -> list[dict[str, str]]:
    keys, values = (child.to_pylist() for child in column.flatten().flatten())
    return _lists(column, list(zip(keys, values, strict=True)), dict)


def _demands(column: pa.ListArray) -> list[list[Demand]]:
    children = [child.to_pylist() for child in column.flatten().flatten()]
    return _lists(column, [Demand(*parts) for parts in zip(*children, strict=True)])


def _distributions(column: pa.ListArray) -> list[dict[str, float] | None]:
    return [item and {entry["tier"]: entry["probability"] for entry in item} for item in column.to_pylist()]


def _weights(column: pa.Array) -> list[float]:
    return [1.0 if weight is None else weight for weight in column.to_pylist()]


_FROM_COLUMN = {
    "attributes": _attributes,
    "slices": _texts,
    "rules": _texts,
    "demands": _demands,
    "label_weight": _weights,
    "label_distribution": _distributions,
}


def count_pairs(path: str | Path, split: str | None = None) -> int:
    """Number of pairs. Reads only the file footers, or with `split` only the split column."""
    total = 0
    for file in pair_files(path):
        with _open(file) as parquet:
            if split is None:
                total += parquet.metadata.num_rows
            elif "split" in parquet.schema_arrow.names:
                for batch in parquet.iter_batches(65536, columns=["split"]):
                    total += pc.sum(pc.equal(batch.column(0), split)).as_py() or 0
    return total


def count_unsplit(path: str | Path) -> int:
    """Number of pairs without a split. Reads only the split column."""
    total = 0
    for file in pair_files(path):
        with _open(file) as parquet:
            if "split" not in parquet.schema_arrow.names:
                total += parquet.metadata.num_rows
                continue
            total += sum(batch.column(0).null_count for batch in parquet.iter_batches(65536, columns=["split"]))
    return total


def column_values(path: str | Path, name: str) -> set[Any]:
    """The distinct values of a column of pairs. Reads only this column."""
    found: set[Any] = set()
    for file in pair_files(path):
        with _open(file) as parquet:
            if name in parquet.schema_arrow.names:
                for batch in parquet.iter_batches(65536, columns=[name]):
                    found.update(pc.unique(batch.column(0)).to_pylist())
    return found


def read_metadata(path: str | Path) -> dict[str, str]:
    """Metadata of the first file, as written by PairWriter."""
    with _open(pair_files(path)[0]) as parquet:
        return {
            key.decode(errors="replace"): value.decode(errors="replace")
            for key, value in (parquet.schema_arrow.metadata or {}).items()
        }


def is_pairs_file(path: Path) -> bool:
    """Whether a file was written by PairWriter of this or an earlier version. A table with other columns was not: writing it anew
    would lose them."""
    with open_parquet(path) as parquet:
        names, metadata = set(parquet.schema_arrow.names), parquet.schema_arrow.metadata or {}
    written = any(key.startswith(b"lore.") for key in metadata) or (b"huggingface" in metadata and WRITTEN <= names)
    return written and set(REQUIRED) <= names <= set(FIELDS)


def fingerprint(path: str | Path) -> str:
    """16 hex digits over the bytes of the files, in order. The path does not matter."""
    return content_fingerprint(pair_files(path), digest_size=8)


def pair_files(path: str | Path) -> list[Path]:
    """The Parquet files of a file, folder or glob, sorted by name. Raises LoreError if there are none."""
    path = Path(path)
    if path.is_file():
        return [path]
    inside = path.is_dir()
    files = sorted(path.iterdir() if inside else (Path(found) for found in glob.glob(str(path))))
    files = [file for file in files if not inside or file.suffix.lower() == ".parquet"]
    files = [file for file in files if file.is_file() and not file.name.startswith(".")]
    if not files:
        raise LoreError(
            f"No pairs at {path}: expected a Parquet file, a folder of them or a glob. `lore data import` writes "
            "such a file from rated pairs."
        )
    return files


@contextmanager
def _open(file: Path) -> Iterator[pq.ParquetFile]:
    """An open pairs file. Raises LoreError for other kinds of files and for damage found while reading."""
    with open_parquet(file, "Import other tables with `lore data import table`.") as parquet:
        missing = [name for name in REQUIRED if name not in parquet.schema_arrow.names]
        if missing:
            raise LoreError(
                f"{file} is not a pairs file: column {', '.join(missing)} is missing, found "
                f"{printable(', '.join(parquet.schema_arrow.names[:20]))}. Import it with "
                "`lore data import table FILE --map query=...,title=...,label=... -o pairs.parquet`."
            )
        once_each(file, parquet.schema_arrow.names, FIELDS)
        yield parquet
