"""Imports any table by a column map: csv, tsv, jsonl or Parquet.

    lore data import table my.csv --map query=search_term,title=product_title,label=relevance --rubric homedepot -o
    pairs.parquet

The targets of the map are the fields of Pair, attributes.<name> for single attributes, and locale or market for the market of a
query: it becomes the slice `locale:us`, which keeps equal queries of two markets apart. Without a map, the columns must have these
names. Unmapped columns are ignored.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lore.data.pair import FIELDS, MARKETS, REQUIRED
from lore.data.rejected_rows import Rejection
from lore.data.source import SourceRow, missing_file
from lore.data.tables.any_table import DELIMITERS, JSONL, other_format, suffix_of, table_records
from lore.data.tables.csv import check_delimiter
from lore.data.tables.parquet_files import open_parquet
from lore.data.tables.text_tables import Unreadable
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint
from lore.support.untrusted_json import parse_json

RUBRIC = None
WHERE = "Source table reads your own .csv, .tsv, .jsonl or .parquet file."
TARGETS = (*(name for name in FIELDS if name != "demands"), *MARKETS)
KNOWN = (*DELIMITERS, *JSONL, ".parquet")
GROUPED = ("price", "query_frequency")
"""Fields with numbers that may have marks between thousands."""
NUMBERS = ("label", "label_weight", *GROUPED)


def files(path: Path) -> list[Path]:
    if not path.is_file():
        raise missing_file(path, WHERE)
    if suffix_of(path) not in KNOWN:
        raise other_format(path, KNOWN)
    return [path]


def count(found: list[Path]) -> int | None:
    if suffix_of(found[0]) != ".parquet":
        return None
    with open_parquet(found[0]) as parquet:
        return parquet.metadata.num_rows


def read(
    path: Path, encoding: str | None = None, *, map: dict[str, str] | str | None = None, delimiter: str | None = None
) -> Iterator[SourceRow | Rejection]:
    """map: {field: column} or "field=column,...". delimiter: overrides the delimiter that the suffix implies."""
    columns = column_map(map)
    return _rows(path, _records(path, encoding, columns, delimiter), columns)


def may_name(field: str, path: Path, map: dict[str, str] | str | None) -> bool:
    """Whether the rows of a table may have a field, such as image. Reads at most its first megabyte."""
    if map:
        return field in column_map(map)
    if suffix_of(path) == ".parquet":
        with open_parquet(path) as parquet:
            return field in parquet.schema_arrow.names
    with path.open("rb", buffering=0) as file:
        return field.encode() in file.read(2**20).replace(b"\0", b"")


def _rows(path: Path, records: Iterator[Any], columns: dict[str, str]) -> Iterator[SourceRow | Rejection]:
    for record in records:
        if isinstance(record, Rejection):
            yield record
        else:
            row, cells = record
            yield SourceRow(str(path), row, row_values(cells, columns))


def unmapped(
    path: Path, encoding: str | None = None, *, map: dict[str, str] | str | None = None, delimiter: str | None = None
) -> list[str]:
    """Columns that `read` ignores. For jsonl, only those of the first row."""
    columns = column_map(map)
    if suffix_of(path) == ".parquet":
        with open_parquet(path) as parquet:
            names = parquet.schema_arrow.names
    else:
        records = _records(path, encoding, columns, delimiter)
        names = next((list(record[1]) for record in records if not isinstance(record, Rejection)), [])
    read_ones = set(columns.values() if columns else TARGETS)
    return [name for name in names if name not in read_ones]


def column_map(
    given: dict[str, str] | str | None,
    required: Sequence[str] = REQUIRED[1:],
    targets: Sequence[str] | None = TARGETS,
    what: str = "--map",
) -> dict[str, str]:
    """The map as {field: column}. Raises LoreError for a target that is not a field of Pair, and for a map without the required
    ones. targets: None for any, where they are checked later. what: where the map was given, for errors."""
    if not given:
        return {}
    if isinstance(given, str):
        parts = [part.partition("=") for part in given.split(",") if part.strip()]
        wrong = [name for name, equals, column in parts if not equals or not column.strip()]
        if wrong:
            raise LoreError(f"{what} has {wrong[0]!r}; expected field=column,field=column.")
        names = [name.strip() for name, _, _ in parts]
        doubled = [name for name, times in Counter(names).items() if times > 1]
        if doubled:
            raise LoreError(f"{what} names {doubled[0]!r} twice; a field is read from one column.")
        given = {name: column.strip() for name, (_, _, column) in zip(names, parts, strict=True)}
    for name in given if targets is not None else ():
        single = name.startswith("attributes.") and len(name) > len("attributes.") and "attributes" in targets
        if name not in targets and not single:
            expected = f"{', '.join(targets)}{' and attributes.<name>' if 'attributes' in targets else ''}"
            raise LoreError(f"{what}: {name!r} is not a field of a pair; expected {expected}.{nearest_hint(name, targets)}")
    missing = [name for name in required if name not in given]
    if missing:
        raise LoreError(f"{what} names no column for {' and '.join(missing)}; it needs both {' and '.join(required)}.")
    return dict(given)


def _records(path: Path, encoding: str | None, columns: dict[str, str], delimiter: str | None) -> Iterator[Any]:
    required = list(dict.fromkeys(columns.values())) or ["query", "title"]
    numbers, grouped = ({columns.get(name) if columns else name for name in names} for names in (NUMBERS, GROUPED))
    return table_records(
        path,
        required,
        [] if columns else TARGETS,
        encoding=encoding,
        delimiter=check_delimiter(delimiter) if delimiter else None,
        settable=True,
        is_number=numbers.__contains__,
        is_grouped=grouped.__contains__,
    )


def row_values(cells: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """The cells of a row by field, for RowChecker. columns: {field: column}; {}: the columns have the names of the fields."""
    values: dict[str, Any] = {}
    attributes: list[tuple[str, Any]] = []
    markets: list[str] = []
    for name, column in (columns or {name: name for name in TARGETS if name in cells}).items():
        cell = cells.get(column)
        if name.startswith("attributes."):
            attributes.append((name.removeprefix("attributes."), cell))
        elif name in MARKETS:
            if isinstance(cell, bytes):
                cell = cell.decode("utf-8", "surrogateescape")
            if isinstance(cell, Unreadable | list | dict):
                markets.append(cell)  # validation rejects it
            elif cell is not None and cell == cell and str(cell).strip():  # not NaN, a missing value
                markets.append(f"{name}:{str(cell).strip()}")
        elif name in ("slices", "rules") and isinstance(cell, str):
            values[name] = [part.strip() for part in cell.split("|") if part.strip()]
        elif name == "attributes":
            attributes = [*_entries(cell), *attributes] if not isinstance(cell, str) or cell.strip() else attributes
        else:
            values[name] = cell
    if attributes:
        values["attributes"] = attributes
    if markets and isinstance(values.get("slices") or [], list):  # validation rejects other slices
        values["slices"] = [*(values.get("slices") or []), *markets]
    return values


def _entries(cell: Any) -> list[Any]:
    """Entries of an attributes cell: JSON text, a mapping or a list. Any other value is returned as it is; validation rejects
    it.
    """
    if isinstance(cell, str):
        try:
            cell = parse_json(cell, long_integer=str)  # the number of an item stays as it is
        except ValueError:
            return [cell]
    if isinstance(cell, dict):
        return list(cell.items())
    return list(cell) if isinstance(cell, list | tuple) else [] if cell is None else [cell]
