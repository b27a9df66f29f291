"""`lore data` as a user types it: real files, exit codes, no tracebacks."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from lore.data_cli import app
from lore.pairs import Pair, PairWriter, read_metadata, read_pairs

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
    assert "without them: say where" in lore("check", tmp_path / "x.parquet", "--drop-duplicates", code=1).output


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
        (["import", "crowdfolwer", "none.csv", "-o", "a.parquet"], "Nearest: crowdflower"),
        (["import", "table", "my.csv", "-o", "a.parquet"], "Pass --rubric"),
        (["import", "table", "my.csv", "--rubric", "nope", "-o", "a.parquet"], "no rubric 'nope'"),
        (["import", "table", "my.csv", "--locale", "us", "-o", "a.parquet"], "no option 'locale'"),
        (["stats", "none.parquet"], "No pairs at"),
        (["check", "my.csv"], "no readable Parquet"),
        (["split", "none.parquet"], "No pairs at"),
        (["split", "none.parquet", "-o", "b.parquet", "--fractions", "train"], "expected name=share"),
    ],
)
def test_an_error_is_one_message_and_exit_code_1(table, monkeypatch, arguments, message):
    monkeypatch.chdir(table.parent)
    result = lore(*arguments, code=1)
    assert message in result.stderr and result.stderr.startswith("error: ")
    assert [path.name for path in table.parent.iterdir()] == ["my.csv"]


def test_a_folder_in_place_of_the_output_is_one_message(table, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    columns = "query=search_term,title=product_title"
    arguments = ["import", "table", table, "--map", columns, "--rubric", "shop", "-o", tmp_path / "taken"]
    assert "taken" in lore(*arguments, code=1).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.csv", "taken"]


def test_the_command_line_loads_nothing_heavy():
    heavy = ("pyarrow", "numpy", "PIL", "torch", "pydantic", "datasets")
    code = f"import sys, lore.data_cli; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert found.stdout.strip() == "[]"
