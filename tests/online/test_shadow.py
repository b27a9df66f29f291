"""Shadow mode: what is written, what is left out, and that nobody waits for it."""

import base64
import io
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from online_for_tests import StubRouter, StubService, post, recipe
from PIL import Image

from lore.data.pair import Pair
from lore.data.parquet import read_pairs
from lore.judge.verdict import Verdict, from_row
from lore.label.keys import ContentKeys
from lore.online import shadow as module
from lore.online.answer import Answer
from lore.online.app import build_app
from lore.online.config import ShadowSection
from lore.online.shadow import Shadow, day_name, is_taken, rotation, shadow_files
from lore.support.errors import LoreError

TIERS = ["L1", "L2", "L3", "L4"]


def pairs_of(count: int, **more) -> list[Pair]:
    return [Pair(pair_id=str(at), query=f"query {at // 4}", title=f"title {at}", **more) for at in range(count)]


def answers_of(pairs: list[Pair], source: str = "student", **more) -> list[Answer]:
    return [
        Answer(Verdict(pair.pair_id, "L3", [0.1, 0.2, 0.6, 0.1], judge_id="s", source=source), 0.6, "tail", **more)
        for pair in pairs
    ]


def shadow_of(folder: Path, **section) -> Shadow:
    return Shadow(ShadowSection(**{"share": 1.0, "folder": str(folder)} | section), TIERS)


def written(shadow: Shadow, *offers: tuple[list[Pair], list[Answer]]) -> list[dict]:
    """The rows after the offers."""
    shadow.start()
    for pairs, answers in offers:
        shadow.offer(pairs, answers)
    shadow.close()
    return [row for file in shadow_files(shadow.folder) for row in pq.read_table(file).to_pylist()]


def test_rows_hold_the_pair_the_students_verdict_and_what_the_report_needs(tmp_path):
    pairs = pairs_of(3, brand="lumo", attributes={"colour": "red"}, query_frequency=7.0)
    rows = written(shadow_of(tmp_path), (pairs, answers_of(pairs, late=True)))
    assert [row["pair_id"] for row in rows] == [f"s{ContentKeys().of(pair).hex()}" for pair in pairs]
    assert from_row(rows[0], TIERS) == answers_of([Pair(pair_id=rows[0]["pair_id"], query="", title="")])[0].verdict
    assert {(row["band"], row["late"], row["score"]) for row in rows} == {("tail", True, 0.6)}
    assert abs(rows[0]["time"] - time.time()) < 60
    (folder,) = tmp_path.iterdir()
    assert folder.name in (day_name(int(rows[0]["time"]) // 86_400), day_name(int(time.time()) // 86_400))
    read = list(read_pairs(folder))  # a pairs folder as it is
    assert [(pair.query, pair.title, pair.brand, pair.attributes, pair.query_frequency) for pair in read] == [
        (pair.query, pair.title, "lumo", {"colour": "red"}, 7.0) for pair in pairs
    ]


def test_only_answers_of_the_student_are_written_and_each_pair_once_a_day(tmp_path):
    pairs = pairs_of(4)
    failed = answers_of(pairs[:1])
    failed[0].verdict.failure, failed[0].verdict.tier = "too_long", None
    offers = [
        (pairs[:1], failed),
        (pairs[1:2], answers_of(pairs[1:2], "cache")),
        (pairs[2:3], answers_of(pairs[2:3], "judge")),
        ([failed[0], pairs[3]], [failed[0], *answers_of(pairs[3:])]),  # a row that was no pair has an answer in its place
        (pairs[3:], answers_of(pairs[3:])),
    ]
    assert [row["title"] for row in written(shadow_of(tmp_path), *offers)] == ["title 3"]


def test_content_decides_so_every_worker_takes_the_same_pairs(tmp_path):
    pairs = pairs_of(2000)
    one, other = (written(shadow_of(tmp_path / name, share=0.1), (pairs, answers_of(pairs))) for name in "ab")
    again = [Pair(pair_id="x", query=pair.query.upper(), title=f" {pair.title}") for pair in pairs]  # the same content
    third = written(shadow_of(tmp_path / "c", share=0.1), (again, answers_of(again)))
    ids = [{row["pair_id"] for row in rows} for rows in (one, other, third)]
    assert ids[0] == ids[1] == ids[2] and 140 < len(ids[0]) < 260


def test_other_pairs_are_taken_on_other_days_unless_the_share_stays():
    contents = [ContentKeys().of(pair) for pair in pairs_of(4000)]
    days = [{content for content in contents if is_taken(content, 0.05, rotation(day, 1))} for day in (20_000, 20_001, 20_002)]
    assert all(140 < len(day) < 260 for day in days)
    assert not days[0] & days[1] and not days[1] & days[2]
    assert rotation(20_000, 0) == rotation(20_001, 0) and rotation(20_000, 7) == rotation(20_000 // 7 * 7, 7)
    assert not any(is_taken(content, 0.0) for content in contents) and all(is_taken(content, 1.0) for content in contents)


def test_a_full_queue_drops_and_counts_and_offer_never_waits(tmp_path, monkeypatch):
    held, shadow = threading.Event(), shadow_of(tmp_path, queued_pairs=8, shard_pairs=1)
    keys = shadow._keys.of
    monkeypatch.setattr(shadow._keys, "of", lambda pair: held.wait(20) and keys(pair))
    shadow.start()
    pairs = pairs_of(30)
    for at in range(0, 30, 3):
        shadow.offer(pairs[at : at + 3], answers_of(pairs[at : at + 3]))
    assert shadow.counts["queue_full"] == 24  # 6 wait in the queue, 3 more would be 9
    held.set()
    shadow.close()
    assert shadow.counts == {"queue_full": 24, "written": 6}


def test_large_photos_and_full_folders_are_counted(tmp_path, capfd):
    section = {"max_photo_bytes": 100, "shard_pairs": 1}
    shadow = shadow_of(tmp_path, **section)
    shown = pairs_of(2)
    shown[0].image, shown[1].image = {"bytes": b"x" * 101, "path": None}, {"bytes": b"x" * 99, "path": None}
    (row,) = written(shadow, (shown, answers_of(shown)))
    assert row["image"] == {"bytes": b"x" * 99, "path": None} and shadow.counts == {"large_photo": 1, "written": 1}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "full.parquet").write_bytes(b"x" * 2**20)
    full = shadow_of(tmp_path, max_bytes=2**20, **section)
    full.start()
    full.offer(pairs_of(5), answers_of(pairs_of(5)))
    full.close()
    assert full.counts == {"folder_full": 5} and "folder_full" in capfd.readouterr().err


def test_a_broken_disk_ends_neither_the_thread_nor_the_service(tmp_path, monkeypatch, capfd):
    shadow, real = shadow_of(tmp_path, shard_pairs=1), module.pq.write_table
    broken = iter([OSError(28, "No space left on device")])

    def write(*arguments, **options):
        for error in broken:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(module.pq, "write_table", write)
    pairs = pairs_of(2)
    rows = written(shadow, (pairs[:1], answers_of(pairs[:1])), (pairs[1:], answers_of(pairs[1:])))
    assert [row["title"] for row in rows] == ["title 1"] and shadow.counts == {"failed": 1, "written": 1}
    assert "No space left" in capfd.readouterr().err and not list(tmp_path.rglob("*.part"))


def test_a_folder_that_cannot_be_written_to_stops_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LoreError, match=r"shadow\.folder"):
        shadow_of(tmp_path / "file" / "shadow").start()
    assert [conflict.keys for conflict in ShadowSection(share=0.1).conflicts()] == [("share", "folder")]


def test_the_service_offers_its_answers_after_the_reply(tmp_path):
    shadow = shadow_of(tmp_path, shard_pairs=1)
    shadow.start()
    app = build_app(recipe(), StubService(StubRouter()), shadow=shadow)
    photo = "data:image/png;base64," + base64.b64encode(PNG).decode()
    body = {"pairs": [{"query": "a", "title": "b"}, {"query": "a"}, {"query": "a", "title": "c", "image": photo}]}
    reply = post(app, "/judge", body)
    assert reply.status_code == 200, reply.text
    post(app, "/rerank", {"query": "a", "texts": ["d"]})
    shadow.close()
    rows = [row for file in shadow_files(tmp_path) for row in pq.read_table(file).to_pylist()]
    assert sorted(row["title"] for row in rows) == ["b", "c", "d"]
    told = {row["title"]: row for row in rows}
    assert told["c"]["image"]["bytes"] == PNG
    assert told["b"]["tier"] == reply.json()["verdicts"][0]["tier"]


def _png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(out, "png")
    return out.getvalue()


PNG = _png()
