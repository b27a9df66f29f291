"""The same pairs land in the same split whichever way they take to a recipe."""

import json

import pytest
from PIL import Image
from source_files import load
from typer.testing import CliRunner

from lore.cli.data import app
from lore.data.pair_source import PairSource
from lore.data.parquet import read_pairs
from lore.data.section import DataSection, JudgedDataSection
from lore.data.splits import split_of
from lore.eval.testset import load_split
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError
from lore.train.watch.attach import probe_pairs
from lore.train.watch.config import WatchSection

MAP = {"query": "q", "title": "t", "label": "y", "locale": "where", "image": "photo"}
FRACTIONS = {"train": 0.5, "dev": 0.2, "test": 0.3}


@pytest.fixture
def table(tmp_path):
    """Queries in other cases and spacings, with HTML, in two markets, with photos; every tenth row is no pair."""
    Image.new("RGB", (8, 8), (200, 30, 30)).save(tmp_path / "a.png")
    queries = [text for at in range(30) for text in (f"Query {at}", f" query  {at} ", f"<b>query</b> {at}")]
    rows = [
        {
            "q": query,
            "t": f"t{at}",
            "y": "3" if at % 10 else "?",
            "where": "us" if at % 2 else "es",
            "photo": "a.png" if at % 3 else None,
        }
        for at, query in enumerate(queries)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "a.jsonl"


def by_split(section, folder, names=("train", "dev", "test")):
    return {
        name: [pair.pair_id for pair in PairSource(section.model_copy(update={"split": name}), folder).labeled()] for name in names
    }


def data(path, source="pairs", **values):
    return DataSection(path=str(path), source=source, split="train", **values)


class Judged(DataSection):
    """A section that checks labels, as the stages' sections do."""

    def load_rubric(self):
        return load_rubric("homedepot")


@pytest.mark.parametrize("fractions", [None, FRACTIONS])
def test_a_csv_by_recipe_an_import_and_a_split_file_give_one_split(table, tmp_path, fractions):
    given = {"split_fractions": fractions} if fractions else {}
    section = Judged(path=str(table), source="table", split="train", options={"map": MAP}, **given)
    by_recipe = by_split(section, tmp_path / "one")
    assert all(by_recipe.values()) and sum(map(len, by_recipe.values())) == 81

    pairs, report, _ = load("table", table, tmp_path, "homedepot", options={"map": MAP})
    imported = tmp_path / "out" / "pairs.parquet"
    assert {pair.split for pair in pairs} == {None} and report.unsplit == 81
    assert by_split(data(imported, **given), tmp_path / "two") == by_recipe
    assert {pair.split for pair in read_pairs(imported)} == {None}  # the user's file is left as it was

    shares = ",".join(f"{name}={share}" for name, share in fractions.items()) if fractions else "train=0.7,dev=0.1,test=0.2"
    done = CliRunner().invoke(app, ["split", str(imported), "-o", str(tmp_path / "split.parquet"), "--fractions", shares])
    assert done.exit_code == 0
    assert by_split(data(tmp_path / "split.parquet"), tmp_path / "three") == by_recipe
    assert not (tmp_path / "three" / "data" / "pairs.parquet").exists()  # a file with splits is read where it is

    split_by_query = {}
    for pair in read_pairs(tmp_path / "split.parquet"):
        split_by_query.setdefault(" ".join(pair.query.casefold().split()), set()).add(pair.split)
    assert len(split_by_query) == 30 and all(len(splits) == 1 for splits in split_by_query.values())


def test_a_split_that_is_given_stays_and_the_rest_is_dealt(tmp_path):
    rows = [{"query": f"q{at}", "title": "t", "label": "3", **({"split": "test"} if at < 10 else {})} for at in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    by_recipe = by_split(Judged(path=str(tmp_path / "a.jsonl"), source="table", split="train"), tmp_path / "one")
    load("table", tmp_path / "a.jsonl", tmp_path, "homedepot")
    imported = tmp_path / "out" / "pairs.parquet"
    assert by_split(data(imported), tmp_path / "two") == by_recipe
    tested = {pair.query for pair in read_pairs(tmp_path / "two" / "data" / "pairs.parquet", split="test")}
    assert {f"q{at}" for at in range(10)} <= tested == {q for q in tested if int(q[1:]) < 10 or split_of(q) == "test"}


def test_a_run_without_a_split_reads_the_file_itself_and_an_evaluation_deals_it(table, tmp_path, capsys):
    load("table", table, tmp_path, "homedepot", options={"map": MAP})
    imported = tmp_path / "out" / "pairs.parquet"
    everything = DataSection(path=str(imported))
    assert PairSource(everything, tmp_path / "one").path == imported
    source = PairSource(everything, tmp_path / "two", splits=True)
    assert source.path == tmp_path / "two" / "data" / "pairs.parquet"
    assert "81 pairs have no split; dealt 70/10/20 by query (train/dev/test)" in capsys.readouterr().out
    again = PairSource(everything, tmp_path / "two", splits=True)
    assert again.fingerprint == source.fingerprint and len(list(again.labeled())) == 81


def test_another_file_of_a_run_is_dealt_by_the_same_rule(table, tmp_path):
    load("table", table, tmp_path, "homedepot", options={"map": MAP})
    imported = tmp_path / "out" / "pairs.parquet"
    source = PairSource(JudgedDataSection(path=str(imported), rubric="homedepot", split="train"), tmp_path / "run")
    probe = WatchSection(pairs=1000, path=str(imported), split="dev")
    dev = [pair.pair_id for pair in read_pairs(source.path, split="dev")]
    assert dev and [pair.pair_id for pair in probe_pairs(probe, source, photos=True)] == dev
    assert load_split(imported, "dev", source.rubric, fractions=source.dealt).pair_ids == list(dict.fromkeys(dev))
    everything = PairSource(JudgedDataSection(path=str(imported), rubric="homedepot"), tmp_path / "run")
    with pytest.raises(LoreError, match="no labeled pair of split dev"):  # such a run trains on these pairs
        probe_pairs(probe, everything, photos=True)


def test_an_import_says_who_deals_the_splits(table, tmp_path):
    mapped = ",".join(f"{field}={column}" for field, column in MAP.items())
    done = CliRunner().invoke(
        app, ["import", "table", str(table), "--map", mapped, "--rubric", "homedepot", "-o", str(tmp_path / "a.parquet")]
    )
    assert "split: none yet; a recipe deals 70/10/20 by query (train/dev/test), as `lore data split` does" in done.stdout
