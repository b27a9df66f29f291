"""Opens the input of a labelling run."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from lore.data.images import REFUSED
from lore.data.importers.table import column_map
from lore.data.pair import MARKETS
from lore.data.rejected_rows import Rejection
from lore.data.row_validation import RowChecker
from lore.label.config import InputSection
from lore.label.inputs import catalogue as items
from lore.label.inputs.catalogue import open_catalogue
from lore.label.inputs.questions import NUMBERS, SINGLE, questions_of, with_pair_ids
from lore.label.inputs.search_log import COUNTS, REQUIRED, Join, count_log, log_columns
from lore.label.inputs.tables import Table, sized
from lore.label.inputs.ubi import COLUMNS, UbiLog
from lore.label.schema import QUESTION_FIELDS
from lore.support.atomic_files import write_atomic
from lore.support.errors import LoreError
from lore.support.input_files import Row, rows_from, rows_of, whole_fingerprint
from lore.support.processes import say
from lore.support.text import printable
from lore.support.untrusted_json import parse_json

VERSION = "1"
"""Part of every fingerprint. Increase it when other rows are made from the same files."""
PAIR_TARGETS = (*QUESTION_FIELDS, *MARKETS)


class RejectedSink(Protocol):
    """Takes the rows that are no pairs, such as lore.data.rejected_rows.RejectedWriter."""

    def write(self, rejection: Rejection) -> None: ...


@dataclass
class LabelInput:
    """An opened input. fingerprint: over the bytes of all its tables and how they are read; photos that they name by path do not
    count. expected_rows: rows before any is rejected or folded; None if only reading tells."""

    fingerprint: str
    expected_rows: int | None
    _read: Callable[[Callable[[Rejection], None]], Iterator[pa.RecordBatch]]
    _rejected: RejectedSink
    _limit: int | None = None
    rows: int = field(default=0, init=False)
    """Good rows of the last reading so far."""
    rejected_rows: int = field(default=0, init=False)
    """Rejections of the last reading so far."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Rows of QUESTION_SCHEMA in the order of the files, at most 8,192 rows and 32 MiB each. Every call reads anew and rejects
        the bad rows anew. Raises LoreError for a damaged file, and if no row is a pair."""
        self.rows = self.rejected_rows = 0
        first: list[Rejection] = []

        def reject(rejection: Rejection) -> None:
            self.rejected_rows += 1
            if not first:
                first.append(rejection)
            self._rejected.write(rejection)

        for batch in self._read(reject):
            batch = batch if self._limit is None else batch.slice(0, self._limit - self.rows)
            self.rows += len(batch)
            yield from sized(batch)
            if self.rows == self._limit:
                break
        if not self.rows:
            why = f"{self.rejected_rows:,} rows were rejected, the first one as: {first[0]}" if first else "The input has no rows."
            raise LoreError(f"No row of the input is a pair of a query and an item, so there is nothing to label. {why}")


def open_input(section: InputSection, work: Path, rejected: RejectedSink) -> LabelInput:
    """Opens an input. Reads the bytes of new and changed files for the fingerprint, but no rows. Files in `work` make a later start
    faster; they can be deleted. Raises LoreError for missing files."""
    work.mkdir(parents=True, exist_ok=True)
    roots = [Path(section.image_root).expanduser()] if section.image_root else []
    opened = (_pairs if section.catalogue is None else _joined)(section, roots, work, rejected)
    if opened.expected_rows is not None and section.limit is not None:
        opened.expected_rows = min(opened.expected_rows, section.limit)
    return opened


def _table(section: InputSection, path: str, where: str) -> Table:
    return Table(path, where, section.encoding, section.delimiter, section.hub_config, section.hub_split)


def _pairs(section: InputSection, roots: list[Path], work: Path, rejected: RejectedSink) -> LabelInput:
    """Rows that hold query and item."""
    if section.path is None:
        raise LoreError("input.path names no table.")
    table = _table(section, section.path, "input.path")
    given = column_map(section.map, what="input.map (--map)") if section.map else {name: name for name in PAIR_TARGETS}
    columns = {target: name for target, name in given.items() if target in PAIR_TARGETS or target.startswith(SINGLE)}
    required = list(columns.values()) if section.map else ["query", "title"]
    checker = RowChecker(None, image_folder=table.photo_folder, image_roots=roots, open_photos=False)

    def read(reject: Callable[[Rejection], None]) -> Iterator[pa.RecordBatch]:
        told: set[str] = set()
        for raw in table.read(required, [] if section.map else list(columns.values()), _numbers(columns)):
            if isinstance(raw, Rejection):
                reject(raw)
                continue
            questions, _, problems = questions_of(raw, columns, checker)
            for problem in problems:
                reject(problem)
            _tell_of_refused(questions, raw.file, told)
            yield with_pair_ids(questions)

    return LabelInput(input_fingerprint([table], section, work), table.count(), read, rejected, section.limit)


def _joined(section: InputSection, roots: list[Path], work: Path, rejected: RejectedSink) -> LabelInput:
    """A search log, or User Behavior Insights, and a catalogue."""
    table = _table(section, section.catalogue or "", "input.catalogue")
    known = section.catalogue_map and column_map(section.catalogue_map, items.REQUIRED, items.TARGETS, "input.catalogue_map")
    columns = known or {name: name for name in items.TARGETS}
    checker = RowChecker(None, image_folder=table.photo_folder, image_roots=roots, open_photos=False, required=items.REQUIRED)
    log_checker = RowChecker(None, open_photos=False, required=REQUIRED)
    if section.ubi is not None:
        queries = _table(section, section.ubi.queries, "input.ubi.queries")
        events = None if section.ubi.events is None else _table(section, section.ubi.events, "input.ubi.events")
        tables, name, expected = [queries, *([events] if events else [])], section.ubi.queries, None
    elif section.path is not None:
        log = _table(section, section.path, "input.path")
        tables, name, expected = [log], section.path, log.count()
    else:
        raise LoreError("input.path names no search log, and input.ubi is not there either.")
    of_catalogue, of_log = input_fingerprint([table], section, work), input_fingerprint(tables, section, work)

    def read(reject: Callable[[Rejection], None]) -> Iterator[pa.RecordBatch]:
        catalogue = open_catalogue(table, columns, checker, work / "catalogue.sqlite", of_catalogue)
        if section.ubi is not None:
            ubi = UbiLog(queries, events, work / "log.sqlite", of_log)
            searches, rows, targets = ubi.database, ubi.read(), COLUMNS
        else:
            targets = log_columns(log, section.map)
            searches = count_log(log, targets, work / "log.sqlite", of_log)
            required = [targets[name] for name in REQUIRED]
            wanted = [column for target, column in targets.items() if target in PAIR_TARGETS]
            rows = log.read(required, wanted, [targets[name] for name in COUNTS if name in targets])
        with closing(catalogue), nullcontext() if searches is None else closing(searches):
            for rejection in catalogue.rejections():
                reject(rejection)
            yield from Join(catalogue, searches, reject, name).questions(rows, targets, log_checker)

    return LabelInput(input_fingerprint([*tables, table], section, work), expected, read, rejected, section.limit)


def _numbers(columns: dict[str, str]) -> list[str]:
    return [columns[name] for name in NUMBERS if name in columns]


def _tell_of_refused(questions: pa.RecordBatch, file: str, told: set[str]) -> None:
    """Says once per file that its photos lie elsewhere. The rows go on, as with any photo that cannot be read."""
    image = questions.column("image")
    if file in told or image.null_count == len(image):
        return
    refused = pc.fill_null(pc.starts_with(pc.struct_field(image, "bytes"), REFUSED), False)
    if pc.any(refused).as_py():
        told.add(file)
        one = pc.struct_field(image, "path").filter(refused)[0].as_py()
        say(
            f"warning: {file}: photos outside of its folder are not read, such as {printable((one or '')[:200])}. If they are "
            "yours, name their folder as input.image_root."
        )


def input_fingerprint(tables: list[Table], section: InputSection, work: Path) -> str:
    """Over the bytes of the tables and how they are read. Files whose size and times are those of the last start are not read."""
    listing = work / "files.json"
    known: dict[str, Row] = {}
    with suppress(OSError, ValueError, LoreError):
        known = {row.path: row for row in rows_from(parse_json(listing.read_bytes()))}
    rows = rows_of([(file.name, file) for table in tables for file in table.files], known)
    if any(known.get(row.path) != row for row in rows):
        write_atomic(listing, json.dumps([*{**known, **{row.path: row for row in rows}}.values()]))
    how = section.model_dump(exclude={"path", "catalogue", "ubi"}, exclude_defaults=True)
    parts = [VERSION, whole_fingerprint(rows), json.dumps(how, sort_keys=True)]
    for table in tables:
        if table.on_hub:
            builder = table.builder()
            parts += [table.path, builder.config_id, str(builder.hash)]
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
