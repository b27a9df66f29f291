"""Numbered parts: written whole, read back in order, told apart by their stamp, and clear errors where one is damaged."""

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lore.judge.chunk_store import ChunkStore, in_chunks
from lore.support.errors import LoreError

SCHEMA = pa.schema([("id", pa.int64()), ("texts", pa.list_(pa.string()))])


def rows(*ids: int) -> list[dict]:
    return [{"id": number, "texts": ["x"] * number} for number in ids]


def test_parts_come_back_in_their_order_whether_appended_or_numbered(tmp_path):
    store = ChunkStore(tmp_path / "new" / "parts", SCHEMA)
    assert store.numbers() == [] and list(store.rows()) == [] and not store.is_current(0)
    store.append(rows(1, 2))
    store.write(10, rows(4))
    store.write(3, rows(3))
    store.append(iter(rows(5)))
    assert store.numbers() == [0, 3, 10, 11]
    assert list(store.rows()) == rows(1, 2, 3, 4, 5) and list(store.rows([10, 0])) == rows(4, 1, 2)
    store.write(3, rows(9))
    assert list(store.rows([3])) == rows(9)
    assert sorted(path.name for path in store.folder.iterdir()) == [f"part-{n:06d}.parquet" for n in (0, 3, 10, 11)]


def test_what_a_killed_writer_leaves_is_no_part(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
import pyarrow as pa
from lore.judge.chunk_store import ChunkStore
store = ChunkStore(Path(sys.argv[1]), pa.schema([("id", pa.int64())]))
store.append([{"id": 1}])
os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
store.append([{"id": 2}])
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    store = ChunkStore(tmp_path, SCHEMA)
    assert store.numbers() == [0] and [row["id"] for row in store.rows()] == [1]
    assert len(list(tmp_path.iterdir())) == 2  # the torn one among them
    store.append(rows(2))
    assert [row["id"] for row in store.rows()] == [1, 2] and len(list(tmp_path.iterdir())) == 2


def test_parts_of_another_stamp_are_not_current_and_not_read(tmp_path):
    one, other, any_stamp = (ChunkStore(tmp_path, SCHEMA, stamp) for stamp in ("judge one", "judge two", None))
    one.append(rows(1))
    any_stamp.append(rows(2))
    assert one.is_current(0) and not other.is_current(0) and not one.is_current(1) and any_stamp.is_current(0)
    assert list(any_stamp.rows()) == rows(1, 2) and list(one.rows([0])) == rows(1)
    with pytest.raises(LoreError, match=r"part-000000.parquet was made with judge one and this run is judge two: its answers"):
        list(other.rows())
    with pytest.raises(LoreError, match=r"part-000001.parquet was made with no stamp(.|\n)*delete .* to start over"):
        list(one.rows())


@pytest.mark.parametrize("damage", ["empty", "cut", "overwritten"])
@pytest.mark.parametrize("stamp", [None, "judge"])
def test_a_damaged_part_names_file_loss_and_repair(tmp_path, damage, stamp):
    store = ChunkStore(tmp_path, SCHEMA, stamp, holds="verdicts")
    store.append(rows(*range(400)))
    path = store.path(0)
    whole = path.read_bytes()
    middle = len(whole) // 2
    if damage == "overwritten":  # the foot still reads well
        path.write_bytes(whole[:4] + b"\xff" * 200 + whole[204:])
    else:
        path.write_bytes(whole[:middle] if damage == "cut" else b"")
    with pytest.raises(LoreError, match=r"part-000000.parquet cannot be read .*its verdicts are lost. Delete it and run"):
        list(store.rows())


def test_columns_are_read_alone_and_have_to_be_there(tmp_path):
    store = ChunkStore(tmp_path, SCHEMA)
    store.append(rows(1, 2))
    assert [batch.column_names for batch in store.batches(0, ["id"])] == [["id"]]
    with pytest.raises(LoreError, match="part-000000.parquet has no column label, so this version cannot read its answers"):
        list(store.batches(0, ["id", "label"]))


def test_a_part_is_read_a_batch_at_a_time(tmp_path):
    store = ChunkStore(tmp_path, SCHEMA)
    store.append({"id": number, "texts": []} for number in range(1000))
    sizes = [len(batch) for batch in store.batches(0)]
    assert sum(sizes) == 1000 and max(sizes) < 300
    assert pq.read_metadata(store.path(0)).row_group(0).column(0).compression == "ZSTD"


def test_chunks_hold_everything_once():
    assert list(in_chunks(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]] and list(in_chunks([], 3)) == []
