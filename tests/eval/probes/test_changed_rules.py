"""Whether a verdict follows the rule that the judge was given, against judges that read their rules, know them by heart, or
guess; and the file of rule changes."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from capability_judges import (
    FULL,
    LINES,
    MEMORIZED,
    RULE_LINE,
    SHOP,
    TIERS,
    Reader,
    data_of,
    list_pairs,
    measured,
    rules_in,
    shop_pairs,
)

from lore.codec.prompt import render
from lore.data.pair import Pair
from lore.data_synth.shop.config import SEALED_SEEDS
from lore.data_synth.shop.oracle_teacher import ShopProgram
from lore.data_synth.shop.world import World
from lore.eval.benchmark import load_benchmark
from lore.eval.probes import changed_rules
from lore.eval.probes.capability import check_capability
from lore.eval.probes.changed_rules import shop_cases, shows_change
from lore.eval.probes.rule_edits import load_rule_edits
from lore.eval.sections import CapabilitySection
from lore.rubric.rubric import load_rubric, parse_rubric
from lore.support.errors import LoreError


class ReadsTiers(Reader):
    """Obeys a changed tier; its numbers it has by heart."""

    def tier(self, messages) -> str:
        system = messages[0]["content"]
        if system not in self.programs:
            raw, stated = SHOP.model_dump(), {rule_id: tier for tier, rule_id, _ in RULE_LINE.findall(system)}
            for rule in raw["rules"]:
                rule["tier"] = stated.get(rule["id"], rule["tier"])
            self.programs[system] = ShopProgram(parse_rubric(raw))
        return super().tier(messages)


def changes(found) -> dict:
    edits = load_rule_edits("shop", SHOP)
    return {edit.id: found["rules", edit.change] for edit in edits} | {"all": found["rules", f"all {len(edits)} changes"]}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A benchmark of a few pairs: what is asked about changed rules does not come from it."""
    return data_of(tmp_path_factory.mktemp("few"), shop_pairs(8, photos=0))


def test_a_judge_that_reads_its_rules_follows_every_change(tmp_path, few):
    engine = Reader()
    found, _ = measured(tmp_path, few, engine, rule_edits="shop", pairs=200, samples=100)
    rows = changes(found)
    assert all(row.pairs == 10 and row.accuracy.value == row.follows.value == 1.0 for name, row in rows.items() if name != "all")
    assert rows["all"].pairs == 100 and (rows["all"].follows.value, rows["all"].follows.low) == (1.0, 1.0)
    for row in rows.values():
        assert row.difference.value == 0 and row.against == "rules as they are"
        assert "1.00 of those right before follow; 0.00 keep the old label; of " in row.note and row.note.endswith("0.00 move")


def test_a_judge_that_knows_the_rules_by_heart_follows_none(tmp_path, few):
    found, _ = measured(tmp_path, few, Reader(memorized=True), rule_edits="shop", pairs=200)
    for row in changes(found).values():
        assert row.follows.value == row.accuracy.value == 0.0 and row.difference.value == -1.0
        assert row.note.startswith("0.00 of those right before follow; 1.00 keep the old label")


def test_a_judge_that_obeys_tiers_alone_is_told_apart(tmp_path, few):
    """Six of the ten changes move a tier, four a number: sixty of a hundred pairs."""
    found, _ = measured(tmp_path, few, ReadsTiers(), rule_edits="shop", pairs=200)
    rows = changes(found)
    edits = {edit.id: edit for edit in load_rule_edits("shop", SHOP)}
    for name, edit in edits.items():
        old = {rule.id: rule.tier for rule in SHOP.rules}
        by_tier = any(rule.tier != old[rule.id] for rule in edit.rubric.rules)
        assert rows[name].follows.value == float(by_tier)
    assert rows["all"].follows.value == pytest.approx(0.6)


@pytest.mark.slow  # 600 pairs, each under eleven rule books
def test_a_judge_that_changes_its_mind_at_random_is_not_called_obedient(tmp_path, few):
    """It is right about one verdict in four: an old and a new label are hit together once in sixteen, and unaffected pairs move."""

    class Random(Reader):
        rng = np.random.default_rng(0)

        def tier(self, messages):
            return TIERS[self.rng.integers(4)]

    found, _ = measured(tmp_path, few, Random(), rule_edits="shop", pairs=600, samples=100)
    row = changes(found)["all"]
    assert 0.03 < row.follows.value < 0.1 and 0.2 < row.accuracy.value < 0.3
    assert float(re.search(r"unaffected ([\d.]+) move", row.note)[1]) > 0.7


def test_a_change_leaves_the_items_as_they_are():
    edits = load_rule_edits("shop", SHOP)
    cases = shop_cases(edits, SHOP, "en", 5, lambda pair, edit: True)
    for edit in edits:
        case = cases[edit.id]
        assert len(case.affected) == len(case.unaffected) == 5
        program = ShopProgram(edit.rubric)
        dimensions = {rule_id.split("-")[0] for rule_id in edit.rule_ids}
        for pair in case.pairs:
            wishes = program.knowledge(pair, [])
            evidence = program.multimodal(pair, wishes, LINES)
            for book, labels in ((MEMORIZED, case.before), (program, case.after)):
                rulings = book.rules(pair, wishes, evidence)
                assert SHOP.verdict_over([ruling.tier for ruling in rulings]) == labels[pair.pair_id]
            assert any(wish.dimension in dimensions for wish in wishes) and pair.image is None
        assert all(case.before[pair.pair_id] != case.after[pair.pair_id] for pair in case.affected)
        assert all(case.before[pair.pair_id] == case.after[pair.pair_id] for pair in case.unaffected)
    under = World(1, rubric=edits[0].rubric).pairs("train", 40)
    for pair, other in zip(World(1).pairs("train", 40), under, strict=True):
        assert (pair.query, pair.title, pair.attributes, pair.image) == (other.query, other.title, other.attributes, other.image)


def test_the_pairs_of_changed_rules_are_sealed_and_in_no_benchmark():
    assert changed_rules.SEED in SEALED_SEEDS and changed_rules.SEED not in load_benchmark("shop")["world"]["seeds"]


@pytest.mark.parametrize("detail", ["full", "retrieved"])
def test_no_truth_reaches_the_prompt_of_a_changed_rule(detail):
    fmt = replace(FULL, detail=detail, retrieved_rules=8)
    edits = load_rule_edits("shop", SHOP)
    cases = shop_cases(edits, SHOP, "en", 3, lambda pair, edit: shows_change(pair, edit, SHOP, fmt))
    for case in cases.values():
        assert len(case.pairs) == 6
        for pair in case.pairs:
            bare = replace(pair, label=None, rules=[], demands=[], mismatch=None, rationale=None, slices=[], source=None)
            before, after = render(pair, SHOP, fmt), render(pair, case.edit.rubric, fmt)
            assert (render(bare, SHOP, fmt), render(bare, case.edit.rubric, fmt)) == (before, after)
            assert before[1] == after[1]
            lines = [set(messages[0]["content"].split("\n")) for messages in (before, after)]
            changed = {re.match("- L[1-4] ([^ ,]+)", line)[1] for line in lines[0] ^ lines[1]}
            assert changed == set(case.edit.rule_ids)  # the two prompts differ in these rules and in nothing else


def test_rated_pairs_take_the_place_of_execution(tmp_path, few):
    """Somebody's own rule book: labels under the change come from a file, verdicts under the old rules from the clean run."""
    pairs = list_pairs(few)
    chosen = [pair for pair in pairs if pair.label != "L4"][:3] + [pair for pair in pairs if pair.label == "L4"][:1]
    new = {pair.pair_id: "L4" for pair in chosen}
    path = tmp_path / "edits.yaml"
    edit = {"change": "anything goes", "rules": {"category-other": {"tier": "L4"}}, "labels": new}
    path.write_text(yaml.safe_dump({"open-house": edit}))

    class Says(Reader):
        def tier(self, messages):
            self.prompts.append(messages)
            return "L4" if "- L4 category-other, category" in messages[0]["content"] else "L1"

    engine = Says()
    found, clean = measured(tmp_path, few, engine, rule_edits=str(path))
    row = found["rules", "anything goes"]
    right_before = sum(pair.label == "L1" for pair in chosen[:3]) / 3
    assert row.pairs == 3 and row.accuracy.value == 1.0 and row.follows.value == pytest.approx(right_before)
    assert "of 1 unaffected 1.00 move" in row.note and ("rules", "all 1 changes") not in found
    assert not any((tmp_path / "judge" / "capability-unchanged-rules").glob("*"))
    path.write_text(yaml.safe_dump({"open-house": edit | {"labels": {"stranger": "L4"}}}))
    with pytest.raises(LoreError, match="labels 1 pairs that are not in the test .stranger."):
        measured(tmp_path / "again", few, engine, rule_edits=str(path))


def test_changes_of_a_rule_book_that_the_shop_cannot_be_drawn_by_need_no_shop():
    book = SHOP.model_dump() | {"name": "mine", "rules": [rule.model_dump() for rule in SHOP.rules[:2]]}
    assert shop_cases([], parse_rubric(book), "en", 1, lambda pair, edit: True) == {}


# rule edits


def test_every_shipped_change_agrees_with_itself():
    """An example that the changed rule would judge otherwise would teach the judge the wrong rule."""
    for edit in load_rule_edits("shop", SHOP):
        dimensions = {rule.dimension for rule in edit.rubric.rules if rule.id in edit.rule_ids}
        program, old = rules_in(render(Pair(pair_id="-", query="a", title="a"), edit.rubric, FULL)[0]["content"]), SHOP
        params = {rule.id: rule.params for rule in edit.rubric.rules if rule.id in edit.rule_ids}
        assert {rule.id: rule.params for rule in program.rubric.rules if rule.id in params} == params  # the text says the number
        for rule in (rule for rule in edit.rubric.rules if rule.dimension in dimensions and rule.id != "colour-accent"):
            for example in rule.examples:
                price = re.fullmatch(r"(.*) (\d+) dollars", example.item)
                pair = Pair(pair_id="-", query=example.query, title=price[1] if price else example.item)
                pair.price = float(price[2]) if price else None
                wishes = program.knowledge(pair, [])
                rulings = program.rules(pair, wishes, program.multimodal(pair, wishes, LINES))
                assert rule.id in [ruling.rule for ruling in rulings], (edit.id, rule.id)
        assert {rule.id for rule in edit.rubric.rules} == {rule.id for rule in old.rules}
        assert [tier.id for tier in edit.rubric.tiers] == TIERS


def test_wrong_changes_are_all_named_at_once(tmp_path):
    path = tmp_path / "edits.yaml"
    path.write_text(
        "a: {change: x, rules: {size-nera: {tier: L2}}}\n"
        "b: {change: x, rules: {size-near: {params: {within: 0.3}}}}\n"
        "c: {change: x, rules: {size-near: {tier: L9}}}\n"
        "d: {change: x, rules: {size-near: {params: {share: 2}}}}\n"
        "e: {change: x, rules: {size-near: {tier: L3}}}\n"
        "F_: {change: x, rules: {size-near: {tier: L2}}}\n"
        "g: {change: x, rules: {size-near: {teir: L2}}}\n"
        "h: 3\n"
        "i: {change: x, rules: {size-near: {tier: L2}}, labels: {p: L7}}\n"
    )
    with pytest.raises(LoreError) as error:
        load_rule_edits(str(path), SHOP)
    text = str(error.value)
    for line in (
        "a: 'size-nera' is not a rule of rubric shop. Nearest: 'size-near'.",
        "b: size-near: its text still says 'ten', the old within of size-near (0.1): rewrite its principle",
        "b: size-far: its text still says 'ten'",
        "rules[24].tier (size-near): 'L9' is not a tier of this rubric.",
        "d: size-near: 'share' is not a number of this rule; it has within",
        "e: size-near: nothing is changed",
        "F_: found that name, expected lower-case letters",
        "g: rules.size-near.teir: ",
        "h: ",
        "i: Label 'L7' has no tier in rubric shop",
    ):
        assert line in text
    for content, message in (("a: {change: x", "not valid YAML"), ("", "found no change"), ("a: 1\na: 2\n", "already given")):
        path.write_text(content)
        with pytest.raises(LoreError, match=message):
            load_rule_edits(str(path), SHOP)
    with pytest.raises(LoreError, match="missing.yaml does not exist"):
        load_rule_edits(str(tmp_path / "missing.yaml"), SHOP)
    with pytest.raises(LoreError, match="labeled by rubric wands"):
        load_rule_edits("shop", load_rubric("wands"))


def test_a_number_that_stands_elsewhere_in_the_dimension_is_no_stale_one(tmp_path):
    path = tmp_path / "edits.yaml"
    material = {
        "material-pure": {"params": {"share": 97}, "principle": "asked for pure and at least 97 percent of it"},
        "material-mostly": {"params": {"share": 95}, "principle": "asked for pure and 95 to 97 percent of it"},
        "material-blend": {"principle": "asked for pure and under 95 percent of it"},
    }
    path.write_text(json.dumps({"a": {"change": "x", "rules": material}}))
    assert load_rule_edits(str(path), SHOP)[0].rule_ids == list(material)
    material["material-blend"] = {"principle": "asked for pure and under 90 % of it"}
    path.write_text(json.dumps({"a": {"change": "x", "rules": material}}))
    with pytest.raises(LoreError, match="material-blend: its text still says '90', the old share of material-mostly"):
        load_rule_edits(str(path), SHOP)


def test_only_the_embedded_shop_is_executed(tmp_path):
    raw = SHOP.model_dump() | {"name": "mine"}
    data = replace(data_of(tmp_path / "pairs", shop_pairs(8, photos=0)), rubric=parse_rubric(raw))
    path = tmp_path / "edits.yaml"
    path.write_text("a: {change: x, rules: {size-near: {tier: L2}}}\n")
    with pytest.raises(LoreError, match="gives no labels, and rubric mine cannot be executed; only the embedded shop's can"):
        check_capability(data, CapabilitySection(rule_edits=str(path)))
    with pytest.raises(LoreError, match="missing.jsonl does not exist"):
        check_capability(data, CapabilitySection(facts="missing.jsonl"))
    check_capability(replace(data, rubric=SHOP), CapabilitySection(rule_edits="shop"))
