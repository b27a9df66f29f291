"""Rejected rows and the reasons, written to `<name>.rejected.jsonl` next to the output."""

import io
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from lore.support.atomic_files import open_part, part_of, replace_file
from lore.support.outputs import REJECTED, head_of
from lore.support.text import printable

SHOWN_CHARACTERS = 300
SHOWN_FIELDS = 40
SHOWN_DEPTH = 4
_TEXT = rb'"(?:[^"\\]|\\.)*"'
_FIRST = re.compile(rb'\{"file": ' + _TEXT + rb', "row": \d+, "field": ' + _TEXT + rb', "reason": ')
T = TypeVar("T")


@dataclass(slots=True)
class Rejection:
    """The reason why a row was rejected. `row` counts records from 1, without a header line."""

    file: str
    row: int
    field: str
    reason: str
    found: str
    expected: str
    record: dict[str, Any] | None = None
    """The row, made plain by `short`."""

    def __str__(self) -> str:
        return printable(f"{self.file} row {self.row}, {self.field}: {self.reason}, found {self.found}, expected {self.expected}")


def rejected_path(out: Path) -> Path:
    """Path of the rejected rows of `out`."""
    return out.with_name(f"{out.stem}{REJECTED}")


def is_rejected_file(path: Path) -> bool:
    """Whether a file holds rejections, judged by the keys of its first row."""
    return _FIRST.match(head_of(path)) is not None


class BadCell(Exception):
    """Why a row is rejected: field, reason, what was found and what was expected, as in Rejection."""


class RejectedWriter:
    """Writes rejections atomically to `<name>.rejected.jsonl` next to the output `<name>.parquet`, or to `to`.

    Replaces the file of an earlier run. Without rejections there is no file, and the file of an earlier run is removed, but no file
    of another kind: commands check that there is none (lore.support.outputs). Publish the rejections before the output (`publish`,
    `before`): a restarted run keeps an existing output and does not find them again.
    """

    def __init__(self, path: str | Path, to: Path | None = None):
        path = Path(path)
        self.path = to or rejected_path(path)
        self.count = 0
        self._part = part_of(self.path)
        self._file = None

    def __enter__(self) -> "RejectedWriter":
        self._part.parent.mkdir(parents=True, exist_ok=True)
        self._file = io.TextIOWrapper(open_part(self._part, self.path), encoding="utf-8", errors="backslashreplace")
        return self

    def write(self, rejection: Rejection) -> None:
        self._file.write(json.dumps(asdict(rejection), ensure_ascii=False, allow_nan=False) + "\n")
        self.count += 1

    def before(self, rows: Iterable[T]) -> Iterator[T]:
        """Yields the rows, then publishes the rejections, so that a file that is published after its last row comes second."""
        yield from rows
        self.publish()

    def publish(self) -> None:
        """Publishes the file. Call it after the last rejection and before the output is published."""
        self._file.close()
        if self.count:
            replace_file(self._part, self.path)
        else:
            self._part.unlink(missing_ok=True)
            if self.path.is_file() and is_rejected_file(self.path):
                self.path.unlink()

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None and not self._file.closed:
                self.publish()
            self._file.close()  # on a full disk this fails too
        finally:
            self._part.unlink(missing_ok=True)


def short(value: Any, depth: int = SHOWN_DEPTH) -> Any:
    """A shortened value for a message or a rejected record: limited in length, width and depth, and without bytes."""
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        return f"{value[:SHOWN_CHARACTERS]}… ({len(value):,} characters)"
    if isinstance(value, dict | list | tuple) and depth == 0:
        return f"<{type(value).__name__} of {len(value):,}>"
    if isinstance(value, dict):
        return {str(key)[:SHOWN_CHARACTERS]: short(item, depth - 1) for key, item in list(value.items())[:SHOWN_FIELDS]}
    if isinstance(value, list | tuple):
        return [short(item, depth - 1) for item in value[:SHOWN_FIELDS]]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    if isinstance(value, int) and value.bit_length() > 1024:
        return f"<whole number of {value.bit_length():,} bits>"
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)[:SHOWN_CHARACTERS]


def shown_value(value: Any) -> str:
    """The repr of a value for messages, limited in length."""
    return short(repr(short(value)))
