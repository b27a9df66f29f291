"""The table of query frequencies."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lore.online.frequencies as module
from lore.label.inputs.search_log import count_log
from lore.label.inputs.tables import Table
from lore.online.frequencies import Frequencies, is_frequencies, write_frequencies
from lore.support.errors import LoreError


def written(tmp_path, columns, days=30.0):
    log, out = tmp_path / "log.parquet", tmp_path / "frequencies.arrow"
    pq.write_table(pa.table(columns), log)
    database = count_log(Table(str(log)), {name: name for name in columns}, tmp_path / "log.sqlite", str(columns))
    write_frequencies(out, database, days=days, source="log.parquet")
    return out


def test_a_query_has_its_searches_whatever_its_case_and_spacing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_QUERIES", 7)  # several blocks
    names = [f"query {number}" for number in range(40)]
    queries = [name for number, name in enumerate(names) for _ in range(number + 1)] + ["QUERY  39 "]
    found = Frequencies.open(out := written(tmp_path, {"query": queries}))
    assert [found.of(name) for name in names[:-1]] == [float(number + 1) for number in range(39)]
    assert found.of(" Query 39") == 41.0
    assert found.of("query 40") == found.of("") == 0.0
    assert len(found) == 40
    assert found.about["searches"] == len(queries) == sum(float(searches.sum()) for _, searches in found.blocks())
    assert is_frequencies(out)


def test_markets_count_where_the_log_names_them(tmp_path):
    found = Frequencies.open(written(tmp_path, {"query": ["bol", "bol", "mug"], "locale": ["fr", "fr", "us"]}))
    assert found.of("bol", ["locale:fr", "hard"]) == 2.0
    assert found.of("bol", ["locale:us"]) == found.of("bol") == 0.0  # the French query says nothing of these
    without = Frequencies.open(written(tmp_path, {"query": ["bol", "bol", "mug"]}))
    assert without.of("bol", ["locale:fr"]) == 2.0


@pytest.mark.parametrize("content", [b"", b"PAR1 no table", None])
def test_another_file_is_refused_with_what_to_name(tmp_path, content):
    path = tmp_path / "frequencies.arrow"
    if content is None:
        whole = written(tmp_path, {"query": ["mug"] * 100}).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.write_bytes(content)
    with pytest.raises(LoreError, match="lore plan"):
        Frequencies.open(path)


def test_an_arrow_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "frequencies.arrow"
    with pa.ipc.new_file(str(path), pa.schema([("query", pa.string())])) as writer:
        writer.write_batch(pa.record_batch({"query": ["mug"]}))
    with pytest.raises(LoreError, match="no table of query frequencies"):
        Frequencies.open(path)
    assert not is_frequencies(path)
