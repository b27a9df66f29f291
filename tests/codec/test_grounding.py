"""Reading a rationale's demands back, and finding what they cite in the item; the checks of traces stand in test_verify.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lore.codec.grounding import citable, leaks, why_ungrounded
from lore.codec.judgement import render_demands
from lore.data.pair import Pair
from lore.rubric.demand import SOURCES, Demand, read_demands

PAIR = Pair(pair_id="p", query="scarlet mug", title="red mug lumo", attributes={"pattern": "striped"}, price=44.0)
WORD = st.text("abcdé红9.%'", min_size=1, max_size=6)
WORDS = st.lists(WORD, min_size=1, max_size=3).map(" ".join)
DEMANDS = st.lists(st.builds(Demand, WORD, WORDS, WORDS, st.sampled_from(SOURCES), WORD, WORD), max_size=4)


@given(DEMANDS)
def test_demands_are_read_back_as_they_were_written(demands):
    assert read_demands(render_demands(demands)) == demands


@pytest.mark.parametrize(
    ("leave_out", "read"),
    [
        (["rules"], Demand("colour", "scarlet = red", "red", "title", "", "")),
        (["knowledge"], Demand("colour", "scarlet", "red", "title", "near", "L3")),
    ],
)
def test_what_a_rationale_leaves_out_is_read_as_empty(leave_out, read):
    demand = Demand("colour", "scarlet = red", "red", "title", "near", "L3")
    assert read_demands(render_demands([demand], leave_out)) == [read]


def test_a_finding_from_the_photo_may_be_left_out():
    demand = Demand("colour", "red", "red", "photo", "near", "L3")
    assert read_demands(render_demands([demand], ["photos"])) == [Demand("colour", "red", "", "", "near", "L3")]


@pytest.mark.parametrize(
    ("text", "demands"),
    [
        ("", []),
        ("red mug lumo", [None]),
        ("the verdict is L4, as the rater said", [None]),
        ("colour: red | red (title) | near L3; the verdict is L4", [None]),
        ("colour: red | red (title) | near L3 and so on", [None]),
        ("colour: red | red; dark (title) | near L3", [Demand("colour", "red", "red; dark", "title", "near", "L3")]),
        ("colour: red | red (memory) | near L3", [None]),
    ],
)
def test_what_is_no_demand_is_none(text, demands):
    assert read_demands(text) == demands


@pytest.mark.parametrize(
    ("found", "source", "why"),
    [
        ("red", "title", ""),
        ("striped", "attributes", ""),
        ("44", "attributes", ""),
        ("red", "attributes", "does not stand in the attributes"),
        ("red", "none", "cited from nowhere"),
        ("none", "none", ""),
        ("red", "photo", "there is none"),
        ("lumo red", "title", "do not stand together"),
    ],
)
def test_a_finding_stands_where_it_is_cited(found, source, why):
    said = why_ungrounded("blue", found, source, citable(PAIR), has_photo=False)
    assert why in said and bool(why) == bool(said)


def test_words_of_raters_are_leaks_unless_the_pair_has_them():
    assert leaks("as the rater said", PAIR) == ["rater"]
    assert leaks("top rated mug", Pair(pair_id="p", query="top rated mug", title="mug")) == []
