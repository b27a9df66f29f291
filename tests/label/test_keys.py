"""Keys of questions: the labels on disk refer to them, so they never change."""

import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.data.pair import item_digest, market_of
from lore.label.keys import LONG_CHARACTERS, MULTIPLIER, Keys
from lore.label.schema import QUESTION_SCHEMA
from lore.support.text import normalize

ROWS = [
    {"query": "red mug", "title": "Red Mug Lumo", "brand": "Lumo", "category": "mugs", "price": 12.5},
    {"query": " Red\t MUG ", "title": "red  mug\x1flumo", "brand": "LUMO", "category": "Mugs", "price": 12.5},
    {"query": "red mug", "title": "Red Mug Lumo", "attributes": [("size", "L"), ("Colour", "Deep  Red")], "price": 7.0},
    {"query": "red mug", "title": "Red Mug Lumo", "attributes": [("colour", "deep red"), ("SIZE", "l")], "price": 7.0},
    {"query": "红色 杯子", "title": "ＲＥＤ 杯子", "description": "Straße ﬁne\u00a0cup", "shop": "İstanbul"},
    {"query": "bol", "title": "Bol", "slices": ["locale:fr", "clicked", "market:eu"], "price": 1e16},
    {"query": "bol", "title": "Bol", "slices": ["locale:us"], "price": 1e-5},
    {"query": "bol", "title": "Bol", "slices": [], "price": -0.0},
    {"query": "lamp", "title": "Lamp", "image": {"bytes": b"\x89PNG", "path": "any/where.png"}},
    {"query": "lamp", "title": "Lamp", "image": {"bytes": None, "path": "PHOTO"}, "price": 0.1},
    {"query": "lamp", "title": "Lamp", "image": {"bytes": None, "path": "/nowhere/lamp.png"}, "price": 0.1},
    {"query": "long", "title": "x" * 1500, "description": "y " * 1250, "category": "\x0b\x0c"},
    {"query": "marks", "title": "e" + "\u0301" * 1200, "description": "z" * 2799, "brand": "", "attributes": []},
    {"query": "order", "title": "o", "attributes": [("b", "2"), ("a", "1"), ("b", "10"), ("é", "\U0001f600"), ("a", "1")]},
]
"""Texts with case, spacing, separators, compatibility forms, markets, numbers of every form, photos and long items."""
KEYS = """
1e780c34973ecc1ae588d46fefc36d9eef2f134a2f92b0d41bc72d57c10674d80
1e780c34973ecc1ae588d46fefc36d9eef2f134a2f92b0d4fc7cfda4c62dee520
1e780c34973ecc1a7aa18f0f2274702cf9878e6378027376af11396a467622630
1e780c34973ecc1a7aa18f0f2274702cf9878e6378027376eda7485b7bd8edc00
12a33af2d9f8f3dee71e8a8748053ad1cc8c4b255036b28ea0be8c0be653dde80
e0e13cd9e475363c706ada6e7050ed544f038cc4b00adbe4880867e47dae27b40
6507a4fb2c2858102b02a2e073eac6b303590f4197d514c54acb538472229e200
699dcb4b9365cca53320778d78a27c0eef990c25d7a5ae9de102d5bf224b8e070
46891def501444c50df35f82785e015320b3ee9ae93b5c8a1442b8defcf7731b0
46891def501444c5f822a0c0b986867536bcc235fbbb7705d3d532f03f4d40600
46891def501444c5f815c8e6233099dc57c9f4a4b856450c41eca13d3de68f7c0
8a539088c32fae8729afc9f1c5417dff7caf2516b3d11c79e1fc543add9fa21b1
22da91d1d2f008032e849add29212cba931814588152ec5db8da572d5474a3520
16bd91d3fea6174a1260ede67bd7856ec0c2c463e1f9fa519444c09c11f435340
"""
"""hash, high, low and id in hex, and long, of each of the ROWS. From before keys were computed by column."""


def batch_of(rows: list[dict]) -> pa.RecordBatch:
    rows = [{"pair_id": f"p{number}é", "slices": None} | row for number, row in enumerate(rows)]
    table = pa.Table.from_pylist(rows, QUESTION_SCHEMA)
    return table.combine_chunks().to_batches()[0]


def photographed(tmp_path) -> list[dict]:
    (tmp_path / "photo.png").write_bytes(b"123")
    photo = {"bytes": None, "path": str(tmp_path / "photo.png")}
    return [row | ({"image": photo} if (row.get("image") or {}).get("path") == "PHOTO" else {}) for row in ROWS]


def written(found: dict[str, np.ndarray]) -> list[str]:
    numbers = zip(*(found[name].tolist() for name in ("hash", "high", "low", "id")), found["long"].tolist(), strict=True)
    return ["".join(f"{one:016x}" for one in row[:4]) + str(int(row[4])) for row in numbers]


def test_keys_are_those_of_labels_on_disk(tmp_path):
    assert written(Keys().of(batch_of(photographed(tmp_path)))) == KEYS.split()


def test_a_row_has_the_same_keys_alone_and_in_a_slice(tmp_path):
    rows = photographed(tmp_path)
    whole, keys = batch_of(rows), Keys()
    for at in range(len(rows)):
        assert written(keys.of(whole.slice(at, 1))) == [KEYS.split()[at]]
    assert written(keys.of(whole)) == KEYS.split()  # from the remembered items


def test_remembered_items_that_differ_in_one_part_are_told_apart():
    texts = dict.fromkeys(("title", "description", "category", "brand", "shop"), "a")
    item = texts | {"query": "q", "price": 1.0, "image": None, "slices": [], "attributes": [("a", "a")]}
    others = [{name: "aa"} for name in texts] + [{name: "a", "title": ""} for name in texts if name != "title"]
    others += [{"price": None}, {"price": 0.0}, {"attributes": []}, {"attributes": [("", "aa")]}, {"attributes": [("aa", "")]}]
    others += [{"attributes": [("a", "a")] * 2}, {"image": {"bytes": None, "path": None}}, {"image": {"bytes": b"", "path": "a"}}]
    rows = [item | other for other in ({}, *others)]
    keys = Keys()
    for _ in range(2):
        found = [key for row in rows for key in written(keys.of(batch_of([row])))]
        assert found == [key_of(row, 0) for row in rows]


SPACED = ["", "Red mug", "red  mug", " red", "red ", "red\x1fmug", "İ ß", "ｍｕｇ", "a\0b", "x" * (LONG_CHARACTERS + 1)]
TEXT = st.one_of(
    st.sampled_from(SPACED),
    st.text(st.sampled_from(list("aAéß \t\x1c\x1e\x1f\x85\u00a0\u0301ﬁ红")), max_size=6),
)
IMAGE = st.none() | st.fixed_dictionaries({"bytes": st.none() | st.binary(max_size=3), "path": st.none() | TEXT.filter(len)})
ITEM = st.fixed_dictionaries(
    {name: st.none() | TEXT for name in ("description", "category", "brand", "shop")}
    | {"query": TEXT, "title": TEXT, "price": st.none() | st.floats(allow_nan=False), "image": IMAGE}
    | {"attributes": st.lists(st.tuples(TEXT, TEXT), max_size=3)}
    | {"slices": st.none() | st.lists(st.sampled_from(["locale:us", "market:b", "market", "local:c", "x"]), max_size=3)}
)


@settings(max_examples=40, deadline=None)
@given(st.lists(ITEM, min_size=1, max_size=5))
def test_keys_by_column_are_those_of_each_row(rows):
    found = Keys().of(batch_of(rows + rows))
    assert written(found) == [key_of(row, number) for number, row in enumerate(rows + rows)]


def key_of(row: dict, number: int) -> str:
    """The keys of one row, from item_digest."""

    def halves(text: str, size: int) -> list[int]:
        digest = hashlib.blake2b(text.encode(), digest_size=size).digest()
        return [int.from_bytes(digest[at : at + 8]) for at in range(0, size, 8)]

    query = halves(f"{normalize(row['query'])}\x1f{market_of(row['slices'] or ())}", 24)
    texts, image = [row[name] for name in ("title", "description", "category", "brand", "shop")], row["image"]
    if image and not image["bytes"] and image["path"]:
        image = {"path": f"{image['path'].rpartition('/')[2]}\0-1"}  # there is no such file
    item = item_digest(texts, row["price"], row["attributes"], image)
    content = [(query[at + 1] + int.from_bytes(item[8 * at :][:8]) * int(MULTIPLIER)) % 2**64 for at in (0, 1)]
    characters = sum(len(text or "") for text in texts) + sum(len(name) + len(value) for name, value in row["attributes"])
    numbers = [query[0], *content, *halves(f"p{number}é", 8)]
    return "".join(f"{one:016x}" for one in numbers) + str(int(characters > LONG_CHARACTERS))
