"""The verdict store: exact rows, several processes, damage, rebuilding, gc."""

import math
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import struct
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lore.label.store as store_module
from lore.data.tables.parquet_files import write_table
from lore.judge.ask import REFUSED, TOO_LONG
from lore.judge.verdict import UNSCORED, Verdict, from_row, to_row
from lore.label.schema import label_schema
from lore.label.store import VerdictStore, _network_file_system, open_store, store_path, today
from lore.support.errors import LoreError

TIERS = ["L1", "L2", "L3", "L4"]
JUDGE = "weights:rubric:renderer:verdict"


def content(number: int) -> bytes:
    return random.Random(number).randbytes(16)


def row(number: int, **values) -> dict:
    answer = {"tier": TIERS[number % 4], "probabilities": [0.1, 0.2, 0.3, 0.4], "judge_id": "w:r:r"}
    verdict = Verdict(f"p{number}", **(answer | values))
    return to_row(verdict, TIERS) | {"content": content(number), "query": "q", "attempts": 1}


def bits(values: dict) -> dict:
    """A row whose floats compare bit for bit."""
    return {name: struct.pack("<d", value) if isinstance(value, float) else value for name, value in values.items()}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    with VerdictStore(tmp_path_factory.mktemp("store") / "s.sqlite") as store:
        store.judges = 0
        yield store


texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=40, deadline=None)
@given(
    tier=st.sampled_from([*TIERS, None]),
    probabilities=st.none() | st.lists(st.floats(), min_size=4, max_size=4),
    rationale=texts.map(lambda text: text or ""),
    mismatch=texts,
    rules=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    text=texts,
    photo=st.sampled_from(["none", "seen", "hidden", "failed"]),
    tokens=st.none() | st.integers(0, 2**62),
    judge_id=st.sampled_from(["a", "b", None]),
    arrow=st.booleans(),
)
def test_an_answer_comes_back_bit_for_bit(filled, tier, arrow, **values):
    given_row = row(1, tier=tier, failure=None if tier else "no_verdict", **values)
    filled.judges += 1
    judge = f"judge {filled.judges}"
    assert filled.put(judge, pa_table([given_row]) if arrow else [given_row]) == 1
    found = filled.get(judge, [content(1), content(2)])
    expected = {k: v for k, v in given_row.items() if k not in ("pair_id", "content", "query", "attempts")} | {"source": "cache"}
    assert {key: bits(one) for key, one in found.items()} == {content(1): bits(expected)}
    answer = from_row({"pair_id": "p"} | found[content(1)], TIERS)
    assert (answer.tier, answer.rules, answer.text) == (tier, values["rules"], values["text"])


def pa_table(rows: list[dict]):
    import pyarrow as pa

    return pa.Table.from_pylist(rows, label_schema(TIERS))


def test_pairs_without_an_answer_are_not_stored(tmp_path):
    rows = [
        row(1),
        row(2, tier=None, probabilities=None, failure=REFUSED),
        row(3, tier=None, probabilities=None, failure=TOO_LONG),
        row(4, probabilities=None, detail=f"{UNSCORED}: the server said no"),
        row(5, tier=None, probabilities=None),
        row(6, tier=None, probabilities=None, failure="no_verdict", text="?"),
        row(7, tier=None, failure="two_verdicts", detail=f"{UNSCORED}: x"),
    ]
    with VerdictStore(tmp_path / "s.sqlite") as store:
        assert store.put(JUDGE, rows) == 3
        assert store.known(JUDGE, [one["content"] for one in rows]) == {content(1), content(6), content(7)}


def test_judges_do_not_see_each_other_and_the_first_answer_stays(tmp_path):
    with VerdictStore(tmp_path / "s.sqlite") as store:
        assert store.known("x", [content(1)]) == set() and store.get("x", [content(1)]) == {}
        store.put("a", [row(1, tier="L1")])
        store.put("b", [row(1, tier="L2")])
        store.put("a", [row(1, tier="L3"), row(2)])
        assert [store.get(judge, [content(1)])[content(1)]["tier"] for judge in ("a", "b")] == ["L1", "L2"]
        with pytest.raises(LoreError, match="One judge has one rubric"):
            store.put("a", [{"content": content(3), "tier": "L1", "p_L1": 1.0}])
        for bad, said in (({"tier": "L9"}, "L9"), ({"content": b"short"}, "16 bytes")):
            with pytest.raises(LoreError, match=said):
                store.put("a", [row(9) | bad])


def test_thousands_of_rows_in_any_order(tmp_path):
    numbers = list(range(3000))
    random.Random(0).shuffle(numbers)
    with VerdictStore(tmp_path / "deep" / "s.sqlite") as store:
        assert store.put(JUDGE, [row(number, probabilities=[number / 7, math.pi, 0.0, -0.0]) for number in numbers]) == 3000
        asked = [content(number) for number in range(1500, 4500)]
        assert store.known(JUDGE, iter(asked)) == set(asked[:1500])
        found = store.get(JUDGE, asked)
        assert len(found) == 1500 and found[content(1777)]["p_L1"] == 1777 / 7 and found[content(1777)]["tier"] == TIERS[1777 % 4]
        stats = store.stats()
        assert [(one.name, one.verdicts, one.used) for one in stats.judges] == [(JUDGE, 3000, today())] and stats.bytes > 100_000


def put_many(path, start: int, ready, inherited: VerdictStore | None) -> None:
    store = inherited or VerdictStore(path)
    ready.wait()
    for number in range(start, start + 200, 20):
        store.put(JUDGE, [row(one) for one in range(number, number + 20)])
        assert len(store.get(JUDGE, [content(one) for one in range(start, number + 20)])) == number + 20 - start


@pytest.mark.parametrize("inherit", [False, True])
def test_processes_share_a_store_and_create_it_at_the_same_moment(tmp_path, inherit):
    path, fork = tmp_path / "s.sqlite", multiprocessing.get_context("fork")
    parent = VerdictStore(path) if inherit else None
    if parent:
        parent.put(JUDGE, [row(5000)])
    ready = fork.Barrier(4)
    workers = [fork.Process(target=put_many, args=(path, start, ready, parent)) for start in (0, 100, 200, 300)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    with parent or VerdictStore(path) as store:
        assert len(store.known(JUDGE, [content(number) for number in range(600)])) == 500
        assert store.put(JUDGE, [row(6000)]) == 1


@pytest.mark.parametrize("statement", range(1, 7))  # from the seventh on, this process holds the lock
def test_a_store_that_another_process_creates_between_two_statements_is_used(tmp_path, monkeypatch, statement):
    path, seen, connect = tmp_path / "s.sqlite", [], sqlite3.connect

    def traced(text: str) -> None:
        seen.append(text)
        if len(seen) == statement:
            VerdictStore(path).put(JUDGE, [row(1)])

    def once(*args, **options):
        monkeypatch.setattr(store_module.sqlite3, "connect", connect)
        connection = connect(*args, **options)
        connection.set_trace_callback(traced)
        return connection

    with VerdictStore(path) as store:
        monkeypatch.setattr(store_module.sqlite3, "connect", once)
        with store._open():
            assert len(seen) >= statement
        assert store.put(JUDGE, [row(2)]) == 1
        assert len(store.known(JUDGE, [content(1), content(2)])) == 2


def damaged(path) -> None:
    with VerdictStore(path) as store:
        store.put(JUDGE, [row(number) for number in range(2000)])
    raw = bytearray(path.read_bytes())
    raw[8192 : len(raw) // 2] = os.urandom(len(raw) // 2 - 8192)
    path.write_bytes(raw)


def other_program(path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()


def later_version(path) -> None:
    VerdictStore(path).stats()
    VerdictStore(path).put(JUDGE, [row(1)])
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize(
    "make", [lambda path: path.write_bytes(b"no database at all\n" * 500), damaged, other_program, later_version]
)
def test_a_damaged_or_foreign_file_is_named_and_stays(tmp_path, make):
    path = tmp_path / "s.sqlite"
    make(path)
    before = path.read_bytes()
    for use in (lambda store: store.get(JUDGE, [content(n) for n in range(2000)]), lambda store: store.put(JUDGE, [row(1)])):
        with pytest.raises(LoreError, match="loses nothing but time") as error, VerdictStore(path) as store:
            use(store)
            store.stats()
        assert str(path) in str(error.value) and "LORE_CACHE" in str(error.value)
    if make is not damaged:  # a put may find its page among the undamaged ones
        assert path.read_bytes() == before


def test_a_process_that_is_killed_while_it_writes_leaves_a_whole_store(tmp_path, monkeypatch):
    path = tmp_path / "s.sqlite"
    with VerdictStore(path) as store:
        store.put(JUDGE, [row(number) for number in range(100)])
    if os.fork() == 0:
        inside = store_module._transaction

        @contextmanager
        def killed(connection):
            with inside(connection):
                yield
                os.kill(os.getpid(), signal.SIGKILL)

        store_module._transaction = killed
        VerdictStore(path).put(JUDGE, [row(number) for number in range(100, 5000)], "shard")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGKILL
    with VerdictStore(path) as store:
        assert len(store.known(JUDGE, map(content, range(5000)))) == 100 and store.ingested(JUDGE) == set()
        assert store.put(JUDGE, [row(number) for number in range(100, 300)], "shard") == 200


def test_a_store_deleted_without_its_log_begins_anew(tmp_path):
    path = tmp_path / "s.sqlite"
    store = VerdictStore(path)
    store.put(JUDGE, [row(number) for number in range(100)])
    wal = path.with_name("s.sqlite-wal")
    log = wal.read_bytes()
    store.close()
    path.unlink()
    wal.write_bytes(log)
    with VerdictStore(path) as store:
        assert store.known(JUDGE, map(content, range(100))) == set()
        assert store.put(JUDGE, [row(1)]) == 1 and len(store.get(JUDGE, [content(1)])) == 1


def test_a_full_disk_and_a_forbidden_folder_are_named(tmp_path):
    store = VerdictStore(tmp_path / "s.sqlite")
    store.put(JUDGE, [row(1)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(LoreError, match="Free some space"):
            store.put(JUDGE, [row(number, rationale="x" * 500) for number in range(1000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.put(JUDGE, [row(number) for number in range(1000)]) == 1000
    assert len(store.known(JUDGE, map(content, range(1000)))) == 1000
    (tmp_path / "file").touch()
    with pytest.raises((LoreError, OSError)):
        VerdictStore(tmp_path / "file" / "s.sqlite").put(JUDGE, [row(1)])


def test_a_lock_that_stays_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "WAIT_SECONDS", 0.1)
    path = tmp_path / "s.sqlite"
    with VerdictStore(path) as store:
        store.put(JUDGE, [row(1)])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert store.get(JUDGE, [content(1)])  # readers do not wait for a writer
        with pytest.raises(LoreError, match="locked by another process"):
            store.put(JUDGE, [row(2)])
        other.execute("ROLLBACK")
        other.close()
        assert store.put(JUDGE, [row(2)]) == 1


def test_a_deleted_store_is_rebuilt_from_label_files_and_later_only_gets_new_ones(tmp_path, monkeypatch):
    files = []
    for shard in range(3):
        files.append(tmp_path / "verdicts" / f"00-0000-{shard:020x}.parquet")
        write_table(files[-1], [row(number) for number in range(100 * shard, 100 * shard + 100)], label_schema(TIERS))
    path = tmp_path / "s.sqlite"
    with VerdictStore(path) as store:
        assert store.add_missing(JUDGE, files[:2]) == 200
        first = store.get(JUDGE, map(content, range(300)))
    path.unlink()
    opened = []
    with VerdictStore(path) as store:
        assert store.add_missing(JUDGE, files[:1]) == 100
        opener = store_module.open_parquet
        monkeypatch.setattr(store_module, "open_parquet", lambda path: opened.append(path) or opener(path))
        assert store.add_missing(JUDGE, files) == 200 and opened == files[1:]
        assert store.add_missing(JUDGE, files) == 0 and store.ingested(JUDGE) == {path.name for path in files}
        again = store.get(JUDGE, map(content, range(300)))
        assert len(again) == 300 and {key: again[key] for key in first} == first
        files[0].write_bytes(b"PAR1")
        store.put(JUDGE, [row(1000)], "committed")
        assert "committed" in store.ingested(JUDGE) and store.ingested("other") == set()
        assert store.add_missing("other", files[1:]) == 200
        with pytest.raises(LoreError, match="not a readable Parquet file"):
            store.add_missing("other", files)


def test_gc_removes_judges_that_nobody_uses_and_gives_room_back(tmp_path, monkeypatch):
    with VerdictStore(tmp_path / "s.sqlite") as store:
        day = today()
        for judge, ago in (("old", 40), ("kept", 40), ("asked", 40), ("new", 1)):
            monkeypatch.setattr(store_module, "today", lambda ago=ago: day - ago)
            store.put(judge, [row(number) for number in range(2000)], "shard")
        monkeypatch.setattr(store_module, "today", lambda: day)
        store.get("asked", [content(1)])
        dry = store.gc(30, lambda judge: judge == "kept", dry_run=True)
        assert [one.name for one in dry.judges] == ["old"] and len(store.stats().judges) == 4
        before = store.stats().bytes
        done = store.gc(30, lambda judge: judge == "kept")
        assert done.judges == dry.judges and done.bytes == before - store.stats().bytes > 0
        assert {one.name: one.verdicts for one in store.stats().judges} == dict.fromkeys(("kept", "asked", "new"), 2000)
        assert store.ingested("old") == set() and store.known("old", [content(1)]) == set()
        assert store.put("old", [row(1)]) == 1 and store.known("old", [content(1)]) == {content(1)}
        assert {one.name for one in store.gc(0).judges} == {"old", "kept", "asked", "new"} and store.stats().judges == []


def test_a_judge_that_another_process_removed_is_a_new_one(tmp_path):
    with VerdictStore(tmp_path / "s.sqlite") as here, VerdictStore(tmp_path / "s.sqlite") as there:
        here.put(JUDGE, [row(1)])
        there.gc(0)
        assert here.get(JUDGE, [content(1)]) == {}
        assert there.put("another", [row(2)]) == 1  # must not take the number of the removed judge
        assert here.known(JUDGE, [content(2)]) == set() and here.get(JUDGE, [content(2)]) == {}
        assert here.put(JUDGE, [row(3)]) == 1 and there.known(JUDGE, [content(3)]) == {content(3)}


def test_where_the_store_lies(tmp_path, monkeypatch):
    monkeypatch.delenv("LORE_CACHE", raising=False)
    assert str(store_path()).endswith("/.cache/lore/verdicts.sqlite") and "~" not in str(store_path())
    monkeypatch.setenv("LORE_CACHE", str(tmp_path))
    assert store_path() == tmp_path / "verdicts.sqlite" and open_store().path == store_path()
    assert store_path("none") is None and store_path("x/y.db") == store_module.Path("x/y.db")
    monkeypatch.setenv("LORE_CACHE", "none")
    assert store_path() is None and open_store() is None


def test_a_network_file_system_has_no_store(tmp_path, monkeypatch, capsys):
    mounts = tmp_path / "mountinfo"
    home = tmp_path / "home dir"
    home.mkdir()
    place = str(home).replace(" ", "\\040")
    mounts.write_text(f"1 0 0:1 / / rw - ext4 /dev/x rw\n2 1 0:2 / {place} rw shared:1 - nfs4 server:/x rw\n")
    assert _network_file_system(home / "lore" / "s.sqlite", mounts) == "nfs4"
    assert _network_file_system(tmp_path / "s.sqlite", mounts) is None and _network_file_system(home, tmp_path / "none") is None
    monkeypatch.setattr(store_module, "MOUNTS", mounts)
    assert open_store(str(home / "s.sqlite")) is None and "network file system (nfs4)" in capsys.readouterr().err
