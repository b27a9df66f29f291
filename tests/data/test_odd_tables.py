"""Odd files through `lore data import`, `check` and `stats`: good rows go on, bad ones are reported with file, row, field, found
and expected, and rejected.jsonl stays JSON.
"""

import json
import re
import time
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import write_parquet
from typer.testing import CliRunner

from lore.cli.data import app
from lore.data.parquet import read_pairs

DEEP = "[" * 100_000 + "]" * 100_000
FAR = pa.array([10**7, 1], pa.int32()).view(pa.date32())
GOOD = '{"query": "good", "title": "t"}\n'

TEXTS = {  # content, queries of the good rows, (row, field, reason) of the bad ones
    "cr.jsonl": ('{"query": "a", "title": "t"}\r{"query": "b", "title": "t"}\r', ["a", "b"], []),
    "twice.jsonl": ('{"query": "a", "query": "b", "title": "t"}\n' + GOOD, ["good"], [(1, "query", "doubled_key")]),
    "nested.jsonl": ('{"query": "a", "title": "t", "attributes": {"c": 1, "c": 2}}\n' + GOOD, ["good"], [(1, "c", "doubled_key")]),
    "infinite.jsonl": ('{"query": "a", "title": "t", "price": Infinity}\n' + GOOD, ["good"], [(1, "price", "field_type")]),
    "label.jsonl": ('{"query": "a", "title": "t", "label": -Infinity}\n' + GOOD, ["good"], [(1, "label", "label_unknown")]),
    "digits.jsonl": (f'{{"query": "a", "title": "t", "price": 1{"0" * 400}}}\n' + GOOD, ["good"], [(1, "price", "field_type")]),
    "more.jsonl": (f'{{"query": "a", "title": 1{"0" * 5000}}}\n' + GOOD, ["good"], [(1, "row", "field_type")]),
    "deep.jsonl": (f'{{"query": "a", "title": "t", "attributes": {DEEP}}}\n' + GOOD, ["good"], [(1, "row", "field_type")]),
    "half.jsonl": ('{"query": "a\\ud83d", "title": "t"}\n' + GOOD, ["good"], [(1, "query", "encoding")]),
    "bool.jsonl": ('{"query": "a", "title": "t", "label": true}\n' + GOOD, ["good"], [(1, "label", "label_unknown")]),
    "scalar.jsonl": (GOOD + "5\nnull\n[1]\n", ["good"], [(row, "row", "field_type") for row in (2, 3, 4)]),
    "torn.jsonl": ('{"query": "a", "ti\n' + GOOD, ["good"], [(1, "row", "field_type")]),
    "cr.csv": ("query,title\ra,t\rb,t\r", ["a", "b"], []),
    "nul.csv": ("query,title\na,x\0y\nb,t\n", ["b"], [(1, "title", "nul_byte")]),
    "unmapped.csv": ("query,title,note,note,,\na,t,1,2,,\n", ["a"], []),
    "header.csv": ('"\ufeff query ","title\n"\na,t\n', ["a"], []),
    "ragged.csv": ("query,title,label\na,t\nb,t,3,9\nc,t,2\n", ["c"], [(1, "row", "field_type"), (2, "row", "field_type")]),
    "quote.csv": ('query,title\na,"t\nb,u\n', ["b"], [(1, "row", "unclosed_quote")]),
    "long.csv": (f'query,title\na,"{"x" * 10_000_000}"\nb,t\n', ["b"], [(1, "title", "text_too_long")]),
}
TYPES = {  # column, values, whether each of the two rows is good
    "date": ("title", FAR, [False, True]),
    "date_of_a_market": ("locale", FAR, [False, True]),
    "date_not_read": ("shelf", FAR, [True, True]),
    "nanoseconds": ("title", pa.array([1, 10**18], pa.timestamp("ns")), [True, True]),
    "far_seconds": ("title", pa.array([10**12, 1], pa.timestamp("s")), [False, True]),
    "unknown_zone": ("title", pa.array([1, 2], pa.timestamp("us", tz="Mars/X")), [False, False]),
    "time": ("title", pa.array([1, 2], pa.time64("ns")), [True, True]),
    "duration": ("title", pa.array([10**15, 1], pa.duration("s")), [False, True]),
    "duration_as_price": ("price", pa.array([1, None], pa.duration("s")), [False, True]),
    "decimal": ("label", pa.array([Decimal("3.00"), Decimal("9.00")]), [True, False]),
    "binary": ("title", pa.array([b"t", b"caf\xe9"]), [True, False]),
    "large": ("title", pa.array(["t", "u"], pa.large_string()), [True, True]),
    "dictionary": ("title", pa.array(["t", "u"]).dictionary_encode(), [True, True]),
    "view": ("title", pa.array(["t", "u"], pa.string_view()), [True, True]),
    "list": ("title", pa.array([["t"], None]), [False, False]),
    "struct": ("title", pa.array([{"a": 1}, {"a": 2}]), [False, False]),
    "null": ("label", pa.nulls(2), [True, True]),
    "bool": ("label", pa.array([True, None]), [False, True]),
    "map": ("attributes", pa.array([[("a", "b")], [("c", "d")]], pa.map_(pa.string(), pa.string())), [True, True]),
    "numbers_as_photos": ("image", pa.array([1, None]), [False, True]),
}


def imported(path, tmp_path):
    """The report, the pairs and the rejected rows; the pairs also pass check and stats."""
    out = tmp_path / "out.parquet"
    done = CliRunner().invoke(app, ["import", "table", str(path), "--rubric", "homedepot", "-o", str(out), "--json"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    report = json.loads(done.stdout.strip().splitlines()[-1])
    rejected = tmp_path / "out.rejected.jsonl"
    lines = rejected.read_text(encoding="utf-8").splitlines() if rejected.exists() else []
    for command in ("check", "stats") if report["pairs"] else ():
        assert CliRunner().invoke(app, [command, str(out)]).exit_code == 0
    return report, list(read_pairs(out)) if report["pairs"] else [], [json.loads(line, parse_constant=_no_json) for line in lines]


def _no_json(constant):
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("name", TEXTS)
def test_an_odd_text_file_loses_only_its_bad_rows(tmp_path, name):
    content, queries, bad = TEXTS[name]
    (tmp_path / name).write_bytes(content.encode())
    report, pairs, rejected = imported(tmp_path / name, tmp_path)
    assert [pair.query for pair in pairs] == queries and report["rejected_rows"] == len(bad)
    assert [(line["row"], line["field"], line["reason"]) for line in rejected] == bad
    assert all(line["file"].endswith(name) and line["found"] and line["expected"] for line in rejected)


@pytest.mark.parametrize("name", TYPES)
def test_an_odd_column_loses_only_its_bad_rows(tmp_path, name):
    column, values, good = TYPES[name]
    columns = {"query": pa.array(["a", "b"]), "title": pa.array(["t", "u"]), column: values}
    report, pairs, rejected = imported(write_parquet(tmp_path / "a.parquet", columns), tmp_path)
    assert [pair.query for pair in pairs] == [query for query, fine in zip("ab", good, strict=True) if fine]
    assert [line["row"] for line in rejected] == [row for row, fine in enumerate(good, 1) if not fine]
    if column == "locale":
        assert pairs[0].slices == ["locale:1970-01-02"]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.jsonl", json.dumps([{"query": "q", "title": "t"}] * 2), "is one JSON array.*json.load"),
        ("a.jsonl", json.dumps([{"query": "q", "title": "t"}] * 2, indent=2), "is one JSON array"),
        ("a.jsonl", json.dumps({"query": "q", "title": "t"}, indent=2) * 2, "JSON over several lines.*one line"),
        ("a.jsonl", "\n\n", "has no rows"),
        ("a.jsonl", "query,title\nq,t\n", "starts with 'query,title'"),
        ("a.csv", "query,title,label,title\nq,t,3,u\n", "column 'title' occurs twice, as column 2 and 4"),
        ("a.csv", ",,\n1,2,3\n", "the header line has no names"),
        ("a.csv", "", "empty"),
    ],
)
def test_a_file_that_is_no_table_is_one_message(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    done = CliRunner().invoke(app, ["import", "table", str(tmp_path / name), "--rubric", "shop", "-o", str(tmp_path / "o.parquet")])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert re.search(said, done.stderr, re.DOTALL) and not (tmp_path / "o.parquet").exists()


def test_a_doubled_parquet_column_matters_only_if_it_is_read(tmp_path):
    texts = [pa.array([text]) for text in ("q", "t", "3", "x", "y")]
    pq.write_table(pa.Table.from_arrays(texts, names=["query", "title", "label", "note", "note"]), tmp_path / "a.parquet")
    assert imported(tmp_path / "a.parquet", tmp_path)[0]["pairs"] == 1
    pq.write_table(pa.Table.from_arrays(texts, names=["query", "title", "label", "note", "label"]), tmp_path / "a.parquet")
    done = CliRunner().invoke(app, ["import", "table", str(tmp_path / "a.parquet"), "--rubric", "shop", "-o", str(tmp_path / "o")])
    assert "column 'label' occurs twice, as column 3 and 5" in done.stderr


def test_a_wide_header_is_read_in_linear_time(tmp_path):
    names = [f"c{at}" for at in range(20_000)]
    (tmp_path / "a.csv").write_text(f"query,title,{','.join(names)}\nq,t{',' * 20_000}\n")
    started = time.perf_counter()
    assert imported(tmp_path / "a.csv", tmp_path)[0]["pairs"] == 1
    assert time.perf_counter() - started < 3
