"""Knowledge, photo and rules by themselves, against judges whose abilities are known: one that works out every pair from what
its prompt shows, and ones that see no photo or read no rule."""

import io
import json
from dataclasses import replace
from math import isnan

import numpy as np
import pytest
import tokenizers_for_tests as small
from capability_judges import (
    FULL,
    SHOP,
    TIERS,
    Reader,
    asker_of,
    data_of,
    facts_file,
    list_pairs,
    measured,
    pair_in,
    shop_pairs,
    shown,
)
from rich.console import Console

from lore.codec.prompt import count_prompt_tokens, render
from lore.data.pair import Pair
from lore.data_synth.synthesis.facts import Fact, open_facts, with_values
from lore.engines.config import ModelSection
from lore.engines.open_engine import open_engine
from lore.eval.probes.capability import measure_capability, print_capability, swap_photos, with_words_resolved
from lore.eval.sections import CapabilitySection
from lore.judge.verdict import Verdict
from lore.rubric.demand import Demand
from lore.rubric.rubric import parse_rubric
from lore.support.errors import LoreError

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
    new = with_words_resolved(pair, table.about(pair.query, pair.title + " aurora"))
    assert new.query == "red kettle by lumina" and new.title == "lampshade for lamp, single piece, blue" and new.brand == "lumo"
    plain = Pair(pair_id="p", query="Red kettle", title="Kettle")
    assert with_words_resolved(plain, table.about(plain.query, plain.title)) is plain


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


def test_a_real_model_with_photos_is_measured(tmp_path, tiny):
    """Through its own processor: photos, facts and the question whether rules fit."""
    engine = open_engine(ModelSection(name=str(tiny.vision)), SHOP)
    data = data_of(tmp_path / "pairs", shop_pairs(16, "visual") + shop_pairs(8, "hard"))
    fmt = replace(FULL, detail="name", max_prompt_tokens=256)
    options = {"facts": facts_file(tmp_path), "rule_edits": "shop", "pairs": 16}
    found, clean = measured(tmp_path, data, engine, fmt, **options)
    assert {verdict.photo for verdict in clean.values()} >= {"seen"} and all(verdict.tier for verdict in clean.values())
    rows = {name: row.pairs for (_, name), row in found.items()}
    assert rows["swapped photo"] == rows["without photo"] > 8 and rows["with facts"] == rows["query resolved"] > 2
    assert rows["with rules"] == rows["changed rules"] == 0  # a tiny tokenizer's rule book is far longer than 256 tokens
    again, _ = measured(tmp_path, data, None, fmt, **options)
    assert repr(again) == repr(found)


def test_format_failures_are_counted_as_wrong_and_named(tmp_path):
    data = data_of(tmp_path / "pairs", [pair for pair in shop_pairs(40, photos=0) if "capability:rules" in pair.slices])
    asker = asker_of(tmp_path / "judge", Reader())
    clean = {pair.pair_id: Verdict(pair.pair_id, pair.label) for pair in list_pairs(data)}
    first, second, *_ = data.test.pair_ids
    clean[first], clean[second] = Verdict(first, None, failure="no_verdict"), Verdict(second, None, failure="empty")
    rows = measure_capability(asker, data, clean, CapabilitySection(), samples=0, seed=0)
    row = next(row for row in rows if row.condition == "as asked" and row.capability == "rules")
    assert row.accuracy.value == pytest.approx(1 - 2 / len(data.test)) and row.note.endswith("; 2 without a verdict")


def test_the_table_names_every_condition(tmp_path):
    data = data_of(tmp_path / "pairs", shop_pairs(8))
    found, _ = measured(tmp_path, data, Reader(), rule_edits="shop", pairs=40, samples=50)
    out = io.StringIO()
    print_capability({"judge [a]": list(found.values()), "nobody": []}, Console(file=out, width=60))
    text = out.getvalue()
    assert "Capabilities of judge [a]" in text and "nobody" not in text
    for row in found.values():
        assert row.condition in text and str(row.accuracy) in text
    assert json.dumps([row.to_json() for row in found.values()])


def test_a_folder_of_texts_is_an_input_file_by_file(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("A cup is a small mug.")
    assert CapabilitySection(facts=str(tmp_path / "texts")).input_files() == {"facts": [str(tmp_path / "texts" / "a.txt")]}
    with pytest.raises(LoreError, match="facts: .*none.jsonl does not exist"):
        CapabilitySection(facts=str(tmp_path / "none.jsonl")).input_files()
