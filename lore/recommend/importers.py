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
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lore.data.events import BATCH_ROWS, SPLITS, Event, is_events_file, write_events
from lore.data.import_report import Report
from lore.data.importers.table import column_map, row_values
from lore.data.pair import ITEM_SCHEMA, item_key
from lore.data.parquet import PairWriter
from lore.data.photo_places import common_folder
from lore.data.rejected_rows import BadCell, RejectedWriter, Rejection, is_rejected_file, rejected_path, short, shown_value
from lore.data.row_validation import ENCODING_HINT, RowChecker
from lore.data.tables.ids import id_text
from lore.data.tables.times import cell_seconds
from lore.label.inputs.ubi import at_path
from lore.recommend.source_rows import VALID, Row, part_of, source_files, source_rows
from lore.recommend.tables import is_items_file
from lore.support.atomic_files import replace_file, scratch_folder, written_whole
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint
from lore.support.outputs import Output, checked_outputs
from lore.support.progress import track
from lore.support.text import encodable, printable
from lore.support.untrusted_json import parse_json

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
OPTIONAL = ("session_id", "kind", "split")
NOTHING = (None, "")
NEEDED = {"events": ("user_id", "item_id"), "items": ("item_id", "title")}
HEAD_ROWS = {"events": 1000, "items": 100}
MAX_ID_CHARACTERS, MAX_LIST_CHARACTERS = 1_000, 2**20
_PRICE = re.compile(r"[^\d\s.,]{0,4}\s?\d[\d.,]{0,20}\s?[^\d\s.,]{0,4}")
_URL = re.compile(r"https?://", re.IGNORECASE)
_TEMPLATE = re.compile(r"\{([^{}]+)\}")


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
    files, report = source_files(path), Report("events", out=str(out))
    out, listed = checked_outputs([Output(out, is_events_file), Output(rejected_path(out), is_rejected_file)], [path], force=force)
    seen, users, items = array("q"), set(), set()

    def kept(events: Iterator[Event | Rejection], rejected: RejectedWriter) -> Iterator[Event]:
        for event in track(events, "events"):
            if isinstance(event, Rejection):
                report.reject([event], rejected)
                continue
            seen.append(hash(event))
            users.add(hash(event[0]))
            items.add(hash(event[1]))
            yield event

    with RejectedWriter(out, listed) as rejected, scratch_folder(out) as scratch:
        records, report.columns = _opened(files, scratch, "events", map, encoding, delimiter)
        together = "history" in report.columns and "time" not in report.columns  # with times, every event is a row
        clock = "seconds" if "time" in report.columns else "order"
        events = (_sequences if together else _events)(records, report.columns, report)
        write_events(scratch / "events.parquet", kept(events, rejected), clock, Path(path).name)
        rejected.publish()
        if seen:
            report.duplicates = report.dropped = _publish(scratch / "events.parquet", out, np.frombuffer(seen, dtype=np.int64))
    report.kept, report.counts = len(seen) - report.duplicates, {"users": len(users), "items": len(items)}
    report.rejected = str(rejected_path(Path(report.out))) if rejected.count else None
    return _need_rows(report, "event")


def _publish(first: Path, out: Path, hashes: np.ndarray) -> int:
    """Moves the events to `out`, of equal ones the first. Returns the number of the others."""
    order = np.argsort(hashes, kind="stable")
    repeated = np.zeros(len(hashes), dtype=bool)
    repeated[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]
    if not repeated.any():
        replace_file(first, out)
        return 0
    at = 0
    with pq.ParquetFile(first) as read, written_whole(out) as file:
        with pq.ParquetWriter(file, read.schema_arrow, compression="zstd") as writer:
            for batch in read.iter_batches(BATCH_ROWS):
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
    folded, and rejected if its content is another. Without a map, a price that is no number, a photo behind a URL and a nested
    attribute are left out. Memory: about 200 bytes per item. map: "field=column,..."; a column with braces is a template, such as
    image=images/{id}.jpg. The other options are those of lore.data.import_pairs."""
    files, report, seen = source_files(path), Report("items", out=str(out)), dict[str, str]()
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
                    report.photos_elsewhere = common_folder(item.image, out, report.photos_elsewhere)
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
    report.kept, report.dropped, report.repairs = len(seen), report.duplicates, checker.repairs
    report.rejected = str(rejected_path(Path(report.out))) if rejected.count else None
    return _need_rows(report, "item")


def _need_rows(report: Report, what: str) -> Report:
    if not report.kept:
        why = f"The first rejected row: {report.examples[0]}" if report.examples else "The table has no rows."
        raise LoreError(f"No row is an {what}, so {report.out} was not written. {why}")
    return report


def _item_values(cells: dict[str, Any], columns: dict[str, list[str]], repairs: Counter[str] | None) -> dict[str, Any]:
    """The fields of an item. repairs: None for mapped columns, whose values are checked as they are."""
    chosen: dict[str, Any] = {}
    for name, found in columns.items():
        if _TEMPLATE.search(found[0]):
            chosen[name] = _TEMPLATE.sub(lambda part: id_text(cells.get(part[1])), found[0])
            continue
        chosen[name] = next((cell for one in found if (cell := cells.get(one)) not in (*NOTHING, [], {})), None)
    if repairs is not None:
        for name, between in (("category", " > "), ("description", " "), ("title", " ")):
            parts = _as_list(chosen[name]) if name in chosen else None
            if parts and isinstance(parts[0], list):  # several paths of categories: the first
                parts = parts[0]
            if parts is not None:
                chosen[name] = between.join(str(part) for part in parts if isinstance(part, str | int | float))
        price = chosen.get("price")
        if price is not None and not isinstance(price, int | float) and not _PRICE.fullmatch(str(price)[:100].strip()):
            chosen["price"] = None
            repairs["price_left_out"] += 1
        image = chosen.get("image")
        if isinstance(image, list) or (isinstance(image, str) and _URL.match(image)):
            chosen["image"] = None
            repairs["photo_url_left_out"] += 1
    values = row_values(chosen, {name: name for name in chosen})
    if repairs is not None and "attributes" in values:  # Amazon's details have tables in them, such as an item's ranks
        plain = [one for one in values["attributes"] if not (isinstance(one, tuple) and isinstance(one[1], dict | list))]
        if left := len(values["attributes"]) - len(plain):
            repairs["attribute_left_out"] += left
            values["attributes"] = plain
    return values


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
    templates = _TEMPLATE.findall if what == "items" else lambda column: []
    required = [name for column in mapped.values() for name in templates(column) or [column]]
    rows = source_rows(files, scratch, list(dict.fromkeys(required)), encoding, delimiter)
    head = list(islice(rows, HEAD_ROWS[what]))
    first = [row[2] for row in head if not isinstance(row, Rejection)]
    if not first:
        raise LoreError(f"{files[0]}: no row can be read. {f'The first one: {head[0]}' if head else 'The table has none.'}")
    if mapped:
        return chain(head, rows), {name: [column] for name, column in mapped.items()}
    names = {name for cells in first for name in cells}
    there = names | {one for column in known.values() for one in column if "." in one and any(at_path(row, one) for row in first)}
    columns = {name: [one for one in aliases if one in there] for name, aliases in known.items()}
    columns = {name: found[:1] if what == "events" else found for name, found in columns.items() if found}
    if missing := [name for name in NEEDED[what] if name not in columns]:
        raise LoreError(
            f"{files[0]}: no known column holds {' and '.join(missing)}; found {printable(', '.join([*first[0]][:40]))}. Name the "
            f"columns with --map {','.join(f'{name}=COLUMN' for name in NEEDED[what])}."
        )
    return chain(head, rows), columns


def _events(records: Iterator[Row | Rejection], columns: dict[str, list[str]], report: Report) -> Iterator[Event | Rejection]:
    """One event per row. Without times, the number of the row stands for the time."""
    named = {name: found[0] for name, found in columns.items()}
    about_anything = "." in named["item_id"]  # a log of all that people do
    read = at_path if any("." in column for column in named.values()) else dict.get
    for number, record in enumerate(records):
        report.rows += 1
        if isinstance(record, Rejection):
            yield record
            continue
        cells = {name: read(record[2], column) for name, column in named.items()}
        if about_anything and cells["item_id"] in NOTHING:
            report.left_out += 1
            continue
        try:
            user, item = _id("user_id", cells["user_id"]), _id("item_id", cells["item_id"])
            time = cell_seconds(cells["time"]) if "time" in cells else float(number)
            session, kind, part = (_id(name, cells[name]) if name in cells and id_text(cells[name]) else None for name in OPTIONAL)
        except BadCell as bad:
            yield Rejection(record[0], record[1], *bad.args, short(record[2]))
            continue
        part = part or part_of(record[0])
        yield user, item, time, session, kind, "valid" if part in VALID else part


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
                raise BadCell("history", "field_type", shown_value(cells.get(named["history"])), "a list of ids")
            ids = [_id("history", one) for one in past]
        except BadCell as bad:
            yield Rejection(file, row, *bad.args, short(cells))
            continue
        part = part_of(file)
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
    elif (found := _find(items.tobytes(), window.tobytes(), items.itemsize)) >= 0:
        at = found + past
    elif past and items[:past] == window[1:]:
        at = past
        items.insert(0, window[0])
        parts.insert(0, 0)
    else:
        return False
    parts[at] = max(parts[at], part)
    return True


def _find(items: bytes, window: bytes, size: int) -> int:
    """Place of a part in a sequence of numbers of this size; -1 if it is not there."""
    found = items.find(window)
    while found % size and found >= 0:  # a number's bytes are not another's
        found = items.find(window, found + 1)
    return found // size


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
        raise BadCell(name, f"{name}_empty" if empty else "field_type", shown_value(cell), "an id")
    if len(text) > MAX_ID_CHARACTERS:
        raise BadCell(name, "text_too_long", f"{len(text):,} characters", f"at most {MAX_ID_CHARACTERS:,}")
    if "\0" in text or encodable(text) != text:
        raise BadCell(name, "encoding", ascii(text[:80]), ENCODING_HINT)
    return text
