"""Rows checked column by column equal rows checked one by one, whatever is in them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.data.images import ImageError, image_bytes
from lore.data.importers.table import row_values
from lore.data.pair import MARKETS, PAIR_SCHEMA, Pair, make_pair_id
from lore.data.parquet import to_column
from lore.data.row_validation import RowChecker
from lore.label.inputs import pairs_of
from lore.label.inputs.questions import Raw, questions_of, raw_of_batch, raw_of_records, with_pair_ids
from lore.label.schema import QUESTION_FIELDS, QUESTION_SCHEMA

NAMES = {name: name for name in (*QUESTION_FIELDS, *MARKETS)} | {"attributes.colour": "colour", "attributes.size": "size"}
ODD_TEXTS = [
    "red mug",
    " red mug\t",
    "",
    "  ",
    "\u3000",
    "\u3164",
    "\ufeffmug",
    "mug\ufeff",
    "a\0b",
    "<b>mug</b>",
    "mug <5 mm>",
    "A & B",
    "AT&amp;T",
    "&K;",
    "x &\u017fect; y",
    "<\u017fpan>mug</\u017fpan>",
    "&#65;",
    "红色 杯子",
    "\U0001f600",
    "\u200b",
    "\x1fa\x1f",
    "x" * 1_001,
    "x" * 10_001,
    "e\u0301" * 400,
    "100001",
    "100001.0",
    "1.00001e+05",
    "12E4",
    "0012.0",
    "-5.0",
    "1e-5",
    "\u0661.0",
    "\u0661",
    "3E+999",
    "p0123456789abcdef",
    "None",
    "nan",
    "12.99",
    "$12.99",
    "1,299.00",
    "12,99",
    "-1",
    "1e15",
    "1e16",
    "inf",
    " 7 ",
    "7.",
    ".5",
    "1_000",
]
texts = st.one_of(st.none(), st.sampled_from(ODD_TEXTS), st.text(max_size=20))
floats = st.one_of(st.none(), st.floats(), st.sampled_from([100001.0, 1.5, -0.0, 1e15, 1e300]))
integers = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))
binaries = st.one_of(st.none(), st.sampled_from([b"mug", b"", b"m\xffg", "köln".encode(), b"lore: photo not read x"]))
anything = st.one_of(
    texts, floats, integers, st.booleans(), st.lists(texts, max_size=2), st.dictionaries(st.text(max_size=3), texts, max_size=2)
)
pairs = st.lists(st.one_of(st.none(), st.fixed_dictionaries({"key": texts, "value": texts})), max_size=3)
photo = st.fixed_dictionaries(
    {"bytes": binaries, "path": st.sampled_from([None, "", "a.png", "no.png", "/etc/hostname", "https://a/b.png", "../x"])}
)
KINDS = {
    "text": (texts, pa.string()),
    "coded": (texts, pa.dictionary(pa.int32(), pa.string())),
    "large": (texts, pa.large_string()),
    "float": (floats, pa.float64()),
    "float32": (st.one_of(st.none(), st.floats(width=32)), pa.float32()),
    "integer": (integers, pa.int64()),
    "bool": (st.one_of(st.none(), st.booleans()), pa.bool_()),
    "binary": (binaries, pa.binary()),
    "null": (st.none(), pa.null()),
    "texts": (st.one_of(st.none(), st.lists(texts, max_size=3)), pa.list_(pa.string())),
    "entries": (st.one_of(st.none(), pairs), PAIR_SCHEMA.field("attributes").type),
    "map": (
        st.one_of(st.none(), st.dictionaries(st.sampled_from(ODD_TEXTS[:8]), texts, max_size=3).map(lambda one: list(one.items()))),
        pa.map_(pa.string(), pa.string()),
    ),
    "photo": (st.one_of(st.none(), photo), PAIR_SCHEMA.field("image").type),
}
USUAL = {
    "attributes": ["entries", "map", "text"],
    "slices": ["texts", "text"],
    "image": ["photo", "text", "binary"],
    "price": ["float", "integer", "text"],
}


@st.composite
def tables(draw) -> pa.RecordBatch:
    rows = draw(st.integers(1, 6))
    columns = {}
    for name in draw(st.sets(st.sampled_from(sorted(NAMES.values())), min_size=1)) | {"query", "title"}:
        usual = USUAL.get(name, ["text", "coded", "large"])
        kind = draw(st.one_of(st.sampled_from(usual), st.sampled_from(sorted(KINDS))))
        values, kind = KINDS[kind]
        columns[name] = pa.array(draw(st.lists(values, min_size=rows, max_size=rows)), kind)
    return pa.record_batch(columns)


def row_by_row(raw: Raw, columns: dict[str, str], checker: RowChecker) -> tuple[list[Pair], list]:
    pairs, rejections = [], []
    for number, cells in zip(raw.numbers, raw.cells(list(range(len(raw)))), strict=True):
        pair, problems = checker.check(row_values(cells, columns), raw.file, number)
        rejections += problems
        pairs += [pair] if pair else []
    return pairs, rejections


def compare(raw: Raw, file: Path, columns: dict[str, str] = NAMES) -> None:
    held = {target: name for target, name in columns.items() if name in raw.columns}
    expected, problems = row_by_row(raw, held, RowChecker(None, open_photos=False))
    found, kept, rejections = questions_of(raw, held, RowChecker(None, open_photos=False))
    assert found.schema == QUESTION_SCHEMA
    found.validate(full=True)
    assert rejections == problems
    assert len(kept) == len(found) == len(expected)
    named = with_pair_ids(found)
    assert pairs_of(pa.Table.from_batches([named])) == expected
    for name in QUESTION_FIELDS:
        if name != "image":
            assert named.column(name).to_pylist() == to_column(name, [getattr(pair, name) for pair in expected]).to_pylist()


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    (folder / "a.png").write_bytes(b"x")
    return folder / "t.parquet"


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(batch=tables())
def test_columns_are_checked_as_rows_are(file, batch):
    compare(raw_of_batch(batch, str(file), 5), file)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(rows=st.lists(st.dictionaries(st.sampled_from(sorted(NAMES.values())), anything), min_size=1, max_size=5))
def test_records_of_mixed_types_are_checked_as_rows_are(file, rows):
    cells = [{"query": "red mug", "title": "Mug", **row} for row in rows]
    compare(raw_of_records(list(enumerate(cells, 3)), str(file), list(NAMES.values())), file)


def test_every_code_point_at_the_ends_of_a_title_is_treated_as_by_the_row_checker(file):
    """White space and invisible characters differ between libraries. One text of each code point would take a minute."""
    points = [*range(0x500), *range(0x1100, 0x1200), *range(0x1600, 0x1900), *range(0x2000, 0x2100), *range(0x2800, 0x2804)]
    points += [*range(0x2FF0, 0x3200), *range(0xD7A0, 0xD800), *range(0xE000, 0xE010), *range(0xFE00, 0x10000), 0xE0041]
    titles = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
    batch = pa.record_batch({"query": ["q"] * len(titles), "title": titles, "brand": [f"{one}x{one}" for one in titles]})
    compare(raw_of_batch(batch, str(file), 1), file, {name: name for name in ("query", "title", "brand")})


def test_text_that_is_not_utf8_is_one_rejected_row(file):
    data = pa.array([b"red mug", b"m\xffg", b"blue mug"], pa.binary()).view(pa.string())
    raw = raw_of_batch(pa.record_batch({"query": data, "title": ["a", "b", "c"]}), str(file), 1)
    compare(raw, file)
    _, kept, rejections = questions_of(raw, NAMES, RowChecker(None, open_photos=False))
    assert kept.tolist() == [0, 2]
    assert [(one.row, one.field, one.reason) for one in rejections] == [(2, "query", "encoding")]


def test_long_attributes_and_slices_go_through_the_row_checker(file):
    many = [[{"key": f"k{n}", "value": "v"} for n in range(1_001)], [{"key": f"k{n}", "value": "v" * 90_000} for n in range(3)], []]
    batch = pa.record_batch(
        [["q"] * 3, ["t"] * 3, pa.array(many, PAIR_SCHEMA.field("attributes").type), [["s"] * 1_001, ["s", " s"], None]],
        ["query", "title", "attributes", "slices"],
    )
    compare(raw_of_batch(batch, str(file), 1), file)


def test_usual_rows_never_reach_the_row_checker(file, monkeypatch):
    monkeypatch.setattr(RowChecker, "check", lambda *_: pytest.fail("a usual row went through the slow path"))
    rows = 50
    batch = pa.record_batch(
        [
            [f"red mug {n}" for n in range(rows)],
            [f"Mug & Co. {n} <10 cm" for n in range(rows)],
            [float(n) for n in range(rows)],
            pa.array(
                [[{"key": "colour", "value": "rot"}, {"key": "größe", "value": "5"}]] * rows, PAIR_SCHEMA.field("attributes").type
            ),
            ["12.99"] * rows,
            ["a.png"] * rows,
            ["us"] * rows,
            pa.array([1.0, None] * (rows // 2)),
        ],
        ["query", "title", "item_id", "attributes", "price", "image", "locale", "query_frequency"],
    )
    found, kept, _ = questions_of(raw_of_batch(batch, str(file), 1), NAMES, RowChecker(None, open_photos=False))
    assert kept.tolist() == list(range(rows))
    first = pairs_of(pa.Table.from_batches([with_pair_ids(found)]))[0]
    assert first.pair_id == make_pair_id("red mug 0", "0", "locale:us")
    assert (first.item_id, first.price, first.image["path"]) == ("0", 12.99, str(file.parent / "a.png"))


def test_a_photo_that_lies_elsewhere_stays_in_the_row_and_is_not_opened(file):
    batch = pa.record_batch({"query": ["q"], "title": ["t"], "image": ["/etc/hostname"]})
    found, _, rejections = questions_of(raw_of_batch(batch, str(file), 1), NAMES, RowChecker(None, open_photos=False))
    (pair,) = pairs_of(pa.Table.from_batches([with_pair_ids(found)]))
    assert not rejections
    with pytest.raises(ImageError, match="outside"):
        image_bytes(pair.image)


def test_an_odd_row_keeps_what_says_that_its_photo_may_not_be_read(file):
    batch = pa.record_batch({"query": ["q", "q"], "title": ["<b>t</b>", "t"], "image": ["/etc/hostname", "/etc/hostname"]})
    found, _, _ = questions_of(raw_of_batch(batch, str(file), 1), NAMES, RowChecker(None, open_photos=False))
    for pair in pairs_of(pa.Table.from_batches([with_pair_ids(found)])):
        with pytest.raises(ImageError, match="outside"):
            image_bytes(pair.image)


def test_slices_of_tables_are_checked_in_place(file):
    """An Arrow slice begins in the middle of its buffers."""
    batch = pa.record_batch(
        [
            [f"q{n}" for n in range(40)],
            [" <b>x</b>" if n % 7 == 0 else f" t{n}" for n in range(40)],
            [[f"s{n}"] * (n % 3) for n in range(40)],
        ],
        ["query", "title", "slices"],
    )
    whole, _, _ = questions_of(raw_of_batch(batch, str(file), 1), NAMES, RowChecker(None, open_photos=False))
    part, kept, _ = questions_of(raw_of_batch(batch.slice(13, 20), str(file), 14), NAMES, RowChecker(None, open_photos=False))
    assert part.to_pylist() == whole.slice(13, 20).to_pylist()
    assert np.array_equal(kept, np.arange(20))
