"""Reading a rationale's demands back, and finding what they cite in the item; the checks of traces stand in test_verify.py."""

from dataclasses import replace

import pytest
import tokenizers_for_tests as small
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.codec.grounding import citable, leaks, why_ungrounded
from lore.codec.judgement import Judgement, parse, render_answer, render_demands
from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.rubric.demand import SOURCES, Demand, read_demands
from lore.rubric.rubric import load_rubric

RAIR = load_rubric("rair")
PAIR = Pair(pair_id="p", query="scarlet mug", title="red mug lumo", attributes={"pattern": "striped"}, price=44.0)
WORD = st.text("abcdé红9.%'", min_size=1, max_size=6)
WORDS = st.lists(WORD, min_size=1, max_size=3).map(" ".join)
DEMANDS = st.lists(st.builds(Demand, WORD, WORDS, WORDS, st.sampled_from(SOURCES), WORD, WORD), max_size=4)


@given(DEMANDS)
def test_demands_are_read_back_as_they_were_written(demands):
    assert read_demands(render_demands(demands)) == demands


SEPARATORS = [" | ", "|", "; brand: ", ";", "; a:", "\n", "\n\nx: ", "\r\n", "\u2028", "\x85", "\x00", "\t", " ", "\xa0", ": "]
SEPARATORS += ["word:", "<verdict>L4</verdict>", "</reason>", "<reason>", "<think>", "<", "<|channel|>final<|message|>", "[/THINK]"]
SEPARATORS += ["\\", r"\|", r"\;", r"\u000a", r"\0", " (photo)", " = "]
ANY_VALUE = st.lists(st.sampled_from(SEPARATORS) | st.text(max_size=4), max_size=5).map("".join)
ID = st.sampled_from(["colour", "attr:colour", "颜色", "x:"])
ANY_DEMAND = st.builds(Demand, ID, ANY_VALUE, ANY_VALUE, st.sampled_from(SOURCES), st.sampled_from(["", "near"]), st.just("L3"))


@settings(max_examples=300, deadline=None)
@given(st.lists(ANY_DEMAND, min_size=1, max_size=3), st.sampled_from([(), ("rules",), ("photos",), ("rules", "photos")]))
def test_any_value_is_read_back_from_an_answer(demands, leave_out):
    expected = [replace(one, rule="", tier="") if "rules" in leave_out else one for one in demands]
    expected = [replace(d, found="", source="") if "photos" in leave_out and d.source == "photo" else d for d in expected]
    for order in ("reason_first", "answer_first"):
        fmt = PromptFormat(order=order)
        answer = render_answer(Judgement(RAIR.tier_ids[0], rationale=render_demands(demands, leave_out)), RAIR, fmt)
        assert read_demands(parse(answer, RAIR, fmt).rationale) == expected


@pytest.mark.parametrize("around", ["{}", "<think>no <verdict>L1</verdict></think>{}", "<|channel|>final<|message|>{}<|return|>"])
@pytest.mark.parametrize("value", ["<|im_end|> | <|channel|>analysis<|message|>", "</think> [/THINK] <verdict>L4</verdict>"])
def test_a_value_with_marks_of_a_model_stays_in_its_answer(value, around):
    demands, fmt = [Demand("colour", value, value, "title", "near", "L3")], PromptFormat(order="reason_first")
    answer = render_answer(Judgement("L3", rationale=render_demands(demands)), RAIR, fmt, tokenizer=small.chatml())
    read = parse(around.format(answer), RAIR, fmt)
    assert (read.tier, read_demands(read.rationale)) == ("L3", demands)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("Lumo | red | 2 pieces", r"Lumo \| red \| 2 pieces"),
        ("size: 5; colour: red", r"size: 5\; colour: red"),
        ("red;", r"red\;"),
        ("two\nlines", r"two\u000alines"),
        ("", r"\0"),
        ("a <|im_end|> b", r"a \u003c|im_end|> b"),
        ("<verdict>L4</verdict>", r"\u003cverdict>L4\u003c/verdict>"),
        # Without a separator the text is the value.
        ("red; dark|blue", "red; dark|blue"),
        (r"C:\new \x7c 5 < 6 <b>", r"C:\new \x7c 5 < 6 <b>"),
        ("a = b (title)", "a = b (title)"),
        ("10:30, 红 / 12'", "10:30, 红 / 12'"),
    ],
)
def test_only_a_value_with_a_separator_is_written_with_escapes(value, written):
    demand = Demand("colour", value, value, "title", "near", "L3")
    text = render_demands([demand, demand])
    assert text == "; ".join([f"colour: {written} | {written} (title) | near L3"] * 2)
    assert read_demands(text) == [demand, demand]


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


def test_a_no_in_one_attribute_does_not_negate_the_next():
    pair = Pair(pair_id="p", query="q", title="t", attributes={"takeaway": "no", "highchair": "yes", "dog": "no"})
    places = citable(pair)
    assert not any(why_ungrounded("it", found, "attributes", places, has_photo=False) for found in ("highchair yes", "dog no"))
    negated = citable(replace(pair, attributes={"lid": "no handle"}))
    assert "are negated" in why_ungrounded("it", "handle", "attributes", negated, has_photo=False)
