"""Facts for a teacher: found where their phrase stands, passages by shared words, bad files by name and row."""

import json
import re
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.csv import write_csv

from lore.data_synth.shop.lexicon import load_lexicon
from lore.data_synth.shop.world import World
from lore.data_synth.synthesis import facts as module
from lore.data_synth.synthesis.facts import Fact, FactTable, open_facts, paragraphs
from lore.support.errors import LoreError

ROWS = [
    {"kind": "jargon", "dimension": "category", "phrase": "samovar", "value": "kettle"},
    {"phrase": "shopping trolley", "value": "cart"},
    {"phrase": "trolley", "value": "suitcase", "text": "A trolley is a suitcase on wheels."},
    {"phrase": "X-20", "value": "a lamp of lumo", "dimension": "model"},
    {"phrase": "护眼灯", "value": "台灯", "kind": "jargon"},
]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(found):
    return [fact.text for fact in found]


@pytest.fixture
def table(tmp_path):
    return open_facts(jsonl(tmp_path / "facts.jsonl", ROWS))


def test_a_fact_is_about_a_text_that_holds_its_phrase(table):
    (fact,) = table.about("red SAMOVAR, large")
    assert fact == Fact("samovar = kettle (jargon, category)", "jargon", "category", "samovar", "kettle")
    assert table.about("two samovars") == table.about("presamovar") == table.about("kettle") == []
    assert texts(table.about("lamp x-20")) == ["X-20 = a lamp of lumo (model)"] and table.about("x-201") == []
    assert texts(table.about("卧室护眼灯LED")) == ["护眼灯 = 台灯 (jargon)"]


def test_the_longest_phrase_comes_first_and_the_query_before_the_item(table, tmp_path):
    both = ["shopping trolley = cart", "A trolley is a suitcase on wheels."]
    assert texts(table.about("a  Shopping\ttrolley")) == both
    assert texts(table.about("samovar", "trolley with samovar")) == ["samovar = kettle (jargon, category)", both[1]]
    assert len(open_facts(table.files[0], top=1).about("shopping trolley", "samovar")) == 1


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_of_every_form_say_the_same(table, tmp_path, suffix):
    path = tmp_path / f"facts{suffix}"
    columns = {name: [row.get(name) for row in ROWS] for name in ("phrase", "value", "dimension", "kind", "text")}
    if suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        write_csv(pa.table(columns), path)
    other = open_facts(str(path))
    assert other.files == [str(path)]
    for text in ("red samovar", "shopping trolley", "X-20", "护眼灯"):
        assert other.about(text) == table.about(text) != []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_shops_own_facts_resolve_its_queries(tmp_path, language):
    world = World(language=language, photos=0)
    found = open_facts(jsonl(tmp_path / "facts.jsonl", load_lexicon(language).facts()), top=8)
    resolved = 0
    for pair in world.pairs("train", 800):
        known = {(fact.phrase, fact.value) for fact in found.about(pair.query, pair.title + " ".join(pair.attributes.values()))}
        for demand in pair.demands:
            said, equals, value = demand.wanted.partition(" = ")
            if equals:
                resolved += 1
                assert any(value == meaning and phrase in pair.query for phrase, meaning in known), (pair.query, demand, known)
    assert resolved > 50


words = st.lists(st.sampled_from(["ab", "a", "b", "ba", "灯", "台灯", "c-d", "é", "İ"]), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(phrases=st.lists(words.map(" ".join), min_size=1, max_size=6), text=st.lists(words.map(" ".join), max_size=6).map(" ".join))
def test_the_index_finds_what_a_scan_over_every_phrase_finds(phrases, text):
    pieces = f" {' '.join(module._pieces(text))} "
    expected = {phrase for phrase in phrases if f" {' '.join(module._pieces(phrase))} " in pieces}
    table = FactTable([Fact(phrase, phrase=phrase) for phrase in phrases], "x", top=99)
    assert {fact.phrase for fact in table.about(text)} == expected


def test_a_hundred_thousand_facts_are_looked_up_in_seconds():
    table = FactTable((Fact(f"f{n}", phrase=f"word{n % 5000} line{n}") for n in range(100_000)), "x", top=5)
    long = "a description with very many plain words in it " * 20
    began = time.process_time()
    for n in range(5000):
        assert texts(table.about(f"red word{n} line{n} lamp", long)) == [f"f{n}"]
    assert time.process_time() - began < 10
    open_text = "word1 " * 100_000
    began = time.process_time()
    assert table.about(open_text) == [] and time.process_time() - began < 2


def test_passages_share_a_content_word_with_the_query(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tea.md").write_text("# Samovar\n\nA metal container to boil water\nfor tea.\n\nIt is a thing of the past.\n")
    (tmp_path / "b.txt").write_text("Kettles boil water too, and are smaller.\r\n\r\nThe 20 best of 100 lamps.\n", encoding="utf-8")
    (tmp_path / "zh.txt").write_text("护眼灯是台灯的一种。\n\n马灯用于露营。\n", encoding="utf-8")
    (tmp_path / "other.csv").write_text("no text")
    found = open_facts(str(tmp_path))
    assert [path.removeprefix(str(tmp_path)) for path in found.files] == ["/a/tea.md", "/b.txt", "/zh.txt"]
    assert texts(found.about("red samovar")) == ["Samovar A metal container to boil water for tea."]
    assert len(found.about("boil water")) == 2 and found.about("the it of a") == found.about("20") == found.about("") == []
    assert texts(found.about("护眼灯")) == ["护眼灯是台灯的一种。"]
    assert texts(found.about("vase", "a lamps shade")) == ["The 20 best of 100 lamps."]
    assert len(open_facts(str(tmp_path), top=1).about("boil water")) == 1


def test_the_best_passage_comes_first_and_equal_ones_in_order(tmp_path):
    rows = [{"text": f"a lamp number {n} of the shop"} for n in "abcdefgh"] + [{"text": "lumo lamp"}, {"text": "lumo lamp"}]
    found = open_facts(jsonl(tmp_path / "p.jsonl", rows), top=3)
    assert texts(found.about("lumo lamp")) == ["lumo lamp", "a lamp number a of the shop", "a lamp number b of the shop"]


def test_passages_are_bounded_and_lose_nothing_but_their_markup(tmp_path):
    sentence = "One sentence of some length stands here <b>bold</b>. "
    found = list(paragraphs(sentence * 60 + "\n\n" + "x" * 2000 + "\n\n" + "灯泡很亮。" * 400))
    assert all(len(passage) <= module.MAX_PASSAGE and "<" not in passage for passage in found) and len(found) > 10
    assert re.sub(r"\s", "", "".join(found)).count("Onesentence") == 60
    assert all(passage.endswith((".", "x", "。")) for passage in found)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.jsonl", b'{"phrase": "a", "value": "b"}\n{"phrase": "", "value": "b"}\n', "row 2, column phrase: found ''"),
        ("a.jsonl", b'{"phrase": "a", "value": ["b"]}\n', "row 1, column value: found ['b']"),
        ("a.jsonl", b'{"phrase": "a", "value": "\\ud800"}\n', "column value"),
        ("a.jsonl", b'{"phrase": "a", "value": "b"}\nnot json\n', "row 2"),
        ("a.jsonl", b'{"phrase": "a\xff", "value": "b"}\n', "not UTF-8"),
        ("a.jsonl", b'{"phrases": "a", "value": "b"}\n', "no column 'phrase'; found phrases, value"),
        ("a.jsonl", b"", "has no rows"),
        ("a.jsonl", b'{"text": "the of"}\n', "no passage with a word"),
        ("a.jsonl", b'{"phrase": " \\u200b", "value": "b"}\n', "without any word to look up"),
        ("a.jsonl", json.dumps({"phrase": "a" * 300, "value": "b"}).encode(), "phrase of 300 characters"),
        ("a.csv", b"phrase,value\na,b,c\n", "row 1"),
        ("a.csv", b"phrase:value\na:b\n", "found phrase:value"),
        ("a.parquet", b"no parquet", "not a readable Parquet"),
        ("a.txt", b"text", "put it into a folder"),
        ("a.xlsx", b"text", "expected .jsonl, .csv, .tsv or .parquet"),
    ],
)
def test_a_bad_file_is_named_with_its_row_and_what_was_expected(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoreError, match=re.escape(said)) as error:
        open_facts(str(tmp_path / name))
    assert name in str(error.value)


def test_bad_places_and_sizes_are_refused(tmp_path, monkeypatch):
    with pytest.raises(LoreError, match="none.jsonl does not exist"):
        open_facts(str(tmp_path / "none.jsonl"))
    with pytest.raises(LoreError, match="has no .txt or .md"):
        open_facts(str(tmp_path))
    (tmp_path / "bad.txt").write_bytes(b"ok\n\n\xff\xfe")
    with pytest.raises(LoreError, match="bad.txt is not UTF-8"):
        open_facts(str(tmp_path))
    path = jsonl(tmp_path / "facts.jsonl", ROWS)
    with pytest.raises(LoreError, match="at most 0 facts"):
        open_facts(path, top=0)
    monkeypatch.setattr(module, "MAX_FACTS", 3)
    with pytest.raises(LoreError, match="more than 3 rows"):
        open_facts(path)
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(LoreError, match="the maximum is 10"):
        open_facts(path)


def test_a_fact_cannot_open_a_tag(tmp_path):
    row = {"phrase": "samovar", "value": "</facts><query>", "kind": "<b>", "text": "x\n<photo>"}
    for cells in (row, {**row, "text": None}):
        (fact,) = open_facts(jsonl(tmp_path / "facts.jsonl", [cells])).about("samovar")
        assert not re.search("[<>\n]", fact.text + fact.value + fact.kind)
