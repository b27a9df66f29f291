"""Pairs with a rule book of their own: where a book may lie, what it must agree with, and who refuses such pairs."""

from dataclasses import replace

import pytest

from lore.config.yaml_text import to_yaml
from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.parquet import PairWriter
from lore.data.rule_books import RuleBooks, book_files
from lore.data.section import JudgedDataSection
from lore.data.splits import FRACTIONS, read_split
from lore.rubric.rubric import load_rubric
from lore.rubric.rule_edits import RuleChange, changed_rubric
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError

SHOP = load_rubric("shop")
STRICT = changed_rubric(SHOP, {"colour-family": RuleChange(tier="L2")})
RATIONALE = "category: mug | mug (title) | category-same L4; colour: red | pink (title) | colour-family L2"
RATED = {"label": "L2", "rationale": RATIONALE, "rubric": "books/strict.yaml"}
PAIR = Pair(pair_id="a", query="red mug", title="pink mug", split="train", **RATED)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pairs"
    (folder / "books").mkdir(parents=True)
    (folder / "books" / "strict.yaml").write_text(to_yaml(STRICT.model_dump(exclude_defaults=True)))
    (tmp_path / "outside.yaml").write_text((folder / "books" / "strict.yaml").read_text())
    with PairWriter(folder / "train.parquet") as writer:
        writer.write(replace(PAIR, pair_id="plain", rubric=None, label="L3", rationale=None))
        writer.write(PAIR)
    return folder


def test_a_pair_has_its_own_book_or_the_rubric_of_the_data(folder):
    books = RuleBooks([folder], SHOP)
    assert books.of(PAIR) == STRICT and books.of(PAIR).hash == STRICT.hash
    assert books.of(replace(PAIR, rubric=None)) is SHOP


NO_FILES = ["a\0.yaml", "a\ud800.yaml", "a" * 300 + ".yaml", "a/" * 3000 + "b.yaml", "circle.yaml", "here/outside.yaml"]


@pytest.mark.parametrize("name", ["../outside.yaml", "/etc/hosts", "books/none.yaml", "books", "train.parquet", *NO_FILES])
def test_a_book_lies_below_the_pairs(folder, name):
    (folder / "circle.yaml").symlink_to("circle.yaml")
    (folder / "here").symlink_to("..")
    assert book_files([folder], name) == []
    with pytest.raises(LoreError, match="Copy the books along with the pairs"):
        RuleBooks([folder], SHOP).of(replace(PAIR, rubric=name))


def test_two_books_of_one_name_are_told_apart(folder, tmp_path):
    book, other = folder / "books" / "strict.yaml", tmp_path / "other" / "books" / "strict.yaml"
    other.parent.mkdir(parents=True)
    other.write_text(book.read_text() + "\n# the same rules\n")
    folders = [folder, tmp_path / "other"]
    assert book_files(folders, "books/strict.yaml") == [book, other]
    assert RuleBooks(folders, SHOP).of(PAIR) == STRICT
    other.write_text(to_yaml(SHOP.model_dump(exclude_defaults=True)))
    with pytest.raises(LoreError, match="different rule books of one name, and a pair that names books/strict.yaml"):
        RuleBooks(folders, SHOP).of(PAIR)


def test_a_damaged_book_is_read_once(folder):
    books, path = RuleBooks([folder], SHOP), folder / "books" / "strict.yaml"
    path.write_text("name: [")
    with pytest.raises(LoreError, match="strict.yaml") as first:
        books.of(PAIR)
    path.unlink()
    with pytest.raises(LoreError) as second:
        books.of(PAIR)
    assert str(first.value) == str(second.value)


def test_a_book_has_the_tiers_of_the_rubric(folder):
    (folder / "books" / "esci.yaml").write_text(to_yaml(load_rubric("esci").model_dump(exclude_defaults=True)))
    with pytest.raises(LoreError, match="L1, L2, L3, L4. One judge gives one scale"):
        RuleBooks([folder], SHOP).of(replace(PAIR, rubric="books/esci.yaml"))


def test_a_label_or_rationale_that_contradicts_the_book_is_refused(folder):
    books = RuleBooks([folder], SHOP)
    with pytest.raises(LoreError, match="the rationale gives colour-family the tier L3, and it is L2"):
        books.of(replace(PAIR, rationale=RATIONALE.replace("family L2", "family L3"), label="L3"))
    with pytest.raises(LoreError, match="the label is L4, and L2 follows from the rationale"):
        books.of(replace(PAIR, label="L4"))
    assert books.of(replace(PAIR, rationale=None, label="L4")) == STRICT  # nothing to compare


def test_stages_that_know_one_rubric_refuse_such_pairs(folder, tmp_path):
    source = PairSource(JudgedDataSection(path=str(folder), rubric="shop", split="train"), tmp_path / "run")
    assert [source.books.of(pair) for pair in source.labeled(any_book=True)] == [SHOP, STRICT]
    for columns in (None, ["label"]):
        read = source.labeled(columns=columns)
        assert next(read).pair_id == "plain"
        with pytest.raises(LoreError, match="Pair a of .* is rated under a rule book of its own, books/strict.yaml"):
            next(read)
    for fractions in (None, FRACTIONS):  # as evaluation and the watch of a training run read them
        with pytest.raises(LoreError, match="knows data.rubric only"):
            list(read_split(folder, "train", fractions, columns=["label"]))
        assert len(list(read_split(folder, "train", fractions, columns=["title"]))) == 2


def test_a_book_is_an_input_of_the_run(folder):
    section = JudgedDataSection(path=str(folder), rubric="shop")
    named = section.input_fingerprints()["path"]
    assert [path for _, path in named.listed()] == [folder / "train.parquet"]
    assert named.photos() == [folder / "books" / "strict.yaml"]


def test_books_of_a_table_lie_beside_it_and_are_inputs_too(folder, tmp_path):
    (folder / "rated.csv").write_text("term,title,grade,rules\nred mug,pink mug,L2,books/strict.yaml\nred mug,red mug,L4,\n")
    columns = {"query": "term", "title": "title", "label": "grade", "rubric": "rules"}
    section = JudgedDataSection(path=str(folder / "rated.csv"), source="table", rubric="shop", options={"map": columns})
    source = PairSource(section, RunFolder(tmp_path / "run"))
    assert [source.books.of(pair) for pair in source.labeled(any_book=True)] == [STRICT, SHOP]
    assert section.input_fingerprints()["path"].photos() == [folder / "books" / "strict.yaml"]
