"""Imports of public formats as their publishers write them, and of any table. Bad rows are kept with a reason."""

import datetime
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from lore.cli.main import app
from lore.recommend.importers import import_events, import_items
from lore.recommend.tables import read_histories, read_items
from lore.support.errors import LoreError

REVIEW_2018 = {"reviewerID": "A1", "asin": "0012", "overall": 5.0, "unixReviewTime": 1_514_764_800}
REVIEW_2023 = {"user_id": "A1", "asin": "B1", "parent_asin": "0012", "title": "Good", "rating": 5.0, "timestamp": 1_514_764_800_123}
SHOWN = {"object": {"object_id": "0012", "object_id_field": "product_id"}, "position": {"ordinal": 3}}
UBI = {
    "client_id": "A1",
    "session_id": "s1",
    "action_name": "click",
    "timestamp": "2018-01-01T00:00:00Z",
    "event_attributes": SHOWN,
}
AT = 1_514_764_800.0

EVENT_FILES = {
    "x.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\nA1\t0012\t5.0\t1514764800\n",
    "Music.jsonl": json.dumps(REVIEW_2023),
    "ratings.csv": "userId,movieId,rating,timestamp\nA1,0012,4.0,1514764800\n",
    "ratings.dat": "A1::0012::5::1514764800\n",
    "ubi_events.ndjson": f"{json.dumps({'_source': UBI})}\n{json.dumps({'_source': {**UBI, 'event_attributes': {}}})}",
    "log.csv": 'user_id,item_id,time\nA1,0012,"2018-01-01 00:00"\n',
}
META_2018 = {"asin": "0012", "title": "Viola", "brand": "Lumo", "price": "$12.99", "category": ["Music", "Strings"]}
META_2018 |= {"description": ["Loud &amp; clear.", "Wood."], "image": ["https://x/y.jpg"]}
META_2014 = {"asin": "0012", "title": "Viola", "categories": [["Music", "Strings"], ["Wood"]], "image": "https://x/y.jpg"}
META_2023 = {"parent_asin": "0012", "title": "Viola", "store": "Lumo", "price": 12.99, "categories": [], "main_category": "Music"}
META_2023 |= {
    "features": ["Loud."],
    "description": [],
    "details": {"Color": "red", "Rank": {"Music": 7}},
    "images": [{"large": "https://x/y.jpg"}],
}
ITEM_FILES = {
    "x.item": (
        "item_id:token\ttitle:token_seq\tprice:float\tcategories:token_seq\tbrand:token\n"
        "0012\tViola\t12.99\t['Music', 'Strings']\tLumo\n",
        {"category": "Music > Strings", "brand": "Lumo", "price": 12.99},
    ),
    "meta_2018.json": (
        json.dumps(META_2018),
        {"category": "Music > Strings", "brand": "Lumo", "price": 12.99, "description": "Loud & clear. Wood."},
    ),
    "meta_2014.json": (json.dumps(META_2014), {"category": "Music > Strings", "image": None}),
    "meta.jsonl": (
        json.dumps(META_2023),
        {
            "category": "Music",
            "brand": "Lumo",
            "price": 12.99,
            "description": "Loud.",
            "attributes": {"Color": "red"},
            "image": None,
        },
    ),
    "movies.csv": ("movieId,title,genres\n0012,Viola,Music|Drama\n", {"category": "Music|Drama"}),
    "movies.dat": ("0012::Viola::Café\n".encode("latin-1"), {"category": "Café"}),
    "x.item.json": (json.dumps({"0012": {"title": "Viola", "brand": "Lumo"}}), {"brand": "Lumo"}),
}


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def events_of(path: Path) -> list[tuple]:
    return [tuple(row.values()) for row in pq.read_table(path).to_pylist()]


def rejections(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", EVENT_FILES)
def test_events_of_each_format(tmp_path, name):
    report = import_events(put(tmp_path / name, EVENT_FILES[name]), tmp_path / "out.parquet")
    ubi = name.startswith("ubi")
    time = AT + 0.123 if name == "Music.jsonl" else AT
    assert events_of(tmp_path / "out.parquet") == [("A1", "0012", time, "s1" if ubi else None, "click" if ubi else None, None)]
    assert (report.rows, report.kept, report.left_out, report.rejected_rows) == (1 + ubi, 1, ubi, 0)


def test_a_packed_file_is_unpacked_and_leaves_nothing_behind(tmp_path):
    path = put(tmp_path / "reviews_5.json.gz", gzip.compress(f"{json.dumps(REVIEW_2018)}\nnot json\n".encode()))
    report = import_events(path, tmp_path / "out.parquet")
    assert events_of(tmp_path / "out.parquet") == [("A1", "0012", AT, None, None, None)]
    assert [row["file"] for row in rejections(tmp_path / "out.rejected.jsonl")] == [str(path)] and report.rejected_rows == 1
    assert {one.name for one in tmp_path.iterdir()} == {path.name, "out.parquet", "out.rejected.jsonl"}


ROW = b"user_id,item_id,time\nA1,0012,5\n"


@pytest.mark.parametrize(
    "content",
    [b"not packed", gzip.compress(ROW)[:30], gzip.compress(ROW)[:-6] + b"\0" * 6, gzip.compress(ROW) + ROW],
    ids=["not packed", "cut", "another length", "more behind it"],
)
def test_a_damaged_packed_file_is_named(tmp_path, content):
    path = put(tmp_path / "events.parquet.gz", content)
    with pytest.raises(LoreError, match=f"{path} is no whole .gz file"):
        import_events(path, tmp_path / "out.parquet")
    with pytest.raises(LoreError, match="log.csv.gz: column 'who' is missing"):
        import_events(put(tmp_path / "log.csv.gz", gzip.compress(ROW)), tmp_path / "out.parquet", map="user_id=who,item_id=item_id")
    assert {one.name for one in tmp_path.iterdir()} == {path.name, "log.csv.gz"}


def test_a_packed_file_does_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("lore.support.bounds.FREELY_UNPACKED", 2**20)
    path = put(tmp_path / "log.csv.gz", gzip.compress(ROW + b"A1,0012,5\n" * 2**20))
    with pytest.raises(LoreError, match="unpacks to more than .*gunzip log.csv.gz"):
        import_events(path, tmp_path / "out.parquet")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "content", "map", "said"),
    [
        ("x.inter", "user_id:token\titem_id:token\na\tb\n", "user_id=who,item_id=item_id", "column 'who' is missing"),
        ("x.inter", "user_id:token\titem_id:token\tuser_id:token\na\tb\tc\n", None, "'user_id' occurs twice, as column 1 and 3"),
        ("x.json", json.dumps({"7": {"user_id": 1}}), "user_id=who,item_id=item_id", "column 'who' is missing"),
        ("x.json", json.dumps([{"user_id": 1, "item_id": 2}]), None, "is one JSON array"),
        ("x.csv", "user_id,item_id\na,b\n", "user_id=user_id,item_id=x-{item_id}", "column 'x-{item_id}' is missing"),
    ],
)
def test_every_format_says_which_column_is_wrong(tmp_path, name, content, map, said):
    with pytest.raises(LoreError, match=said):
        import_events(put(tmp_path / name, content), tmp_path / "out.parquet", map=map)


def test_a_damaged_first_line_of_json_costs_one_row(tmp_path):
    report = import_events(put(tmp_path / "x.json", f"oops\n{json.dumps(REVIEW_2018)}\n"), tmp_path / "out.parquet")
    assert (report.kept, report.rejected_rows) == (1, 1)


@pytest.mark.parametrize("name", ITEM_FILES)
def test_items_of_each_format(tmp_path, name):
    content, expected = ITEM_FILES[name]
    report = import_items(put(tmp_path / name, content), tmp_path / "out.parquet")
    (item,) = read_items(tmp_path / "out.parquet")
    assert (item.item_id, item.title, item.pair_id, item.query) == ("0012", "Viola", "0012", "")
    assert {key: getattr(item, key) for key in expected} == expected and report.kept == 1


def test_any_table_is_read_by_a_map_with_photos_by_a_template(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "photos" / "7.png")
    table = pa.table(
        {
            "sku": [7, 8],
            "name": ["red lamp", "tote"],
            "tone": ["red", None],
            "who": ["u", "u"],
            "day": [datetime.date(2018, 1, 1)] * 2,
        }
    )
    pq.write_table(table, tmp_path / "shop.parquet")
    mapped = "item_id=sku,title=name,attributes.color=tone,image=photos/{sku}.png"
    report = import_items(tmp_path / "shop.parquet", tmp_path / "items.parquet", map=mapped)
    (item,) = read_items(tmp_path / "items.parquet")
    assert item.attributes == {"color": "red"} and Path(item.image["path"]).is_file()
    assert dict(report.reasons) == {"image_missing": 1}
    import_events(tmp_path / "shop.parquet", tmp_path / "events.parquet", map="user_id=who,item_id=sku,time=day")
    assert [(user, item, time) for user, item, time, *_ in events_of(tmp_path / "events.parquet")] == [
        ("u", "7", AT),
        ("u", "8", AT),
    ]


def test_bad_events_are_kept_with_a_reason_and_equal_ones_are_folded(tmp_path):
    rows = ["u,1,5", "u,1,5", "u,1,6", ",1,5", "u,,5", "u,1,soon", "u,1,", f"{'u' * 2000},1,5", "u,1,inf", "u,1,5,6", "u,1,1e300"]
    path = put(tmp_path / "log.csv", "user_id,item_id,time\n" + "\n".join(rows))
    report = import_events(path, tmp_path / "out.parquet")
    assert [row[:3] for row in events_of(tmp_path / "out.parquet")] == [("u", "1", 5.0), ("u", "1", 6.0)]
    assert (report.rows, report.kept, report.duplicates, report.rejected_rows) == (11, 2, 1, 8)
    found = [(row["row"], row["field"], row["reason"]) for row in rejections(tmp_path / "out.rejected.jsonl")]
    assert found == [
        (4, "user_id", "user_id_empty"),
        (5, "item_id", "item_id_empty"),
        (6, "time", "field_type"),
        (7, "time", "field_type"),
        (8, "user_id", "text_too_long"),
        (9, "time", "field_type"),
        (10, "row", "field_type"),
        (11, "time", "field_type"),
    ]


def test_dates_in_digits_alone_are_no_seconds(tmp_path):
    """20180101 seconds are a day of 1970. Numbers near it that are no date stay seconds, and so do times in finer units."""
    rows = ["u,1,20180101", "u,2,20181231.0", "u,3,20180101123000", "u,4,20189901", "u,5,2018010", "u,6,1514764800000"]
    report = import_events(put(tmp_path / "log.csv", "user_id,item_id,time\n" + "\n".join(rows)), tmp_path / "out.parquet")
    assert {item: time for _, item, time, *_ in events_of(tmp_path / "out.parquet")} == {"4": 20189901, "5": 2018010, "6": AT}
    found = rejections(tmp_path / "out.rejected.jsonl")
    assert [row["row"] for row in found] == [1, 2, 3] and report.rejected_rows == 3
    assert "'20180101', a date in digits alone" in found[0]["found"] and "such as 2018-01-01" in found[0]["expected"]


@pytest.mark.parametrize("imported", [import_events, import_items])
def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path, imported):
    with pytest.raises(LoreError, match="no table at .*nowhere.csv. Name a file") as told:
        imported(tmp_path / "nowhere.csv", tmp_path / "out.parquet")
    assert "hub" not in str(told.value)


def test_items_that_repeat_and_unreadable_prices(tmp_path):
    rows = [{"item_id": 1, "title": "a", "price": ".a-box{color:red}"}, {"item_id": 1, "title": "a"}, {"item_id": 1, "title": "b"}]
    path = put(tmp_path / "items.jsonl", "\n".join(map(json.dumps, [*rows, {"item_id": 2, "title": " "}])))
    report = import_items(path, tmp_path / "out.parquet")
    assert (report.kept, report.duplicates, dict(report.repairs)) == (1, 1, {"price_left_out": 1})
    assert dict(report.reasons) == {"item_repeated": 1, "title_empty": 1}


def test_a_table_without_known_columns_says_what_to_map(tmp_path):
    path = put(tmp_path / "log.csv", "who,what\nu,1\n")
    with pytest.raises(LoreError, match="holds user_id and item_id; found who, what.*--map user_id=COLUMN,item_id=COLUMN"):
        import_events(path, tmp_path / "out.parquet")
    with pytest.raises(LoreError, match="'user' is no field of events.*user_id"):
        import_events(path, tmp_path / "out.parquet", map="user=who,user_id=who,item_id=what")
    with pytest.raises(LoreError, match="no row can be read. The table has none"):
        import_events(put(tmp_path / "log.csv", "user_id,item_id\n"), tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


IDS = st.lists(st.sampled_from(["1", "2", "3"]), min_size=1, max_size=9)


@settings(max_examples=20, deadline=None)
@given(st.lists(IDS, min_size=1, max_size=3), st.booleans(), st.sampled_from([3, 100]))
def test_sequences_are_rebuilt_from_every_prefix(tmp_path_factory, sequences, falling, cut):
    """Training files list the prefixes of a sequence, the longest or the shortest first, cut at the front."""
    if cut == 3:  # what a cut history repeats is not told from what it continues, so no item occurs twice
        sequences = [[f"{place}-{item}" for place, item in enumerate(one)] for one in sequences]
    folder = tmp_path_factory.mktemp("log")
    head = "user_id:token\titem_id_list:token_seq\titem_id:token"
    lines: dict[str, list[str]] = {"train": [head], "valid": [head], "test": [head]}
    expected = {}
    for user, items in enumerate(sequences):
        if len(items) < 2:
            continue
        ends = range(1, len(items))
        parts = ["train"] * len(items)
        for back, part in ((1, "test"), (2, "valid")):
            if len(items) > back:
                parts[-back] = part
        for end in reversed(ends) if falling else ends:
            lines[parts[end]].append(f"{user}\t{' '.join(items[max(0, end - cut) : end])}\t{items[end]}")
        expected[str(user)] = list(zip(items, parts, strict=True))
    if not expected:
        return
    for part, rows in lines.items():
        put(folder / f"x.{part}.inter", "\n".join(rows))
    out = tmp_path_factory.mktemp("out") / "events.parquet"
    report = import_events(folder, out)
    found: dict[str, list] = {}
    for user, item, time, _, _, part in events_of(out):
        assert time == len(found.setdefault(user, []))
        found[user].append((item, part))
    assert found == expected and report.rejected_rows == 0


def test_histories_that_do_not_belong_together_are_rejected(tmp_path):
    text = 'user_id,history_item_id,item_id\nu,"[1, 2]",3\nu,"[7, 8]",9\nu,oops[,9\nu,,5\nu,"[1, 2, 3]",4\n'
    report = import_events(put(tmp_path / "valid_x.csv", text), tmp_path / "out.parquet")
    assert [(row[1], row[5]) for row in events_of(tmp_path / "out.parquet")] == [
        ("1", "train"),
        ("2", "train"),
        ("3", "valid"),
        ("4", "valid"),
    ]
    assert dict(report.reasons) == {"history_apart": 3}
    with pytest.raises(LoreError, match="only the order"):
        read_histories(tmp_path / "out.parquet", split="time")


def test_the_command_imports_says_what_it_read_and_does_not_overwrite(tmp_path):
    log = put(tmp_path / "log.csv", EVENT_FILES["log.csv"])
    done = CliRunner().invoke(app, ["data", "import", "events", str(log), "-o", str(tmp_path / "e.parquet")])
    assert done.exit_code == 0 and "time from time" in done.output, done.output
    other = put(tmp_path / "mine.parquet", b"mine")
    for arguments, said in (
        (["-o", str(other)], "was not written by this command"),
        (["-o", str(log)], "is an input of this command"),
        (["-o", str(tmp_path / "e.parquet"), "--rubric", "shop"], "no option --rubric"),
        (["-o", str(tmp_path / "e.parquet"), "--embed-images"], "no option --embed-images"),
    ):
        done = CliRunner().invoke(app, ["data", "import", "events", str(log), *arguments])
        assert done.exit_code == 1 and said in " ".join(done.output.split()), done.output
    assert other.read_bytes() == b"mine"
