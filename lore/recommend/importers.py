"""Imports a log of events and a catalogue from public formats, or from any table by a column map.

    lore data import events data/instruments -o events.parquet
    lore data import items meta.jsonl.gz -o items.parquet
    lore data import events log.csv --map user_id=customer,item_id=sku,time=bought_at -o events.parquet

Read without a map, by the names of their columns: RecBole's .inter and .item, Amazon reviews and metadata of 2018 and 2023,
MovieLens (csv and dat), User Behavior Insights, MiniOneRec's csv and item.json. Of rows with a history and a target the whole
sequence is rebuilt; the published part (train, valid, test) is kept as `split`. Files ending in .gz are unpacked on disk first.
Left out: ratings as weights, photos behind URLs.
"""

from __future__ import annotations

import ast
import gzip
import math
import re
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lore.data.importers.table import column_map, row_values
from lore.data.pair import ITEM_SCHEMA, item_key
from lore.data.parquet import PairWriter
from lore.data.rejected_rows import RejectedWriter, Rejection, is_rejected_file, rejected_path, short, shown_value
from lore.data.row_validation import ENCODING_HINT, RowChecker
from lore.data.tables.any_table import table_records
from lore.data.tables.csv import check_delimiter
from lore.data.tables.ids import id_text
from lore.data.tables.text_tables import MAX_LINE_CHARACTERS, Record, jsonl_records, open_text
from lore.label.inputs.tables import table_files
from lore.label.inputs.ubi import at_path, unwrapped
from lore.recommend.section import seconds_of
from lore.recommend.tables import CLOCK, EVENT_SCHEMA, SPLITS, is_events_file, is_items_file
from lore.support.atomic_files import replace_file, scratch_folder, written_whole
from lore.support.errors import LoreError, reason
from lore.support.nearest import nearest_hint
from lore.support.outputs import Output, checked_outputs
from lore.support.progress import track
from lore.support.text import encodable, printable
from lore.support.untrusted_json import parse_json

Row = tuple[str, int, dict[str, Any]]
"""File, row number and cells by column."""
Event = tuple[str, str, float, str | None, str | None, str | None]
"""In the order of EVENT_SCHEMA."""
EVENT_COLUMNS = {
    "user_id": ("user_id", "reviewerID", "userId", "UserID", "client_id"),
    "item_id": ("item_id", "parent_asin", "asin", "movieId", "MovieID", "event_attributes.object.object_id"),
    "time": ("time", "timestamp", "unixReviewTime", "Timestamp"),
    "session_id": ("session_id",),
    "kind": ("kind", "action_name"),
    "split": ("split",),
    "history": ("history", "item_id_list", "history_item_id"),
}
"""history: the items before a row's item, as a list or with spaces between."""
ITEM_COLUMNS = {
    "item_id": ("item_id", "parent_asin", "asin", "movieId", "MovieID"),
    "title": ("title", "movie_title", "Title"),
    "attributes": ("attributes", "details"),
    "description": ("description", "features", "feature"),
    "category": ("category", "categories", "genres", "genre", "Genres", "class", "main_category"),
    "brand": ("brand", "store"),
    "shop": ("shop",),
    "price": ("price",),
    "image": ("image",),
}
NEEDED = {"events": ("user_id", "item_id"), "items": ("item_id", "title")}
ATOMIC = (".inter", ".item")
"""RecBole's files: tabs, and a type after each column's name, such as user_id:token."""
MOVIELENS = {"ratings": ("UserID", "MovieID", "Rating", "Timestamp"), "movies": ("MovieID", "Title", "Genres")}
"""Columns of MovieLens' dat files: no header, two colons between cells."""
HEAD_ROWS, BATCH_ROWS, SHOWN = 100, 2**16, 3
MAX_ID_CHARACTERS, MAX_LIST_CHARACTERS, MAX_JSON_BYTES = 1_000, 2**20, 2**30
_NUMBER = re.compile(r"[-+]?\d{1,40}(\.\d{0,40})?([eE][-+]?\d{1,3})?")
_PRICE = re.compile(r"[^\d\s.,]{0,4}\s?\d[\d.,]{0,20}\s?[^\d\s.,]{0,4}")
_TEMPLATE = re.compile(r"\{([^{}]+)\}")


@dataclass
class Report:
    """What an import found. columns: the column of each field."""

    out: str
    rows: int = 0
    kept: int = 0
    duplicates: int = 0
    left_out: int = 0
    """Events that are about no item, such as page views."""
    rejected_rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    counts: dict[str, int] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)
    rejected: str | None = None
    examples: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "reasons": dict(self.reasons), "repairs": dict(self.repairs)}

    def reject(self, problems: list[Rejection], writer: RejectedWriter) -> None:
        self.rejected_rows += 1
        for problem in problems:
            writer.write(problem)
            self.reasons[problem.reason] += 1
            if self.reasons[problem.reason] <= SHOWN:
                self.examples.append(str(problem))

    def checked(self, what: str) -> Report:
        if not self.kept:
            why = f"The first rejected row: {self.examples[0]}" if self.examples else "The table has no rows."
            raise LoreError(f"No row is an {what}, so {self.out} was not written. {why}")
        return self


def import_events(
    path: str | Path,
    out: Path,
    *,
    map: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    force: bool = False,
) -> Report:
    """Writes the events of a file, folder or glob to `out`, and bad rows to `<name>.rejected.jsonl`. Rows with the same user, item,
    time, session, kind and split are one event. Memory: 8 bytes per event and about 100 per user and item; the sequences of a log
    of histories are held as a whole, 5 bytes per event.

    map: "field=column,..."; delimiter: of csv files. Raises LoreError if no row is an event; an earlier `out` is kept then.
    """
    files, report = _files(path), Report(str(out))
    out, listed = checked_outputs([Output(out, is_events_file), Output(rejected_path(out), is_rejected_file)], [path], force=force)
    seen, users, items = array("q"), set(), set()
    with RejectedWriter(out, listed) as rejected, scratch_folder(out) as scratch:
        records, report.columns = _opened(files, scratch, "events", map, encoding, delimiter)
        together = "history" in report.columns
        clock = "seconds" if "time" in report.columns and not together else "order"
        schema = EVENT_SCHEMA.with_metadata({CLOCK: clock, "lore.source": Path(path).name})
        with pq.ParquetWriter(scratch / "events.parquet", schema, compression="zstd") as writer:
            held: list[Event] = []
            for event in track((_sequences if together else _events)(records, report.columns, report), "events"):
                if isinstance(event, Rejection):
                    report.reject([event], rejected)
                    continue
                seen.append(hash(event))
                users.add(hash(event[0]))
                items.add(hash(event[1]))
                held.append(event)
                if len(held) == BATCH_ROWS:
                    writer.write_batch(_batch(held, schema))
                    held = []
            writer.write_batch(_batch(held, schema))
        rejected.publish()
        if seen:
            report.duplicates = _publish(scratch / "events.parquet", out, np.frombuffer(seen, dtype=np.int64), schema)
    report.kept, report.counts = len(seen) - report.duplicates, {"users": len(users), "items": len(items)}
    report.rejected = str(rejected_path(Path(report.out))) if rejected.count else None
    return report.checked("event")


def _batch(rows: list[Event], schema: pa.Schema) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.record_batch([pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema)


def _publish(first: Path, out: Path, hashes: np.ndarray, schema: pa.Schema) -> int:
    """Moves the events to `out`, of equal ones the first. Returns the number of the others."""
    order = np.argsort(hashes, kind="stable")
    repeated = np.zeros(len(hashes), dtype=bool)
    repeated[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]
    if not repeated.any():
        replace_file(first, out)
        return 0
    at = 0
    with pq.ParquetFile(first) as parquet, written_whole(out) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in parquet.iter_batches(BATCH_ROWS):
            writer.write_batch(batch.filter(pa.array(~repeated[at : at + len(batch)])))
            at += len(batch)
    return int(repeated.sum())


def import_items(
    path: str | Path,
    out: Path,
    *,
    map: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    strict: bool = False,
    embed_images: bool = False,
    keep_bad_photos: bool = False,
    image_roots: Sequence[str | Path] = (),
    force: bool = False,
) -> Report:
    """Writes the items of a file, folder or glob to `out`, and bad rows to `<name>.rejected.jsonl`. An item that occurs again is
    folded, and rejected if its content is another. Without a map, a price that is no number is left out. Memory: about 200 bytes
    per item. map: "field=column,..."; a column with braces is a template, such as image=images/{id}.jpg. The other options are
    those of lore.data.import_pairs."""
    files, report, seen = _files(path), Report(str(out)), dict[str, str]()
    out, listed = checked_outputs([Output(out, is_items_file), Output(rejected_path(out), is_rejected_file)], [path], force=force)
    checker = RowChecker(
        None,
        strict=strict,
        image_roots=image_roots,
        embed_images=embed_images,
        keep_bad_photos=keep_bad_photos,
        required=NEEDED["items"],
    )
    with RejectedWriter(out, listed) as rejected, scratch_folder(out) as scratch:
        records, report.columns = _opened(files, scratch, "items", map, encoding, delimiter)
        with PairWriter(out, metadata={"lore.source": Path(path).name}, schema=ITEM_SCHEMA) as writer:
            for record in track(records, "items"):
                report.rows += 1
                if isinstance(record, Rejection):
                    report.reject([record], rejected)
                    continue
                file, row, cells = record
                values = _item_values(cells, report.columns, None if map else checker.repairs)
                item, problems = checker.check(values, file, row)
                if item is None:
                    report.reject(problems, rejected)
                elif item.item_id not in seen:
                    seen[item.item_id] = item_key(item)
                    writer.write(item)
                elif seen[item.item_id] == item_key(item):
                    report.duplicates += 1
                else:
                    found = f"item {item.item_id[:80]!r} again, with other content"
                    report.reject(
                        [Rejection(file, row, "item_id", "item_repeated", found, "each item once", short(values))], rejected
                    )
            if not seen:
                writer.discard()
            rejected.publish()
    report.kept, report.repairs = len(seen), checker.repairs
    report.rejected = str(rejected_path(Path(report.out))) if rejected.count else None
    return report.checked("item")


def _item_values(cells: dict[str, Any], columns: dict[str, list[str]], repairs: Counter[str] | None) -> dict[str, Any]:
    """The fields of an item. repairs: None for mapped columns, whose values are checked as they are."""
    chosen: dict[str, Any] = {}
    for name, found in columns.items():
        if _TEMPLATE.search(found[0]):
            chosen[name] = _TEMPLATE.sub(lambda part: id_text(cells.get(part[1])), found[0])
            continue
        chosen[name] = next((cell for one in found if (cell := cells.get(one)) not in (None, "", [], {})), None)
    if repairs is not None:
        for name, between in (("category", " > "), ("description", " "), ("title", " ")):
            parts = _as_list(chosen[name]) if name in chosen else None
            if parts is not None:
                chosen[name] = between.join(str(part) for part in parts if isinstance(part, str | int | float))
        price = chosen.get("price")
        if price is not None and not isinstance(price, int | float) and not _PRICE.fullmatch(str(price)[:100].strip()):
            chosen["price"] = None
            repairs["price_left_out"] += 1
    return row_values(chosen, {name: name for name in chosen})


def _files(path: str | Path) -> list[Path]:
    """The tables of a path; of a folder with RecBole's files, those. In the order train, valid, test."""
    place = Path(path).expanduser()
    found = sorted(place.glob("*.inter")) if place.is_dir() else [place] if place.is_file() else []
    return sorted(found or table_files(str(path), "PATH", other=True), key=lambda file: SPLITS.index(_part_of(file) or "train"))


def _part_of(file: Path) -> str | None:
    """The published part that the name of a file tells: x.train.inter, valid_x.csv."""
    words = re.split(r"[._-]", file.name.lower())
    return next((part for part in SPLITS if part in words), "valid" if "dev" in words else None)


def _opened(
    files: list[Path], scratch: Path, what: str, map: str | None, encoding: str | None, delimiter: str | None
) -> tuple[Iterator[Row | Rejection], dict[str, list[str]]]:
    """The rows of all files, and the columns of each field, the best one first. Raises LoreError for a table that lacks a needed
    one."""
    known = EVENT_COLUMNS if what == "events" else ITEM_COLUMNS
    mapped = column_map(map, NEEDED[what], None)
    for name in mapped:
        if name not in known and not (what == "items" and name.startswith("attributes.")):
            fields = ", ".join([*known, *(["attributes.<name>"] if what == "items" else [])])
            raise LoreError(f"--map: {name!r} is no field of {what}; expected {fields}.{nearest_hint(name, known)}")
    required = [name for column in mapped.values() for name in _TEMPLATE.findall(column) or [column]]
    rows = _rows(files, scratch, list(dict.fromkeys(required)), encoding, delimiter)
    head = list(islice(rows, HEAD_ROWS))
    first = [row[2] for row in head if not isinstance(row, Rejection)]
    if mapped:
        return chain(head, rows), {name: [column] for name, column in mapped.items()}
    names = {name for cells in first for name in cells}
    there = names | {one for column in known.values() for one in column if "." in one and any(_cell(row, one) for row in first)}
    columns = {name: [one for one in aliases if one in there] for name, aliases in known.items()}
    columns = {name: found[:1] if what == "events" else found for name, found in columns.items() if found}
    if first and (missing := [name for name in NEEDED[what] if name not in columns]):
        raise LoreError(
            f"{files[0]}: no known column holds {' and '.join(missing)}; found {printable(', '.join([*first[0]][:40]))}. Name the "
            f"columns with --map {','.join(f'{name}=COLUMN' for name in NEEDED[what])}."
        )
    return chain(head, rows), columns


def _rows(
    files: list[Path], scratch: Path, required: list[str], encoding: str | None, delimiter: str | None
) -> Iterator[Row | Rejection]:
    for file in files:
        place = file
        if file.suffix.lower() == ".gz":
            place = scratch / file.stem
            with gzip.open(file) as packed, place.open("wb") as plain:
                shutil.copyfileobj(packed, plain)
        suffix = place.suffix.lower()
        if delimiter is None and (suffix in ATOMIC or (suffix == ".dat" and place.stem in MOVIELENS)):
            records = _plain_rows(place, encoding)
        elif suffix == ".json":
            records = _json_rows(place, required, encoding)
        else:
            mark = check_delimiter(delimiter) if delimiter else None
            records = table_records(place, required, encoding=encoding, delimiter=mark, settable=True)
        for record in records:
            if isinstance(record, Rejection):
                yield replace(record, file=str(file))
            else:
                for document in unwrapped(record[1]):
                    yield str(file), record[0], document


def _plain_rows(path: Path, encoding: str | None) -> Iterator[Record | Rejection]:
    """Rows of RecBole's and MovieLens' files, in which a quote is a character like any other."""
    dat = path.suffix.lower() == ".dat"
    with open_text(path, encoding or ("latin-1" if dat else None), None, settable=True) as file:
        header = MOVIELENS[path.stem] if dat else [name.split(":")[0] for name in file.readline(2**20).strip().split("\t")]
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
    if isinstance(first, dict) and not all(isinstance(one, dict) for one in first.values()):
        yield from jsonl_records(path, required, encoding=encoding, settable=True)
        return
    if path.stat().st_size > MAX_JSON_BYTES:
        raise LoreError(
            f"{path} is one JSON value of {path.stat().st_size:,} bytes, too large to read. Write JSON lines."
        )
    try:
        content = parse_json(path.read_bytes())
        entries = content.items()
    except (ValueError, AttributeError) as error:
        raise LoreError(f"{path} holds neither JSON lines nor an object with an item per id ({reason(error)}).") from error
    for row, (key, value) in enumerate(entries, 1):
        if isinstance(value, dict):
            yield row, {"item_id": key, **value}
        else:
            yield Rejection(str(path), row, "row", "field_type", shown_value(value), "a JSON object", {"key": short(key)})


class _BadCell(Exception):
    """Field, reason, what was found and what was expected."""


def _events(records: Iterator[Row | Rejection], columns: dict[str, list[str]], report: Report) -> Iterator[Event | Rejection]:
    """One event per row. Without times, the number of the row stands for the time."""
    named = {name: found[0] for name, found in columns.items()}
    about_anything = "." in named["item_id"]  # a log of all that people do
    for number, record in enumerate(records):
        report.rows += 1
        if isinstance(record, Rejection):
            yield record
            continue
        cells = {name: _cell(record[2], column) for name, column in named.items()}
        if about_anything and not cells["item_id"]:
            report.left_out += 1
            continue
        try:
            user, item = _id("user_id", cells["user_id"]), _id("item_id", cells["item_id"])
            time = _seconds(cells["time"]) if "time" in cells else float(number)
            session, kind, part = (_id(name, cells[name]) if cells.get(name) else None for name in ("session_id", "kind", "split"))
        except _BadCell as bad:
            yield Rejection(record[0], record[1], *bad.args, short(record[2]))
            continue
        part = part or _part_of(Path(record[0]))
        yield user, item, time, session, kind, "valid" if part == "dev" else part


def _sequences(records: Iterator[Row | Rejection], columns: dict[str, list[str]], report: Report) -> Iterator[Event | Rejection]:
    """The events of rows with a history and a target. The place in the sequence stands for the time; the part of a target's file is
    its split, and events that are nobody's target are for training."""
    named = {name: found[0] for name, found in columns.items()}
    numbers: dict[str, int] = {}
    sequences: dict[str, tuple[array[int], bytearray]] = {}
    split = False
    for record in records:
        report.rows += 1
        if isinstance(record, Rejection):
            yield record
            continue
        file, row, cells = record
        try:
            user, target = _id("user_id", cells.get(named["user_id"])), _id("item_id", cells.get(named["item_id"]))
            past = _as_list(cells.get(named["history"]), " ")
            if past is None:
                raise _BadCell(
                    "history", "field_type", shown_value(cells.get(named["history"])), "a list of ids"
                )
            ids = [_id("history", one) for one in past]
        except _BadCell as bad:
            yield Rejection(file, row, *bad.args, short(cells))
            continue
        part = _part_of(Path(file))
        split |= part is not None
        window = array("i", [numbers.setdefault(one, len(numbers)) for one in (*ids, target)])
        if not _joined(sequences.setdefault(user, (array("i"), bytearray())), window, SPLITS.index(part or "train")):
            found = f"a history that does not continue the other rows of user {printable(user[:80])}"
            yield Rejection(file, row, "history", "history_apart", found, "histories of one sequence", short(cells))
    names = list(numbers)
    for user, (items, parts) in sequences.items():
        for place, (item, part) in enumerate(zip(items, parts, strict=True)):
            yield user, names[item], float(place), None, None, SPLITS[part] if split else None


def _joined(sequence: tuple[array[int], bytearray], window: array[int], part: int) -> bool:
    """Puts a history with its target at its place in the sequence so far, and notes the target's part. Histories may be cut at the
    front, and come with the longest or the shortest first. False if they do not belong together."""
    items, parts = sequence
    past = len(window) - 1
    if not items or items == window[:-1][-len(items) :]:  # the first row, or a row that reaches further back
        new = len(window) - len(items)
        at, items[:], parts[:] = past, window, bytearray(new - 1 if items else past) + parts + bytes(1)
    elif items[: past + 1] == window:
        at = past
    elif past and items[-past:] == window[:-1]:
        at = len(items)
        items.append(window[-1])
        parts.append(0)
    elif (found := items.tobytes().find(window.tobytes())) >= 0 and found % items.itemsize == 0:
        at = found // items.itemsize + past
    elif items[:past] == window[1:]:
        at = past
        items.insert(0, window[0])
        parts.insert(0, 0)
    else:
        return False
    parts[at] = max(parts[at], part)
    return True


def _cell(cells: dict[str, Any], column: str) -> Any:
    return at_path(cells, column) if "." in column else cells.get(column)


def _as_list(cell: Any, between: str | None = None) -> list[Any] | None:
    """A list, also as the text of one (JSON or Python), or with separators; None for other cells."""
    if isinstance(cell, list | tuple):
        return list(cell)
    if not isinstance(cell, str) or len(cell) > MAX_LIST_CHARACTERS:
        return [] if cell is None and between else None
    if cell.lstrip()[:1] == "[":
        for read in (parse_json, ast.literal_eval):
            try:
                found = read(cell.strip())
                return found if isinstance(found, list) else None
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
        return None
    return cell.split() if between else None


def _id(name: str, cell: Any) -> str:
    text = id_text(cell) if isinstance(cell, str | bytes | int | float | Decimal) and not isinstance(cell, bool) else ""
    if not text:
        empty = cell is None or not str(cell).strip()
        raise _BadCell(name, f"{name}_empty" if empty else "field_type", shown_value(cell), "an id")
    if len(text) > MAX_ID_CHARACTERS:
        raise _BadCell(name, "text_too_long", f"{len(text):,} characters", f"at most {MAX_ID_CHARACTERS:,}")
    if "\0" in text or encodable(text) != text:
        raise _BadCell(name, "encoding", ascii(text[:80]), ENCODING_HINT)
    return text


def _seconds(cell: Any) -> float:
    """Seconds since 1970 of a number (in seconds or, as its size tells, finer units), of a date or of its text."""
    try:
        text = cell.isoformat() if isinstance(cell, date) else cell.strip()[:80] if isinstance(cell, str) else cell
        if isinstance(text, str) and not _NUMBER.fullmatch(text):
            return seconds_of(text)
        number = math.nan if isinstance(text, bool) else float(text)
        if math.isfinite(number):
            return number / next((unit for unit in (1e9, 1e6, 1e3) if abs(number) > unit * 1e8), 1.0)
    except (ValueError, TypeError, OverflowError):
        pass
    raise _BadCell("time", "field_type", shown_value(cell), "seconds since 1970, or a date such as 2018-06-01T12:00")
