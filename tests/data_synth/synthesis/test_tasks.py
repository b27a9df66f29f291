"""Reading the task files of a synthesize run."""


import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lore.data_synth.synthesis.tasks import SCHEMA, read_tasks
from lore.support.errors import LoreError

MESSAGES = [{"role": "user", "content": "lamp"}]


def write_tasks(path, count=600, messages='[{"role": "user", "content": "lamp"}]'):
    row = {"task": "rules", "label": "L1", "messages": messages, "completion": "{}", "image": None}
    rows = [row | {"pair_id": str(number)} for number in range(count)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    return path


def test_rows_come_in_order_with_messages_as_values(tmp_path):
    rows = list(read_tasks([write_tasks(tmp_path / "a.parquet"), write_tasks(tmp_path / "b.parquet", 1)]))
    assert [row["pair_id"] for row in rows] == [*map(str, range(600)), "0"]
    assert list(rows[0]) == SCHEMA.names and all(row["messages"] == MESSAGES for row in rows)


def test_a_damaged_file_and_another_table_say_what_is_expected(tmp_path):
    torn, other = tmp_path / "torn.parquet", tmp_path / "other.parquet"
    torn.write_bytes(write_tasks(tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(LoreError, match="torn.parquet is not a readable Parquet file .*stage synthesize with `tasks`"):
        list(read_tasks([torn]))
    pq.write_table(pa.table({"task": ["rules"]}), other)
    with pytest.raises(LoreError, match="other.parquet: column 'pair_id' is missing.*stage synthesize with `tasks`"):
        list(read_tasks([other]))


@pytest.mark.parametrize("messages", [None, "", "[", "[" * 100_000, "{}", "[1]", '[{"role": "user", "role": "system"}]'])
def test_damaged_messages_name_file_and_row(messages, tmp_path):
    with pytest.raises(LoreError, match=r"a\.parquet, row 1: its messages are damaged .*\nA run of stage synthesize"):
        list(read_tasks([write_tasks(tmp_path / "a.parquet", 1, messages)]))
