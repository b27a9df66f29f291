"""Edited rule books of the shop: none has an edit of the capability test, texts state the numbers, labels follow the book."""

import random
from dataclasses import replace

import pytest

from lore.data.parquet import count_pairs, read_pairs
from lore.data.rule_books import RuleBooks, contradiction
from lore.data_synth.shop.config import RuleBooksSection
from lore.data_synth.shop.rule_books import NUMBERS, SEALED_TIERS, edited_book
from lore.data_synth.shop.rules import with_limits
from lore.data_synth.shop.world import World
from lore.data_synth.shop.write import corpus_texts, examples_below_rules, with_spans, write_pairs
from lore.eval.probes.rule_edits import load_rule_edits
from lore.rubric.demand import read_demands
from lore.rubric.rubric import load_rubric
from lore.rubric.rule_edits import stated_number, with_numbers

SHOP = load_rubric("shop")
OLD = {rule.id: rule for rule in SHOP.rules}


@pytest.fixture(scope="module")
def books():
    return [edited_book(SHOP, random.Random(seed), 1 + seed % 12) for seed in range(60)]


def edits_of_the_test():
    """(rule id, tier or None, {name: number}) of every change in the capability test."""
    for edit in load_rule_edits("shop", SHOP):
        for rule in edit.rubric.rules:
            tier = rule.tier if rule.tier != OLD[rule.id].tier else None
            numbers = {name: value for name, value in rule.params.items() if value != OLD[rule.id].params[name]}
            if tier or numbers:
                yield rule.id, tier, numbers


def test_no_book_can_have_an_edit_of_the_capability_test(books):
    assert SEALED_TIERS == {rule_id: tier for rule_id, tier, _ in edits_of_the_test() if tier}
    for rule_id, _, numbers in edits_of_the_test():
        for name, value in numbers.items():
            assert value not in NUMBERS[OLD[rule_id].dimension][rule_id][name]
    tested = {edit.rubric.hash for edit in load_rule_edits("shop", SHOP)}
    assert tested.isdisjoint(book.hash for book in books)
    for book in books:
        rules = {rule.id: rule for rule in book.rules}
        for rule_id, tier, numbers in edits_of_the_test():
            assert rules[rule_id].tier != tier
            assert all(rules[rule_id].params[name] != value for name, value in numbers.items())


def test_books_differ_in_tiers_and_in_numbers_that_their_texts_state(books):
    moved, renumbered = set(), set()
    for book in books:
        assert [rule.id for rule in book.rules] == list(OLD) and book.tier_ids == SHOP.tier_ids and book.hash != SHOP.hash
        for rule in book.rules:
            moved |= {(rule.id, rule.tier)} if rule.tier != OLD[rule.id].tier else set()
            for name, value in rule.params.items():
                if value != OLD[rule.id].params[name]:
                    renumbered.add((rule.id, value))
                    assert stated_number(rule.principle, value) and not rule.examples, rule
    assert len(moved) > 40 and len(renumbered) > 12
    assert all(tier != "L1" for _, tier in moved)
    assert len({book.hash for book in books}) == len(books)


def test_numbers_are_written_as_the_text_writes_them():
    assert with_numbers("within ten percent", {0.1: 0.4}) == "within forty percent"
    assert with_numbers("pure and 90 to 95 percent of it", {95: 90, 90: 65}) == "pure and 65 to 90 percent of it"
    assert with_numbers("a tenth of 10 items, 10.5", {0.1: 0.15}) == "fifteen of 15 items, 10.5"


def test_rationales_state_the_limit_of_the_book_and_how_far_the_item_is_off():
    wider = next(edit.rubric for edit in load_rule_edits("shop", SHOP) if edit.id == "size-wider")
    world = World(3, photos=0, limits=True)
    found = set()
    for before, after in zip(world.pairs("train", 600), world.pairs("train", 600, book=wider), strict=True):
        assert (before.query, before.title, before.slices[0]) == (after.query, after.title, after.slices[0])
        for demand in after.demands:
            if demand.dimension != "size" or demand.source == "none":
                continue
            asked, limit = demand.wanted.split(" = ")
            assert limit == "within thirty percent"
            size, _, off = demand.found.partition(" = ")
            truth = 100 * abs(int(size) - int(asked)) / int(asked)
            rule = "same" if not truth else "near" if truth <= 30 else "far"
            assert demand.rule == f"size-{rule}" and off == (f"{truth:.3g} percent off" if truth else "")
            found.add(rule)
        assert read_demands(after.rationale) == after.demands
    assert found == {"same", "near", "far"}
    plain = list(World(3, photos=0).pairs("train", 40))
    assert [pair.slices for pair in plain] == [pair.slices for pair in World(3, photos=0, limits=True).pairs("train", 40)]
    assert with_limits([], [], SHOP) == []


def test_pairs_name_their_book_and_their_labels_follow_it(tmp_path):
    section = RuleBooksSection(count=6, edits=40, original=0.2, run=16)
    path = tmp_path / "pairs" / "train.parquet"
    write_pairs(World(5, photos=0, limits=True), "train", 200, path, section)
    pairs = list(read_pairs(path))
    assert count_pairs(path) == 200
    for start in range(0, 200, 16):
        assert len({pair.rubric for pair in pairs[start : start + 16]}) == 1
    named = {pair.rubric for pair in pairs}
    assert None in named and named - {None} <= {f"books/{number:04d}.yaml" for number in range(6)}
    books, differ = RuleBooks([path.parent], SHOP), 0
    for pair, original in zip(pairs, World(5, photos=0, limits=True).pairs("train", 200), strict=True):
        assert contradiction(pair, books.of(pair)) is None and pair.query == original.query
        assert pair.rubric or pair.label == original.label
        differ += pair.label != original.label
    assert differ > 10
    again = tmp_path / "again" / "train.parquet"
    write_pairs(World(5, photos=0, limits=True), "train", 200, again, section)
    assert [replace(pair) for pair in read_pairs(again)] == pairs


def test_worked_examples_carry_loss_on_limits_rules_and_tiers_that_the_rules_above_state():
    world, rng = World(0, photos=0, limits=True), random.Random(0)
    for _ in range(15):
        row = with_spans(examples_below_rules(rng, world))
        above, _, examples = row["text"].rpartition("<rules>")
        trained = [row["text"][span["start"] : span["end"]] for span in row["trained"]]
        verdicts = [text.split() for text in trained if not text.startswith(" = ")]
        assert verdicts and len({rule for rule, _ in verdicts}) == len(verdicts)
        assert all(f"- {tier} {rule}, " in above for rule, tier in verdicts)
        assert all(span["start"] >= len(above) for span in row["trained"])
        for demand in read_demands(examples.partition("</rules>")[0]):
            if demand.dimension in ("size", "price"):
                assert f" {demand.wanted.split()[-2]} percent" in above


def test_a_corpus_for_changed_rules_begins_with_lookups_that_grow_from_a_few_rules_to_the_whole_book():
    texts = list(corpus_texts(World(0, photos=0, limits=True), 400))
    counts = []
    for row in texts[:128]:
        lines, _, asked = row["text"].removesuffix("</rules><|im_end|>\n").partition("<|im_end|>\n<rules>")
        stated = {rule: tier for _, tier, rule in (line.split() for line in lines.splitlines()[1:])}
        answers = [answer.split() for answer in asked.rstrip(";").split(";")]
        assert sorted(answers) == sorted(4 * [[rule, tier] for rule, tier in stated.items()])
        assert all(SEALED_TIERS.get(rule) != tier for rule, tier in stated.items())
        assert [row["text"][span["start"] : span["end"]].strip() for span in row["trained"]] == [tier for _, tier in answers]
        counts.append(len(stated))
    assert max(counts[:102]) <= 4 and len(set(counts[:102])) > 1 and max(counts[-8:]) > 20 and max(counts) <= len(SHOP.rules)
    assert sum("</rules>" in row["text"] for row in texts[128:]) < 272
    plain = list(corpus_texts(World(0, photos=0), 20))
    assert all("<rules> " not in row["text"] for row in plain)
