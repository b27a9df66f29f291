"""The capability report against judges whose abilities are known: one that works out every pair from what its prompt shows, and
ones that know the rule book by heart, see no photo or read no rule."""

import io
import json
import re
from dataclasses import replace
from math import isnan

import numpy as np
import pytest
import tokenizers_for_tests as small
import yaml
from rich.console import Console

from lore.data_synth.config import SEALED_SEEDS
from lore.data_synth.facts import Fact, open_facts, with_values
from lore.data_synth.program_shop import ShopProgram
from lore.data_synth.trace import Unreadable
from lore.data_synth.world import World
from lore.demand import Demand
from lore.engines import Sampling
from lore.errors import LoreError
from lore.eval import changed_rules
from lore.eval.asker import Asker
from lore.eval.benchmark import load_benchmark
from lore.eval.capability import measure_capability, print_capability, resolved, swap_photos
from lore.eval.changed_rules import shop_cases, shows_change
from lore.eval.predictions import Verdict
from lore.eval.rule_edits import load_rule_edits
from lore.eval.sections import CapabilitySection
from lore.eval.testset import EvalData, load_split
from lore.judgement import PromptFormat, render
from lore.pairs import Pair, PairWriter
from lore.rubric import load_rubric, parse_rubric

SHOP = load_rubric("shop")
TIERS = SHOP.tier_ids
FULL = PromptFormat(order="answer_only", detail="full", max_prompt_tokens=8000)
RULE_LINE = re.compile(r"^- ([^\s,]+), [^\s,]+, (L\d): (.*)$", re.MULTILINE)
WORDS = {"five": 5, "ten": 10, "twenty-five": 25, "thirty": 30}
BY_HEART = ShopProgram(SHOP)
# Who reads an item has to pass over the names of product lines, whether they matter or not.
LINES = [Fact("", **fact) for fact in World(0).lexicon.facts() if fact["kind"] == "line"]


# judges


def rules_in(system: str) -> ShopProgram:
    """A program that executes the tiers and numbers that a prompt's rules state, and nothing else of the rule book."""
    stated = {rule_id: (tier, text.split(" E.g.")[0]) for rule_id, tier, text in RULE_LINE.findall(system)}
    raw = SHOP.model_dump()
    for rule in raw["rules"]:
        if rule["id"] not in stated:
            continue
        rule["tier"], text = stated[rule["id"]]
        words = "|".join(sorted(WORDS, key=len, reverse=True))
        if number := re.search(rf"(\d+|{words}) (?:to \d+ )?percent", text):
            value = WORDS.get(number[1]) or int(number[1])
            rule["params"] = {key: value if key == "share" else value / 100 for key in rule["params"]}
    return ShopProgram(parse_rubric(raw))


def pair_in(content) -> tuple[Pair, list[Fact]]:
    """The pair and the facts that a prompt shows."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(part.get("text", "") for part in parts)

    def field(name):
        found = re.search(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        return found[1] if found else None

    image = next((part["image"] for part in parts if part["type"] == "image"), None)
    if image is not None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
    attributes = dict(entry.split(": ", 1) for entry in (field("attributes") or "").split("; ") if entry)
    price = float(field("price")) if field("price") else None
    shown = re.findall(r"(?:^|; )([^;=]+) = ([^;(]+) \(([^,]+), ([^)]+)\)", field("facts") or "")
    facts = [Fact("", kind, dimension, phrase, value) for phrase, value, kind, dimension in shown]
    pair = Pair(
        pair_id="-",
        query=field("query"),
        title=field("title"),
        attributes=attributes,
        brand=field("brand"),
        price=price,
        image=image,
    )
    return pair, facts


class Reader:
    """Works out the verdict from its prompt alone, by the rules that stand there; what it cannot read is L1."""

    tokenizer, takes_images = None, True

    def __init__(self, memorised: bool = False):
        self.memorised, self.prompts, self.programs = memorised, [], {}

    def score(self, prompts):
        rows = np.full((len(prompts), len(TIERS)), 0.1)
        for row, messages in zip(rows, prompts, strict=True):
            row[TIERS.index(self.tier(messages))] = 0.7
        return rows

    def tier(self, messages) -> str:
        self.prompts.append(messages)
        system = messages[0]["content"]
        system = system if isinstance(system, str) else system[0]["text"]
        if system not in self.programs:
            self.programs[system] = BY_HEART if self.memorised else rules_in(system)
        program = self.programs[system]
        pair, facts = pair_in(messages[1]["content"])
        try:
            wishes = program.knowledge(pair, facts)
            rulings = program.rules(pair, wishes, program.multimodal(pair, wishes, LINES))
        except Unreadable:
            return "L1"
        return SHOP.verdict_over([ruling.tier for ruling in rulings])


class ReadsTiers(Reader):
    """Obeys a changed tier; its numbers it has by heart."""

    def tier(self, messages) -> str:
        system = messages[0]["content"]
        if system not in self.programs:
            raw, stated = SHOP.model_dump(), {rule_id: tier for rule_id, tier, _ in RULE_LINE.findall(system)}
            for rule in raw["rules"]:
                rule["tier"] = stated.get(rule["id"], rule["tier"])
            self.programs[system] = ShopProgram(parse_rubric(raw))
        return super().tier(messages)


# data


def data_of(folder, pairs: list[Pair]) -> EvalData:
    folder.mkdir(parents=True, exist_ok=True)
    with PairWriter(folder / "test.parquet") as writer:
        for pair in pairs:
            writer.write(pair)
    return EvalData(folder, SHOP, load_split(folder, "test", SHOP), None)


def shop_pairs(count: int, kind: str = "general", photos: float = 0.4) -> list[Pair]:
    return list(World(7052, subsets={kind: 1.0}, photos=photos).pairs("test", count))


def asker_of(folder, engine, fmt=FULL) -> Asker:
    def opened():
        if engine is None:
            raise AssertionError("the engine was opened")
        return engine

    return Asker("judge", folder, opened, SHOP, fmt, Sampling())


def measured(folder, data, engine, fmt=FULL, *, samples=0, **options):
    """Conditions by name, and the clean verdicts, asked as the stage does."""
    asker = asker_of(folder / "judge", engine, fmt)
    clean = asker.ask("test", list_pairs(data))
    found = measure_capability(asker, data, clean, CapabilitySection(**options), samples=samples, seed=3)
    return {(row.capability, row.condition): row for row in found}, clean


def list_pairs(data):
    from lore.eval.testset import read_chosen

    return list(read_chosen(data.path, "test", data.test.pair_ids))


def facts_file(folder) -> str:
    path = folder / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in World(0).lexicon.facts()))
    return str(path)


# knowledge


def test_facts_and_plain_words_each_give_a_judge_what_it_does_not_know(tmp_path):
    data = data_of(tmp_path / "pairs", shop_pairs(400, "hard"))
    found, clean = measured(tmp_path, data, Reader(), facts=facts_file(tmp_path), pairs=10_000)
    asked, told, plain = (found["knowledge", name] for name in ("as asked", "with facts", "query resolved"))
    inside = data.test.in_slice("capability:knowledge")
    right = np.asarray(
        [clean[pair_id].tier == TIERS[gold] for pair_id, gold in zip(data.test.pair_ids, data.test.gold, strict=True)]
    )
    assert asked.pairs == inside.sum() > 100 and asked.accuracy.value == right[inside].mean()
    assert asked.accuracy.value < 0.7 and told.accuracy.value == 1.0
    assert told.against == "as asked" and told.difference.value == pytest.approx(1 - asked.accuracy.value)
    # "something to boil water" becomes "something kettle", which this judge cannot parse: needs stay unread.
    assert asked.accuracy.value < plain.accuracy.value <= 1.0


def test_resolved_words_leave_relations_and_the_rest_of_a_text_alone(tmp_path):
    table = open_facts(facts_file(tmp_path), top=50)
    pair = Pair(pair_id="p", query="Crimson samovar by lumina", title="lampshade for lamp, single piece, Azure", brand="aurora")
    new = resolved(pair, table.about(pair.query, pair.title + " aurora"))
    assert new.query == "red kettle by lumina" and new.title == "lampshade for lamp, single piece, blue" and new.brand == "lumo"
    plain = Pair(pair_id="p", query="Red kettle", title="Kettle")
    assert resolved(plain, table.about(plain.query, plain.title)) is plain


def test_values_replace_whole_phrases_the_longest_first():
    facts = [Fact("", phrase="shopping trolley", value="cart"), Fact("", phrase="trolley", value="suitcase")]
    assert with_values("A  Shopping\tTrolley, a trolley; trolleys", facts) == "A  cart, a suitcase; trolleys"
    assert with_values("卧室护眼灯LED", [Fact("", phrase="护眼灯", value="台灯")]) == "卧室台灯LED"
    assert with_values("nothing here", []) == "nothing here" and with_values("", facts) == ""


def test_without_the_slice_the_pairs_are_those_that_the_table_speaks_of(tmp_path):
    pairs = [
        Pair(pair_id=str(i), query=query, title=title, label="L4", split="test")
        for i, (query, title) in enumerate([("samovar", "red kettle"), ("kettle", "fjord kettle"), ("kettle", "kettle")])
    ]
    found, _ = measured(tmp_path, data_of(tmp_path / "pairs", pairs), Reader(), facts=facts_file(tmp_path))
    assert found["knowledge", "as asked"].pairs == found["knowledge", "with facts"].pairs == 2
    assert found["knowledge", "with facts"].note == "2 pairs have a fact"
    assert found["knowledge", "query resolved"].note == "2 pairs have a word replaced"


# photos


def test_a_judge_that_sees_needs_its_photo_and_believes_a_wrong_one(tmp_path):
    data = data_of(tmp_path / "pairs", shop_pairs(240, "visual"))
    engine = Reader()
    found, clean = measured(tmp_path, data, engine, pairs=10_000)
    seen, hidden, swapped = (found["photo", name] for name in ("with photo", "without photo", "swapped photo"))
    assert seen.accuracy.value == 1.0 and seen.pairs == data.test.in_slice("capability:multimodal").sum() == swapped.pairs
    assert hidden.accuracy.value < 0.5 and hidden.against == "with photo"
    assert hidden.difference.value == pytest.approx(hidden.accuracy.value - 1)
    assert swapped.accuracy.value < 0.9
    assert swapped.note == f"{1 - swapped.accuracy.value:.2f} of the verdicts change"  # it was right before


def test_a_judge_that_looks_at_no_photo_does_not_change_its_mind(tmp_path):
    class Blind(Reader):
        def tier(self, messages):
            pair, _ = pair_in(messages[1]["content"])
            return TIERS[len(pair.title) % 4]

    data = data_of(tmp_path / "pairs", shop_pairs(80, "visual"))
    found, _ = measured(tmp_path, data, Blind())
    for name in ("without photo", "swapped photo"):
        assert found["photo", name].difference.value == 0 and found["photo", name].note == "0.00 of the verdicts change"


@pytest.mark.parametrize("blind", ["format", "engine"])
def test_a_judge_without_photos_is_asked_nothing_about_them(tmp_path, blind):
    data = data_of(tmp_path / "pairs", shop_pairs(40, "visual"))
    engine = Reader()
    engine.takes_images = blind != "engine"
    found, _ = measured(tmp_path, data, engine, replace(FULL, photo=blind != "format"))
    rows = [row for (capability, _), row in found.items() if capability == "photo"]
    assert [(row.condition, row.note) for row in rows] == [("without photo", "this judge is shown no photo")]
    assert not [path for path in (tmp_path / "judge").iterdir() if "photo" in path.name]


def test_data_without_photos_have_no_photo_rows(tmp_path):
    data = data_of(tmp_path / "pairs", shop_pairs(12, photos=0))
    found, _ = measured(tmp_path, data, Reader())
    assert not [row for capability, row in found if capability == "photo"]


def photo(name: str) -> dict:
    return {"bytes": name.encode(), "path": None}


def with_photos(*names: str, categories: str | None = None) -> list[Pair]:
    return [
        Pair(pair_id=str(i), query="q", title="t", image=photo(name), category=categories[i] if categories else None)
        for i, name in enumerate(names)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_a_swapped_photo_is_never_an_identical_one(seed):
    for names in ("abcdef", "aabbcc", "aaabcd", "ab", "aaaab"):
        pairs = with_photos(*names)
        swapped = swap_photos(pairs, seed)
        assert [pair.pair_id for pair in swapped] == [pair.pair_id for pair in pairs]
        assert all(new.image != old.image for new, old in zip(swapped, pairs, strict=True))
        assert [replace(new, image=old.image) for new, old in zip(swapped, pairs, strict=True)] == pairs
        assert swap_photos(pairs, seed) == swapped
    assert swap_photos(with_photos("a"), seed) == swap_photos(with_photos("a", "a"), seed) == []


def test_a_photo_comes_from_the_same_category_where_there_is_one():
    pairs = with_photos(*"abcdefg", categories="LLLMMML")
    donors = {swapped.pair_id: swapped.image["bytes"].decode() for swapped in swap_photos(pairs, 1)}
    assert all(donors[i] in "abcg" for i in "0126") and all(donors[i] in "def" for i in "345")
    alone = swap_photos(with_photos(*"abc", categories="LLM"), 1)
    assert len(alone) == 3 and alone[2].image["bytes"] in (b"a", b"b")
    seeds = {tuple(pair.image["bytes"] for pair in swap_photos(with_photos(*"abcdefgh"), seed)) for seed in range(10)}
    assert len(seeds) > 3


# rules


def test_rules_are_given_and_taken_away_and_the_own_prompt_is_not_asked_again(tmp_path):
    data = data_of(tmp_path / "pairs", shop_pairs(80, photos=0))

    class NeedsRules(Reader):
        def tier(self, messages):
            return super().tier(messages) if "# Rubric" in messages[0]["content"] and "Rules (" in messages[0]["content"] else "L1"

    expected = {"full": ("as asked", "without rules"), "tiers": ("as asked", "with rules"), "name": ("as asked", "with rules")}
    for detail, names in expected.items():
        found, clean = measured(tmp_path / detail, data, engine := NeedsRules(), replace(FULL, detail=detail))
        rows = {condition: row for (capability, condition), row in found.items() if capability == "rules"}
        assert tuple(rows) == names
        inside = data.test.in_slice("capability:rules").sum()
        given, taken = (rows["as asked"], rows["without rules"]) if detail == "full" else (rows["with rules"], rows["as asked"])
        assert given.accuracy.value == 1.0 and taken.accuracy.value < 0.5 and given.pairs == taken.pairs == inside


def test_rules_that_do_not_fit_are_searched_for_and_else_left_out(tmp_path):
    data = data_of(tmp_path / "pairs", shop_pairs(24, photos=0))
    engine = Reader()
    engine.tokenizer = small.chatml()

    def rules_row(budget, own="name"):
        engine.prompts.clear()
        fmt = replace(FULL, detail=own, max_prompt_tokens=budget)
        found, _ = measured(tmp_path / f"{own}{budget}", data, engine, fmt, rule_edits="shop", pairs=40)
        return found

    def tokens(detail):
        from lore.judgement import count_prompt_tokens

        return max(
            count_prompt_tokens(render(pair, SHOP, replace(FULL, detail=detail)), engine.tokenizer) for pair in list_pairs(data)
        )

    whole, some = tokens("full"), tokens("retrieved")
    assert some < whole
    assert rules_row(whole + 400)["rules", "with rules"].note == "the whole rule book"
    found = rules_row(some + 400)
    assert found["rules", "with rules"].note == "rules found by search"
    assert found["rules", "all 10 changes"].note.endswith("rules found by search")
    assert found["rules", "all 10 changes"].follows.value == 1.0
    none = rules_row(300)
    assert none["rules", "with rules"].pairs == none["rules", "changed rules"].pairs == 0
    assert none["rules", "with rules"].note == "not asked: rules do not fit into prompt.max_prompt_tokens 300"
    assert isnan(none["rules", "changed rules"].accuracy.value) and none["rules", "changed rules"].to_json()["follows"] is None


def test_a_rubric_without_rules_has_no_rows_for_them(tmp_path):
    bare = parse_rubric(SHOP.model_dump() | {"rules": []})
    data = replace(data_of(tmp_path / "pairs", shop_pairs(8, photos=0)), rubric=bare)
    found, _ = measured(tmp_path, data, Reader())
    assert not [condition for capability, condition in found if capability == "rules"]


# changed rules


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
    found, _ = measured(tmp_path, few, Reader(memorised=True), rule_edits="shop", pairs=200)
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
            for book, labels in ((BY_HEART, case.before), (program, case.after)):
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
            changed = {re.match("- ([^,]+)", line)[1] for line in lines[0] ^ lines[1]}
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
            return "L4" if "- category-other, category, L4" in messages[0]["content"] else "L1"

    engine = Says()
    found, clean = measured(tmp_path, few, engine, rule_edits=str(path))
    row = found["rules", "anything goes"]
    right_before = sum(pair.label == "L1" for pair in chosen[:3]) / 3
    assert row.pairs == 3 and row.accuracy.value == 1.0 and row.follows.value == pytest.approx(right_before)
    assert "of 1 unaffected 1.00 move" in row.note and ("rules", "all 1 changes") not in found
    assert not any((tmp_path / "judge" / "capability-changed-rules-none").iterdir())
    path.write_text(yaml.safe_dump({"open-house": edit | {"labels": {"stranger": "L4"}}}))
    with pytest.raises(LoreError, match="labels 1 pairs that are not tested .stranger."):
        measured(tmp_path / "again", few, engine, rule_edits=str(path))


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
        "a: 'size-nera' is no rule of rubric shop. Nearest: 'size-near'.",
        "b: size-near: its text still says 'ten', the old within of size-near (0.1): rewrite its principle",
        "b: size-far: its text still says 'ten'",
        "rules[24].tier (size-near): 'L9' is no tier of this rubric.",
        "d: size-near: 'share' is no number of this rule; it has within",
        "e: size-near: nothing is changed",
        "F_: found that name, expected small letters",
        "g: rules.size-near.teir: ",
        "h: ",
        "i: Label 'L7' has no tier in rubric shop",
    ):
        assert line in text
    for content, message in (("a: {change: x", "not readable YAML"), ("", "found no change"), ("a: 1\na: 2\n", "given twice")):
        path.write_text(content)
        with pytest.raises(LoreError, match=message):
            load_rule_edits(str(path), SHOP)
    with pytest.raises(LoreError, match="there is no .*missing.yaml"):
        load_rule_edits(str(tmp_path / "missing.yaml"), SHOP)
    with pytest.raises(LoreError, match="labelled by rubric wands"):
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
    with pytest.raises(LoreError, match="gives no labels, and rubric mine is not the embedded shop's"):
        measured(tmp_path, data, Reader(), rule_edits=str(path))


# the whole


def everything(folder, data, engine, fmt=FULL):
    return measured(folder, data, engine, fmt, rule_edits="shop", facts=facts_file(folder), pairs=40)[0]


def mixed() -> list[Pair]:
    return [pair for kind in ("general", "hard", "visual") for pair in shop_pairs(40, kind)]


def test_a_later_start_asks_nothing_and_opens_no_engine(tmp_path):
    data = data_of(tmp_path / "pairs", mixed())
    engine = Reader()
    engine.tokenizer = small.chatml()
    fmt = replace(FULL, detail="name")
    found = everything(tmp_path, data, engine, fmt)
    asked = len(engine.prompts)
    assert len({tuple(shown(messages)) for messages in engine.prompts}) == asked > 300  # no question is put twice
    again = everything(tmp_path, data, None, fmt)
    assert repr(again) == repr(found)
    assert len(engine.prompts) == asked


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    data = data_of(tmp_path / "pairs", mixed())
    whole = Reader()
    expected = everything(tmp_path, data, whole)

    class Dies(Reader):
        def tier(self, messages):
            if len(self.prompts) == 300:
                raise KeyboardInterrupt
            return super().tier(messages)

    folder = tmp_path / "second"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        everything(folder, data, dying := Dies())
    assert len(dying.prompts) == 300
    rest = Reader()
    assert repr(everything(folder, data, rest)) == repr(expected)
    assert len(rest.prompts) < len(whole.prompts) and len(rest.prompts) + 300 >= len(whole.prompts)


@pytest.mark.parametrize("detail", ["full", "retrieved", "tiers", "name"])
def test_no_condition_shows_what_fired(tmp_path, detail):
    """Another rule, demand, label, mismatch or rationale in the file changes no prompt of any condition."""
    fmt, pairs = replace(FULL, detail=detail), mixed()
    lies = [
        replace(
            pair,
            rules=["size-near"],
            demands=[Demand("size", "LIE", "LIE", "title", "size-near", "L3")],
            label=TIERS[(TIERS.index(pair.label) + 1) % 4],
            mismatch="size",
            rationale="LIE",
        )
        for pair in pairs
    ]
    prompts = []
    for name, some in (("truth", pairs), ("lies", lies)):
        (tmp_path / name).mkdir()
        engine = Reader()
        everything(tmp_path / name, data_of(tmp_path / name / "pairs", some), engine, fmt)
        prompts.append([shown(messages) for messages in engine.prompts])
    assert prompts[0] == prompts[1] and len(prompts[0]) > 300


def shown(messages) -> list:
    """All that a model sees of a prompt: its texts, and its photos as their pixels."""
    contents = [message["content"] for message in messages]
    parts = [part for content in contents for part in ([{"text": content}] if isinstance(content, str) else content)]
    return [part["text"] if "text" in part else part["image"].tobytes() for part in parts]


def test_format_failures_are_counted_as_wrong_and_named(tmp_path):
    data = data_of(tmp_path / "pairs", [pair for pair in shop_pairs(40, photos=0) if "capability:rules" in pair.slices])
    asker = asker_of(tmp_path / "judge", Reader())
    clean = {pair.pair_id: Verdict(pair.pair_id, pair.label) for pair in list_pairs(data)}
    first, second, *_ = data.test.pair_ids
    clean[first], clean[second] = Verdict(first, None, failure="no_verdict"), Verdict(second, None, failure="empty")
    rows = measure_capability(asker, data, clean, CapabilitySection(), samples=0, seed=0)
    row = next(row for row in rows if row.condition == "as asked" and row.capability == "rules")
    assert row.accuracy.value == pytest.approx(1 - 2 / len(data.test)) and row.note.endswith("; 2 without a verdict")


def test_the_table_names_every_condition(tmp_path, few):
    found, _ = measured(tmp_path, few, Reader(), rule_edits="shop", pairs=40, samples=50)
    out = io.StringIO()
    print_capability({"judge [a]": list(found.values()), "nobody": []}, Console(file=out, width=60))
    text = out.getvalue()
    assert "Capabilities of judge [a]" in text and "nobody" not in text
    for row in found.values():
        assert row.condition in text and str(row.accuracy) in text
    assert json.dumps([row.to_json() for row in found.values()])
