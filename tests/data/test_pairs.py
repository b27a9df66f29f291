"""Pairs: nothing is lost or changed on the way to disk and back, and every bad row is rejected for its own reason."""

import io
import json
import struct
import zlib
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lore.data.duplicates import Seen
from lore.data.images import ImageError, load_image
from lore.data.pair import DEMAND_FIELDS, PAIR_SCHEMA, Pair, item_key, make_pair_id, market_of, query_key
from lore.data.parquet import PairWriter, count_pairs, fingerprint, read_pairs
from lore.data.rejected_rows import RejectedWriter, Rejection
from lore.data.row_validation import RowChecker
from lore.data.statistics import pair_stats
from lore.rubric.demand import Demand
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError
from lore.support.text import has_html, html_to_text, normalize

RUBRIC = load_rubric("crowdflower")
TEXT = st.text(max_size=30)
NUMBER = st.none() | st.floats(allow_nan=False)
PAIRS = st.builds(
    Pair,
    pair_id=st.text(min_size=1, max_size=8),
    query=TEXT,
    title=TEXT,
    item_id=st.none() | TEXT,
    attributes=st.dictionaries(TEXT, TEXT, max_size=3),
    description=st.none() | TEXT,
    category=st.none() | TEXT,
    brand=st.none() | TEXT,
    shop=st.none() | TEXT,
    price=NUMBER,
    image=st.none() | st.fixed_dictionaries({"bytes": st.none() | st.binary(max_size=9), "path": st.none() | TEXT}),
    label=st.none() | TEXT,
    label_weight=st.floats(allow_nan=False),
    split=st.none() | TEXT,
    slices=st.lists(TEXT, max_size=3),
    query_frequency=NUMBER,
    source=st.none() | TEXT,
    rationale=st.none() | TEXT,
    mismatch=st.none() | TEXT,
    rules=st.lists(TEXT, max_size=3),
    demands=st.lists(st.builds(Demand, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT), max_size=2),
)


def write(path, pairs, **kwargs):
    with PairWriter(path, **kwargs) as writer:
        for pair in pairs:
            writer.write(pair)
    return path


def pair(number: int = 0, **values) -> Pair:
    return Pair(**{"pair_id": str(number), "query": f"query {number}", "title": f"title {number}", **values})


def png(width=8, height=8, mode="RGB", **kwargs) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height), **kwargs).save(out, "PNG")
    return out.getvalue()


def check_row(raw: dict, rubric, where: tuple[str, int] = ("", 0), **switches):
    return RowChecker(rubric, **switches).check(raw, *where)


def reasons(raw: dict, **switches) -> list[tuple[str, str]]:
    found, rejections = check_row({"query": "q", "title": "t", **raw}, RUBRIC, ("file.csv", 7), **switches)
    assert (found is None) == bool(rejections)
    return [(rejection.field, rejection.reason) for rejection in rejections]


@given(pairs=st.lists(PAIRS, max_size=6))
@settings(max_examples=60, deadline=None)
def test_any_pairs_come_back_from_disk_as_they_were(pairs, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("pairs") / "a.parquet", pairs, batch_rows=2)
    assert list(read_pairs(path)) == pairs
    assert count_pairs(path) == len(pairs)


def test_reading_selects_split_columns_and_limit_over_file_folder_and_glob(tmp_path):
    many = [pair(i, split="test" if i % 3 == 0 else "train", description="d", slices=["s"]) for i in range(20)]
    write(tmp_path / "a.parquet", many[:10], batch_rows=4)
    write(tmp_path / "b.parquet", many[10:])
    assert list(read_pairs(tmp_path)) == list(read_pairs(f"{tmp_path}/*.parquet")) == many
    test = [p for p in many if p.split == "test"]
    assert list(read_pairs(tmp_path, split="test", batch_rows=2)) == test
    assert list(read_pairs(tmp_path, split="test", limit=3)) == test[:3]
    assert count_pairs(tmp_path, "test") == len(test)
    light = next(read_pairs(tmp_path, split="train", columns=["slices"]))
    assert (light.query, light.slices, light.description, light.split) == ("query 1", ["s"], None, None)
    with pytest.raises(LoreError, match="colour is not a field"):
        read_pairs(tmp_path, columns=["colour"])
    with pytest.raises(LoreError, match="No pairs at"):
        read_pairs(tmp_path / "c.parquet")


def test_a_failed_write_leaves_no_file_and_keeps_the_old_one(tmp_path):
    path = tmp_path / "a.parquet"
    with pytest.raises(RuntimeError), PairWriter(path, batch_rows=1) as writer:
        writer.write(pair())
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    write(path, [pair(1)])
    with pytest.raises(LoreError, match="title cannot be stored"), PairWriter(path) as writer:
        writer.write(pair(2, title="\ud800"))
    assert [p.pair_id for p in read_pairs(path)] == ["1"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_large_photos_make_small_row_groups(tmp_path):
    import pyarrow.parquet as pq

    photo = bytes(5 * 2**20)
    path = write(tmp_path / "a.parquet", [pair(i, image={"bytes": photo, "path": None}) for i in range(14)])
    groups = pq.read_metadata(path)
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [7, 7]


def test_long_texts_of_any_kind_make_small_row_groups(tmp_path):
    import pyarrow.parquet as pq

    long = "x" * (4 * 2**20)
    forms = [{"attributes": {"a": long}}, {"rationale": long}, {"demands": [Demand(long, "", "", "", "", "")]}]
    path = write(tmp_path / "a.parquet", [pair(i, **forms[i % 3]) for i in range(9)])
    groups = pq.read_metadata(path)
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [8, 1]


def test_datasets_sees_the_same_schema_and_a_photo(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = write(tmp_path / "a.parquet", [pair(image={"bytes": png(), "path": None}, attributes={"a": "b"})])
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features == datasets.Features.from_arrow_schema(PAIR_SCHEMA)
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded[0]["image"].size == (8, 8) and loaded[0]["attributes"] == [{"key": "a", "value": "b"}]
    assert [f.name for f in fields(Pair)] == loaded.column_names


def test_fingerprint_follows_content_not_place(tmp_path):
    first = fingerprint(write(tmp_path / "a.parquet", [pair(1)]))
    assert fingerprint(write(tmp_path / "b.parquet", [pair(1)])) == first
    assert fingerprint(write(tmp_path / "b.parquet", [pair(2)])) != first


def test_a_table_of_another_form_is_refused_with_the_way_to_bring_it_in(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"search_term": ["a"], "title": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(LoreError, match="pair_id, query is missing.*import table"):
        list(read_pairs(tmp_path / "a.parquet"))
    (tmp_path / "b.parquet").write_text("query,title\n")
    with pytest.raises(LoreError, match="not a readable Parquet"):
        list(read_pairs(tmp_path / "b.parquet"))


def test_two_columns_of_one_name_are_one_message(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = pa.table([pa.array(["a"])] * 4, ["pair_id", "query", "title", "title"])
    pq.write_table(columns, tmp_path / "a.parquet")
    with pytest.raises(LoreError, match="column 'title' occurs twice"):
        list(read_pairs(tmp_path / "a.parquet"))


def test_a_damaged_file_is_one_message(tmp_path):
    path = write(tmp_path / "a.parquet", [pair(i, description=f"{i} " * 50) for i in range(500)])
    data = bytearray(path.read_bytes())
    data[100 : len(data) // 2] = bytes(len(data) // 2 - 100)
    path.write_bytes(data)
    with pytest.raises(LoreError, match="may be damaged"):
        list(read_pairs(path))


def test_pair_ids_ignore_case_and_spacing_of_the_query_alone_and_separate_it_from_the_item():
    assert make_pair_id("Red  Shoes", "item 1") == make_pair_id("red shoes ", "item 1") != make_pair_id("red", "shoes item 1")
    assert make_pair_id("red", "aB") != make_pair_id("red", "Ab")
    assert make_pair_id("a b", "c") != make_pair_id("a", "b c")
    assert make_pair_id("red shoes", "1") == "pfed6362f2a18712c"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"query": "  "}, ("query", "query_empty")),
        ({"query": None}, ("query", "query_empty")),
        ({"query": "\u200b\x07"}, ("query", "query_empty")),
        ({"title": ""}, ("title", "title_empty")),
        ({"title": float("nan")}, ("title", "title_empty")),
        ({"title": "<br>&nbsp;"}, ("title", "title_empty")),
        ({"title": "a\0b"}, ("title", "nul_byte")),
        ({"title": "x" * 1_000_000}, ("title", "text_too_long")),
        ({"query": "x" * 1_001}, ("query", "text_too_long")),
        ({"description": "x" * 200_001}, ("description", "text_too_long")),
        ({"attributes": {"a": "x" * 200_001}}, ("attributes.a", "text_too_long")),
        ({"description": "caf\udce9"}, ("description", "encoding")),
        ({"title": b"caf\xe9"}, ("title", "encoding")),
        ({"label": "5"}, ("label", "label_unknown")),
        ({"label": "relevant"}, ("label", "label_unknown")),
        ({"price": "cheap"}, ("price", "field_type")),
        ({"price": "inf"}, ("price", "field_type")),
        ({"label_weight": -1}, ("label_weight", "field_type")),
        ({"title": ["a"]}, ("title", "field_type")),
        ({"attributes": ["a"]}, ("attributes", "field_type")),
        ({"attributes": 5}, ("attributes", "field_type")),
        ({"slices": {"a": 1}}, ("slices", "field_type")),
        ({"demands": [{"dimension": "a"}]}, ("demands", "field_type")),
        ({"attributes": ["XL", "S1"]}, ("attributes", "field_type")),
        ({"attributes": {str(number): "x" * 2000 for number in range(101)}}, ("attributes", "attributes_too_long")),
        ({"demands": [{**dict.fromkeys(DEMAND_FIELDS, "a"), "found": "caf\udce9"}]}, ("demands", "encoding")),
        ({"query": "\u3164\u115f\u2800\u034f\ufe0f\u180b\u17b4\U000e0100"}, ("query", "query_empty")),
        ({"image": "caf\udce9.jpg"}, ("image", "encoding")),
        ({"image": 3}, ("image", "field_type")),
        ({"image": "none.jpg"}, ("image", "image_missing")),
        ({"image": "https://shop/a.jpg"}, ("image", "image_missing")),
        ({"image": "a\0.jpg"}, ("image", "image_missing")),
        ({"image": b"no image"}, ("image", "image_corrupt")),
        ({"image": png(200, 200)[:60]}, ("image", "image_corrupt")),
        ({"image": bytes(33 * 2**20)}, ("image", "image_too_large")),
    ],
)
def test_each_bad_value_has_its_own_reason(raw, expected):
    assert reasons(raw) == [expected]


def test_every_problem_of_a_row_is_reported_with_place_found_and_expected():
    _, rejections = check_row({"query": "", "title": "a\0b", "label": "9"}, RUBRIC, ("my.csv", 12))
    assert [r.reason for r in rejections] == ["nul_byte", "label_unknown", "query_empty"]
    assert all((r.file, r.row, r.record["label"]) == ("my.csv", 12, "9") for r in rejections)
    assert rejections[1].found == "'9'" and "1, 2, 3, 4" in rejections[1].expected
    _, (rejection,) = check_row({"query": "q", "title": "caf\udce9"}, RUBRIC)
    assert "--encoding latin-1" in rejection.expected


def nested(depth: int) -> list:
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("field", ["query", "title", "attributes", "slices", "price", "image", "demands", "label_weight"])
def test_a_deeply_nested_cell_costs_its_row_alone(field, tmp_path):
    checker = RowChecker(None)
    found, rejections = checker.check({"query": "q", "title": "t", field: nested(100_000)})
    assert found is None and rejections
    with RejectedWriter(tmp_path / "a.parquet") as rejected:
        rejected.write(rejections[0])
    assert rejected.path.stat().st_size < 2000


def test_a_rejection_of_a_photo_is_the_same_in_every_run():
    _, (rejection,) = check_row({"query": "q", "title": "t", "image": b"no image"}, None)
    assert "0x" not in rejection.found


def test_a_rejected_record_is_bounded():
    _, rejections = check_row({"query": "q", "title": "x" * 1_000_000, "image": b"y" * 1000}, None)
    assert [len(json.dumps(rejection.record)) < 1000 for rejection in rejections] == [True, True]


def test_what_is_good_is_cleaned_and_kept():
    raw = {
        "query": "\ufeff red &amp; blue ", "title": 12, "price": "$1,299.50", "label": 4.0, "label_weight": "0.5",
        "attributes": [("Size", "M"), ("Size", "L"), ("", "lost"), ("Empty", None)], "slices": "hard", "split": "dev",
    }  # fmt: skip
    checker = RowChecker(RUBRIC)
    found, rejections = checker.check(raw)
    assert rejections == []
    assert (found.query, found.title, found.price, found.label, found.label_weight) == (
        "red & blue",
        "12",
        1299.5,
        "4",
        0.5,
    )
    assert found.attributes == {"Size": "M, L"} and found.slices == ["hard"] and found.split == "dev"
    assert found.pair_id == make_pair_id("red & blue", item_key(found))
    assert checker.repairs == {"html": 1, "byte_order_mark": 1, "nameless_attribute": 1}


def test_strict_rejects_html_and_imported_labels_must_be_tiers():
    assert reasons({"description": "<p>a</p>"}, strict=True) == [("description", "html")]
    assert reasons({"description": "a < b & c > d, 5 <6"}, strict=True) == []
    assert reasons({"label": "4.0"}, tier_ids_only=True) == [("label", "label_unknown")]


def test_a_field_that_no_pair_has_is_an_error():
    with pytest.raises(LoreError, match="rule_list"):
        check_row({"query": "q", "title": "t", "rule_list": "x"}, None)


def test_html_becomes_text_and_only_html_does():
    text = "<ul><li>Red&nbsp;cup</li><li>5&#8217;s</li></ul><script>alert('x')</script><!-- no -->R&Amp;D <b>b</b>old"
    assert html_to_text(text) == "Red cup 5’s R&D bold"
    for plain in ("a<b and c>d", "ring <5 mm>", "AT&T; R&D", "<verdict>L4</verdict>", "5 < 6 &copy", "<|im_end|>"):
        assert not has_html(plain) and html_to_text(plain) == plain
    assert html_to_text("&amp;lt;br&amp;gt;end") == "end"
    assert html_to_text("<script>never closed, price 5") == "never closed, price 5"


@given(st.text(alphabet="<>/ab!-&;#1lt=\"' script", max_size=60))
def test_html_to_text_is_stable_on_any_soup(text):
    once = html_to_text(text)
    assert has_html(once) or html_to_text(once) == once


@pytest.mark.parametrize("piece", ["<a ", "<!--", "<script>", "&", "&lt;", "<a b='", "</", "<b", "<a =  ", "<!doctype "])
def test_hostile_html_takes_time_linear_in_its_length(piece):
    import time

    start = time.perf_counter()
    html_to_text("<b>x</b>" + piece * (200_000 // len(piece)))
    assert time.perf_counter() - start < 3


def test_normalize_joins_case_width_and_space():
    assert normalize(" Ｒｅｄ\u3000 SHOES\n") == "red shoes"


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(6_001, 6_000), (10_000, 10_000), (60_000, 60_000)])
def test_a_decompression_bomb_is_refused_by_its_header(size):
    assert reasons({"image": bomb(*size)}) == [("image", "image_too_large")]
    with pytest.raises(ImageError) as caught:
        load_image({"bytes": bomb(*size), "path": None})
    assert caught.value.reason == "image_too_large"


def test_only_the_common_formats_are_opened(tmp_path):
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "TIFF")
    assert reasons({"image": out.getvalue()}) == [("image", "image_corrupt")]
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / f"a.{kind}", kind)
        loaded = load_image({"bytes": None, "path": str(tmp_path / f"a.{kind}")})
        assert loaded.mode == "RGB" and loaded.size == (40, 30)
    truncated = (tmp_path / "a.JPEG").read_bytes()[:-40]
    assert reasons({"image": truncated}) == [("image", "image_corrupt")]


def test_transparent_photos_stand_on_white_and_limits_can_be_lowered():
    clear = png(mode="RGBA", color=(0, 0, 0, 0))
    assert load_image(clear).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ImageError, match="at most 10 pixels"):
        load_image(clear, max_pixels=10)
    with pytest.raises(ImageError, match="at most 10 bytes"):
        load_image(clear, max_bytes=10)


def test_image_paths_start_at_the_tables_folder_and_can_be_embedded(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    found, _ = check_row({"query": "q", "title": "t", "image": "a.png"}, None, image_folder=tmp_path)
    assert found.image == {"bytes": None, "path": str(tmp_path / "a.png")}
    found, _ = check_row({"query": "q", "title": "t", "image": "a.png"}, None, image_folder=tmp_path, embed_images=True)
    assert found.image["bytes"] == png()


def test_rejected_rows_are_written_all_or_nothing_and_an_old_file_goes(tmp_path):
    rejection = Rejection("a.csv", 1, "title", "encoding", "x", "y", {"title": "caf\udce9"})
    with RejectedWriter(tmp_path / "a.parquet") as rejected:
        rejected.write(rejection)
    assert rejected.path == tmp_path / "a.rejected.jsonl"
    (line,) = rejected.path.read_text().splitlines()
    assert json.loads(line)["record"] == {"title": "caf\udce9"}
    with pytest.raises(RuntimeError), RejectedWriter(tmp_path / "a.parquet") as rejected:
        raise RuntimeError("stop")
    assert rejected.path.exists()
    with RejectedWriter(tmp_path / "a.parquet"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_rejected_rows_are_published_after_the_last_row_and_before_the_output(tmp_path):
    with RejectedWriter(tmp_path / "a.parquet") as rejected:

        def rows():
            yield 1
            rejected.write(Rejection("a.csv", 2, "title", "encoding", "x", "y"))
            yield 3

        published = [rejected.path.exists() for _ in rejected.before(rows())]
        assert published == [False, False] and len(rejected.path.read_text().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.rejected.jsonl"]


def test_duplicates_are_found_by_id_and_by_content_and_conflicts_by_label():
    rows = [
        pair(0, query="Red  shoes", title="A", label=None),
        pair(1, query="red shoes", title="a", label="4"),
        pair(2, query="red shoes", title="a", label="3"),
        pair(3, query="red shoes", title="a", label="3", attributes={"size": "7"}),
        pair(1, query="other", title="a", label="4"),
        pair(5, query="red shoes", title="a", label="4", image={"bytes": b"x", "path": None}),
    ]
    seen = Seen()
    for row in rows:
        seen.add(row)
    found = seen.result()
    assert found.repeats.tolist() == [1, 2, 4] and found.first.tolist() == [0, 1, 1]
    assert found.conflicting.tolist() == [False, True, False]
    assert (found.same_label, found.conflicts) == (2, 1)
    assert Seen().result().same_label == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"brand": "A"}, {"brand": "B"}),
        ({"price": 1.0}, {"price": 2.0}),
        ({"category": "A"}, {"category": "B"}),
        ({"shop": "A"}, {"shop": "B"}),
        ({"attributes": {"size": "7"}}, {"attributes": {"size": "8"}}),
        ({"image": png()}, {"image": png(9)}),
        ({"item_id": "aB"}, {"item_id": "Ab"}),
    ],
)
def test_items_that_differ_in_what_a_judge_sees_or_in_their_id_have_different_pairs(one, other):
    first, second = (check_row({"query": "q", "title": "t", **values}, None)[0] for values in (one, other))
    assert first.pair_id != second.pair_id
    if "item_id" not in one:
        seen = Seen()
        for number, found in enumerate((first, second)):
            found.pair_id, found.item_id = str(number), str(number)
            seen.add(found)
        assert len(seen.result().repeats) == 0
    again, _ = check_row({"query": "Q ", "title": "T", **one}, None)
    assert again.pair_id == check_row({"query": "q", "title": "t", **one}, None)[0].pair_id


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from([None, "1", "2"])), max_size=25))
def test_duplicates_agree_with_a_plain_search(rows):
    seen = Seen()
    for number, title, label in rows:
        seen.add(pair(number, query="q", title=str(title), label=label))
    repeats = [i for i, row in enumerate(rows) if any(row[0] == old[0] or row[1] == old[1] for old in rows[:i])]
    assert seen.result().repeats.tolist() == repeats

    def conflicts(i: int) -> bool:
        for key in (0, 1):
            labels = [old[2] for old in rows[:i] if old[key] == rows[i][key] and old[2]]
            if rows[i][2] and labels and labels[0] != rows[i][2]:
                return True
        return False

    assert seen.result().conflicting.tolist() == [conflicts(i) for i in repeats]


def test_a_query_is_its_text_and_its_market():
    assert query_key(" Bol ") == query_key("bol", ["task:1"]) == "bol"
    us, es = (query_key("bol", ["task:1", f"locale:{locale}"]) for locale in ("us", "es"))
    assert len({us, es, query_key("bol")}) == 3 and us == query_key("BOL", ["locale:us", "task:2"])
    assert make_pair_id("bol", "1", market_of(["locale:us"])) != make_pair_id("bol", "1", market_of(["locale:es"]))
    assert make_pair_id("red shoes", "1", market_of(["task:1"])) == "pfed6362f2a18712c"


def test_one_text_and_item_in_two_locales_are_no_duplicates(tmp_path):
    seen, path = Seen(), tmp_path / "pairs.parquet"
    with PairWriter(path) as writer:
        for number, (locale, label) in enumerate([("us", "a"), ("es", "b"), ("es", "b")]):
            pair = Pair(pair_id=str(number), query="bol", title="bowl", label=label, slices=[f"locale:{locale}"], split=locale)
            seen.add(pair)
            writer.write(pair)
    found = seen.result()
    assert (found.same_label, found.conflicts) == (1, 0)
    stats = pair_stats(path)
    assert stats["queries"] == 2 and stats["queries_shared_by_splits"] == {"us and es": 1}
