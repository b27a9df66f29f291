"""read_histories: what is held out, and that nothing held out is in training. Compared with a plain loop over the events."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.data.events import write_events as to_file
from lore.data.pair import ITEM_SCHEMA
from lore.recommend.histories import Histories
from lore.recommend.importers import import_events
from lore.recommend.section import HistoriesSection
from lore.recommend.tables import read_histories, read_item_ids, read_items
from lore.support.errors import LoreError

SESSIONS = st.sampled_from(["s", "t", None])
ROWS = st.tuples(st.sampled_from("abcd"), st.sampled_from(["1", "2", "10", "x"]), st.integers(0, 9), SESSIONS)
EVENTS = st.lists(ROWS, min_size=1, max_size=30)


def write_events(path: Path, rows, clock: str = "seconds", split=None) -> Path:
    """Rows of user, item, time and perhaps session as an events file. split: a column of parts."""
    to_file(path, [(*(*row, None)[:4], None, split and split[at]) for at, row in enumerate(rows)], clock)
    return path


def write_items(path: Path, ids) -> Path:
    rows = [{"item_id": one, "title": f"item {one}"} for one in ids]
    pq.write_table(pa.Table.from_pylist(rows, schema=ITEM_SCHEMA), path)
    return path


def histories_of(found: Histories) -> dict[str, list[tuple[str, float]]]:
    """User -> items with times, in order."""
    ids, at = found.item_ids, found.starts
    return {
        user: [(ids[found.items[place]], float(found.times[place])) for place in range(at[u], at[u + 1])]
        for u, user in enumerate(found.user_ids)
    }


def held_out(found: Histories) -> dict[str, set[tuple[str, int]]]:
    """Part -> users with the place of the event in their history."""
    return {
        part: {(found.user_ids[u], int(at - found.starts[u])) for u, at in zip(targets.user, targets.place, strict=True)}
        for part, targets in (("valid", found.valid), ("test", found.test))
    }


@settings(max_examples=30, deadline=None)
@given(EVENTS, st.sampled_from(["leave_one_out", "time"]), st.sampled_from(["user", "session"]), st.integers(1, 4))
def test_every_event_is_in_training_or_held_out_and_never_both(tmp_path_factory, rows, split, by, least):
    expected = defaultdict(list)
    for number, (user, item, time, session) in enumerate(rows):
        key = user if by == "user" else (user, session if session is not None else number)
        expected[key].append((time, number, item))
    expected = {key: sorted(events) for key, events in expected.items() if len(events) >= least}
    path = write_events(tmp_path_factory.mktemp("events") / "events.parquet", rows)
    try:
        cutoffs = {"valid_from": 4, "test_from": 7} if split == "time" else {}
        found = read_histories(path, split=split, by=by, min_events=least, **cutoffs)
    except LoreError as error:
        training = any(time < 4 for events in expected.values() for time, _, _ in events)
        no_session = by == "session" and all(row[3] is None for row in rows)
        assert no_session or not expected or (split == "time" and not training), error
        return
    assert sorted(map(str, histories_of(found).values())) == sorted(
        str([(item, float(time)) for time, _, item in events]) for events in expected.values()
    )
    training = found.in_training()
    places = np.concatenate([found.valid.place, found.test.place])
    assert len(set(places)) == len(places) and not training[places].any()
    first = np.zeros(len(training), dtype=bool)
    first[found.starts[:-1]] = True
    rest = np.flatnonzero(~training & ~first)
    assert sorted(places) == rest.tolist()  # every held-out event with something before it is predicted
    for part in ("valid", "test"):
        targets = found.targets(part)
        assert (found.users()[targets.place] == targets.user).all()
        for at in range(len(targets)):
            assert len(found.before(targets, at))
    for user in range(len(found.user_ids)):
        place, end = found.train_ends[user], found.starts[user + 1]
        assert training[found.starts[user] : place].all() and not training[place:end].any()
        if split == "time":
            assert (found.times[found.starts[user] : place] < 4).all() and (found.times[place:end] >= 4).all()
        else:
            assert end - place == (2 if end - found.starts[user] >= 3 else 0)
    if split == "time":
        assert (found.times[found.valid.place] < 7).all() and (found.times[found.test.place] >= 7).all()
    assert found.training_counts().sum() == training.sum()


def test_leave_one_out_holds_out_the_last_two_events(tmp_path):
    rows = [("u", "1", 30), ("u", "2", 10), ("v", "1", 1), ("u", "3", 20), ("u", "4", 40), ("v", "2", 2)]
    found = read_histories(write_events(tmp_path / "e.parquet", rows))
    assert histories_of(found) == {"u": [("2", 10), ("3", 20), ("1", 30), ("4", 40)], "v": [("1", 1), ("2", 2)]}
    assert held_out(found) == {"valid": {("u", 2)}, "test": {("u", 3)}}
    assert found.item_ids == ["1", "2", "3", "4"] and found.training_counts().tolist() == [1, 2, 1, 0]
    assert [found.item_ids[item] for item in found.before(found.test, 0)] == ["2", "3", "1"]


def test_the_catalogue_numbers_the_items_and_keeps_those_nobody_took(tmp_path, capsys):
    items = write_items(tmp_path / "items.parquet", ["9", "1", "2"])
    rows = [("u", one, at) for at, one in enumerate(["1", "gone", "2", "1"])]
    found = read_histories(write_events(tmp_path / "e.parquet", rows), items)
    assert found.item_ids == ["9", "1", "2"] and found.items.tolist() == [1, 2, 1]
    assert "1 of 4 events are of items" in capsys.readouterr().out
    assert [item.item_id for item in read_items(items)] == ["9", "1", "2"]


def test_a_given_split_is_kept_and_one_that_trains_on_the_future_is_refused(tmp_path):
    rows = [("u", "1", 1), ("u", "2", 2), ("u", "3", 3), ("v", "3", 1), ("v", "2", 1)]
    path = write_events(tmp_path / "e.parquet", rows, split=["train", "valid", "test", "test", "train"])
    found = read_histories(path, split="given")
    assert held_out(found) == {"valid": {("u", 1)}, "test": {("u", 2), ("v", 1)}}
    path = write_events(tmp_path / "e.parquet", rows, split=["valid", "train", "test", "train", "test"])
    with pytest.raises(LoreError, match="the future would be in training"):
        read_histories(path, split="given")
    with pytest.raises(LoreError, match="in every row"):
        read_histories(write_events(tmp_path / "e.parquet", rows), split="given")


def test_an_order_without_times_is_not_split_by_time(tmp_path):
    path = write_events(tmp_path / "e.parquet", [("u", "1", 1), ("u", "2", 2)], clock="order")
    with pytest.raises(LoreError, match="only the order of events"):
        read_histories(path, split="time")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    buffers = pa.array([b"\xff\xfe"]).buffers()
    broken = pa.Array.from_buffers(pa.string(), 1, buffers)
    pq.write_table(pa.table({"user_id": broken, "item_id": ["a"], "time": [1.0]}), tmp_path / "events.parquet")
    pq.write_table(pa.table({"item_id": broken, "title": ["a"]}), tmp_path / "items.parquet")
    with pytest.raises(LoreError, match="events.parquet: a column holds something else.*Invalid UTF8"):
        read_histories(tmp_path / "events.parquet")
    with pytest.raises(LoreError, match="items.parquet.*Invalid UTF8"):
        read_item_ids(tmp_path / "items.parquet")


def test_equal_rows_do_not_fill_the_memory(tmp_path):
    """Two million equal rows are a few kilobytes on disk: they are refused by their number, or at the first repeated id."""
    many = pa.array(["a"] * 2_000_000).dictionary_encode()
    table = pa.table({"user_id": many, "item_id": many, "title": many, "time": pa.array(np.zeros(len(many)))})
    for name in ("events", "items"):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assert (tmp_path / "items.parquet").stat().st_size < 50_000
    with pytest.raises(LoreError, match="items without an id or with the same id"):
        read_item_ids(tmp_path / "items.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lore.support.bounds.FREELY_UNPACKED", 2**20)
        for read, name in ((read_histories, "events"), (read_item_ids, "items")):
            with pytest.raises(LoreError, match="and 2,000,000 rows, as no table does: it could fill the memory"):
                read(tmp_path / f"{name}.parquet")


def test_another_held_out_event_is_another_fingerprint(tmp_path):
    path = write_events(tmp_path / "e.parquet", [("u", str(at), at) for at in range(9)])
    found = [read_histories(path, split="time", valid_from=valid, test_from=8).fingerprint for valid in (6, 7, 7)]
    assert found[0] != found[1] == found[2]


def test_the_section_reads_dates_as_utc(tmp_path):
    rows = [("u", "1", 86_400 * day) for day in range(4)]
    write_events(tmp_path / "e.parquet", rows)
    section = HistoriesSection(events=str(tmp_path / "e.parquet"), split="time", valid_from="1970-01-03", test_from="1970-01-04")
    assert held_out(section.histories()) == {"valid": {("u", 2)}, "test": {("u", 3)}}
    with pytest.raises(ValueError, match="a date such as"):
        HistoriesSection(events="e", valid_from="last year")
    assert [one.keys for one in HistoriesSection(events="e", test_from="2018-01-01").conflicts()] == [("test_from",)]
    late = HistoriesSection(events="e", split="time", valid_from="2018-01-02", test_from="2018-01-01")
    assert [one.keys for one in late.conflicts()] == [("valid_from",)]


@pytest.mark.slow
def test_instruments_has_the_published_counts(tmp_path, public_data):
    report = import_events(public_data / "instruments", tmp_path / "events.parquet")
    assert (report.counts, report.rejected_rows) == ({"users": 17_112, "items": 6_250}, 0)
    found = read_histories(tmp_path / "events.parquet", split="given")
    assert (len(found.user_ids), len(found.item_ids), len(found.items)) == (17_112, 6_250, 136_226)
    assert (found.in_training().sum(), len(found.valid), len(found.test)) == (102_002, 17_112, 17_112)
    assert found.fingerprint == read_histories(tmp_path / "events.parquet").fingerprint  # its published split is leave-one-out


@pytest.mark.slow
def test_amazon_office_is_rebuilt_from_cut_histories(tmp_path, public_data):
    report = import_events(public_data / "amazon_office" / "*.csv", tmp_path / "events.parquet")
    assert report.rejected_rows == 0
    found = read_histories(tmp_path / "events.parquet", split="given")
    assert (len(found.valid), len(found.test)) == (4_866, 4_866)
