"""Rows that need no cleaning become the same pairs as field by field."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lore.data.pair import Pair
from lore.online.answer import Answer
from lore.online.plain_rows import plain_pair
from lore.online.schemas import PairReader

ODD = (
    "",
    " ",
    "\0",
    "<b>red</b>",
    "salt & pepper",
    "&amp;",
    "<",
    "\ufeffmug",
    "\ud83d",
    "\u200b",
    "\u3164",
    "\x01",
    "1e3",
    "7.0",
    "12",
    "-0.0",
)
WORDS = st.lists(st.sampled_from(["mug", "Becher", "für", "7", " ", "H&M", "<"]), min_size=1, max_size=3).map(" ".join)
TEXTS = st.one_of(
    st.sampled_from(ODD), st.text(max_size=8), WORDS.flatmap(lambda word: st.sampled_from([word + odd for odd in ODD]))
)
NUMBERS = st.sampled_from([1, -3, 10**19, 10**30, 9.5, 1e300, float("inf"), float("nan"), True, -0.0])
ANY = st.one_of(st.none(), NUMBERS, TEXTS, st.lists(TEXTS, max_size=2), st.dictionaries(TEXTS, TEXTS | NUMBERS, max_size=3))
CLEAN = dict.fromkeys(("pair_id", "item_id", "description", "category", "brand", "shop", "image"), WORDS)
CLEAN |= {"price": st.floats(0, 9), "attributes": st.dictionaries(WORDS, WORDS, max_size=3), "slices": st.lists(WORDS, max_size=2)}
PLAIN = st.fixed_dictionaries({"query": WORDS, "title": WORDS}, optional=CLEAN)
NAMES = st.sampled_from(["query", "title", *CLEAN, "label", "colour"])
ROWS = st.builds(lambda row, odd: row | odd, PLAIN, st.dictionaries(NAMES, ANY, max_size=2))


def shown(found: Pair | Answer) -> str:
    """With -0.0 apart from 0.0 and 9 from 9.0, and the attributes in their order."""
    return repr(found)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(ROWS, st.sampled_from([5, 20, 20_000]))
def test_a_plain_row_gives_the_pair_that_it_gives_field_by_field(row: dict[str, Any], most: int) -> None:
    reader = PairReader(most)
    assert shown(reader.read(row)) == shown(reader.checked(row))


def test_what_is_longer_than_a_field_may_be_is_left_to_the_checks() -> None:
    for row in (
        {"query": "a" * 1001, "title": "mug"},
        {"query": "mug", "title": "a" * 10_001},
        {"query": "mug", "title": "mug", "attributes": {str(at): "a" for at in range(1001)}},
        {"query": "mug", "title": "mug", "slices": ["a"] * 1001},
        {"query": "mug", "title": "mug", "attributes": {"a": "b" * 10_001}},
    ):
        reader = PairReader(20_000)
        assert plain_pair(row, 20_000) is None
        assert shown(reader.read(row)) == shown(reader.checked(row))


def test_the_rows_of_shops_are_plain() -> None:
    item = {"title": "H&M Becher für Tee, 5 < 7 €", "brand": "H&M", "price": 9, "item_id": "a1", "attributes": {"Farbe": " rot "}}
    row = json.loads(json.dumps({"query": "becher", "description": None, "slices": ["locale:de"], **item}))
    found = plain_pair(row, 20_000)
    assert found is not None and found.attributes == {"Farbe": "rot"} and found.price == 9.0 and found.slices == ["locale:de"]
    assert shown(found) == shown(PairReader(20_000).checked(row))
