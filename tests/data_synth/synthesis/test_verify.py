"""The checks of a trace, one by one: what passes, what fails, and the reason that is given."""

import pytest

from lore.codec.judgement import render_demands
from lore.codec.lexical_match import content_words, missing_words, pieces
from lore.data.pair import Pair
from lore.data_synth.synthesis.config import CHECKS
from lore.data_synth.synthesis.knowledge import read as read_knowledge
from lore.data_synth.synthesis.multimodal import read as read_multimodal
from lore.data_synth.synthesis.rules import read as read_rules
from lore.data_synth.synthesis.teacher_prompts import Prompts
from lore.data_synth.synthesis.trace import STEPS, Draft, Evidence, Ruling, Unreadable, Wish, json_objects
from lore.data_synth.synthesis.verify import ALL, Verifier
from lore.rubric.demand import Demand
from lore.rubric.rubric import load_rubric

RUBRIC = load_rubric("shop")
PAIR = Pair(
    pair_id="p",
    query="scarlet mug under 50 dollars",
    title="red mug lumo",
    attributes={"pattern": "striped"},
    description="Ships in a blue box",
    price=44.0,
    label="L4",
)


def draft(**changes) -> Draft:
    values = {
        "wishes": [
            Wish("category", "mug", "mug"),
            Wish("colour", "scarlet", "scarlet = red"),
            Wish("price", "under 50 dollars", "50"),
        ],
        "evidence": [Evidence("mug", "title"), Evidence("red", "title"), Evidence("44", "attributes")],
        "rulings": [Ruling("category-same", "L4"), Ruling("colour-same", "L4"), Ruling("price-within", "L4")],
        "tier": "L4",
        "verdicts": ["L4"],
    }
    made = Draft(**{**values, **changes})
    steps = zip(made.wishes, made.evidence, made.rulings, strict=False)
    made.demands = [Demand(w.dimension, w.wanted, e.found, e.source, r.rule, r.tier) for w, e, r in steps]
    made.rationale = changes.get("rationale", render_demands(made.demands))
    return made


def failing(made: Draft, pair: Pair = PAIR, **options) -> dict[str, str]:
    verifier = Verifier(list(CHECKS), RUBRIC, **{"instructions": Prompts(RUBRIC).instructions(), **options})
    return {check.name: check.why for check in verifier.check(made, pair) if check.why}


def test_the_recipe_knows_every_check():
    assert tuple(ALL) == CHECKS


def test_a_good_trace_passes_every_check():
    assert failing(draft()) == {}


def test_verdict():
    assert failing(draft(tier="L3", verdicts=["L3"]))["verdict"] == "says L3, the human label is L4"


@pytest.mark.parametrize(
    ("verdicts", "tier", "why"),
    [
        (["L4", "L2"], "L2", "2 verdicts: L4, L2"),
        ([], None, "0 verdicts: "),
        (["L9"], "L9", "'L9' is not a tier of rubric shop"),
    ],
)
def test_exactly_one_verdict(verdicts, tier, why):
    assert failing(draft(verdicts=verdicts, tier=tier))["one_verdict"] == why


@pytest.mark.parametrize(
    ("evidence", "why"),
    [
        (Evidence("green", "title"), "colour: green does not stand in the title"),
        (Evidence("blue", "title"), "colour: blue does not stand in the title"),
        (Evidence("red", "attributes"), "colour: red does not stand in the attributes"),
        (Evidence("red", "photo"), "colour: cites a photo, and there is none"),
        (Evidence("red", "none"), "colour: 'red' is cited from nowhere"),
    ],
)
def test_what_is_found_stands_where_it_is_cited(evidence, why):
    made = draft(evidence=[Evidence("mug", "title"), evidence, Evidence("44", "attributes")])
    assert failing(made)["grounding"] == why


@pytest.mark.parametrize("evidence", [Evidence("Red", "title"), Evidence("blue", "description"), Evidence("reds", "title")])
def test_grounding_takes_case_plural_and_nothing(evidence):
    assert "grounding" not in failing(draft(evidence=[Evidence("mug", "title"), evidence, Evidence("44.00", "attributes")]))


@pytest.mark.parametrize(
    ("found", "title", "why"),
    [
        ("8 GB", "laptop 128 GB 8 core", "do not stand together"),
        ("red case", "blue case for red phone", "do not stand together"),
        ("waterproof", "jacket, not waterproof", "are negated"),
        ("防水", "不防水外套", "are negated"),
        ("8 gb", "laptop 8GB", ""),
        ("red case", "red leather phone case", ""),
        ("not waterproof", "jacket, not waterproof", ""),
        ("waterproof", "waterproof jacket, not heavy", ""),
        ("防水", "防水外套 不褪色", ""),
        ("black with red", "mug black with red trim", ""),
    ],
)
def test_words_found_say_the_same_where_they_stand(found, title, why):
    from lore.codec.lexical_match import stands_apart

    assert stands_apart(found, title) == why


def test_nothing_found_is_no_way_around_what_the_title_says():
    made = draft(evidence=[Evidence("mug", "title"), Evidence("none", "none"), Evidence("44", "attributes")])
    assert failing(made)["grounding"] == "colour: nothing is found, and 'red' stands in the title"
    made.wishes[1].wanted = "not red"
    assert "grounding" not in failing(made)
    made.wishes[1].wanted = "green"
    assert "grounding" not in failing(made)


def test_a_caption_is_what_photo_evidence_has_to_stand_in():
    from dataclasses import replace

    pair = replace(PAIR, image={"bytes": b"x", "path": None})
    evidence = [Evidence("mug", "title"), Evidence("red", "photo"), Evidence("44", "attributes")]
    assert "grounding" not in failing(draft(evidence=evidence, caption="a red mug with stripes"), pair)
    assert "grounding" not in failing(draft(evidence=evidence), pair)  # shown to the teacher itself
    assert failing(draft(evidence=evidence, caption="a mug"), pair)["grounding"] == "colour: red does not stand in the photo"


@pytest.mark.parametrize(
    ("ruling", "why"),
    [
        (Ruling("colour-perfect", "L4"), "colour: 'colour-perfect' is not a rule"),
        (Ruling("size-same", "L4"), "colour: rule size-same is about size"),
        (Ruling("colour-same", "L3"), "colour: rule colour-same gives L4, not L3"),
        (Ruling("", "L4"), "colour: no rule, and the rubric has some for it"),
        (Ruling("colour-same", "good"), "colour: 'good' is not a tier"),
    ],
)
def test_rules_exist_and_their_tiers_fit(ruling, why):
    made = draft(rulings=[Ruling("category-same", "L4"), ruling, Ruling("price-within", "L4")])
    assert failing(made)["rules"] == why


def test_the_verdict_follows_from_the_demands():
    rulings = [Ruling("category-same", "L4"), Ruling("colour-family", "L3"), Ruling("price-within", "L4")]
    assert failing(draft(rulings=rulings))["aggregate"] == "the worst of L4, L3, L4 is L3, not L4"
    assert failing(draft(rulings=rulings[:2]))["aggregate"] == "only 2 of 3 demands are judged"
    stopped = draft(rulings=[Ruling("category-other", "L1")], tier="L1", verdicts=["L1"])
    assert "aggregate" not in failing(stopped)
    mean = RUBRIC.model_copy(update={"aggregate": "mean"})
    verifier = Verifier(["aggregate"], mean)
    assert [check.why for check in verifier.check(draft(rulings=rulings, tier="L3"), PAIR)] == [""]
    assert mean.verdict_over(["L1", "L4"]) == "L2" and mean.verdict_over(["L4", "L4"]) == "L4"
    assert RUBRIC.model_copy(update={"aggregate": "free"}).verdict_over(["L1"]) is None


def test_demands_cover_the_query_and_cite_it():
    made = draft()
    made.wishes = made.wishes[:2]
    assert failing(made)["coverage"] == "no demand holds under, 50, dollar"
    made.wishes = [Wish("category", "teapot", "teapot")]
    assert failing(made)["coverage"] == "category: teapot does not stand in the query"
    assert "coverage" not in failing(draft(), coverage=1.0)


@pytest.mark.parametrize(
    "text", ["colour: red | red (title), as the human label says", "the raters gave L4", "given label L4", "人工标注为L4"]
)
def test_a_hint_that_leaks_is_found(text):
    assert "hint_leak" in failing(draft(rationale=text))


def test_words_of_the_item_are_no_leak():
    pair = Pair(pair_id="p", query="top rated mug", title="rated mug", label="L4")
    assert "hint_leak" not in failing(draft(rationale="category: rated mug | rated mug (title)"), pair)


def test_instructions_that_are_copied_are_found():
    copied = Prompts(RUBRIC).source("knowledge").split("\n")[0:3]
    text = "Trade words, product lines, nicknames, abbreviations and needs are resolved"
    assert copied and text.split(",")[0] in Prompts(RUBRIC).source("knowledge")
    assert "prompt_copy" in failing(draft(rationale=text))


def test_length():
    assert failing(draft(rationale="red " * 200))["length"] == "200 tokens, at most 160 are allowed"
    assert failing(draft(rationale=" "))["length"] == "no rationale"


def test_language():
    made = draft()
    for wish in made.wishes:
        wish.wanted = "红色马克杯"
    assert failing(made)["language"] == "written in Cjk script, the query is in Latin"
    pair = Pair(pair_id="p", query="iPhone 手机壳", title="t", label="L4")
    assert "language" not in failing(draft(), pair)


def test_pieces_of_texts():
    assert pieces("92% Wool, 44.00 cm; 不要红色 X20") == ["92", "wool", "44", "cm", "不要红色", "x", "20"]
    assert content_words("有没有红色行李箱", "zh") == list("红色行李箱")
    assert missing_words("红色", "大红色行李箱") == [] and missing_words("蓝色", "大红色行李箱") == ["蓝色"]
    assert missing_words("dresses", "a dress") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        '{"demands": []}',
        '{"demands": "red"}',
        '{"demands": [{"dimension": "taste", "words": "", "wanted": "x"}]}',
        '{"demands": [{"dimension": "colour", "words": "", "wanted": ""}]}',
        '{"demands": [{"dimension": ["colour"], "wanted": "x"}]}',
        '{"demands": [' + ",".join(['{"dimension": "colour", "wanted": "x"}'] * 40) + "]}",
        "{" * 5000,
    ],
)
def test_unreadable_answers_are_told_from_good_ones(text):
    with pytest.raises(Unreadable):
        read_knowledge(text, RUBRIC)


def test_answers_are_read_through_reasoning_and_fences():
    text = (
        '<think>{"demands": []}</think>Here:\n```json\n{"demands": [{"dimension": "colour", "words": "red", "wanted": "red"}]}\n```'
    )
    assert read_knowledge(text, RUBRIC) == [Wish("colour", "red", "red")]
    wishes = [Wish("colour", "red", "red")]
    assert read_multimodal('{"evidence": [{"found": "", "source": "none"}]}', wishes) == [Evidence("none", "none")]
    rulings, verdicts = read_rules('{"verdict": "L4"} no: {"rulings": [{"rule": "x", "tier": "L2"}], "verdict": "L2"}', wishes)
    assert rulings == [Ruling("x", "L2")] and verdicts == ["L4", "L2"]
    with pytest.raises(Unreadable, match="2 findings for 1 demands"):
        read_multimodal('{"evidence": [{"found": "a", "source": "title"}, {"found": "b", "source": "title"}]}', wishes)
    with pytest.raises(Unreadable, match="source 'web'"):
        read_multimodal('{"evidence": [{"found": "a", "source": "web"}]}', wishes)


def test_halves_of_characters_do_not_reach_a_file():
    (wish,) = read_knowledge('{"demands": [{"dimension": "colour", "words": "\\ud800", "wanted": "a\\ud800"}]}', RUBRIC)
    assert wish.wanted == "a\ufffd"


def test_json_objects_are_found_in_any_text():
    assert json_objects('a {"x": 1} b {"y": {"z": 2}} {broken') == [{"x": 1}, {"y": {"z": 2}}]


def test_instructions_are_those_of_the_language():
    texts = Prompts(RUBRIC, "zh").instructions()
    assert len(texts) == len(STEPS) and all("<query>{{" not in text for text in texts)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("battery", "AA Batteries"),
        ("sizes", "any size"),
        ("lens", "two lenses"),
        ("tshirt", "cotton T-Shirt"),
        ("t-shirt", "cotton tshirt"),
        ("Men's", "Mens Running Shoe"),
        ("womens", "Women’s shoes"),
        ("55 inch", 'Samsung 55" TV'),
        ("55 inches", "Samsung 55in TV"),
        ("1000 lumens", "1,000 lumens"),
        ("1,299", "1299.00"),
        ("500ml", "bottle, 500 ml"),
    ],
)
def test_what_shops_write_in_two_ways_is_one(text, place):
    assert missing_words(text, place) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [("1,000 lumens", "1 lumens"), ("1 lumen", "1,000 lumens"), ("42", "size 4 2 pack"), ("10,500 mah", "10 mah")],
)
def test_numbers_are_whole_numbers(text, place):
    assert missing_words(text, place)


def test_a_negation_is_no_small_word():
    made = draft(evidence=[Evidence("mug", "title"), Evidence("not red", "title"), Evidence("44", "attributes")])
    assert failing(made)["grounding"] == "colour: not does not stand in the title"
    pair = Pair(pair_id="p", query="mug not scarlet", title="red mug", label="L2")
    made = draft()
    made.wishes = [Wish("category", "mug", "mug"), Wish("colour", "scarlet", "scarlet = red")]
    assert failing(made, pair)["coverage"] == "the query rules something out, and no demand does"
    made.wishes[1].wanted = "not scarlet = red"
    assert "coverage" not in failing(made, pair)


def test_an_attribute_can_be_cited_by_its_name():
    pair = Pair(pair_id="p", query=PAIR.query, title="red mug", attributes={"Dishwasher safe": "yes"}, label="L4")
    evidence = [Evidence("mug", "title"), Evidence("dishwasher safe", "attributes"), Evidence("not specified", "none")]
    assert "grounding" not in failing(draft(evidence=evidence), pair)


def test_a_value_without_a_word_is_none():
    made = draft(evidence=[Evidence("mug", "title"), Evidence("-", "title"), Evidence("44", "attributes")])
    assert failing(made)["grounding"] == "colour: '-' is not a value"


def test_a_photo_that_nobody_was_shown_cannot_be_cited():
    pair = Pair(pair_id="p", query=PAIR.query, title=PAIR.title, image={"bytes": b"x", "path": None}, price=44.0, label="L4")
    made = draft(evidence=[Evidence("mug", "title"), Evidence("red", "photo"), Evidence("44", "attributes")])
    assert "grounding" not in failing(made, pair)
    assert failing(made, pair, photos=False)["grounding"] == "colour: cites a photo, and there is none"


def test_a_part_of_a_word_excuses_no_leak():
    pair = Pair(pair_id="p", query="decorated mug", title="decorated mug", label="L4")
    assert failing(draft(rationale="category: mug | rated mug (title)"), pair)["hint_leak"] == "speaks of 'rated'"
    assert "hint_leak" in failing(draft(rationale="as the ground-truth has it"))


def test_fullwidth_letters_are_latin():
    pair = Pair(pair_id="p", query="ｓｃａｒｌｅｔ ｍｕｇ", title="red mug", label="L4")
    assert "language" not in failing(draft(), pair)


def test_a_field_that_is_null_is_empty():
    text = '{"demands": [{"dimension": "colour", "words": null, "wanted": "red"}]}'
    assert read_knowledge(text, RUBRIC) == [Wish("colour", "", "red")]
    rulings, _ = read_rules('{"rulings": [{"rule": null, "tier": "L4"}], "verdict": "L4"}', [Wish("colour", "red", "red")])
    assert rulings == [Ruling("", "L4")]


def test_a_verdict_is_a_text_that_a_file_can_hold():
    wishes = [Wish("colour", "red", "red")]
    _, verdicts = read_rules('{"rulings": [{"rule": "x", "tier": "L4"}], "verdict": "L4\\ud800"}', wishes)
    assert verdicts == ["L4\ufffd"]
    _, verdicts = read_rules('{"rulings": [{"rule": "x", "tier": "L4"}], "verdict": "' + "L" * 5000 + '"}', wishes)
    assert len(verdicts[0]) == 400


def test_an_endless_answer_is_not_searched():
    with pytest.raises(Unreadable, match="an answer of 1,000,000 characters"):
        read_knowledge('{"a":' * 200_000, RUBRIC)


@pytest.mark.parametrize(
    ("name", "dimension", "query"),
    [("esci", "category", "kettle"), ("homedepot", "brand", "ryobi drill"), ("wands", "brand", "sofa")],
)
def test_a_demand_that_is_met_needs_no_rule_where_the_rubric_has_none(name, dimension, query):
    rubric = load_rubric(name)
    best, worst = rubric.tier_ids[-1], rubric.tier_ids[0]
    verifier = Verifier(["rules"], rubric)
    made = draft(wishes=[Wish(dimension, query, query)], evidence=[Evidence(query, "title")], rulings=[Ruling("", best)])
    assert verifier.check(made, PAIR)[0].why == ""
    made.rulings = [Ruling("", worst)]
    assert verifier.check(made, PAIR)[0].why == f"{dimension}: no rule, and the rubric has some for it"


def test_the_words_program_names_no_rule_of_a_mismatch_for_what_it_found():
    from lore.data_synth.synthesis.program_words import WordsProgram

    pair = Pair(pair_id="p", query="ryobi drill", title="ryobi drill", brand="Ryobi", label="3")
    program = WordsProgram(load_rubric("homedepot"))
    wishes = program.knowledge(pair, [])
    rulings = program.rules(pair, wishes, program.multimodal(pair, wishes, []))
    assert [(w.dimension, r.rule, r.tier) for w, r in zip(wishes, rulings, strict=True)] == [
        ("category", "category-same", "3"),
        ("brand", "", "3"),
    ]
