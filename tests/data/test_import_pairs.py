"""Importing any table: bad rows, encodings, column maps, duplicates, and the data section of a recipe."""

import csv
import gzip
import json
import os
import subprocess
import tempfile
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from source_files import crowdflower, load, write_csv, write_parquet

from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.parquet import PairWriter, read_pairs
from lore.data.rejected_rows import Rejection
from lore.data.section import DataSection, JudgedDataSection
from lore.data.splits import split_of
from lore.data.tables.csv import csv_records
from lore.data.tables.text_tables import DiskIndex
from lore.support.atomic_files import machine
from lore.support.errors import LoreError


def test_bad_rows_cost_only_themselves_and_say_why(tmp_path):
    rows = [
        ["1", "good", "t", "<p>Red &amp; <b>blue</b></p>", "4", "0"],
        ["2", "", "t", "", "4", "0"],
        ["3", "q", "t", "", "7", "0"],
        ["4", "q", "x" * 1_000_000, "", "4", "0"],
        ["5", "q", "a\0b", "", "4", "0"],
        ["6", "q", "t", "", "4", "unknown"],
        ["7", "q", "t", "", "4"],
        ["8", "q", "t", "", "4", "0", "9"],
        ["", "", "", "", "", ""],
        ["9", "good too", "t", "", "3", "0"],
    ]
    pairs, report, rejected = load("crowdflower", crowdflower(tmp_path, rows), tmp_path)
    assert [(p.pair_id, p.description) for p in pairs] == [("1", "Red & blue"), ("9", None)]
    found = [(line["row"], line["field"], line["reason"]) for line in rejected]
    assert found == [
        (2, "query", "query_empty"),
        (3, "label", "label_unknown"),
        (4, "title", "text_too_long"),
        (5, "title", "nul_byte"),
        (6, "label_weight", "field_type"),
        (7, "row", "field_type"),
        (8, "row", "field_type"),
    ]
    assert report.repairs == {"html": 1} and report.rejected_rows == 7 and report.reasons["field_type"] == 3
    assert rejected[5]["found"] == "5 columns in lines 8 to 8" and rejected[5]["record"]["cells"][0] == "7"
    _, report, _ = load("crowdflower", tmp_path / "train.csv", tmp_path, strict=True)
    assert report.reasons["html"] == 1


def test_a_latin1_file_read_as_utf8_loses_only_the_rows_that_cannot_be_read(tmp_path):
    rows = [
        ["1", "café table", "t", "", "4", "0"],
        ["2", "table", "Möbel", "", "3", "0"],
        ["3", "table", "t", "", "3", "0"],
    ]
    path = crowdflower(tmp_path, rows, encoding="latin-1")
    pairs, report, rejected = load("crowdflower", path, tmp_path)
    assert [p.pair_id for p in pairs] == ["3"] and report.reasons == {"encoding": 2}
    assert "--encoding latin-1" in rejected[0]["expected"]
    pairs, report, rejected = load("crowdflower", path, tmp_path, encoding="latin-1")
    assert pairs[0].query == "café table" and pairs[1].title == "Möbel" and rejected == []
    assert not (tmp_path / "out" / "pairs.rejected.jsonl").exists()


def test_byte_order_marks_and_wrong_encodings(tmp_path):
    path = crowdflower(tmp_path, [["1", "q", "t", "", "4", "0"]], encoding="utf-8-sig")
    assert len(load("crowdflower", path, tmp_path)[0]) == 1
    with pytest.raises(LoreError, match="UTF-8 byte order mark.*--encoding utf-8"):
        load("crowdflower", path, tmp_path, encoding="latin-1")
    path = crowdflower(tmp_path, [["1", "q", "t", "", "4", "0"]], encoding="utf-16")
    assert len(load("crowdflower", path, tmp_path)[0]) == 1
    with pytest.raises(LoreError, match="--encoding utf-16"):
        load("crowdflower", path, tmp_path, encoding="latin-1")
    assert len(load("crowdflower", path, tmp_path, encoding="utf-16")[0]) == 1
    with pytest.raises(LoreError, match="no text encoding 'utf-9'"):
        load("crowdflower", path, tmp_path, encoding="utf-9")


@pytest.mark.parametrize("encoding", ["base64", "hex", "rot13", "punycode", "idna", "undefined", "a\0b"])
def test_a_codec_that_no_text_file_has_is_one_message(tmp_path, encoding):
    with pytest.raises(LoreError, match="no text encoding"):
        load("crowdflower", csv_file(tmp_path, "1,q,t,d,4,0"), tmp_path, encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le"])
def test_wide_encodings_are_read_in_csv_and_jsonl_and_damage_in_them_is_one_message(tmp_path, encoding):
    path = crowdflower(tmp_path, [["1", "café", "t", "", "4", "0"]], encoding=encoding)
    assert load("crowdflower", path, tmp_path, encoding=encoding)[0][0].query == "café"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LoreError, match=f"is not {encoding} text"):
        load("crowdflower", path, tmp_path, encoding=encoding)
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"query": "café", "title": "t"}\n' * 2, encoding=encoding)
    assert [p.query for p in load("table", lines, tmp_path, "shop", encoding=encoding)[0]] == ["café"] * 2


def test_a_packed_file_is_named(tmp_path):
    (tmp_path / "train.csv").write_bytes(gzip.compress(HEADER.encode()))
    with pytest.raises(LoreError, match="is a gzip file.*unpack it"):
        load("crowdflower", tmp_path / "train.csv", tmp_path)


HEADER = "id,query,product_title,product_description,median_relevance,relevance_variance\n"


def csv_file(tmp_path, *lines):
    path = tmp_path / "train.csv"
    path.write_text(HEADER + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_an_unclosed_quote_costs_its_own_line_and_no_other_row(tmp_path):
    lines = [f"{number},query {number},title,text,4,0" for number in range(1, 601)]
    lines[99] = '100,query,"12 inch tv,text,4,0'
    lines[299] = '300,query 300,"a quoted, title",text,4,0'
    lines[300] = '301,query 301,title,"two\nlines, 5, 4, 3, 2",4,0'
    lines[599] = '600,query 600,title,"never closed,4,0'
    pairs, _, rejected = load("crowdflower", csv_file(tmp_path, *lines), tmp_path)
    assert [p.pair_id for p in pairs] == [str(number) for number in range(1, 600) if number != 100]
    assert pairs[298].title == "a quoted, title" and pairs[299].description == "two\nlines, 5, 4, 3, 2"
    assert [(r["row"], r["reason"]) for r in rejected] == [(100, "unclosed_quote"), (600, "unclosed_quote")]
    assert "line 101 and swallows the lines up to 301" in rejected[0]["found"] and "12 inch tv" in rejected[0]["record"]["line"]


@pytest.mark.parametrize(
    "other",
    [
        '2,q,"t, t",d,4,0',  # closes the quote in the same column, so that the width is right
        '2,q,t,"d, d",4,0',
        '2,"q, q",t,d,4,0',
        "2,q,t,d,4,0",  # the file ends inside the quote
        '2,q,t,"two\nlines",4,0',
        '2,q,t,"",4,0',
    ],
)
def test_a_runaway_quote_takes_nothing_along_whatever_follows_it(tmp_path, other):
    pairs, _, rejected = load("crowdflower", csv_file(tmp_path, '1,q,"open,d,4,0', other), tmp_path)
    assert [p.pair_id for p in pairs] == ["2"] and [r["row"] for r in rejected] == [1]


def test_a_multi_line_cell_of_rows_is_a_cell_and_a_row_too_narrow_is_one_rejection(tmp_path):
    inner = "\n".join("9,q,t,d,4,0" for _ in range(20))
    path = csv_file(tmp_path, f'1,q,t,"a table:\n{inner}\nend",4,0', '2,q,"one\ntwo\nthree",4,0')
    pairs, _, (rejected,) = load("crowdflower", path, tmp_path)
    assert len(pairs) == 1 and pairs[0].description == f"a table:\n{inner}\nend"
    assert rejected["found"] == "5 columns in lines 24 to 26"


CELLS = st.text('a,"\n\r1', max_size=8)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_any_well_formed_table_is_read_as_it_was_written(tmp_path_factory, rows):
    path = write_csv(tmp_path_factory.mktemp("csv") / "a.csv", [["x", "y", "z"], *rows])
    found = [list(record[1].values()) for record in csv_records(path, ["x"])]
    assert found == [list(row) for row in rows if any(row)]


@given(
    st.lists(st.tuples(*[st.text('a,\n1"', max_size=6).map("t{}t".format)] * 3), min_size=1, max_size=12),
    st.integers(0, 11),
    st.integers(0, 2),
)
@settings(max_examples=150, deadline=None)
def test_a_quote_left_open_anywhere_loses_no_plain_row_after_it(tmp_path_factory, rows, at, column):
    rows = [[f"{number}", *row[1:]] for number, row in enumerate(rows)]
    at %= len(rows)
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    cells = ["7", "b", "c"]
    cells[column] = f'"{cells[column]}'
    with open(path, "w", newline="") as file:
        write = csv.writer(file).writerows
        write([["x", "y", "z"], *rows[:at]])
        file.write(",".join(cells) + "\n")
        write(rows[at:])
    found = [list(record[1].values()) for record in csv_records(path, ["x"]) if not isinstance(record, Rejection)]
    plain = [row for row in rows if not set('\n"') & set("".join(row))]
    assert all(row in found for row in plain)


def test_a_file_of_open_quotes_takes_time_linear_in_its_length(tmp_path, monkeypatch):
    monkeypatch.setattr("lore.data.tables.csv.MAX_RECORD_LINES", 1000)
    path = csv_file(tmp_path, *['a","'] * 20_000, "1,q,t,d,4,0")
    started = time.perf_counter()
    pairs, report, _ = load("crowdflower", path, tmp_path)
    assert len(pairs) == 1 and report.reasons == {"unclosed_quote": 20_000}
    assert time.perf_counter() - started < 5


def test_a_failed_import_leaves_nothing_behind(tmp_path):
    path = write_csv(tmp_path / "train.csv", [["id", "query", "product_titel", "product_description"]])
    with pytest.raises(LoreError, match="'product_title' is missing. Nearest: 'product_titel'"):
        load("crowdflower", path, tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


ROWS = [
    ["search_term", "product_title", "relevance", "Colour"],
    ["red cup", "Cup", "2.6", "red"],
    ["cup", "Glass", "1.2", ""],
]


MAP = {"query": "search_term", "title": "product_title", "label": "relevance", "attributes.colour": "Colour"}


def check_table(pairs):
    assert [(p.query, p.title, p.label, p.attributes) for p in pairs] == [
        ("red cup", "Cup", "3", {"colour": "red"}),
        ("cup", "Glass", "1", {}),
    ]


def test_tables_of_four_kinds_by_column_map(tmp_path):
    columns = dict(zip(ROWS[0], zip(*ROWS[1:], strict=True), strict=True))
    files = [
        write_csv(tmp_path / "a.csv", ROWS),
        write_csv(tmp_path / "a.tsv", ROWS, "\t"),
        write_parquet(tmp_path / "a.parquet", {name: list(cells) for name, cells in columns.items()}),
        tmp_path / "a.jsonl",
    ]
    files[3].write_text("".join(json.dumps(dict(zip(ROWS[0], row, strict=True))) + "\n" for row in ROWS[1:]))
    for file in files:
        check_table(load("table", file, tmp_path, "homedepot", options={"map": MAP})[0])
    semicolons = write_csv(tmp_path / "b.csv", ROWS, ";")
    text = ",".join(f"{name}={column}" for name, column in MAP.items())
    check_table(load("table", semicolons, tmp_path, "homedepot", options={"map": text, "delimiter": ";"})[0])


def test_a_table_with_our_names_needs_no_map(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    header = ["query", "title", "price", "slices", "attributes", "image", "internal"]
    rows = [
        ["q", "t", "£3.50", "hard|long", '{"size": 4}', "a.png", "x"],
        ["q", "t", "", "", "not json", "", ""],
        ["q", "u", "", "", "", "b.png", ""],
    ]
    pairs, _, rejected = load("table", write_csv(tmp_path / "a.csv", [header, *rows]), tmp_path, "shop")
    (found,) = pairs
    assert (found.price, found.slices, found.attributes) == (3.5, ["hard", "long"], {"size": "4"})
    assert found.image == {"bytes": None, "path": str(tmp_path / "a.png")}
    assert [r["reason"] for r in rejected] == ["field_type", "image_missing"]


@pytest.mark.parametrize(
    ("column_map", "message"),
    [
        ({**MAP, "query": "serch_term"}, "column 'serch_term' is missing. Nearest: 'search_term'"),
        ({**MAP, "titel": "Colour"}, "'titel' is not a field of a pair.*Nearest: 'title'"),
        ({"query": "search_term"}, "no column for title"),
        ("query=search_term,title", "--map has 'title'"),
    ],
)
def test_a_wrong_map_names_the_nearest(tmp_path, column_map, message):
    with pytest.raises(LoreError, match=message):
        load("table", write_csv(tmp_path / "a.csv", ROWS), tmp_path, "homedepot", options={"map": column_map})


def test_undecodable_parquet_cells_cost_their_row(tmp_path):
    import pyarrow as pa

    raw = pa.array([b"caf\xe9", b"cup"]).view(pa.string())
    listed = pa.ListArray.from_arrays([0, 1, 2], raw)
    columns = {
        "query": [raw, raw.dictionary_encode()],
        "slices": [listed],
        "attributes": [pa.MapArray.from_arrays([0, 1, 2], pa.array(["size", "size"]), raw)],
    }
    for name, forms in columns.items():
        for form in forms:
            table = {"query": ["q", "cup"], "title": ["a", "b"], name: form}
            pairs, _, (rejected,) = load("table", write_parquet(tmp_path / "a.parquet", table), tmp_path, "shop")
            assert [p.query for p in pairs] == ["cup"] and rejected["reason"] == "encoding", name


def test_an_attribute_cell_of_nested_json_costs_its_row(tmp_path):
    rows = [["query", "title", "attributes"], ["q", "t", "[" * 100_000], ["q", "u", '{"size": "M"}']]
    pairs, _, (rejected,) = load("table", write_csv(tmp_path / "a.csv", rows), tmp_path, "shop")
    assert [p.title for p in pairs] == ["u"] and (rejected["field"], rejected["reason"]) == ("attributes", "field_type")


def test_two_columns_of_one_name_are_one_message(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], ["query", "title", "title"])
    pq.write_table(columns, tmp_path / "a.parquet")
    with pytest.raises(LoreError, match="column 'title' occurs twice"):
        load("table", tmp_path / "a.parquet", tmp_path, "shop")


def test_duplicates_stay_by_default_and_go_with_a_reason_when_asked(tmp_path):
    rows = [
        ["1", "q", "t", "", "4", "0"],
        ["2", "Q ", "T", "", "4", "0"],
        ["3", "q", "t", "", "1", "0"],
        ["4", "q", "u", "", "1", "0"],
    ]
    path = crowdflower(tmp_path, rows)
    pairs, report, _ = load("crowdflower", path, tmp_path)
    assert len(pairs) == 4 and (report.duplicates, report.conflicting) == (1, 1)
    pairs, report, rejected = load("crowdflower", path, tmp_path, drop_duplicates=True)
    assert [p.pair_id for p in pairs] == ["1", "4"] and report.dropped == 2
    assert [(r["row"], r["reason"]) for r in rejected] == [(2, "duplicate_pair"), (3, "conflicting_label")]
    assert "row 1" in rejected[1]["found"] and "label 1" in rejected[1]["found"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["pairs.parquet", "pairs.rejected.jsonl"]


def section(path, source="crowdflower", **values):
    given = {
        "split_fractions": {"train": 0.5, "test": 0.5},
        "rubric": "crowdflower" if source == "pairs" else source,
        **values,
    }
    return JudgedDataSection(path=str(path), source=source, **given)


def imported(section, folder):
    return PairSource(section, folder).path


def test_data_is_read_without_a_rubric_and_keeps_its_labels(tmp_path):
    write_csv(tmp_path / "a.csv", [["query", "title", "label"], ["q", "t", "good"], ["r", "u", "3.5"]])
    section = DataSection(path=str(tmp_path / "a.csv"), source="table")
    assert list(section.input_fingerprints()) == ["path"] and not list(section.missing_inputs())
    assert [pair.label for pair in read_pairs(imported(section, tmp_path / "run"))] == ["good", "3.5"]
    assert [lack for _, lack in DataSection(path=str(tmp_path / "b")).missing_inputs()] == [
        f"{tmp_path / 'b'} does not exist. `lore data import` writes pairs."
    ]


def test_a_recipes_data_is_imported_once_and_again_when_it_changed(tmp_path):
    path = crowdflower(tmp_path, [["1", "q", "t", "", "4", "0"], ["2", "r", "t", "", "4", "0"]])
    out = imported(section(path), tmp_path / "run")
    assert out == tmp_path / "run" / "data" / "pairs.parquet"
    assert [p.split for p in read_pairs(out)] == [split_of(q, {"train": 0.5, "test": 0.5}) for q in "qr"]
    before = out.stat().st_mtime_ns
    path.touch()
    assert imported(section(path), tmp_path / "run").stat().st_mtime_ns == before
    crowdflower(tmp_path, [["1", "q", "other", "", "4", "0"]])
    assert [p.title for p in read_pairs(imported(section(path), tmp_path / "run"))] == ["other"]
    imported(section(path, split_fractions={"test": 1.0}), tmp_path / "run")
    assert [p.split for p in read_pairs(out)] == ["test"]


def test_a_recipes_data_without_one_good_row_is_an_error_with_a_reason(tmp_path):
    with pytest.raises(LoreError, match="none of its 1 rows is a valid pair.*label_unknown"):
        imported(section(crowdflower(tmp_path, [["1", "q", "t", "", "7", "0"]])), tmp_path / "run")
    assert not (tmp_path / "run" / "data" / "pairs.parquet").exists()


def test_a_recipe_that_names_another_rubric_than_its_pairs_is_warned(tmp_path, capsys):
    load("crowdflower", crowdflower(tmp_path, [["1", "q", "t", "", "4", "0"]]), tmp_path)
    path = tmp_path / "out" / "pairs.parquet"
    imported(section(path, "pairs"), tmp_path / "run")
    assert "warning" not in capsys.readouterr().err
    imported(section(path, "pairs", rubric="rair"), tmp_path / "run")
    assert "warning" in (said := capsys.readouterr().err) and "rubric crowdflower" in said


@pytest.mark.parametrize("options", [{}, {"drop_duplicates": True}])
@pytest.mark.parametrize("repeated", [False, True])
def test_an_import_that_dies_once_its_pairs_are_there_keeps_its_rejected_rows(tmp_path, interrupt_after, options, repeated):
    rows = [["1", "q", "t", "", "4", "0"], ["2", "", "t", "", "4", "0"], ["3", "q", "t" if repeated else "u", "", "4", "0"]]
    path = crowdflower(tmp_path, rows)
    interrupt_after("pairs.parquet")
    with pytest.raises(KeyboardInterrupt):
        load("crowdflower", path, tmp_path, **options)
    pairs = [pair.pair_id for pair in read_pairs(tmp_path / "out" / "pairs.parquet")]
    rejected = (tmp_path / "out" / "pairs.rejected.jsonl").read_text()
    again, _, lines = load("crowdflower", path, tmp_path, **options)
    assert [pair.pair_id for pair in again] == pairs and [json.loads(line) for line in rejected.splitlines()] == lines != []


def test_what_killed_imports_left_is_removed_and_what_others_write_is_not(tmp_path):
    path = crowdflower(tmp_path, [["1", "q", "t", "", "4", "0"]])
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / "out").mkdir()
    names = ["pairs.parquet", "pairs.rejected.jsonl"]
    for pid in (dead.pid, os.getppid()):
        for name in names:
            (tmp_path / "out" / f".{name}.{machine()}.{pid}.0a1b2c3d.part").touch()
        scratch = tmp_path / "out" / f".pairs.parquet.{machine()}.{pid}.1a1b2c3d.part"
        scratch.mkdir()
        (scratch / "all.parquet").touch()
    for drop in (True, False):
        load("crowdflower", path, tmp_path, drop_duplicates=drop)
    left = {file.name for file in (tmp_path / "out").iterdir()}
    assert left == {"pairs.parquet", scratch.name, *(f".{name}.{machine()}.{os.getppid()}.0a1b2c3d.part" for name in names)}


def test_a_join_leaves_no_file_even_while_it_lasts(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with DiskIndex((str(number % 100), number) for number in range(1000)) as index:
        assert list(tmp_path.iterdir()) == []
        assert index.get("7") == list(range(7, 1000, 100))


def test_two_imports_of_the_same_data_are_the_same_bytes(tmp_path):
    path = crowdflower(tmp_path, [["1", "q", "t", "", "4", "0"], ["2", "q", "t", "", "4", "0"]])
    first, second = (imported(section(path), tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    dropped = imported(section(path, options={"drop_duplicates": True}), tmp_path / "c")
    assert [p.pair_id for p in read_pairs(dropped)] == ["1"]


def test_pairs_of_a_recipe_are_used_where_they_are(tmp_path):
    with PairWriter(tmp_path / "a.parquet") as writer:
        writer.write(Pair(pair_id="1", query="q", title="t"))
    assert imported(section(tmp_path / "a.parquet", "pairs"), tmp_path / "run") == tmp_path / "a.parquet"
    assert not (tmp_path / "run").exists()
    with pytest.raises(LoreError, match="No pairs at"):
        imported(section(tmp_path / "b.parquet", "pairs"), tmp_path / "run")
    with pytest.raises(LoreError, match="has no importer"):
        imported(section(tmp_path / "a.parquet", "pairs", options={"locale": "us"}), tmp_path / "run")
