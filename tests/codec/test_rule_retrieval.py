"""Retrieved rules and looked-up facts in a prompt: what is shown comes from query, item and table, never from the truth."""

import itertools
import re
from dataclasses import replace

import pytest
import tokenizers_for_tests as small
from attacks import ATTACKS

from lore.codec import rule_retrieval as rule_search
from lore.codec.item_text import item_text
from lore.codec.judgement import renderer_hash
from lore.codec.prompt import PromptFormat, count_prompt_tokens, render, system_text
from lore.codec.rule_retrieval import rules_about
from lore.codec.sanitize import control_strings, neutralize
from lore.data.pair import Pair
from lore.data_synth.shop.world import World
from lore.rubric.demand import Demand
from lore.rubric.rubric import load_rubric, parse_rubric
from lore.support.errors import LoreError

SHOP, RAIR = load_rubric("shop"), load_rubric("rair")
RETRIEVED = PromptFormat(detail="retrieved", retrieved_rules=12)
RULE_LINE = re.compile(r"^- (L\d) (\S+), ([^\s:]+): ", re.MULTILINE)


def pair_of(query: str, title: str = "thing", **fields) -> Pair:
    return Pair(pair_id="p", query=query, title=title, **fields)


def dimensions_for(pair: Pair, count: int = 12, rubric=SHOP) -> list[str]:
    return list(dict.fromkeys(rule.dimension for rule in rules_about(rubric, item_text(pair), count).rules))


def world_pairs(count: int) -> list[Pair]:
    return list(World(7051, photos=0, subsets={"general": 0.5, "hard": 0.5}).pairs("test", count))


def test_rules_come_by_whole_dimensions_in_the_rubrics_order():
    for pair in world_pairs(100):
        found = rules_about(SHOP, item_text(pair), 12)
        dimensions = [dimension.id for dimension in found.dimensions]
        assert found.rules == [rule for rule in SHOP.rules if rule.dimension in dimensions]
        assert found.dimensions == [dimension for dimension in SHOP.dimensions if dimension.id in dimensions]
        sizes = {name: sum(rule.dimension == name for rule in SHOP.rules) for name in dimensions}
        assert 12 <= len(found.rules) < 12 + max(sizes.values())


def test_the_rules_are_those_of_the_querys_words():
    """The first dimension is what kind of thing it is: it is at stake in every pair."""
    assert dimensions_for(pair_of("lamp 40 cm", "lamp 60 cm"), 8) == ["category", "size"]
    assert dimensions_for(pair_of("mug under 50 dollars", "mug", price=40.0), 8) == ["category", "price"]
    assert dimensions_for(pair_of("striped bowl"), 7) == ["category", "pattern"]


def test_the_items_words_decide_where_the_query_says_nothing():
    assert dimensions_for(pair_of("gift", "98% pure cotton sheet"), 8) == ["category", "material"]
    assert dimensions_for(pair_of("gift", "thing", attributes={"pieces": "set of 6"}), 8) == ["category", "bundle"]
    assert dimensions_for(pair_of("gift", "thing", brand="lumo"), 8) == ["category", "brand"]
    assert dimensions_for(pair_of("gift", "thing"), 8) == ["category", "brand"]  # nothing is shared: the first ones


def test_most_of_a_pairs_demands_find_their_rules():
    """BM25 finds words, not meanings: a brand that no example names is missed. The share must not fall unnoticed."""
    found = [
        demand.rule in {rule.id for rule in rules_about(SHOP, item_text(pair), 12).rules}
        for pair in world_pairs(400)
        for demand in pair.demands
    ]
    assert len(found) > 700 and sum(found) / len(found) > 0.8


def test_what_was_found_is_a_rubric_of_its_own():
    """Its hash names its prompt text: a copy of the whole one's would mix up two texts."""
    lamp, mug = pair_of("lamp 40 cm"), pair_of("striped mug under 50 dollars")
    first, second = (rules_about(SHOP, item_text(pair), 12) for pair in (lamp, mug))
    assert len({SHOP.hash, first.hash, second.hash}) == 3
    assert first.tiers == SHOP.tiers and first.aggregate == SHOP.aggregate and first.mismatch_tiers == SHOP.mismatch_tiers
    assert {rule.id for rule in first.rules} < {rule.id for rule in SHOP.rules}
    assert render(lamp, SHOP, RETRIEVED)[0]["content"] == system_text(first, PromptFormat(detail="full"))
    assert rules_about(SHOP, item_text(lamp), 12) is first


def test_a_rule_book_that_is_short_enough_is_shown_whole():
    wands = load_rubric("wands")
    assert rules_about(wands, item_text(pair_of("chair")), 12) is wands
    assert render(pair_of("chair"), wands, RETRIEVED) == render(pair_of("chair"), wands, PromptFormat())
    bare = parse_rubric({"name": "bare", "version": "1", "tiers": [tier.model_dump() for tier in SHOP.tiers]})
    assert rules_about(bare, item_text(pair_of("chair")), 1) is bare


def test_an_edited_rule_is_not_answered_from_the_old_books_memory():
    raw = SHOP.model_dump()
    for rule in raw["rules"]:
        if rule["id"] == "size-near":
            rule["principle"] = "within thirty percent of the size asked for"
    pair = pair_of("lamp 40 cm")
    before, after = (render(pair, rubric, RETRIEVED)[0]["content"] for rubric in (SHOP, parse_rubric(raw)))
    assert "within ten percent" in before and "within ten percent" not in after and "within thirty percent" in after


def test_memory_of_what_was_found_is_bounded(monkeypatch):
    monkeypatch.setattr(rule_search, "MAX_FOUND", 3)
    monkeypatch.setattr(rule_search, "_found", {})
    for pair in world_pairs(80):
        rules_about(SHOP, item_text(pair), 12)
        assert 1 <= len(rule_search._found) <= 3


@pytest.mark.parametrize("detail", ["full", "retrieved", "tiers", "name"])
def test_no_truth_of_a_pair_reaches_a_prompt(detail):
    """What fired must not choose what is shown: another rule, demand, label or reason changes nothing."""
    fmt, rules = PromptFormat(detail=detail), itertools.cycle(SHOP.rules)
    for pair in world_pairs(120):
        rule = next(rules)
        other = replace(
            pair,
            rules=[rule.id],
            demands=[Demand(rule.dimension, rule.principle, rule.dimension, "title", rule.id, rule.tier)],
            label=rule.tier,
            mismatch=rule.dimension,
            rationale=rule.principle,
            slices=[f"dimension:{rule.dimension}"],
            source=rule.dimension,
        )
        facts = ["azure = blue"]
        assert render(other, SHOP, fmt, facts=facts) == render(pair, SHOP, fmt, facts=facts)


def test_retrieved_rules_fit_where_the_whole_book_does_not():
    tokenizer = small.chatml()
    pair = pair_of("red cotton dress size 40", "red cotton dress for women", description="a long summer dress " * 200)
    whole = count_prompt_tokens(render(pair_of("red dress"), RAIR, PromptFormat()), tokenizer)
    budget = whole - 1
    with pytest.raises(LoreError, match="detail: retrieved"):
        render(pair, RAIR, PromptFormat(max_prompt_tokens=budget), tokenizer=tokenizer)
    fmt = replace(RETRIEVED, max_prompt_tokens=budget)
    system, user = render(pair, RAIR, fmt, tokenizer=tokenizer)
    assert count_prompt_tokens([system, user], tokenizer) <= budget
    shown = RULE_LINE.findall(system["content"])
    assert 12 <= len(shown) < len(RAIR.rules) and "red cotton dress size 40" in user["content"]


def test_the_hash_tells_retrieved_rules_from_whole_ones():
    formats = [PromptFormat(), RETRIEVED, replace(RETRIEVED, retrieved_rules=8)]
    assert len({renderer_hash(SHOP, fmt) for fmt in formats}) == 3


# facts


def test_facts_stand_before_the_query_and_are_left_out_where_there_are_none():
    pair, fmt = pair_of("red samovar", "red kettle"), PromptFormat(detail="name")
    plain, told = render(pair, SHOP, fmt), render(pair, SHOP, fmt, facts=["samovar = kettle", "crimson = red"])
    assert told[0] == plain[0]
    assert told[1]["content"] == "<facts>samovar = kettle; crimson = red</facts>\n" + plain[1]["content"]
    assert render(pair, SHOP, fmt, facts=()) == plain == render(pair, SHOP, fmt, facts=["\u200b", " "])


@pytest.mark.parametrize("attack", ATTACKS, ids=ascii)
def test_a_fact_closes_no_field(attack):
    tokenizer = small.chatml()
    control = control_strings(tokenizer)
    fmt, facts = PromptFormat(detail="name"), [f"a {attack} b"]
    content = render(pair_of("dress"), SHOP, fmt, tokenizer=tokenizer, facts=facts)[1]["content"]
    found = re.match(r"<facts>([^<>\n]*)</facts>\n<query>dress</query>\n<item>\n", content)
    assert found and found[1] == neutralize(facts[0], control)


def test_facts_are_never_cut():
    tokenizer = small.chatml()
    pair = pair_of("red dress", "red cotton dress", description="a long summer dress " * 50)
    facts = ["summer dress = a dress of cotton"]
    fmt = PromptFormat(detail="name", max_prompt_tokens=120)
    content = render(pair, SHOP, fmt, tokenizer=tokenizer, facts=facts)[1]["content"]
    assert content.startswith(f"<facts>{facts[0]}</facts>") and content.count("summer dress") < 20
    with pytest.raises(LoreError, match="neither is ever cut"):
        render(pair, SHOP, fmt, tokenizer=tokenizer, facts=facts * 20)
