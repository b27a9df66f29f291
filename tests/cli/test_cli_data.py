"""`lore data` as a user types it: real files, exit codes, no tracebacks."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from lore.cli.data import app
from lore.data.pair import Pair
from lore.data.parquet import PairWriter, read_metadata, read_pairs
from lore.rubric.rubric import load_rubric

TABLE = "search_term,product_title,relevance\nred cup,Cup,2.67\ncup,Glass,1\nCUP,glass,3\n,Plate,1\n"


def lore(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def lore_json(*arguments, code=0) -> dict:
    return json.loads(lore(*arguments, "--json", code=code).stdout)


@pytest.fixture
def table(tmp_path):
    (tmp_path / "my.csv").write_text(TABLE)
    return tmp_path / "my.csv"


@pytest.fixture
def pairs(table, tmp_path):
    columns = "query=search_term,title=product_title,label=relevance"
    lore("import", "table", table, "--map", columns, "--rubric", "homedepot", "-o", tmp_path / "pairs.parquet")
    return tmp_path / "pairs.parquet"


def test_import_check_stats_split_in_a_row(pairs, tmp_path):
    assert [(p.query, p.label) for p in read_pairs(pairs)] == [("red cup", "3"), ("cup", "1"), ("CUP", "3")]
    (line,) = (tmp_path / "pairs.rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "query_empty" and json.loads(line)["row"] == 4
    report = lore_json("check", pairs)
    assert (report["pairs"], report["rejected_rows"], report["duplicates"], report["conflicting"]) == (3, 0, 0, 1)
    assert "conflicting labels" in lore("check", pairs).stdout
    counts = lore_json("split", pairs, "--by", "query", "--fractions", "train=0.5,test=0.5")["pairs"]
    assert sum(counts.values()) == 3
    found = lore_json("stats", pairs)
    assert found["queries"] == 2 and sum(found["queries_shared_by_splits"].values()) == 0
    assert read_metadata(pairs)["lore.rubric"] == "homedepot"
    for word in ("Tiers by split", "Lengths in characters", "conflicting labels"):
        assert word in lore("stats", pairs).stdout


def test_the_map_may_be_given_in_parts(table, tmp_path):
    parts = ["--map", "query=search_term", "--map", "title=product_title"]
    report = lore_json("import", "table", table, *parts, "--rubric", "shop", "-o", tmp_path / "a.parquet")
    assert report["pairs"] == 3 and report["reasons"] == {"query_empty": 1}


def test_check_drops_duplicates_and_bad_rows_into_the_rejected_file(tmp_path):
    with PairWriter(tmp_path / "x.parquet", metadata={"lore.rubric": "crowdflower"}) as writer:
        for number, (title, label) in enumerate([("a", "4"), ("a", "4"), ("a", "3"), ("b\0", "4"), ("c", "9"), ("d", "1")]):
            writer.write(Pair(pair_id=str(number), query="q", title=title, label=label, slices=["s"]))
    result = lore("check", tmp_path / "x.parquet", code=1)
    assert "nul_byte" in result.stdout and "label_unknown" in result.stdout
    lore("check", tmp_path / "x.parquet", "-o", tmp_path / "clean.parquet", "--drop-duplicates")
    kept = list(read_pairs(tmp_path / "clean.parquet"))
    assert [p.pair_id for p in kept] == ["0", "5"] and kept[0].slices == ["s"]
    lines = [json.loads(line) for line in (tmp_path / "clean.rejected.jsonl").read_text().splitlines()]
    assert [(line["row"], line["reason"]) for line in lines] == [
        (4, "nul_byte"),
        (5, "label_unknown"),
        (2, "duplicate_pair"),
        (3, "conflicting_label"),
    ]
    assert lore_json("check", tmp_path / "clean.parquet")["rejected_rows"] == 0
    assert "writes a new file: name it with -o" in lore("check", tmp_path / "x.parquet", "--drop-duplicates", code=1).output


def test_check_without_a_rubric_says_that_labels_went_unchecked(tmp_path):
    with PairWriter(tmp_path / "x.parquet") as writer:
        writer.write(Pair(pair_id="1", query="q", title="t", label="anything"))
    assert "Labels were not checked" in lore("check", tmp_path / "x.parquet").output
    assert "label_unknown" in lore("check", tmp_path / "x.parquet", "--rubric", "esci", code=1).output


def test_columns_that_no_pair_has_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"pair_id": ["1"], "query": ["q"], "title": ["t"], "rule_list": ["L4"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert lore_json("check", tmp_path / "x.parquet")["extra_columns"] == ["rule_list"]
    assert "L4" not in str(list(read_pairs(tmp_path / "x.parquet")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "crowdflower", "none.csv", "-o", "a.parquet"], "kaggle.com/c/crowdflower-search-relevance"),
        (["import", "crowdfolwer", "none.csv", "-o", "a.parquet"], "Nearest: 'crowdflower'"),
        (["import", "table", "my.csv", "-o", "a.parquet"], "Pass --rubric"),
        (["import", "table", "my.csv", "--rubric", "nope", "-o", "a.parquet"], "no rubric 'nope'"),
        (["import", "table", "my.csv", "--locale", "us", "-o", "a.parquet"], "no option 'locale'"),
        (["import", "table", "my.csv", "--rubric", "shop", "--map", "query=a,title=b,query=c", "-o", "a.parquet"], "'query' twice"),
        (["import", "table", "my.csv", "--rubric", "shop", "--delimiter", ";;", "-o", "a.parquet"], "expected one character"),
        (["import", "table", "my.csv", "--rubric", "shop", "-o", "my.csv"], "would be overwritten"),
        (["split", "none.parquet", "-o", "b.parquet", "--fractions", "a=nan"], "sum to nan"),
        (["split", "none.parquet", "-o", "b.parquet", "--fractions", "a=.5,a=1"], "expected name=share"),
        (["stats", "none.parquet"], "No pairs at"),
        (["check", "my.csv"], "not a readable Parquet"),
        (["split", "none.parquet"], "No pairs at"),
        (["split", "none.parquet", "-o", "b.parquet", "--fractions", "train"], "expected name=share"),
    ],
)
def test_an_error_is_one_message_and_exit_code_1(table, monkeypatch, arguments, message):
    monkeypatch.chdir(table.parent)
    result = lore(*arguments, code=1)
    assert message in result.stderr and result.stderr.startswith("error: ")
    assert [path.name for path in table.parent.iterdir()] == ["my.csv"]


def test_the_table_says_what_it_leaves_out(table, tmp_path):
    parts = ["--map", "query=search_term,title=product_title", "--rubric", "shop", "-o", tmp_path / "a.parquet"]
    report = lore_json("import", "table", table, *parts)
    assert (report["extra_columns"], report["unlabeled"]) == (["relevance"], 3)
    shown = lore("import", "table", table, *parts).stdout
    assert "Columns that are not read: relevance" in shown and "without a label" in shown


def test_a_wrong_delimiter_is_named(table, tmp_path):
    parts = ["--delimiter", ";", "--rubric", "shop", "-o", tmp_path / "a.parquet"]
    assert "--delimiter ','" in lore("import", "table", table, *parts, code=1).stderr


def test_a_tab_may_be_typed_as_two_characters(tmp_path):
    (tmp_path / "my.csv").write_text("query\ttitle\nq\tt\n")
    parts = ["--delimiter", "\\t", "--rubric", "shop", "-o", tmp_path / "a.parquet"]
    assert lore_json("import", "table", tmp_path / "my.csv", *parts)["pairs"] == 1


def test_an_import_never_writes_over_what_it_reads(table, tmp_path):
    source = tmp_path / "out.rejected.jsonl"
    source.write_text('{"query": "q", "title": "t"}\n')
    link = tmp_path / "link.csv"
    link.symlink_to(table)
    (tmp_path / "data.jsonl").symlink_to(source)
    for path, out in ((tmp_path / "data.jsonl", "out.parquet"), (link, "my.csv"), (table, "link.csv")):
        before = {file: file.read_bytes() for file in tmp_path.iterdir()}
        error = lore("import", "table", path, "--rubric", "shop", "-o", tmp_path / out, code=1).stderr
        assert "would be overwritten" in error
        assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_pairs_file_may_be_checked_and_split_in_place(pairs):
    lore("check", pairs, "-o", pairs, "--drop-duplicates")
    lore("split", pairs)
    assert len(list(read_pairs(pairs))) == 2


def test_an_import_without_a_good_row_fails_and_keeps_the_older_output(pairs, tmp_path):
    before = pairs.read_bytes()
    (tmp_path / "bad.csv").write_text("query,title\n,a\n,b\n")
    for switches in ([], ["--drop-duplicates"]):
        result = lore("import", "table", tmp_path / "bad.csv", "--rubric", "shop", "-o", pairs, *switches, code=1)
        assert "No row is a valid pair" in result.stderr and "is kept" in result.stderr
        assert pairs.read_bytes() == before
        assert len((tmp_path / "pairs.rejected.jsonl").read_text().splitlines()) == 2
        assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.csv", "my.csv", "pairs.parquet", "pairs.rejected.jsonl"]


RUBRIC = """
name: mine
version: "1"
tiers:
  - {id: "1", name: bad, meaning: bad, relevant: false}
  - {id: "2", name: good, meaning: good, relevant: true}
"""


def test_a_rubric_of_ones_own_is_found_from_any_folder_and_its_change_is_noticed(table, tmp_path, monkeypatch):
    (tmp_path / "my.yaml").write_text(RUBRIC)
    (tmp_path / "my.csv").write_text("query,title,label\na,b,1.0\na,c,2\n")
    monkeypatch.chdir(tmp_path)
    lore("import", "table", "my.csv", "--rubric", "my.yaml", "-o", "a.parquet")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = lore("check", "../a.parquet")
    assert "warning" not in result.stderr and [p.label for p in read_pairs("../a.parquet")] == ["1", "2"]
    then = read_metadata("../a.parquet")
    (tmp_path / "my.yaml").write_text(RUBRIC.replace("meaning: good", "meaning: better"))
    result = lore("check", "../a.parquet", "-o", "b.parquet")
    assert "labels follow the old text" in result.stderr
    now = read_metadata("b.parquet")
    assert now["lore.rubric"] == then["lore.rubric"] == str(tmp_path / "my.yaml")
    assert now["lore.rubric_hash"] == load_rubric(tmp_path / "my.yaml").hash != then["lore.rubric_hash"]
    lore("check", "../a.parquet", "--rubric", "rair", "-o", "c.parquet", code=1)
    (tmp_path / "other.yaml").write_text(RUBRIC.replace("mine", "other"))
    assert lore("check", "../a.parquet", "--rubric", "../other.yaml", "-o", "c.parquet").exit_code == 0
    assert read_metadata("c.parquet")["lore.rubric_hash"] == load_rubric(tmp_path / "other.yaml").hash
    assert read_metadata("c.parquet")["lore.source"] == "table"


def test_check_shows_where_pairs_repeat(tmp_path):
    with PairWriter(tmp_path / "x.parquet", metadata={"lore.rubric": "crowdflower"}) as writer:
        for number, label in enumerate(["4", "4", "3"]):
            writer.write(Pair(pair_id=str(number), query="q", title="a", label=label))
    shown = lore("check", tmp_path / "x.parquet").stdout
    assert "x.parquet row 2 repeats row 1" in shown and "x.parquet row 3 has another label than row 1" in shown


def test_splits_and_labels_without_end_are_counted_together(tmp_path):
    with PairWriter(tmp_path / "x.parquet") as writer:
        for number in range(70_000):
            writer.write(Pair(pair_id=str(number), query=f"q{number}", title="a", split=f"s{number}", label=f"l{number}"))
    found = lore_json("stats", tmp_path / "x.parquet")
    assert found["pooled"] == ["splits", "labels"] and found["queries_by_split"]["(others)"] == 70_000 - 20
    assert len(found["tiers"]) == 21 and found["labeled"] == 70_000
    assert "the rest is counted as (others): splits, labels" in lore("stats", tmp_path / "x.parquet").stdout


def test_a_report_prints_where_the_terminal_is_not_utf8(tmp_path):
    (tmp_path / "my.csv").write_bytes(b"query,title,image\nq,t,caf\xe9.jpg\n" + "q,t,日本.jpg\nq,u,\n".encode())
    command = [sys.executable, "-m", "lore", "data", "import", "table", "my.csv", "--rubric", "shop", "-o", "a.parquet"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    for more in ([], ["--json"]):
        done = subprocess.run([*command, *more], capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert json.loads(done.stdout)["reasons"] == {"encoding": 1, "image_missing": 1}


def test_a_folder_in_place_of_the_output_is_one_message(table, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    columns = "query=search_term,title=product_title"
    arguments = ["import", "table", table, "--map", columns, "--rubric", "shop", "-o", tmp_path / "taken"]
    assert "taken" in lore(*arguments, code=1).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.csv", "taken"]


def test_the_command_line_loads_nothing_heavy():
    heavy = ("pyarrow", "numpy", "PIL", "torch", "pydantic", "datasets")
    code = f"import sys, lore.cli.data; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert found.stdout.strip() == "[]"
