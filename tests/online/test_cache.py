"""The cache of the service: contents, the judge, ages, a slow or damaged file, several processes."""

import asyncio
import multiprocessing
import os
import sqlite3
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_folders import TIERS, label_row, write_labels
from stub_scorer import label_once, label_recipe
from test_keys import ITEM, batch_of, photographed
from typer.testing import CliRunner

import lore.online.cache as cache_module
from lore.cli.main import app
from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.judge.verdict import Verdict
from lore.label.keys import ContentKeys, Keys, content_bytes
from lore.label.read import read_labels
from lore.label.store import VerdictStore
from lore.online.cache import MemoryCache, NullCache, content_key, load_folders, load_labels, say_what_is_there
from lore.online.cache_store import CachedJudge
from lore.online.config import CacheSection, OnlineRecipe
from lore.online.service import load_cache
from lore.online.sqlite_cache import SqliteCache
from lore.online.verdict_bytes import VerdictBytes
from lore.support.errors import LoreError

JUDGE = CachedJudge("runs/grpo", "weights:rubric:renderer", "weights:rubric:renderer verdict", TIERS)
PATIENT = 60_000.0
"""Milliseconds: a loaded machine must not fail a test."""


class Noted:
    """What the cache reports."""

    def __init__(self):
        self.asked: dict[str, list[int]] = {}
        self.failed: dict[str, int] = {}

    def cache_asked(self, layer: str, hits: int, misses: int) -> None:
        counts = self.asked.setdefault(layer, [0, 0])
        counts[0] += hits
        counts[1] += misses

    def cache_failed(self, why: str, pairs: int) -> None:
        self.failed[why] = self.failed.get(why, 0) + pairs


def key(number: int) -> bytes:
    return number.to_bytes(8) * 2


def verdict(number: int = 0, **more) -> Verdict:
    answer = {"tier": TIERS[number % 4], "probabilities": [0.1, 0.2, 0.3, 0.4], "judge_id": JUDGE.judge_id}
    return Verdict("p", **(answer | more))


def stored(number: int = 0, **more) -> Verdict:
    """The verdict as the cache answers it."""
    return replace(verdict(number, **more), pair_id="", source="cache", seconds=None)


def opened(path, noted=None, judge=JUDGE, **section) -> SqliteCache:
    return SqliteCache(path, judge, CacheSection(**({"store": str(path), "timeout_ms": PATIENT} | section)), noted)


def pair_of(row: dict) -> Pair:
    row = dict(row) | {"attributes": dict(row.get("attributes") or []), "slices": row.get("slices") or []}
    return Pair(pair_id="p", **row)


def contents_of_labels(pairs: list[Pair]) -> list[bytes]:
    names = ("query", "title", "description", "category", "brand", "shop", "price", "image", "slices")
    rows = [{name: getattr(pair, name) for name in names} | {"attributes": list(pair.attributes.items())} for pair in pairs]
    found = Keys().of(batch_of(rows))
    return content_bytes(found["high"], found["low"]).to_pylist()


def test_contents_are_those_of_labels(tmp_path):
    pairs = [pair_of(row) for row in photographed(tmp_path)]
    for _ in range(2):  # the second time from remembered items
        assert [content_key(pair) for pair in pairs] == contents_of_labels(pairs)


@settings(max_examples=30, deadline=None)
@given(st.lists(ITEM, min_size=1, max_size=4))
def test_the_content_of_any_pair_is_that_of_its_label(rows):
    pairs = [pair_of(row) for row in rows]
    keys = ContentKeys(remembered_bytes=20)  # forgets now and then
    assert [keys.of(pair) for pair in pairs * 2] == contents_of_labels(pairs) * 2


def test_what_lore_label_stores_is_found(tmp_path):
    pairs = [Pair(pair_id=f"p{n}", query=f"Red  Mug {n % 3}", title=f"Mug {n}", price=n / 7, brand="Ünal") for n in range(12)]
    with PairWriter(tmp_path / "pairs.parquet") as writer:
        for pair in pairs:
            writer.write(pair)
    recipe = label_recipe(tmp_path, tmp_path / "pairs.parquet", store=str(tmp_path / "s.sqlite"))
    label_once(recipe, tmp_path / "labels")
    labels = {row["pair_id"]: row for batch in read_labels(tmp_path / "labels") for row in batch.to_pylist()}
    with VerdictStore(tmp_path / "s.sqlite") as store:
        ((name, tiers),) = store.judges()
    judge = CachedJudge("stub", "stub", name, tiers)  # judge_id of the stub's verdicts
    assert {pair.pair_id: content_key(pair) for pair in pairs} == {name: row["content"] for name, row in labels.items()}

    async def asked() -> list:
        cache = MemoryCache(judge, 100, None, opened(tmp_path / "s.sqlite", judge=judge))
        found = await cache.get([content_key(pair) for pair in pairs])
        await cache.close()
        return found

    found = asyncio.run(asked())
    assert [one.verdict.tier for one in found] == [labels[pair.pair_id]["tier"] for pair in pairs]
    assert all(abs(time.time() - one.stored_seconds) < 600 and one.verdict.source == "cache" for one in found)


texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=30, deadline=None)
@given(
    tier=st.sampled_from(TIERS),
    probabilities=st.none() | st.lists(st.floats(0, 1), min_size=4, max_size=4),
    rationale=texts.map(lambda text: text or ""),
    mismatch=texts,
    rules=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=2),
    text=texts,
    detail=texts,
    tokens=st.none() | st.integers(0, 2**40),
    photo=st.sampled_from(["none", "seen", "hidden", "failed"]),
    when=st.none() | st.floats(0, 1e12),
)
def test_a_verdict_is_the_same_after_packing(when, **values):
    given_one = verdict(**values)
    found = VerdictBytes(JUDGE.judge_id, TIERS).unpack(key(7), VerdictBytes(JUDGE.judge_id, TIERS).pack(key(7), given_one, when))
    assert (found.verdict, found.stored_seconds) == (stored(**values), when)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=90), st.data())
def test_bytes_of_other_programs_are_no_verdict(noise, data):
    packing = VerdictBytes(JUDGE.judge_id, TIERS)
    assert packing.unpack(key(1), noise) is None
    whole = packing.pack(key(1), verdict(rationale="why"), 5.0)
    assert packing.unpack(key(2), whole) is None  # the reply to another question
    at = data.draw(st.integers(0, len(whole) - 1))
    found = packing.unpack(key(1), whole[:at])
    assert found is None or at == len(whole) - len(whole[at:]) and found.verdict.tier in TIERS
    for rest in (b"[1]", b'["a", null, "r", null, null, null]', b'["a", null, [1], null, null, null]', b"{", b"[" * 5000):
        assert packing.unpack(key(1), packing.pack(key(1), verdict(), 5.0) + rest) is None


def test_memory_answers_first_forgets_the_oldest_and_keeps_no_misses():
    class Below(NullCache):
        judge, calls = JUDGE, []
        held = {key(n): verdict(n) for n in range(3)}

        async def get(self, contents):
            self.calls.append(list(contents))
            return [cache_module.Cached(self.held[one], 7.0) if one in self.held else None for one in contents]

    async def asked():
        below, noted = Below(), Noted()
        cache = MemoryCache(JUDGE, 2, None, below, noted)
        first = await cache.get([key(0), key(9), key(1)])
        assert [one and one.verdict.tier for one in first] == ["L1", None, "L2"]
        assert [one.stored_seconds for one in await cache.get([key(1), key(0)])] == [7.0, 7.0]
        assert below.calls == [[key(0), key(9), key(1)]]
        below.held[key(9)] = verdict(3)  # another process has stored it
        assert (await cache.get([key(9)]))[0].verdict.tier == "L4"
        await cache.get([key(0), key(1)])  # key(1) was asked before key(0), so key(9) took its place
        assert below.calls[2:] == [[key(1)]]
        assert noted.asked == {"memory": [3, 5], "store": [4, 1]}

    asyncio.run(asked())


def test_old_verdicts_and_those_of_unknown_age_are_not_answered(tmp_path, monkeypatch):
    path, now = tmp_path / "s.sqlite", time.time()
    with VerdictStore(path) as store:
        for number, when in ((0, now - 50), (1, now - 500)):
            store.put(JUDGE.name, [label_row("q", str(number), "L1", content=key(number))], stored_seconds=when)
        store.put(JUDGE.name, [label_row("q", "2", "L1", content=key(2))])
    with sqlite3.connect(path) as database:
        database.execute("UPDATE verdicts SET stored = NULL WHERE content = ?", (key(2),))
    database.close()

    async def ages(limit: float | None) -> list:
        cache = MemoryCache(JUDGE, 10, limit, opened(path, max_age_seconds=limit))
        asked = [key(n) for n in range(3)]
        found = [one and one.stored_seconds for one in await cache.get(asked)]
        assert [one and one.stored_seconds for one in await cache.get(asked)] == found
        if limit == 100:
            monkeypatch.setattr(cache_module.time, "time", lambda: now + 60)
            assert await cache.get([key(0)]) == [None]  # it has grown too old in memory
            monkeypatch.undo()
            await cache.put([key(1)], [verdict(1)])  # the judge answers again
            await cache.close()
        else:
            await cache.close()
        return found

    assert asyncio.run(ages(None)) == [now - 50, now - 500, None]
    assert asyncio.run(ages(100)) == [now - 50, None, None]
    renewed = asyncio.run(ages(100))
    assert renewed[1] > now - 10 and renewed[2] is None


def test_only_verdicts_of_this_judge_are_answered(tmp_path):
    others = ["weights:rubric:renderer2 verdict", "weights2:rubric:renderer verdict", "weights:rubric:render"]
    path = tmp_path / "s.sqlite"
    with VerdictStore(path) as store:
        for number, name in enumerate(others):
            store.put(name, [label_row("q", "a", "L1", content=key(number), judge_id=name.split()[0])])
        store.put(f"{JUDGE.judge_id} rationale 512 tokens", [label_row("q", "a", "L2", content=key(3))])
        cascade = [
            label_row("q", "a", "L3", content=key(4), judge_id="student:rubric:none"),
            label_row("q", "a", "L3", content=key(5)),
        ]
        store.put(f"{JUDGE.judge_id} cascade student x agreement 0.9", cascade)
        store.put(JUDGE.name, [label_row("q", "a", None, content=key(6), failure="no_verdict", text="?")])

    async def asked():
        cache = opened(path)
        found = await cache.get([key(n) for n in range(7)])
        await cache.put(
            [key(7), key(8)], [verdict(judge_id="student:rubric:none"), verdict(tier=None, failure="cut_at_max_tokens")]
        )
        await cache.close()
        return [one and one.verdict.tier for one in found]

    assert asyncio.run(asked()) == [None, None, None, "L2", None, "L3", None]
    with VerdictStore(path) as store:
        assert store.known(JUDGE.name, [key(7), key(8)]) == set()


def test_labels_of_another_judge_are_refused_and_loaded_ones_are_skipped(tmp_path, capsys):
    rows = [label_row("q", str(n), TIERS[n % 4], content=key(n)) for n in range(20)]
    write_labels(tmp_path / "labels", rows, files=3, stamp=JUDGE.name)
    write_labels(tmp_path / "failures", [label_row("q", "x", None, failure="refused", content=key(99))], stamp=JUDGE.name)
    write_labels(tmp_path / "foreign", rows, stamp="weights:rubric:renderer2 verdict")
    cache = opened(tmp_path / "s.sqlite")
    say_what_is_there(cache, "s.sqlite")
    assert "has no verdict of runs/grpo" in capsys.readouterr().out
    assert load_labels(cache, [tmp_path / "labels", tmp_path / "failures"]) == 20
    assert load_labels(cache, [tmp_path / "labels"]) == 0
    with pytest.raises(
        LoreError, match="(?s)was labelled by weights:rubric:renderer2 verdict.*never answered.*--judge runs/grpo"
    ) as error:
        load_labels(cache, [tmp_path / "foreign"])
    assert "nothing was loaded" in str(error.value)
    with pytest.raises(LoreError, match="store is none"):
        load_labels(NullCache(), [tmp_path / "labels"])
    say_what_is_there(cache, "s.sqlite")
    assert "has no verdict" not in capsys.readouterr().out

    async def asked():
        found = await cache.get([key(n) for n in (0, 1, 19, 99)])
        more = [label_row("q", str(n), "L4", content=key(n)) for n in range(20, 24)]
        (file,) = (write_labels(tmp_path / "more", more, stamp=JUDGE.name) / "verdicts").iterdir()
        file.rename(file.with_name(f"00-0000-{'a' * 20}.parquet"))  # real names hold the digest of the rows
        section = CacheSection(store=str(tmp_path / "s.sqlite"))
        await asyncio.to_thread(load_folders, section, [tmp_path / "more"])  # while the service runs
        later = await cache.get([key(20)])
        await cache.close()
        assert await cache.get([key(0)]) == [None]  # closed, and still no exception
        return [one and one.verdict.tier for one in found + later]

    assert asyncio.run(asked()) == ["L1", "L2", "L4", None, "L4"]


def test_a_store_without_a_name_is_an_error():
    result = CliRunner().invoke(app, ["cache", "load", "labels", "--store", ""])
    assert isinstance(result.exception, LoreError) and "--store is empty" in str(result.exception)


def test_a_store_is_called_empty_only_after_its_labels_are_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lore.online.cache.cached_judge", lambda path, base=None: JUDGE)
    folder = write_labels(tmp_path / "labels", [label_row("q", "1", "L1", content=key(1))], stamp=JUDGE.name)
    recipe = {"lore": 1, "stage": "online", "run": "online", "student": {"path": "student"}}
    for name, labels in (("filled", [str(folder)]), ("empty", [])):
        cache = {"store": str(tmp_path / f"{name}.sqlite"), "judge": "runs/grpo", "labels": labels}
        load_cache(OnlineRecipe.model_validate(recipe | {"cache": cache}))
        said = capsys.readouterr().out
        assert ("1 verdict added" in said, "has no verdict of runs/grpo" in said) == (bool(labels), not labels)


def test_answers_of_the_judge_are_written_together_and_found_by_the_next_process(tmp_path):
    async def put(count: int, noted: Noted) -> None:
        cache = opened(tmp_path / "s.sqlite", noted)
        for start in range(0, count, 100):
            await cache.put([key(n) for n in range(start, start + 100)], [verdict(n) for n in range(start, start + 100)])
        await cache.close()

    async def found(count: int) -> list:
        cache = opened(tmp_path / "s.sqlite")
        found = await cache.get([key(n) for n in range(count)])
        await cache.close()
        return [one and one.verdict for one in found]

    noted = Noted()
    asyncio.run(put(300, noted))
    assert asyncio.run(found(300)) == [stored(n) for n in range(300)] and noted.failed == {}


def test_a_file_that_is_slow_damaged_or_full_answers_nothing_and_is_counted(tmp_path, monkeypatch, capfd):
    path, noted = tmp_path / "s.sqlite", Noted()
    with VerdictStore(path) as store:
        store.put(JUDGE.name, [label_row("q", "a", "L1", content=key(1))])

    async def asked():
        cache = opened(path, noted, timeout_ms=30.0)
        front = MemoryCache(JUDGE, 10, None, cache)
        whole, waits = cache._reader.answers, multiprocessing.Event()
        cache._reader.judges()
        monkeypatch.setattr(cache._reader, "answers", lambda *given: waits.wait(60) and whole(*given))
        assert await cache.get([key(1)]) == [None] and noted.failed == {"timeout": 1}
        monkeypatch.setattr("lore.online.cache_store.MAX_WAITING", 1)
        assert await cache.get([key(1), key(2)]) == [None, None] and noted.failed["busy"] == 2
        waits.set()
        while key(1) not in front._held:  # what the slow read has found is there for the next request
            await asyncio.sleep(0.01)
        cache._reads.timeout_seconds = 60.0
        while (await cache.get([key(1)]))[0] is None:  # the slow read ends, and the file is read again
            await asyncio.sleep(0.01)
        path.write_bytes(b"no database at all\n" * 500)
        for name in ("s.sqlite-wal", "s.sqlite-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        cache._reader.close()
        cache._writer.close()
        assert await cache.get([key(1)]) == [None] and noted.failed["unreachable"] == 1
        await cache.put([key(3)], [verdict(3)])
        await cache.close()
        assert noted.failed["dropped"] == 1

    asyncio.run(asked())
    said = capfd.readouterr().err
    assert said.count("pairs are answered without it") == 1  # not for every request


def write_in_process(path: str, first: int, wrong: "multiprocessing.Queue") -> None:
    async def work() -> None:
        cache = opened(path)
        for at in range(first, first + 400, 40):
            await cache.put([key(n) for n in range(at, at + 40)], [verdict(n) for n in range(at, at + 40)])
            found = await cache.get([key(n) for n in range(0, 800, 7)])
            for number, one in zip(range(0, 800, 7), found, strict=True):
                if one is not None and one.verdict != stored(number):
                    wrong.put(number)
        await cache.close()

    asyncio.run(work())
    os._exit(0)


def test_processes_write_one_file_and_read_each_others_verdicts(tmp_path):
    context, path = multiprocessing.get_context("fork"), str(tmp_path / "s.sqlite")
    wrong = context.Queue()
    workers = [context.Process(target=write_in_process, args=(path, first, wrong)) for first in (0, 400)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0] and wrong.empty()

    async def found() -> list:
        cache = opened(path)
        found = await cache.get([key(n) for n in range(800)])
        await cache.close()
        return [one.verdict for one in found]

    assert asyncio.run(found()) == [stored(n) for n in range(800)]


def test_a_store_of_an_earlier_version_gets_times_and_stays_readable(tmp_path):
    path = tmp_path / "s.sqlite"
    with VerdictStore(path) as store:
        store.put(JUDGE.name, [label_row("q", "a", "L1", content=key(1))])
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE verdicts DROP COLUMN stored")
    database.close()
    with VerdictStore(path) as store:
        store.put(JUDGE.name, [label_row("q", "a", "L2", content=key(2))], stored_seconds=5.0)
        assert [(key, when) for key, _, when in sorted(store.answers(JUDGE.name, [key(1), key(2)]))] == [
            (key(1), None),
            (key(2), 5.0),
        ]


def test_a_password_in_the_address_of_redis_is_refused():
    section = CacheSection(store="redis://user:hunter2@127.0.0.1:1/0")
    (conflict,) = section.conflicts()
    assert conflict.found == "a password in the address" and "hunter2" not in conflict.expected
