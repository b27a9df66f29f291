"""Catalogue and events on disk: items.parquet and events.parquet, as `lore data import items|events` writes them.

An event is (user_id, item_id, time) with, as far as the log has them, session_id, kind (purchase, click) and split. An item is a
Pair without a query. read_histories brings an events file into the order of time and holds events out; it takes about 140 bytes per
event in memory. Left out: weights of kinds, repeated consumption as its own task, k-core filters of items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lore.data.events import BATCH_ROWS, CLOCK, EVENT_SCHEMA, SPLITS
from lore.data.pair import ITEM_SCHEMA, Pair
from lore.data.parquet import to_pairs
from lore.data.photo_places import PhotoPlaces
from lore.data.tables.parquet_files import check_rows, open_parquet
from lore.recommend.histories import Histories, Targets
from lore.support.errors import LoreError
from lore.support.processes import say
from lore.support.text import counted, printable

Split = Literal["leave_one_out", "time", "given"]
By = Literal["user", "session"]
ROW_BYTES = 16
"""Of an event in memory: the numbers of its user and item, and its time. An item takes more."""
HINT = {
    "events": "`lore data import events FILE -o events.parquet` writes such a file.",
    "items": "`lore data import items FILE -o items.parquet` writes such a file.",
}


def is_items_file(path: Path) -> bool:
    """Whether `lore data import items` wrote a file."""
    with open_parquet(path) as parquet:
        return parquet.schema_arrow.names == ITEM_SCHEMA.names and b"lore.source" in (parquet.schema_arrow.metadata or {})


@contextmanager
def _open(path: str | Path, what: Literal["events", "items"]) -> Iterator[pq.ParquetFile]:
    needed = ("item_id", "title") if what == "items" else ("user_id", "item_id", "time")
    if not Path(path).is_file():
        raise LoreError(f"{path} does not exist, so there are no {what} to read. {HINT[what]}")
    with open_parquet(path, HINT[what]) as parquet:
        names = parquet.schema_arrow.names
        if missing := [name for name in needed if name not in names]:
            found = printable(", ".join(names[:20]))
            raise LoreError(f"{path} has no column {' and '.join(missing)}, so it is no {what} file; found {found}. {HINT[what]}")
        check_rows(parquet, path, ROW_BYTES, HINT[what])
        yield parquet


def read_items(path: str | Path, *, image_roots: Iterable[str | Path] = (), batch_rows: int = 4096) -> Iterator[Pair]:
    """Streams the items of a catalogue in file order: pairs with an empty query whose pair_id is their item_id. Photos lie below
    the folder of the file or below an image root. Raises LoreError for a file without items."""
    count, places = 0, PhotoPlaces(Path(path).parent, image_roots)
    with _open(path, "items") as parquet:
        names = [name for name in ITEM_SCHEMA.names if name in parquet.schema_arrow.names]
        for group in range(parquet.num_row_groups):
            for batch in parquet.iter_batches(batch_rows, row_groups=[group], columns=names):
                for item in to_pairs(batch, names, path, {"pair_id": "", "query": ""}):
                    count += 1
                    item.pair_id, item.image = item.item_id or "", places.placed(item.image)
                    yield item
    if not count:
        raise LoreError(f"{path} has no items. {HINT['items']}")


def read_item_ids(path: str | Path) -> list[str]:
    """Ids of a catalogue in file order: the numbers of the items everywhere in lore.recommend. Raises LoreError for a repeated or
    missing id."""
    found: dict[str | None, None] = {}
    rows = 0
    with _open(path, "items") as parquet:
        for batch in parquet.iter_batches(BATCH_ROWS, columns=["item_id"]):  # a small file may hold billions of equal ids
            batch.validate(full=True)  # bytes that are no text
            found.update(dict.fromkeys(batch.column(0).cast(pa.string()).to_pylist()))
            rows += len(batch)
            if None in found or len(found) != rows:
                raise LoreError(
                    f"{path} has items without an id or with the same id, so events would not name one item. {HINT['items']}"
                )
    return list(found)


def read_titles(path: str | Path) -> dict[str, str]:
    """Titles of a catalogue by item id, without reading its photos."""
    with _open(path, "items") as parquet:
        table = parquet.read(columns=["item_id", "title"])
        table.validate(full=True)  # bytes that are no text
        return dict(zip(*(table.column(name).cast(pa.string()).to_pylist() for name in ("item_id", "title")), strict=True))


def read_histories(
    events: str | Path,
    items: str | Path | None = None,
    *,
    split: Split = "leave_one_out",
    by: By = "user",
    min_events: int = 1,
    valid_from: float | None = None,
    test_from: float | None = None,
) -> Histories:
    """The histories of an events file, each in the order of time (of the file, where times are equal).

    items: the catalogue; None: the items of the events. Events of other items are left out. split: leave_one_out holds out the last
    event of every history of at least 3 (test) and the one before it (valid); time holds out everything from `valid_from` and from
    `test_from` on, in seconds (default: the times by which 80 % and 90 % of the events have passed); given takes the column split.
    by: a history is a user's, or a session's. min_events: shorter histories are left out.

    Every held-out event is a target, except a history's first event, which has nothing before it. Raises LoreError if nothing is
    left, and for a given split in which training comes after a held-out event of the same history.
    """
    catalogue = None if items is None else read_item_ids(items)
    columns = ["user_id", "item_id", "time", *(["session_id"] if by == "session" else []), *(["split"] if split == "given" else [])]
    table, clock = _read_events(events, columns)
    if split == "time" and clock != "seconds":
        raise LoreError(f"{events} has no times, only the order of events, so it cannot be split by time. Split by leave_one_out.")
    times = table.column("time").to_numpy()
    users, user_names = _encoded(table.column("user_id"))
    rows, item_names = _encoded(table.column("item_id"))
    if catalogue is None:
        catalogue = sorted(item_names, key=lambda one: (len(one), one))
    row_of = {one: row for row, one in enumerate(catalogue)}
    rows = np.asarray([row_of.get(one, -1) for one in item_names], dtype=np.int32)[rows]
    known = rows >= 0
    if not known.all():
        example = item_names[int(_encoded(table.column("item_id"))[0][np.flatnonzero(~known)[0]])]
        say(f"{(~known).sum():,} of {len(rows):,} events are of items that {items} does not have, such as {printable(example)}")
    rank = _ranks(table, events, split)
    if by == "session":
        users, user_names = _sessions(table, users, user_names, events)

    length = np.bincount(users[known], minlength=len(user_names))
    kept = known & (length[users] >= max(1, min_events))
    if not kept.any():
        raise LoreError(f"{events}: no {by} has {min_events} events of items of the catalogue, so there are no histories.")
    if few := int(((length > 0) & (length < min_events)).sum()):
        say(f"{few:,} of {(length > 0).sum():,} histories have fewer than {min_events} events and are left out")
    chosen = np.flatnonzero(kept)
    order = chosen[np.lexsort((rank[chosen], times[chosen], users[chosen]))]  # stable: equal times stay in the order of the file
    times, rows, rank, users = times[order], rows[order], rank[order], users[order]
    begins = np.concatenate([[True], users[1:] != users[:-1]])
    there, users = users[begins], np.cumsum(begins, dtype=np.int32) - 1
    starts = np.concatenate([[0], np.cumsum(np.bincount(users))]).astype(np.int64)
    if split == "leave_one_out":
        left = starts[users + 1] - np.arange(len(users))  # 1: the last event of the history
        rank = np.where(np.diff(starts)[users] < 3, 0, np.maximum(3 - left, 0)).astype(np.int8)
    elif split == "time":
        valid_from, test_from = _cutoffs(times, valid_from, test_from, events)
        rank = (times >= valid_from).astype(np.int8) + (times >= test_from)
    mixed = np.flatnonzero((users[1:] == users[:-1]) & (rank[1:] == 0) & (rank[:-1] > 0))
    if len(mixed):
        name = printable(user_names[there[users[mixed[0]]]])
        raise LoreError(
            f"{events}: {len(mixed):,} training events come after a held-out event of the same {by}, such as {name}, so the future "
            "would be in training. Correct the column split, or split by time or leave_one_out."
        )
    train_ends = starts[:-1] + np.bincount(users, weights=rank == 0, minlength=len(there)).astype(np.int64)
    if not (rank == 0).any():
        raise LoreError(f"{events}: all events are held out (split: {split}), so nothing can be learned. Move the cutoffs.")
    first = np.arange(len(users)) == starts[users]
    valid, test = (np.flatnonzero((rank == part) & ~first) for part in (1, 2))
    found = Histories(
        user_ids=[user_names[at] for at in there],
        item_ids=catalogue,
        items=rows,
        starts=starts,
        train_ends=train_ends,
        times=times,
        valid=Targets(users[valid], valid),
        test=Targets(users[test], test),
        fingerprint="",
    )
    return replace(found, fingerprint=_fingerprint(found))


def _read_events(path: str | Path, columns: list[str]) -> tuple[pa.Table, str]:
    """The columns of an events file, texts as dictionaries, and its clock."""
    with _open(path, "events") as parquet:
        if absent := [name for name in columns if name not in parquet.schema_arrow.names]:
            raise LoreError(f"{path} has no column {absent[0]}. {HINT['events']} `--map {absent[0]}=COLUMN` names it.")
        clock = (parquet.schema_arrow.metadata or {}).get(CLOCK.encode(), b"seconds").decode(errors="replace")
        blocks = []
        for batch in parquet.iter_batches(BATCH_ROWS, columns=columns):
            try:
                batch.validate(full=True)  # bytes that are no text
                arrays = [batch.column(name).cast(EVENT_SCHEMA.field(name).type) for name in columns]
            except pa.ArrowException as error:
                raise LoreError(
                    f"{path}: a column holds something else than in an events file ({error}). {HINT['events']}"
                ) from error
            coded = [one if pa.types.is_floating(one.type) else one.dictionary_encode() for one in arrays]
            blocks.append(pa.table(coded, names=columns))
    if not sum(map(len, blocks)):
        raise LoreError(f"{path} has no events. {HINT['events']}")
    table = pa.concat_tables(blocks)
    for name in ("user_id", "item_id", "time"):
        column = table.column(name)
        if column.null_count or (name == "time" and not pc.all(pc.is_finite(column)).as_py()):
            raise LoreError(f"{path}: column {name} has empty cells, so their events have no place in a history. {HINT['events']}")
    return table, clock


def _encoded(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Codes of a column of texts, -1 for an empty cell, and the texts in the order of their first row."""
    whole = pa.chunked_array(column.unify_dictionaries().chunks).combine_chunks()
    return whole.indices.fill_null(-1).to_numpy(zero_copy_only=False), whole.dictionary.to_pylist()


def _sessions(table: pa.Table, users: np.ndarray, names: list[str], path: str | Path) -> tuple[np.ndarray, list[str]]:
    sessions, session_names = _encoded(table.column("session_id"))
    if (empty := int((sessions < 0).sum())) == len(sessions):
        raise LoreError(f"{path} has no session ids, so there are no histories by session. Choose by: user.")
    if empty:  # each is a session of its own, too short to hold anything out
        sessions = np.where(sessions < 0, len(session_names) + np.cumsum(sessions < 0), sessions)
        say(f"{counted(empty, 'event')} without a session: each is a session of its own")
    pairs, found = np.unique(users.astype(np.int64) * (int(sessions.max()) + 1) + sessions, return_inverse=True)
    owners, within = np.divmod(pairs, int(sessions.max()) + 1)
    named = [session_names[at] if at < len(session_names) else f"-{at - len(session_names)}" for at in within]
    return found, [f"{names[owner]}/{name}" for owner, name in zip(owners, named, strict=True)]


def _ranks(table: pa.Table, path: str | Path, split: Split) -> np.ndarray:
    """0 for training, 1 and 2 for events that the file holds out for valid and test; 0 for other ways to split."""
    if split != "given":
        return np.zeros(len(table), dtype=np.int8)
    codes, names = _encoded(table.column("split"))
    if (codes < 0).any() or set(names) - set(SPLITS):
        other = printable(", ".join(sorted(set(names) - set(SPLITS))[:5])) or f"{(codes < 0).sum():,} events without a split"
        raise LoreError(
            f"{path}: split: given needs {', '.join(SPLITS)} in every row, found {other}. Choose time or leave_one_out."
        )
    return np.asarray([SPLITS.index(name) for name in names], dtype=np.int8)[codes]


def _cutoffs(times: np.ndarray, valid: float | None, test: float | None, path: str | Path) -> tuple[float, float]:
    early, late = np.quantile(times, [0.8, 0.9], method="higher")
    test = float(late) if test is None else test
    valid = float(min(early, test)) if valid is None else valid
    if valid > test:
        raise LoreError(f"{path}: valid_from ({valid:.0f}) is later than test_from ({test:.0f}); validation comes before the test.")
    return valid, test


def _fingerprint(found: Histories) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for texts in (found.user_ids, found.item_ids):
        digest.update("\0".join([*texts, ""]).encode(errors="surrogatepass"))
    arrays: list[Any] = [found.items, found.starts, found.train_ends, found.times, found.valid.place, found.test.place]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
