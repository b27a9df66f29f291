"""Labels read by their one reader, and exported for search tools."""

import csv
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_folders import TIERS, label_row, write_labels
from typer.testing import CliRunner

from lore.cli.main import app
from lore.data.tables.any_table import table_records
from lore.data.tables.csv import without_formulas
from lore.label import export
from lore.label.export import export_labels, read_gains
from lore.label.read import count_labels, opened_labels, read_labels
from lore.label.schema import FAILURES, label_schema
from lore.support.errors import LoreError


def lore(*arguments) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def labels(tmp_path):
    """Two queries over three files, one of them in two spellings, a pair without a tier and an item that comes twice."""
    rows = [
        label_row("red shoe", "b 1", "L4"),
        label_row("red shoe", "a1", "L1"),
        label_row("Red  shoe", "c,3", "L2"),
        label_row("lamp", "a1", "L3"),
        label_row("lamp", "007", "L2"),
        label_row("lamp", "007", "L4", pair_id="other"),
        label_row("lamp", "e", None, failure="no_verdict"),
    ]
    return write_labels(tmp_path / "labels", rows, files=3)


def qrels_of(path) -> dict[str, dict[str, int]]:
    """As trec_eval reads them: four fields at white space; the rows of a query together."""
    found, before = {}, None
    for line in path.read_text().splitlines():
        query, zero, document, gain = line.split()
        assert zero == "0" and document not in found.setdefault(query, {}) and (query == before or len(found[query]) == 0)
        found[query][document], before = int(gain), query
    return found


def test_qrels_with_a_table_of_the_queries(labels, tmp_path):
    out = tmp_path / "x.qrels"
    with pytest.raises(LoreError, match="'b 1' of query 'red shoe' has a space"):
        export_labels(labels, out, "qrels")
    assert not out.exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    rows = [row for batch in read_labels(labels) for row in batch.to_pylist()]
    fixed = write_labels(tmp_path / "fixed", [row | {"item_id": row["item_id"].replace(" ", "_")} for row in rows], files=2)
    shown = lore("label", "export", fixed, "--format", "qrels", "-o", out)
    assert "5 pairs of 2 queries" in shown and "1 pairs without a tier" in shown and "1 pairs of an item" in shown
    queries = {row["query_id"]: row for _, row in table_records(tmp_path / "x.queries.csv")}
    found = {queries[one]["query"]: gains for one, gains in qrels_of(out).items()}
    assert found == {"lamp": {"007": 1, "a1": 2}, "red shoe": {"a1": 0, "b_1": 3, "c,3": 1}}
    assert all(re.fullmatch("q[0-9a-f]{16}", one) for one in queries)
    first = out.read_bytes()
    export_labels(write_labels(tmp_path / "again", rows[::-1]), tmp_path / "y", "qrels", document="pair_id")
    assert {row["query_id"] for _, row in table_records(tmp_path / "y.queries.csv")} == set(queries)  # the same ids in every export
    export_labels(fixed, out, "qrels")  # an own file may be replaced
    assert out.read_bytes() == first
    export_labels(fixed, out, "qrels", gains="L4=5, L3=1,L2=0,L1=-1")
    assert sorted(gain for gains in qrels_of(out).values() for gain in gains.values()) == [-1, 0, 0, 1, 5]


def test_a_quepid_case_is_a_file_that_its_import_takes(labels, tmp_path):
    out = tmp_path / "case.csv"
    export_labels(labels, out, "quepid")
    raw = out.read_bytes().decode()
    assert raw.split("\n")[0] == "query,docid,rating"  # compared as it is by Quepid's dialog
    assert sorted(csv.reader(raw.splitlines()[1:])) == [
        ["lamp", "007", "1"],
        ["lamp", "a1", "2"],
        ["red shoe", "a1", "0"],
        ["red shoe", "b 1", "3"],
        ["red shoe", "c,3", "1"],
    ]
    with pytest.raises(LoreError, match="--force"):  # a download from Quepid looks the same
        export_labels(labels, out, "quepid")
    odd = ["=cmd|' /C calc'!A0", "'90s jeans", "two\nlines", '12" pipe, steel', "-5"]
    folder = write_labels(tmp_path / "odd", [label_row(query, "1", "L2") for query in odd])
    shown = lore("label", "export", folder, "--format", "quepid", "-o", out, "--force")
    assert "1 cells begin with an apostrophe" in shown and "1 lines have both a comma and a double quote" in shown
    found = {row[0] for row in csv.reader(out.read_text().splitlines()[1:])}
    assert found == {"'=cmd|' /C calc'!A0", "'90s jeans", "two lines", '12" pipe, steel', "-5"}


def test_opensearch_judgments_are_a_body_of_the_import(labels, tmp_path):
    out = tmp_path / "j.json"
    lore("label", "export", labels, "--format", "opensearch", "-o", out, "--gains", "L1=0,L2=0.25,L3=.5,L4=1")
    body = json.loads(out.read_text())
    assert body.keys() == {"name", "description", "type", "judgmentRatings"}
    assert (body["type"], body["name"]) == ("IMPORT_JUDGMENT", "labels")
    found = {one["query"]: {rated["docId"]: rated["rating"] for rated in one["ratings"]} for one in body["judgmentRatings"]}
    assert found == {"lamp": {"007": "0.25", "a1": "0.5"}, "red shoe": {"a1": "0", "b 1": "1", "c,3": "0.25"}}
    assert len(body["judgmentRatings"]) == 2
    export_labels(labels, out, "opensearch", name='all "x"')
    assert json.loads(out.read_text())["name"] == 'all "x"'


def test_a_query_in_two_markets_stays_two(tmp_path):
    rows = [
        label_row("bol", "1", "L4", slices=["locale:us", "hard"]),
        label_row("bol", "1", "L1", slices=["locale:es"], pair_id="x"),
        label_row("bol", "1", "L2", pair_id="y"),
    ]
    folder, out = write_labels(tmp_path / "labels", rows), tmp_path / "x"
    export_labels(folder, out, "qrels")
    queries = {row["query_id"]: row["market"] for _, row in table_records(tmp_path / "x.queries.csv")}
    assert {queries[one]: gains for one, gains in qrels_of(out).items()} == {
        "locale:us": {"1": 3},
        "locale:es": {"1": 0},
        "": {"1": 1},
    }
    for to in ("quepid", "opensearch"):
        with pytest.raises(LoreError, match="3 markets .*locale:es.*\n.*--market"):
            export_labels(folder, tmp_path / "q", to)
    export_labels(folder, tmp_path / "q", "quepid", market="locale:us")
    assert (tmp_path / "q").read_text() == "query,docid,rating\nbol,1,3\n"
    export_labels(folder, tmp_path / "q", "quepid", market="", force=True)
    assert (tmp_path / "q").read_text() == "query,docid,rating\nbol,1,1\n"
    with pytest.raises(LoreError, match="no pair of market locale:fr"):
        export_labels(folder, tmp_path / "q", "quepid", market="locale:fr", force=True)


def test_without_item_ids_the_documents_are_pairs_on_demand(tmp_path):
    folder = write_labels(tmp_path / "labels", [label_row("q", "a", "L2", item_id=None), label_row("q", "b", "L3")])
    with pytest.raises(LoreError, match="1 pairs in one file have no item_id.*\n.*--document pair_id"):
        export_labels(folder, tmp_path / "x", "qrels")
    assert export_labels(folder, tmp_path / "x", "qrels", document="pair_id").pairs == 2
    assert sorted(gain for gains in qrels_of(tmp_path / "x").values() for gain in gains.values()) == [1, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("L4=3", "no gain for L1, L2, L3"),
        ("L9=1", "L9=1"),
        ("L1=x,L2=1,L3=1,L4=1", "L1=x"),
        ("L1=nan,L2=1,L3=1,L4=1", "L1=nan"),
        ("L1=1e9,L2=1,L3=1,L4=1", "L1=1e9"),
        ("L1=0,L1=1,L2=1,L3=1,L4=1", "L1=1"),
        ("L1=.5,L2=1,L3=1,L4=1", "whole numbers"),
    ],
)
def test_gains_that_fit_no_tier_are_named(given, said):
    with pytest.raises(LoreError, match=said):
        read_gains(given, TIERS, whole=True)


def test_rows_of_a_query_come_together_from_any_file(tmp_path, monkeypatch):
    """The partitions are small here; the order of the files does not matter."""
    rows = [label_row(f"query {number % 210}", f"item{number}", TIERS[number % 4]) for number in range(2100)]
    folder = write_labels(tmp_path / "labels", rows, files=5)
    whole = export_labels(folder, tmp_path / "one", "qrels")
    monkeypatch.setattr(export, "PARTITION_ROWS", 100)
    monkeypatch.setattr(export, "READ_ROWS", 512)
    parts = export_labels(folder, tmp_path / "many", "qrels")
    assert (whole.pairs, whole.queries) == (parts.pairs, parts.queries) == (2100, 210)
    found = qrels_of(tmp_path / "many")
    assert found == qrels_of(tmp_path / "one") and {len(gains) for gains in found.values()} == {10}


def test_the_reader_reads_every_row_and_names_what_it_cannot_read(tmp_path):
    rows = [label_row("q", f"i{number}", TIERS[number % 4]) for number in range(300)]
    folder = write_labels(tmp_path / "labels", rows, files=3)
    write_labels(folder, [label_row("q", "f", None, failure="refused")], kind=FAILURES)
    batches = list(read_labels(folder, ["pair_id", "tier"], batch_rows=64))
    assert sum(batch.num_rows for batch in batches) == count_labels(folder) == 300 and max(b.num_rows for b in batches) <= 64
    assert batches[0].schema.names == ["pair_id", "tier"] and next(read_labels(folder)).schema.names == label_schema(TIERS).names
    assert [row["failure"] for batch in read_labels(folder, kind=FAILURES) for row in batch.to_pylist()] == ["refused"]
    assert opened_labels(folder).schema == label_schema(TIERS)

    def refused(said: str) -> None:
        with pytest.raises(LoreError, match=said):
            list(read_labels(folder))

    name = folder / "verdicts" / "00-0000-ffffffffffffffffffff.parquet"
    table = pq.read_table(sorted((folder / "verdicts").iterdir())[0])
    pq.write_table(table.rename_columns(["p_L5" if one == "p_L4" else one for one in table.schema.names]), name)
    refused("p_L5, and other files")
    pq.write_table(table.replace_schema_metadata({"lore.stamp": "another judge"}), name)
    refused("labelled by another judge with")
    pq.write_table(table.drop_columns(["content"]), name)
    refused("column content: missing")
    at = table.schema.get_field_index("attempts")
    pq.write_table(table.set_column(at, "attempts", table.column("attempts").cast(pa.int64())), name)
    refused("column attempts: int64, expected int32")
    name.write_bytes(b"PAR1 cut")
    refused("not a readable Parquet file")
    name.unlink()
    (folder / "verdicts" / "mine.parquet").write_bytes(b"")
    refused("mine.parquet is no label file")
    with pytest.raises(LoreError, match="no label files"):
        list(read_labels(tmp_path))


def test_only_what_runs_is_escaped_for_another_program():
    for text in ("'90s", "007", "1e5", "-5", "+1.5", "a=b", "2024-01-31", "TRUE", ""):
        assert without_formulas(text) == text
    for text in ("=1+1", "  =x", "@a", "+cmd", "-x", "a;=b", "\uff1dx"):
        assert "'" in without_formulas(text)
