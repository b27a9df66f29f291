"""The visits of one person, or of several, from a file of their own; and the profile that a person may ask for.

Any table that the house reads (csv, tsv, parquet, jsonl): a time, and either place_id or lat and lon, which stand for the nearest
place within 50 m; a column user tells people apart. Times are the wall clock of the town; an offset in a text is left out. Rows
that are no visit are counted with reasons, and go to `<profile>.rejected.jsonl` only beside a profile that was asked for.
Everything else stays in memory: no message names a place or a person of the file, and nothing is written to the town.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from lore.data.importers.table import column_map
from lore.data.rejected_rows import BadCell, RejectedWriter, Rejection, is_rejected_file, rejected_path, short, shown_value
from lore.data.tables.any_table import table_records
from lore.data.tables.ids import id_text
from lore.data.tables.times import cell_seconds
from lore.nearby.town import Town, on_sphere
from lore.support.atomic_files import write_atomic
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint
from lore.support.outputs import Output, begins_with, checked_outputs

COLUMNS = {
    "place_id": ("place_id", "place", "venue_id", "venueId", "osm_id"),
    "lat": ("lat", "latitude"),
    "lon": ("lon", "lng", "longitude"),
    "time": ("time", "timestamp", "visited_at", "date"),
    "user": ("user", "user_id", "userId"),
}
AT_MOST_METRES = 50.0
MAX_VISITS = 5_000_000
SECONDS_PER_DAY = 86_400.0
MAX_SECONDS = 1e10
PROFILE_MARK = '{\n "lore_profile": 1'


@dataclass(frozen=True)
class Visits:
    """Visits in the order of time. users (n,): numbers of user_ids. rows (n,): of the town. days (n,): wall-clock days since 1970.
    first (n,): whether a visit is its user's first one to the place."""

    users: np.ndarray
    rows: np.ndarray
    days: np.ndarray
    first: np.ndarray
    user_ids: list[str]

    @classmethod
    def of(cls, users: np.ndarray, rows: np.ndarray, days: np.ndarray, user_ids: list[str]) -> Visits:
        order = np.argsort(days, kind="stable")
        users, rows, days = (np.asarray(one)[order] for one in (users, rows, days))
        first = np.zeros(len(rows), dtype=bool)
        if len(rows):
            first[np.unique(users.astype(np.int64) * (int(rows.max()) + 1) + rows, return_index=True)[1]] = True
        return cls(users, rows, days, first, user_ids)

    def __len__(self) -> int:
        return len(self.rows)

    def before(self, day: float) -> Visits:
        """The visits that come before a moment, without those of that very moment."""
        end = int(np.searchsorted(self.days, day, side="left"))
        return Visits(self.users[:end], self.rows[:end], self.days[:end], self.first[:end], self.user_ids)

    def person(self, user_id: str | None) -> int | None:
        """The number of a user. None: the only one of the file; of a file without visits, None. Raises LoreError where it is not
        clear who is meant."""
        if user_id is None and len(self.user_ids) <= 1:
            return 0 if self.user_ids else None
        if user_id is None or user_id not in self.user_ids:
            said = "and none was named" if user_id is None else f"and none of them is {user_id!r}"
            count = len(self.user_ids)
            raise LoreError(f"The visits are those of {count:,} people, {said}. Name one of column user with --person.")
        return self.user_ids.index(user_id)


@dataclass(frozen=True)
class ReadVisits:
    visits: Visits
    rejected: list[Rejection]

    @property
    def reasons(self) -> dict[str, int]:
        """How many rows were rejected for a reason, without what they hold."""
        names = [one.reason for one in self.rejected]
        return {name: names.count(name) for name in dict.fromkeys(names)}


def days_of(when: datetime) -> float:
    """Days since 1970 of a wall clock."""
    return (when.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds() / SECONDS_PER_DAY


def read_visits(path: str | Path, town: Town, map: str | None = None) -> ReadVisits:
    """map: "field=column,..." with the fields of COLUMNS. Raises LoreError for a table without a time or a place."""
    mapped = column_map(map, ("time",), None, "--map")
    if wrong := [name for name in mapped if name not in COLUMNS]:
        raise LoreError(
            f"--map: {wrong[0]!r} is no field of a visit; expected {', '.join(COLUMNS)}.{nearest_hint(wrong[0], COLUMNS)}"
        )

    def visits() -> Iterator[Rejection | tuple[int, dict[str, Any], dict[str, Any]]]:
        for record in table_records(Path(path), list(mapped.values())):
            if isinstance(record, Rejection):
                yield record
                continue
            number, cells = record
            columns = mapped or {
                name: next(one for one in known if one in cells) for name, known in COLUMNS.items() if cells.keys() & {*known}
            }
            if "time" not in columns or not ("place_id" in columns or {"lat", "lon"} <= {*columns}):
                raise LoreError(
                    f"{path}: a visit needs a time, and place_id or lat and lon; found the columns {', '.join([*cells][:20])}. "
                    "Name them with --map time=COLUMN,place_id=COLUMN."
                )
            yield number, {name: cells.get(column) for name, column in columns.items()}, cells

    return collected_visits(visits(), town, str(path))


def collected_visits(
    given: Iterable[Rejection | tuple[int, dict[str, Any], dict[str, Any]]], town: Town, source: str
) -> ReadVisits:
    """given: rejected rows, and (number, values by the names of COLUMNS, whole row) of others. Raises LoreError for too many."""
    users: list[str] = []
    rows: list[int] = []
    days: list[float] = []
    rejected: list[Rejection] = []
    nearest = _Nearest(town)
    for one in given:
        if isinstance(one, Rejection):
            rejected.append(one)
            continue
        number, values, cells = one
        try:
            row, day = _row(values, town, nearest), _day(values["time"])
        except BadCell as bad:
            rejected.append(Rejection(source, number, *bad.args, short(cells)))
            continue
        if len(rows) == MAX_VISITS:
            raise LoreError(f"{source} has more than {MAX_VISITS:,} visits, too many to read. Leave out the oldest ones.")
        users.append(id_text(values.get("user")))
        rows.append(row)
        days.append(day)
    user_ids, numbers = np.unique(np.asarray(users, dtype=np.str_), return_inverse=True)
    return ReadVisits(Visits.of(numbers, np.asarray(rows, dtype=np.int64), np.asarray(days), user_ids.tolist()), rejected)


class _Nearest:
    """Finds the place at a position."""

    def __init__(self, town: Town):
        self.rows = np.array([row for row, kind in enumerate(town.kinds) if kind == "place"], dtype=np.int64)
        self.tree = cKDTree(on_sphere(town.lats[self.rows], town.lons[self.rows]))

    def __call__(self, lat: float, lon: float) -> int | None:
        metres, at = self.tree.query(on_sphere(np.float64(lat), np.float64(lon)), distance_upper_bound=AT_MOST_METRES)
        return int(self.rows[at]) if np.isfinite(metres) else None


def _row(values: dict[str, Any], town: Town, nearest: _Nearest) -> int:
    if place_id := id_text(values.get("place_id")):
        row = town.row(place_id)
        if row is None:
            raise BadCell("place_id", "place_unknown", shown_value(place_id), "a place_id of the town")
        return row
    position = []
    for name, most in (("lat", 90), ("lon", 180)):
        try:
            number = float(values.get(name))
        except (TypeError, ValueError):
            raise BadCell(name, "field_type", shown_value(values.get(name)), "degrees, or a place_id") from None
        if not abs(number) <= most:
            raise BadCell(name, "out_of_range", str(number), f"-{most} to {most}")
        position.append(number)
    row = nearest(*position)
    if row is None:
        raise BadCell("lat", "no_place_here", f"{position[0]}, {position[1]}", f"a place of the town within {AT_MOST_METRES:.0f} m")
    return row


def _day(cell: Any) -> float:
    """Days since 1970 of a wall clock: of a text with an offset, without it."""
    if isinstance(cell, str) and ":" in cell:
        try:
            return days_of(datetime.fromisoformat(cell.strip()[:80]))
        except ValueError:
            pass  # cell_seconds says what it expects
    if isinstance(cell, datetime):
        return days_of(cell)
    seconds = cell_seconds(cell)
    if not abs(seconds) < MAX_SECONDS:
        raise BadCell("time", "out_of_range", str(seconds), "a time between 1654 and 2286")
    return seconds / SECONDS_PER_DAY


def write_profile(path: Path, profile: dict[str, Any], rejected: list[Rejection], inputs: list[str | Path], *, force: bool) -> Path:
    """Writes what the map knows of a person to a file that only its owner reads, and the rejected rows beside it. Raises LoreError
    for an input and, without force, for a file of another kind."""
    shown = [Output(path, begins_with(PROFILE_MARK)), Output(rejected_path(path), is_rejected_file)]
    out, listed = checked_outputs(shown, inputs, force=force)
    with RejectedWriter(out, listed) as writer:
        for one in rejected:
            writer.write(one)
    write_atomic(out, json.dumps({"lore_profile": 1, **profile}, ensure_ascii=False, indent=1) + "\n")
    for written in (out, listed):
        if written.exists():
            written.chmod(0o600)
    return out


def forget_profile(path: Path) -> list[Path]:
    """Deletes a profile and its rejected rows, and returns what was deleted. Raises LoreError for a file that is no profile."""
    if not path.is_file() or not begins_with(PROFILE_MARK)(path):
        raise LoreError(f"{path} is no profile of `lore nearby recommend --profile`, so it is not deleted. Name the profile.")
    rejected = rejected_path(path)
    gone = [path, *([rejected] if rejected.is_file() and is_rejected_file(rejected) else [])]
    for one in gone:
        one.unlink()
    return gone
