"""The files of public formats as rows of cells: RecBole, MovieLens, Amazon, User Behavior Insights, and any table.

Files ending in .gz are unpacked on disk first.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lore.data.events import SPLITS
from lore.data.rejected_rows import Rejection, short, shown_value
from lore.data.tables.any_table import table_records
from lore.data.tables.csv import check_delimiter
from lore.data.tables.text_tables import MAX_LINE_CHARACTERS, Record, jsonl_records, need_columns, once_each, open_text
from lore.label.inputs.tables import table_files
from lore.label.inputs.ubi import unwrapped
from lore.support.bounds import most_unpacked
from lore.support.errors import LoreError, reason
from lore.support.untrusted_json import parse_json

Row = tuple[str, int, dict[str, Any]]
"""File, row number and cells by column."""
ATOMIC = (".inter", ".item")
"""RecBole's files: tabs, and a type after each column's name, such as user_id:token."""
MOVIELENS = {"ratings": ("UserID", "MovieID", "Rating", "Timestamp"), "movies": ("MovieID", "Title", "Genres")}
"""Columns of MovieLens' dat files: no header, two colons between cells."""
VALID = {"dev", "val", "validation"}
"""Other names of the part valid."""
MAX_JSON_BYTES = 2**30


def source_files(path: str | Path) -> list[Path]:
    """The tables of a path; of a folder with RecBole's files, those. In the order train, valid, test."""
    place = Path(path).expanduser()
    found = sorted(place.glob("*.inter")) if place.is_dir() else [place] if place.is_file() else []
    found = found or table_files(str(path), "PATH", other=True, hub=False)
    return sorted(found, key=lambda file: SPLITS.index(part_of(file) or "train"))


@lru_cache(maxsize=64)
def part_of(file: str | Path) -> str | None:
    """The published part that the name of a file tells: x.train.inter, valid_x.csv."""
    words = re.split(r"[._-]", Path(file).name.lower())
    return next((part for part in SPLITS if part in words), "valid" if VALID & {*words} else None)


def source_rows(
    files: list[Path], scratch: Path, required: list[str], encoding: str | None, delimiter: str | None
) -> Iterator[Row | Rejection]:
    """The rows of all files, one after the other. scratch: where packed files are unpacked; required: columns without which a
    table is of no use."""
    for file in files:
        packed = file.suffix.lower() == ".gz"
        place = scratch / "unpacked" / (file.stem.strip(".") or "rows") if packed else file
        try:
            if packed:
                place.parent.mkdir(exist_ok=True)
                unpack(file, place)
            for record in _records(place, required, encoding, delimiter):
                if isinstance(record, Rejection):
                    yield replace(record, file=str(file))
                else:
                    for document in unwrapped(record[1]):
                        yield str(file), record[0], document
        except LoreError as error:
            if not packed:
                raise
            raise LoreError(str(error).replace(str(place), str(file))) from error
        finally:
            if packed:
                place.unlink(missing_ok=True)


def _records(place: Path, required: list[str], encoding: str | None, delimiter: str | None) -> Iterator[Record | Rejection]:
    """The rows of one file."""
    suffix = place.suffix.lower()
    if delimiter is None and (suffix in ATOMIC or (suffix == ".dat" and place.stem in MOVIELENS)):
        return _plain_rows(place, required, encoding)
    if suffix == ".json":
        return _json_rows(place, required, encoding)
    mark = check_delimiter(delimiter) if delimiter else None
    return table_records(place, required, encoding=encoding, delimiter=mark, settable=True)


def unpack(packed: Path, place: Path) -> None:
    """Writes what a .gz file holds to `place`. Raises LoreError for a damaged file, and for one that unpacks to more than any table
    would."""
    most, written = most_unpacked(packed.stat().st_size), 0
    try:
        with gzip.open(packed) as source, place.open("wb") as plain:
            while block := source.read(2**20):
                written += len(block)
                if written > most:
                    raise LoreError(
                        f"{packed} has {packed.stat().st_size:,} bytes and unpacks to more than {most:,}, as no table does: it "
                        f"could fill the disk. If that is right, unpack it and name the unpacked file: gunzip {packed.name}"
                    )
                plain.write(block)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise LoreError(
            f"{packed} is no whole .gz file ({reason(error)}), so its rows cannot be read. Download it again, or rename it if it "
            "is not packed."
        ) from error


def _plain_rows(path: Path, required: list[str], encoding: str | None) -> Iterator[Record | Rejection]:
    """Rows of RecBole's and MovieLens' files, in which a quote is a character like any other."""
    dat = path.suffix.lower() == ".dat"
    with open_text(path, encoding or ("latin-1" if dat else None), None, settable=True) as file:
        header = MOVIELENS[path.stem] if dat else [name.split(":")[0] for name in file.readline(2**20).strip().split("\t")]
        need_columns(path, required, header)
        once_each(path, header)
        row = 0
        while line := file.readline(MAX_LINE_CHARACTERS):
            row += 1
            cells = line.rstrip("\n").split("::" if dat else "\t")
            if len(cells) == len(header):
                yield row, dict(zip(header, cells, strict=True))
            elif line.strip():
                found, expected = f"{len(cells)} columns", f"{len(header)} columns"
                yield Rejection(str(path), row, "row", "field_type", found, expected, {"line": short(line)})


def _json_rows(path: Path, required: list[str], encoding: str | None) -> Iterator[Record | Rejection]:
    """Rows of a .json file: JSON lines, as Amazon's are, or one JSON object with an item per id."""
    with open_text(path, encoding, None, settable=True) as file:
        try:
            first = parse_json(file.readline(MAX_LINE_CHARACTERS))
        except ValueError:
            first = None
    content = None
    if first is None or (isinstance(first, dict) and all(isinstance(one, dict) for one in first.values())):
        if path.stat().st_size > MAX_JSON_BYTES:
            raise LoreError(f"{path} is one JSON value of {path.stat().st_size:,} bytes, too large to read. Write JSON lines.")
        try:
            content = parse_json(path.read_bytes())
        except ValueError:
            pass  # JSON lines whose first one is damaged
    if not isinstance(content, dict) or not any(isinstance(value, dict) for value in content.values()):
        yield from jsonl_records(path, required, encoding=encoding, settable=True)
        return
    entries = {key: {"item_id": key, **value} if isinstance(value, dict) else value for key, value in content.items()}
    need_columns(
        path, required, list(dict.fromkeys(name for value in entries.values() if isinstance(value, dict) for name in value))
    )
    for row, (key, value) in enumerate(entries.items(), 1):
        if isinstance(value, dict):
            yield row, value
        else:
            yield Rejection(str(path), row, "row", "field_type", shown_value(value), "a JSON object", {"key": short(key)})
