"""Forms of input: tables of every kind, search logs with a catalogue, User Behavior Insights. Real files throughout."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from lore.data.images import ImageError, image_bytes
from lore.data.importers.table import column_map
from lore.data.pair import Pair, make_pair_id, query_key
from lore.data.parquet import MAX_BATCH_BYTES, PairWriter, read_pairs
from lore.data.rejected_rows import RejectedWriter, Rejection
from lore.label.config import InputSection
from lore.label.inputs import open_input, pairs_of
from lore.label.schema import QUESTION_SCHEMA
from lore.support.errors import LoreError

ITEMS = [
    {
        "item_id": "100001",
        "title": "Red <b>mug</b>",
        "attributes": [{"key": "colour", "value": "red"}],
        "price": 5.0,
        "image": "a.png",
    },
    {"item_id": "2", "title": "Blue mug", "attributes": [], "price": None, "image": None},
    {
        "item_id": "003",
        "title": "Chair",
        "attributes": [{"key": "seats", "value": "1"}, {"key": "wood", "value": "oak"}],
        "price": 1.5,
        "image": None,
    },
]


class Sink(list):
    write = list.append

    @property
    def reasons(self) -> list[tuple[str, int, str, str]]:
        return [(Path(one.file).name, one.row, one.field, one.reason) for one in self]


def read(section: dict, work: Path) -> tuple[list[Pair], Sink]:
    sink = Sink()
    given = open_input(InputSection(**section), work, sink)
    batches = list(given.batches())
    assert all(batch.schema == QUESTION_SCHEMA and 0 < len(batch) <= 8192 for batch in batches)
    pairs = pairs_of(pa.Table.from_batches(batches, QUESTION_SCHEMA))
    assert len(pairs) == given.rows
    return pairs, sink


def jsonl(path: Path, rows: list) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.fixture
def catalogue(tmp_path) -> str:
    (tmp_path / "a.png").write_bytes(b"x")
    pq.write_table(pa.Table.from_pylist(ITEMS), tmp_path / "items.parquet")
    return str(tmp_path / "items.parquet")


def test_pairs_files_are_read_as_training_reads_them(tmp_path):
    written = [
        Pair(
            pair_id=f"p{n}",
            query=f"query {n % 7}",
            title=f"Title {n}",
            attributes={"colour": "red"} if n % 2 else {},
            label="L4",
            slices=["s"],
            query_frequency=float(n),
            image={"bytes": None, "path": "photos/a.png"} if n % 3 == 0 else None,
            price=n / 3,
        )
        for n in range(4_500)
    ]
    with PairWriter(tmp_path / "pairs" / "a.parquet") as writer:
        for pair in written:
            writer.write(pair)
    (tmp_path / "pairs" / "photos").mkdir()
    pairs, sink = read({"path": str(tmp_path / "pairs")}, tmp_path / "work")
    fields = ["attributes", "slices", "query_frequency", "image", "price"]
    assert pairs == list(read_pairs(tmp_path / "pairs", columns=fields, image_roots=()))
    assert not sink and pairs[0].label is None


def test_the_same_rows_from_parquet_csv_jsonl_folder_and_glob(tmp_path):
    rows = [
        {"q": f"query {n}", "t": f"Title {n}", "colour": "red" if n % 2 else "", "p": f"{n}.5", "market": "us"} for n in range(20)
    ]
    mapped = {"map": {"query": "q", "title": "t", "attributes.colour": "colour", "price": "p", "locale": "market"}}
    (tmp_path / "day=1").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:11]), tmp_path / "day=1" / "a.parquet")
    (tmp_path / "day=1" / "b").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[11:]), tmp_path / "day=1" / "b" / "c.parquet")
    (tmp_path / "day=1" / "_SUCCESS").touch()
    pa.csv.write_csv(pa.Table.from_pylist(rows), tmp_path / "t.csv")
    jsonl(tmp_path / "t.jsonl", rows)
    expected, sink = read({"path": str(tmp_path / "t.parquet"), **mapped}, tmp_path / "work")
    assert not sink and expected[1].attributes == {"colour": "red"} and expected[0].attributes == {}
    assert expected[3].price == 3.5 and expected[3].slices == ["locale:us"]
    for form in ("t.csv", "t.jsonl", "day=1", "day=*/*/*.parquet"):
        pairs, sink = read({"path": str(tmp_path / form), **mapped}, tmp_path / "work")
        assert pairs == (expected if form != "day=*/*/*.parquet" else expected[11:]), form


def test_bad_rows_are_rejected_with_their_place_and_good_rows_go_on(tmp_path):
    path = jsonl(
        tmp_path / "t.jsonl",
        [
            {"query": "red mug", "title": "Mug", "label": ["any", "thing"]},
            "no json",
            {"query": " ", "title": "Mug"},
            {"query": "q", "title": "t", "price": "cheap"},
            "",
            {"query": "blue mug", "title": "Mug", "price": "$5"},
        ],
    )
    with RejectedWriter(tmp_path / "labels", tmp_path / "rejected.jsonl") as rejected:
        given = open_input(InputSection(path=path), tmp_path / "work", rejected)
        pairs = pairs_of(pa.Table.from_batches(given.batches()))
    assert [(pair.query, pair.price, pair.label) for pair in pairs] == [("red mug", None, None), ("blue mug", 5.0, None)]
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert sorted((one["row"], one["field"], one["reason"]) for one in lines) == [
        (2, "row", "field_type"),
        (3, "query", "query_empty"),
        (4, "price", "field_type"),
    ]
    assert {one["file"] for one in lines} == {path} and given.rejected_rows == 3


def test_an_input_without_a_pair_and_a_damaged_file_stop_with_their_name(tmp_path):
    path = jsonl(tmp_path / "t.jsonl", [{"query": "", "title": "Mug"}])
    with pytest.raises(LoreError, match=r"No row of the input is a pair.*t\.jsonl row 1, query"):
        read({"path": path}, tmp_path / "work")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(LoreError, match=r"cut\.parquet is not a readable Parquet file"):
        read({"path": str(tmp_path / "cut.parquet")}, tmp_path / "work")


@pytest.mark.parametrize(
    ("names", "path", "said"),
    [
        ((), "nothing", "no table at .*nothing"),
        (("t.csv.gz",), "t.csv.gz", "compressed.*gunzip"),
        (("folder/t.csv.gz",), "folder", "compressed.*gunzip"),
        (("folder/a.csv", "folder/b.jsonl"), "folder", r"\.csv and \.jsonl files"),
        (("t.xlsx",), "t.xlsx", "workbooks"),
        (("folder/readme.txt",), "folder", "no table"),
    ],
)
def test_what_is_no_table_is_said(tmp_path, names, path, said):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(b"query,title\n") if name.endswith("gz") else b"query,title\na,b\n")
    with pytest.raises(LoreError, match=f"(?s){said}"):
        read({"path": str(tmp_path / path)}, tmp_path / "work")


def test_rejected_rows_beside_the_pairs_are_no_input(tmp_path):
    with PairWriter(tmp_path / "in" / "a.parquet") as writer, RejectedWriter(tmp_path / "in" / "a.parquet") as rejected:
        writer.write(Pair(pair_id="p", query="q", title="t"))
        rejected.write(Rejection("f", 1, "query", "query_empty", "", "text", {}))
    assert (tmp_path / "in" / "a.rejected.jsonl").is_file()
    assert [pair.pair_id for pair in read({"path": str(tmp_path / "in")}, tmp_path / "work")[0]] == ["p"]


def test_batches_with_photos_stay_small(tmp_path):
    photo = {"bytes": b"x" * 2**20, "path": None}
    rows = [{"query": f"q{n}", "title": "t", "image": photo} for n in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    given = open_input(InputSection(path=str(tmp_path / "t.parquet")), tmp_path / "work", Sink())
    sizes = [batch.nbytes for batch in given.batches()]
    assert sum(sizes) > 40 * 2**20 and max(sizes) <= MAX_BATCH_BYTES


def test_limit_takes_the_first_good_rows(tmp_path):
    path = jsonl(tmp_path / "t.jsonl", [{"query": "", "title": "t"}, *({"query": f"q{n}", "title": "t"} for n in range(9))])
    pairs, _ = read({"path": path, "limit": 4}, tmp_path / "work")
    assert [pair.query for pair in pairs] == ["q0", "q1", "q2", "q3"]


def test_the_fingerprint_follows_the_content_and_the_map(tmp_path):
    def fingerprint(**more) -> str:
        return open_input(InputSection(path=str(tmp_path / "t.csv"), **more), tmp_path / "work", Sink()).fingerprint

    (tmp_path / "t.csv").write_text("query,title,other\na,b,c\n")
    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(map={"query": "query", "title": "other"}) != first
    (tmp_path / "t.csv").write_text("query,title,other\na,b,d\n")
    assert fingerprint() != first
    (tmp_path / "work" / "files.json").write_text("{damaged")
    (tmp_path / "t.csv").write_text("query,title,other\na,b,c\n")
    assert fingerprint() == first


def test_unchanged_files_are_not_hashed_again(tmp_path, monkeypatch):
    import os
    import time

    import lore.support.input_files as input_files

    path = tmp_path / "t.csv"
    path.write_text("query,title\na,b\n")
    old = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(input_files.time, "time_ns", lambda: old)  # a file that was written a moment ago is read again
    first = open_input(InputSection(path=str(path)), tmp_path / "work", Sink()).fingerprint
    monkeypatch.setattr(input_files, "file_digest", lambda _: pytest.fail("hashed again"))
    assert open_input(InputSection(path=str(path)), tmp_path / "work", Sink()).fingerprint == first
    assert os.listdir(tmp_path / "work") == ["files.json"]


LOG = [
    ("red mug", "100001.0", "s1", 3),
    ("Red  Mug", "2", "s1", 5),
    ("red mug", "2", "s2", 2),
    ("chair", "003", "s3", 1),
    ("chair", "77", "s4", 1),
    ("chair", "3", None, 1),
    ("", "2", "s5", 1),
]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
@pytest.mark.parametrize(
    ("columns", "frequencies"),
    [
        ({"search_id": 2}, {"red mug": 2, "chair": 3}),
        ({"page_id": 2}, {"red mug": 2, "chair": 3}),
        ({"impressions": 3}, {"red mug": 7, "chair": 1}),
        ({"count": 3, "search_id": 2}, {"red mug": 7, "chair": 1}),
        ({}, {"red mug": 3, "chair": 3}),
        ({"query_frequency": 3}, None),
    ],
)
def test_a_log_is_joined_with_its_catalogue(tmp_path, catalogue, columns, frequencies, suffix):
    rows = [{"query": one[0], "item_id": one[1], "position": 1, **{name: one[at] for name, at in columns.items()}} for one in LOG]
    log = tmp_path / f"log{suffix}"
    if suffix == ".jsonl":
        jsonl(log, rows)
    else:
        (pq.write_table if suffix == ".parquet" else pa.csv.write_csv)(pa.Table.from_pylist(rows), log)
    pairs, sink = read({"path": str(log), "catalogue": catalogue}, tmp_path / "work")
    assert [(pair.query, pair.item_id, pair.title) for pair in pairs] == [
        ("red mug", "100001", "Red mug"),
        ("Red  Mug", "2", "Blue mug"),
        ("red mug", "2", "Blue mug"),
        ("chair", "003", "Chair"),
    ]
    assert [pair.pair_id for pair in pairs] == [make_pair_id(pair.query, pair.item_id) for pair in pairs]
    assert (
        pairs[0].attributes == {"colour": "red"} and pairs[0].price == 5.0 and pairs[3].attributes == {"seats": "1", "wood": "oak"}
    )
    assert pairs[0].image == {"bytes": None, "path": str(tmp_path / "a.png")} and pairs[1].image is None
    assert sorted(sink.reasons) == [
        (log.name, 5, "item_id", "item_unknown"),
        (log.name, 6, "item_id", "item_unknown"),
        (log.name, 7, "query", "query_empty"),
    ]
    if frequencies is None:
        assert [pair.query_frequency for pair in pairs] == [3, 5, 2, 1]
    else:
        assert {query_key(pair.query): pair.query_frequency for pair in pairs} == frequencies


def test_searches_are_counted_by_market_and_over_many_blocks(tmp_path, catalogue):
    """The truth is counted in memory."""
    rows = [
        {"query": f"Query {n % 700}", "item_id": ["2", "003"][n % 2], "locale": ["us", "de"][n // 3 % 2], "search_id": n // 5}
        for n in range(4_500)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet", row_group_size=3_000)
    pairs, _ = read({"path": str(tmp_path / "log.parquet"), "catalogue": catalogue}, tmp_path / "work")
    truth = Counter((query, locale) for query, locale, _ in {(row["query"], row["locale"], row["search_id"]) for row in rows})
    assert [pair.query_frequency for pair in pairs] == [truth[row["query"], row["locale"]] for row in rows]
    assert [pair.slices for pair in pairs[:4]] == [["locale:us"]] * 3 + [["locale:de"]]


def test_a_csv_log_with_mapped_columns_and_slices_of_both_tables(tmp_path):
    (tmp_path / "items.csv").write_text(
        'sku,name,slices,price\nA-1,Red mug,kitchen|new,"1.299,50"\n'.replace(",", ";").replace("1.299;50", "1.299,50")
    )
    (tmp_path / "log.csv").write_text("term,sku,shown,slices\nred mug,A-1,1,head\nRED MUG,A-1,2,\n")
    section = {
        "path": str(tmp_path / "log.csv"),
        "map": {"query": "term", "item_id": "sku", "impressions": "shown", "slices": "slices"},
        "catalogue": str(tmp_path / "items.csv"),
        "catalogue_map": {"item_id": "sku", "title": "name", "slices": "slices", "price": "price"},
    }
    pairs, sink = read(section, tmp_path / "work")
    assert not sink
    assert [(pair.title, pair.price, pair.slices, pair.query_frequency) for pair in pairs] == [
        ("Red mug", 1299.5, ["head", "kitchen", "new"], 3),
        ("Red mug", 1299.5, ["kitchen", "new"], 3),
    ]
    with pytest.raises(LoreError, match="'title' is not a field of a pair; expected query, item_id, query_frequency"):
        read({**section, "map": {"query": "term", "title": "sku"}}, tmp_path / "work")


def test_a_map_of_the_command_line_may_be_one_of_a_log():
    assert column_map("query=term,item_id=sku,search_id=s", (), None) == {"query": "term", "item_id": "sku", "search_id": "s"}


def test_a_join_that_matches_nothing_stops(tmp_path, catalogue):
    path = jsonl(tmp_path / "log.jsonl", [{"query": "mug", "item_id": f"A{n}"} for n in range(3)])
    with pytest.raises(
        LoreError, match=r"None of 3 rows of .*log\.jsonl has an item_id of .*items\.parquet \(such as 'A0'; .* '(003|100001|2)'\)"
    ):
        read({"path": path, "catalogue": catalogue}, tmp_path / "work")


def test_an_item_that_is_there_twice_counts_once_if_it_is_the_same(tmp_path):
    jsonl(
        tmp_path / "items.jsonl",
        [{"item_id": 7, "title": "Mug"}, {"item_id": "7.0", "title": "Mug"}, {"item_id": "7", "title": "Other"}, {"item_id": "8"}],
    )
    log = jsonl(tmp_path / "log.jsonl", [{"query": "mug", "item_id": 7}])
    for _ in range(2):  # the second time the catalogue is not read again
        pairs, sink = read({"path": log, "catalogue": str(tmp_path / "items.jsonl")}, tmp_path / "work")
        assert [pair.title for pair in pairs] == ["Mug"]
        assert sorted(sink.reasons) == [("items.jsonl", 3, "item_id", "item_repeated"), ("items.jsonl", 4, "title", "title_empty")]


def test_a_changed_catalogue_and_a_damaged_database_are_read_anew(tmp_path):
    items = tmp_path / "items.jsonl"
    section = {"path": jsonl(tmp_path / "log.jsonl", [{"query": "mug", "item_id": "7"}]), "catalogue": str(items)}
    titles = []
    for title in ("Mug", "Better mug"):
        jsonl(items, [{"item_id": "7", "title": title}])
        titles += [pair.title for pair in read(section, tmp_path / "work")[0]]
    for name in ("catalogue.sqlite", "log.sqlite"):
        (tmp_path / "work" / name).write_bytes(b"damaged" * 1000)
    titles += [pair.title for pair in read(section, tmp_path / "work")[0]]
    assert titles == ["Mug", "Better mug", "Better mug"]
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["catalogue.sqlite", "files.json", "log.sqlite"]


def test_photos_of_a_catalogue_outside_of_its_folder_are_refused_unless_a_root_allows_them(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.png").write_bytes(b"photo")
    items = jsonl(
        tmp_path / "shop" / "items.jsonl", [{"item_id": "7", "title": "Mug", "image": str(tmp_path / "elsewhere" / "b.png")}]
    )
    section = {"path": jsonl(tmp_path / "log.jsonl", [{"query": "mug", "item_id": "7"}]), "catalogue": items}
    ((pair,), _) = read(section, tmp_path / "work")
    with pytest.raises(ImageError, match="outside"):
        image_bytes(pair.image)
    ((pair,), _) = read({**section, "image_root": str(tmp_path / "elsewhere")}, tmp_path / "work")
    assert image_bytes(pair.image) == b"photo"


QUERIES = [
    {
        "query_id": "q1",
        "user_query": "red mug",
        "client_id": "c",
        "timestamp": "2025-02-18T20:20:39Z",
        "query_response_hit_ids": ["100001", "2", "77"],
    },
    {"query_id": "q2", "user_query": "Red Mug", "query_response_hit_ids": ["2", "2"], "query_attributes": {"page": 2}},
    {"query_id": "q2", "user_query": "Red Mug", "query_response_hit_ids": []},
    {"query_id": "q3", "user_query": "chair", "query_response_hit_ids": None},
    {"query_id": "q4", "user_query": "", "query_response_hit_ids": ["2"]},
    {"query_id": "q5", "user_query": "lamp", "query_response_hit_ids": {"no": "list"}},
]
EVENTS = [
    {
        "action_name": "click",
        "query_id": "q3",
        "event_attributes": {"object": {"object_id": "003", "object_id_field": "sku"}, "position": {"ordinal": 1}},
    },
    {"action_name": "purchase", "query_id": "q2", "event_attributes": {"object": {"object_id": 100001}}},
    {"action_name": "page_exit", "query_id": "q1", "event_attributes": {"position": {}, "object": {"idleTimeoutMs": 5000}}},
    {"action_name": "login", "client_id": "c"},
    {"action_name": "click", "query_id": "of another day", "event_attributes": {"object": {"object_id": "2"}}},
]


def flat(document: dict) -> dict:
    found = {key: value for key, value in document.items() if key != "event_attributes"}
    if "object" in document.get("event_attributes", {}):
        found["event_attributes.object.object_id"] = document["event_attributes"]["object"].get("object_id")
    return found


@pytest.mark.parametrize("form", ["plain", "source", "response", "flat", "parquet"])
def test_user_behavior_insights_are_read_as_a_log(tmp_path, catalogue, form, capsys):
    wrapped = {
        "plain": lambda rows: rows,
        "source": lambda rows: [{"_index": "i", "_id": str(n), "_score": 1, "_source": row} for n, row in enumerate(rows)],
        "response": lambda rows: [{"took": 1, "hits": {"total": {}, "hits": [{"_source": row}]}} for row in rows],
        "flat": lambda rows: [flat(row) for row in rows],
        "parquet": lambda rows: rows,
    }[form]
    if form == "parquet":
        queries, events = str(tmp_path / "q.parquet"), str(tmp_path / "e.parquet")
        pq.write_table(pa.Table.from_pylist([{**row, "query_attributes": None} for row in QUERIES[:5]]), queries)
        strings = [
            {**row, "event_attributes": {"object": {"object_id": one and str(one)}}}
            for row in EVENTS
            for one in [row.get("event_attributes", {}).get("object", {}).get("object_id")]
        ]
        pq.write_table(pa.Table.from_pylist(strings), events)
    else:
        queries, events = jsonl(tmp_path / "q.jsonl", wrapped(QUERIES)), jsonl(tmp_path / "e.jsonl", wrapped(EVENTS))
    section = {"ubi": {"queries": queries, "events": events}, "catalogue": catalogue}
    pairs, sink = read(section, tmp_path / "work")
    assert [(pair.query, pair.item_id, pair.query_frequency) for pair in pairs] == [
        ("red mug", "100001", 2),
        ("red mug", "2", 2),
        ("Red Mug", "2", 2),
        ("chair", "003", 1),
        ("Red Mug", "100001", 2),
    ]
    (unknown, kind) = ("search_unknown", "query_response_hit_ids")
    expected = [(Path(events).name, 5, "query_id", unknown), (Path(queries).name, 1, "item_id", "item_unknown")]
    expected += [(Path(queries).name, 6, kind, "field_type")] if form != "parquet" else []
    assert sorted(sink.reasons) == sorted(expected)
    assert "1 searches without a text, 2 events without a search or an item" in capsys.readouterr().out
    only_shown, _ = read({**section, "ubi": {"queries": queries}}, tmp_path / "work2")
    assert [(pair.query, pair.item_id) for pair in only_shown] == [("red mug", "100001"), ("red mug", "2"), ("Red Mug", "2")]


def test_another_index_in_place_of_ubi_queries_is_said(tmp_path, catalogue):
    path = jsonl(tmp_path / "e.jsonl", EVENTS)
    with pytest.raises(LoreError, match=r"no document of .*e\.jsonl has a user_query.*action_name, query_id"):
        read({"ubi": {"queries": path}, "catalogue": catalogue}, tmp_path / "work")


def test_impossible_sections_and_missing_files_are_reported_together(tmp_path):
    for values, said in [
        ({}, "neither path nor ubi"),
        ({"path": "p", "ubi": {"queries": "q"}, "catalogue": "c"}, "both path and ubi"),
        ({"ubi": {"queries": "q"}}, "ubi without a catalogue"),
        ({"path": "p", "catalogue_map": {"title": "t"}}, "catalogue_map without a catalogue"),
        ({"ubi": {"queries": "q"}, "catalogue": "c", "map": {"query": "q"}}, "a map for User Behavior Insights"),
    ]:
        assert [one.found for one in InputSection(**values).conflicts()] == [said]
    section = InputSection(ubi={"queries": str(tmp_path), "events": "nowhere*"}, catalogue="hub:a/b", image_root="gone")
    assert [key for key, _ in section.missing_inputs()] == ["ubi.events", "image_root"]


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_streamed(tmp_path):
    """A local folder stands for the hub: `datasets` opens both alike."""
    folder = tmp_path / "set"
    folder.mkdir()
    with PairWriter(folder / "train.parquet") as writer:
        for n in range(9_000):
            photo = {"bytes": b"x", "path": None} if n % 2 else {"bytes": None, "path": "/etc/hostname"}
            writer.write(Pair(pair_id=f"p{n}", query=f"q{n}", title="t", attributes={"a": "b"}, image=photo))
    pairs, sink = read({"path": f"hub:{folder}"}, tmp_path / "work")
    assert not sink and [pair.pair_id for pair in pairs] == [f"p{n}" for n in range(9_000)]
    assert pairs[1].image == {"bytes": b"x", "path": None} and pairs[1].attributes == {"a": "b"}
    with pytest.raises(ImageError, match="outside"):
        image_bytes(pairs[0].image)
    first = open_input(InputSection(path=f"hub:{folder}"), tmp_path / "work", Sink())
    assert first.fingerprint == open_input(InputSection(path=f"hub:{folder}"), tmp_path / "work", Sink()).fingerprint
    with pytest.raises(LoreError, match="could not be read from the hub"):
        read({"path": f"hub:{folder}", "hub_split": "nothing"}, tmp_path / "work")
