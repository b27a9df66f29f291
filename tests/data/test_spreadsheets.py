"""Tables that go through spreadsheet programs: csv files for people are safe there and read back exactly, and files of European
Excel are read as they are.
"""

import csv
import io
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_files import load

from lore.data.pair import make_pair_id, pair_digest
from lore.data.tables.any_table import table_records
from lore.data.tables.csv import ESCAPED, csv_records, csv_text, is_rewritten, unescaped
from lore.data.tables.ids import known_as, spreadsheet_hint
from lore.eval.goodrate.log import read_log
from lore.eval.goodrate.rated_sample import read_rated, write_draw
from lore.judge.foreign_predictions import read_predictions
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

DANGEROUS = [
    '=HYPERLINK("http://evil","lamp")', "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1", "＋1", "－1", "＠x", " =1", "'90s jeans",
    "''x", "a;=cmd|' /C calc'!A0", "a\n=1", "a;'b",
]  # fmt: skip
REWRITTEN = ["1-2", "MAR1", "007", "TRUE", "wahr", "123e45", "1E5", "12345678901234567", "12:30", "2 pm", "1/2", "5%", "3. Mai"]
KEPT = ["red shoes", "iphone 14", "12", "0", "123456789012345", "p12e5", "19460a9527028503", "L4", "2 pack", "B000123", "", "café"]


def read_back(tmp_path, text, name="a.csv", **options):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return [list(record[1].values()) for record in csv_records(path, ["id"], **options)]


@pytest.mark.parametrize("cell", DANGEROUS + REWRITTEN)
def test_a_spreadsheet_gets_no_formula_and_no_id_that_it_would_rewrite(tmp_path, cell):
    text = csv_text(["id", "query", "price"], [["1", cell, -5.5]])
    (_, (_, written, number, _)) = csv.reader(io.StringIO(text.lstrip("\ufeff"), newline=""))
    assert written.startswith("'") or ";'=" in written or "\n'=" in written or ";''" in written
    assert number == "-5.5" and read_back(tmp_path, text) == [["1", cell, "-5.5"]]
    for wrong in (";", "\t"):  # a program that splits at another delimiter starts no cell with a formula either
        cells = [cell for row in csv.reader(io.StringIO(text, newline=""), delimiter=wrong) for cell in row]
        assert not any(cell.lstrip(" ").startswith(("=", "+", "@", "＝", "＋", "＠")) for cell in cells)


@pytest.mark.parametrize("cell", KEPT)
def test_other_cells_and_files_are_written_as_they_are(cell):
    text = csv_text(["id", "query"], [["1", cell]])
    assert text.lstrip("\ufeff") == f"id,query\n1,{cell}\n" and ESCAPED not in text
    assert text.isascii() == (not text.startswith("\ufeff")) and not is_rewritten(cell)


@given(rows=st.lists(st.tuples(st.text("='-;\t\r\n\" a1eＭ,", max_size=8), st.text(max_size=12)), min_size=1, max_size=4))
def test_cells_are_read_back_exactly(tmp_path_factory, rows):
    rows = [(f"x{number}", *row) for number, row in enumerate(rows)]
    text = csv_text(["id", "a", "b"], rows)
    lines = csv.reader(io.StringIO(text.lstrip("\ufeff"), newline=""))
    header, *cells = lines
    width = len(header)
    assert all(len(row) == width for row in cells)
    assert [tuple(unescaped(cell) if width == 4 else cell for cell in row[:3]) for row in cells] == rows


def test_an_apostrophe_of_a_foreign_file_is_kept(tmp_path):
    assert read_back(tmp_path, "id,query\n1,'90s jeans\n2,'=1\n3,''x\n") == [["1", "'90s jeans"], ["2", "'=1"], ["3", "''x"]]


def test_a_line_of_many_separators_takes_linear_time():
    started = time.perf_counter()
    csv_text(["a"], [["\n" * 200_000 + "=1"], [" " * 200_000], [";'" * 100_000], ["1" * 200_000]])
    assert time.perf_counter() - started < 2


TABLE = "query;title;label;price\r\ncafé au lait;Müsli;2,33;1.234,50\r\nq;t;3;12,99\r\n"
EUROPEAN = {
    "semicolons.csv": TABLE.encode(),
    "cp1252.csv": TABLE.encode("cp1252"),
    "bom.csv": TABLE.encode("utf-8-sig"),
    "sep.csv": b"sep=;\r\n" + TABLE.encode(),
    "sep_bom.csv": b"\xef\xbb\xbfsep=;\r\n" + TABLE.encode(),
    "tabs.csv": TABLE.replace(";", "\t").encode(),
    "unicode_text.txt": TABLE.replace(";", "\t").encode("utf-16"),
    "utf16.csv": TABLE.encode("utf-16"),
    "utf16le.csv": TABLE.encode("utf-16-le"),
    "UTF16BE.TSV": TABLE.replace(";", "\t").encode("utf-16-be"),
    "MAC.CSV": TABLE.replace("\r\n", "\r").encode(),
}


@pytest.mark.parametrize("name", EUROPEAN)
def test_files_of_european_excel_are_read(tmp_path, name, capsys):
    (tmp_path / name).write_bytes(EUROPEAN[name])
    pairs, _, rejected = load("table", tmp_path / name, tmp_path, "homedepot")
    assert [(pair.query, pair.title, pair.label, pair.price) for pair in pairs] == [
        ("café au lait", "Müsli", "2", 1234.5),
        ("q", "t", "3", 12.99),
    ]
    assert rejected == [] and pairs[0].label_distribution == pytest.approx({"2": 0.67, "3": 0.33})
    assert ("read as cp1252" in capsys.readouterr().err) == (name == "cp1252.csv")


@pytest.mark.parametrize("encoding", ["cp1251", "shift_jis", "gb18030"])
def test_text_that_is_not_western_is_not_taken_for_it(tmp_path, encoding):
    text = {"cp1251": "привет", "shift_jis": "カタカナ", "gb18030": "红色"}[encoding]
    (tmp_path / "a.csv").write_bytes(f"query;title\r\nq;{text}\r\nr;u\r\n".encode(encoding))
    pairs, _, (rejected,) = load("table", tmp_path / "a.csv", tmp_path, "shop")
    assert [pair.query for pair in pairs] == ["r"] and rejected["reason"] == "encoding"


NUMBERS = [  # label, price, and what they are; None: rejected
    (";", ["2,33|12,99 €", "3|1.299,00 €", "1|1.234"], [12.99, 1299, 1234]),  # German: its decimal commas say what the point is
    (";", ["2,33|€ 1.234", "3|5"], [1234, 5]),
    (";", ["2,33|1 234,50", "3|1\u202f234", "1|12,50€"], [1234.5, 1234, 12.5]),  # French
    (";", ["2.33|1'234.50", "3|1’234", "1|12.5"], [1234.5, 1234, 12.5]),  # Swiss
    (";", ["2.33|1,234", "3|12.99"], [1234, 12.99]),  # pandas with sep=";"
    (";", ["2.333|1.234", "3|12,99"], [1.234, 12.99]),  # both marks occur, so they tell nothing
    (";", ["2|1.234", "3|1,5"], [1234, 1.5]),
    (";", ["2|1.234", "3|1,234"], [1.234, 1.234]),
    (";", ["2,333|1.234.567", "3|0,125"], [1234567, 0.125]),  # a label has no thousands
    ("\t", ["2,333|1,234", "3|5"], [1.234, 5]),
    ("\t", ["2|1,234", "3|5"], [1234, 5]),
    ("\t", ["2|1,234", "3|0.5"], [1234, 0.5]),
    (";", ["2|12.05.2024", "3|1.23.456", "1|-7,50"], [None, None, -7.5]),
    (",", ["2|$1", "3|12.50 $", "1|12 €"], [1, 12.5, 12]),
]


@pytest.mark.parametrize("delimiter, rows, prices", NUMBERS)
def test_numbers_follow_the_marks_of_their_file(tmp_path, delimiter, rows, prices):
    cells = [["query", "title", "label", "price"], *(["q", f"t{at}", *row.split("|")] for at, row in enumerate(rows))]
    (tmp_path / "a.csv").write_text("".join(delimiter.join(row) + "\r\n" for row in cells), encoding="utf-8")
    pairs, _, rejected = load("table", tmp_path / "a.csv", tmp_path, "homedepot")
    assert [pair.price for pair in pairs] == [price for price in prices if price is not None]
    assert len(rejected) == prices.count(None)


def test_excel_leaves_out_empty_cells_at_the_end_of_a_row(tmp_path):
    """After sixteen rows it drops the delimiters of empty last cells. Any other short row is still rejected."""
    marked = f"id,query,label,{ESCAPED}\n1,'=1,L1,\n2,q,L2\n3,'007\n4\n"
    assert read_back(tmp_path, marked) == [["1", "=1", "L1"], ["2", "q", "L2"], ["3", "007", ""], ["4", "", ""]]
    (tmp_path / "a.csv").write_text("query,title,label\nq,t\nq,u,L1\n")
    pairs, _, rejected = load("table", tmp_path / "a.csv", tmp_path, "shop")
    assert [pair.title for pair in pairs] == ["u"] and rejected[0]["found"] == "2 columns in lines 2 to 2"
    log = tmp_path / "log.csv"
    log.write_text("query,pair_id\nq,a\nq,b\nq,c\n")
    (tmp_path / "rated.csv").write_text("pair_id,probability,label\na,0.5,L4\nb,0.5\n")
    found = read_rated(tmp_path / "rated.csv", load_rubric("shop"), read_log(log))
    assert (found.labeled, found.unlabeled) == (1, 1)


def test_ids_join_after_their_mark_was_deleted(tmp_path):
    (tmp_path / "log.csv").write_text("query,pair_id\n" + "".join(f"q,{one}\n" for one in ("007", "1-2", "'x", "A1")))
    (tmp_path / "rated.csv").write_text("pair_id,label\n'007,L4\n'1-2,L1\n''x,L4\nA1,L1\n")
    assert list(read_rated(tmp_path / "rated.csv", load_rubric("shop"), read_log(tmp_path / "log.csv")).good) == [1, 0, 1, 0]


def test_a_comma_in_a_number_of_a_comma_file_is_no_decimal_comma(tmp_path):
    (tmp_path / "a.csv").write_text('query,title,price\nq,t,"1,234"\nr,t,"12,99"\n')
    pairs, _, (rejected,) = load("table", tmp_path / "a.csv", tmp_path, "shop")
    assert [pair.price for pair in pairs] == [1234.0] and rejected["found"] == "'12,99'"


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.xlsx", b"PK", "ending in .xlsx; expected .*workbooks.*CSV UTF-8"),
        ("a.csv", b"PK\x03\x04 xl/workbook.xml", "is an Excel workbook, whatever its name says.*CSV UTF-8"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1", "is an Excel workbook"),
        ("a.csv.gz", b"\x1f\x8b", "compressed.*gunzip a.csv.gz"),
        ("a.jsonl.zst", b"(\xb5/\xfd", "compressed.*unzstd"),
        ("a.csv", b"\x1f\x8b", "gzip file.*unpack it first"),
        ("a.json", b"[]", "ending in .json; expected"),
    ],
)
def test_files_that_are_no_tables_say_how_to_make_one(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    for read in (lambda path: load("table", path, tmp_path, "shop"), lambda path: list(table_records(path, ["query"]))):
        with pytest.raises(LoreError, match=f"(?s){said}"):
            read(tmp_path / name)


def test_generated_ids_begin_with_a_letter_and_join_those_of_earlier_versions():
    new, old = make_pair_id("red shoes", "1"), pair_digest("red shoes", "1")
    assert new == f"p{old}" and len(old) == 16
    assert known_as([new])(old) == new and known_as([old])(new) == old and known_as([old, new])(new) == new
    assert known_as(["7", new])("p7") == "p7"


@pytest.mark.parametrize(
    "one",
    ["1.23E+45", "1,23457E+15", "1234567890123450000", "01. Feb", "1-Feb", "Mar-01", "WAHR", "#NAME?", "####", "2024-03-01"],
)
def test_an_id_that_excel_has_rewritten_is_named(one):
    assert "such as Excel" in spreadsheet_hint(["p1", one])
    assert not spreadsheet_hint(["p12", "B00012", "12345", "fed6362f2a18712c"])


def test_a_drawn_sample_survives_european_excel(tmp_path):
    queries = ['=HYPERLINK("x")', "'90s jeans", "-5", "007", "café"]
    ids = ["123e45", "1234567890123456", "MAR1", "0012", "TRUE", "1-2", *(f"id{at}" for at in range(24))]
    rows = [{"query": queries[at % 5], "pair_id": pair_id} for at, pair_id in enumerate(ids)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = read_log(tmp_path / "log.jsonl")
    assert write_draw(shown, tmp_path / "rated.csv", 29, "pair") == 29
    header, *rows = csv.reader(io.StringIO((tmp_path / "rated.csv").read_text(encoding="utf-8-sig"), newline=""))
    assert header == ["pair_id", "query", "item_id", "probability", "label", ESCAPED]
    cells = [cell for row in rows for cell in row[:2]]
    assert not any(cell[:1] != "'" and is_rewritten(cell) or cell.startswith(("=", "-")) for cell in cells)
    rows = [[*row[:3], row[3].replace(".", ","), "L4", ""] for row in rows]
    with open(tmp_path / "saved.csv", "w", encoding="cp1252", newline="") as file:
        csv.writer(file, delimiter=";").writerows([header, *rows])
    found = read_rated(tmp_path / "saved.csv", load_rubric("shop"), shown)
    assert (found.labeled, found.unlabeled) == (29, 0)
    back = {cells["pair_id"]: cells["query"] for _, cells in table_records(tmp_path / "saved.csv", ["label"])}
    query_of = dict(zip(shown.pair_ids, shown.queries, strict=True))
    assert len(back) == 29 and all(query_of[pair_id] == query for pair_id, query in back.items())


def test_a_rated_file_that_excel_has_rewritten_names_excel(tmp_path):
    (tmp_path / "log.jsonl").write_text("".join(f'{{"query": "q", "pair_id": "{one}"}}\n' for one in ("123e45", "B7")))
    (tmp_path / "rated.csv").write_text("pair_id,label\n1.23E+47,L4\nB7,L1\n")
    with pytest.raises(LoreError, match="1 entries are not in the log(.|\n)*such as Excel"):
        read_rated(tmp_path / "rated.csv", load_rubric("shop"), read_log(tmp_path / "log.jsonl"))


def test_files_of_an_earlier_version_join_by_their_ids(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("query,item_id\nlamp,1\nlamp,2\nsofa,3\n")
    shown, old = read_log(log), [pair_digest("lamp", "1"), pair_digest("lamp", "2"), pair_digest("sofa", "3")]
    (tmp_path / "rated.csv").write_text(f"pair_id,label\n{old[0]},L4\n")
    assert read_rated(tmp_path / "rated.csv", load_rubric("shop"), shown).good[0] == 1
    (tmp_path / "predictions.csv").write_text("pair_id,tier\n" + "".join(f"{one},L4\n" for one in old))
    assert list(read_predictions(tmp_path / "predictions.csv", load_rubric("shop"), shown.pair_ids)) == list(shown.pair_ids)
