"""Perturbations: what stays of a pair, what each one writes, where it does not apply, and that attacks stay inside their field."""

import io
import re
from dataclasses import replace

import pytest
import tokenizers_for_tests as small
from attacks import control_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lore.codec.chat_template import template_text
from lore.codec.prompt import PromptFormat, render
from lore.data.images import load_image
from lore.data.pair import Pair
from lore.data_synth.perturb.perturb import PERTURBATIONS, Perturber, chosen
from lore.data_synth.perturb.wordings import Attacks, AttackSets, load_wordings
from lore.data_synth.shop.lexicon import load_lexicon
from lore.data_synth.shop.oracle_teacher import ShopProgram
from lore.data_synth.shop.world import World
from lore.data_synth.synthesis.facts import Fact
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

SHOP = load_rubric("shop")
LANGUAGES = ("en", "zh")
SHOP_PAIRS = {language: list(World(11, language=language).pairs("test", 120)) for language in LANGUAGES}
PLACES = re.compile(r"\{[a-z]+\}")
KEPT = (
    "pair_id",
    "label",
    "label_weight",
    "rationale",
    "demands",
    "mismatch",
    "rules",
    "split",
    "slices",
    "item_id",
    "price",
    "brand",
)
WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=24)
PAIRS = st.builds(
    Pair,
    pair_id=st.sampled_from(["a", "b", "c"]),
    query=st.one_of(WORDS, st.sampled_from(["red lumo mug", "size 40 cm lamp", "mug not red", "boot for men"])),
    title=st.one_of(WORDS, st.sampled_from(["red mug, 1,000 g, set of 2", "lamp 40 cm lumo"])),
    description=st.none() | WORDS,
    attributes=st.dictionaries(WORDS, WORDS, max_size=3),
    label=st.sampled_from(SHOP.tier_ids),
    rationale=st.none() | WORDS,
)


def en(query="red mug", title="blue mug", **more) -> Pair:
    return Pair(pair_id=more.pop("pair_id", "p"), query=query, title=title, label="L2", **more)


def photo(width: int, height: int, colour="navy") -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def perturbed(name: str, pair: Pair, seeds=range(12), language="en", **options) -> list[Pair | None]:
    return [Perturber(SHOP, language, seed=seed, **options).perturb(name, pair) for seed in seeds]


@settings(max_examples=150, deadline=None)
@given(
    PAIRS, st.sampled_from(list(PERTURBATIONS)), st.sampled_from(LANGUAGES), st.sampled_from(["train", "test"]), st.integers(0, 9)
)
def test_a_perturbation_changes_the_pair_and_never_what_is_known_of_it(pair, name, language, attacks, seed):
    before = replace(pair, attributes=dict(pair.attributes))
    changed = Perturber(SHOP, language, attacks, seed=seed).perturb(name, pair)
    assert pair == before and list(pair.attributes) == list(before.attributes)
    if changed is not None:
        assert all(getattr(changed, key) == getattr(pair, key) for key in KEPT)
        shown = ("query", "title", "description", "image")
        assert any(getattr(changed, key) != getattr(pair, key) for key in shown) or list(changed.attributes) != list(
            pair.attributes
        )
        assert Perturber(SHOP, language, attacks, seed=seed).perturb(name, pair) == changed


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_perturbation_applies_to_pairs_of_the_shop(language):
    perturber = Perturber(SHOP, language)
    applied = {name: sum(perturber.perturb(name, pair) is not None for pair in SHOP_PAIRS[language]) for name in PERTURBATIONS}
    assert [name for name, pairs in applied.items() if pairs == 0] == (["typo"] if language == "zh" else [])
    injections = [name for name, p in PERTURBATIONS.items() if p.kind == "injection" and name != "order-in-photo"]
    assert all(applied[name] == len(SHOP_PAIRS[language]) for name in injections)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_wording_of_an_attack_is_trained_on_and_measured(language):
    sets = load_wordings(language).attacks
    for kind in Attacks.model_fields:
        train, test = getattr(sets.train, kind), getattr(sets.test, kind)
        assert len(train) >= 3 and len(test) >= 3
        shared = set(train.items()) & set(test.items()) if isinstance(train, dict) else set(train) & set(test)
        assert not shared
    both = sets.train.model_dump()
    with pytest.raises(ValueError, match="ignore" if language == "en" else "忽略"):
        AttackSets(train=both, test=both)


@pytest.mark.parametrize("make", small.CHAT_TOKENIZERS.values(), ids=small.CHAT_TOKENIZERS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_an_attack_stays_inside_its_field(make, language):
    """After render no attack has written a control token or opened or closed a field, whatever the tokenizer."""
    tokenizer = make()
    fmt = PromptFormat(detail="name", max_prompt_tokens=4096)
    tag = re.compile(r"</?(?:facts|query|item|title|brand|category|shop|price|attributes|description|photo|reason|verdict|think)>")
    forbidden = control_ids(tokenizer)
    for pair in SHOP_PAIRS[language][:6]:
        pair = replace(pair, image=None)
        clean = template_text(tokenizer, render(pair, SHOP, fmt, tokenizer=tokenizer))
        counted = [token for token in tokenizer(clean, add_special_tokens=False)["input_ids"] if token in forbidden]
        for name, perturbation in PERTURBATIONS.items():
            for attacks in ("train", "test"):
                for seed in range(4):
                    changed = Perturber(SHOP, language, attacks, seed=seed).perturb(name, pair)
                    if changed is None or perturbation.kind != "injection":
                        continue
                    text = template_text(tokenizer, render(changed, SHOP, fmt, tokenizer=tokenizer))
                    tags, new = tag.findall(clean), tag.findall(text)
                    if pair.description is None and changed.description is not None:
                        new = [found for found in new if "description" not in found]
                    assert new == tags, (name, text)
                    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                    assert [token for token in ids if token in forbidden] == counted, (name, text)


def test_an_attack_names_the_best_tier_of_its_rubric():
    for rubric, best in (("shop", "L4"), ("crowdflower", load_rubric("crowdflower").tier_ids[-1])):
        perturber = Perturber(load_rubric(rubric), "en")
        for name in ("order-in-title", "chat-markers", "verdict-tags", "homoglyphs"):
            assert best in perturber.perturb(name, en()).title


def test_a_rule_can_only_be_quoted_where_the_rubric_has_one():
    quoted = Perturber(SHOP, "en").perturb("rule-quote", en()).title
    best = [rule.id for rule in SHOP.rules if rule.tier == "L4"]
    assert any(rule in quoted for rule in best)
    bare = SHOP.model_copy(update={"rules": []})
    assert Perturber(bare, "en").perturb("rule-quote", en()) is None
    assert "L4" in Perturber(bare, "en").perturb("verdict-tags", en()).title


def test_homoglyphs_hide_the_order_and_leave_the_tier():
    for attacks in ("train", "test"):
        sets = getattr(load_wordings("en").attacks, attacks)
        for seed in range(8):
            title = Perturber(SHOP, "en", attacks, seed=seed).perturb("homoglyphs", en(title="")).title
            assert "L4" in title and not any(order.format(best="L4", name="Perfect") in title for order in sets.orders)
            assert set(title) & set(sets.homoglyphs.values())


def test_stuffing_repeats_the_query_and_padding_is_long():
    assert all(pair.title.count("red mug") >= 2 and "blue mug" in pair.title for pair in perturbed("keyword-stuffing", en()))
    assert all(len(pair.description.split()) >= 150 for pair in perturbed("padding-in-description", en()))
    assert all(25 <= len(pair.title.split()) < 50 for pair in perturbed("padding-in-title", en()))


def test_an_order_is_written_legibly_into_a_photo_and_leaves_most_of_it():
    for width, height in ((56, 56), (300, 200), (640, 900)):
        pair = en(image=photo(width, height))
        for changed in perturbed("order-in-photo", pair):
            image = load_image(changed.image)
            assert image.size == (width, height)
            navy = sum(channel[0] < 40 and channel[2] > 90 for channel in image.getdata())
            assert navy >= 0.6 * width * height  # the rest is the band
            dark = sum(value < 60 for value in image.convert("L").getdata()) - navy
            assert dark >= 12  # letters on it, drawn with full strokes


def test_a_photo_that_cannot_be_written_on_is_left_out():
    assert perturbed("order-in-photo", en()) == [None] * 12
    assert perturbed("order-in-photo", en(image=photo(12, 12))) == [None] * 12
    assert perturbed("order-in-photo", en(image={"bytes": b"broken", "path": None})) == [None] * 12


@pytest.mark.parametrize(
    ("query", "orders"),
    [
        ("red lumo mug", {"lumo red mug"}),
        ("red mug", {"mug red"}),
        ("Red Mug", {"Mug Red"}),
        ("mug in red by lumo", {"mug by lumo in red"}),
        ("red cotton dress", {"cotton red dress"}),  # a thing that the lexicon does not know keeps its place
        ("pot set of 6 40 cm", {"pot 40 cm set of 6"}),
        ("which red lumo mug is there", {"which lumo red mug is there"}),
    ],
)
def test_words_of_a_query_change_places_where_the_meaning_stays(query, orders):
    assert {pair.query for pair in perturbed("word-order", en(query), range(30))} == orders


@pytest.mark.parametrize(
    "query",
    [
        "mug",
        "mug not red",
        "mug not red by lumo",
        "red mug without blue",
        "navy blue dress",
        "glass table",  # a table of glass, or the glass of a table
        "coffee table",
        "light blue dress",
        "striped black and white shirt",
        "women coat in green",
        "pot 40 cm set of 6",  # the other way round the numbers would meet
        "case for phone with stand",
        "",
    ],
)
def test_word_order_leaves_out_what_it_could_change(query):
    assert perturbed("word-order", en(query)) == [None] * 12


@pytest.mark.parametrize(
    ("query", "forms"),
    [
        ("size 40 cm lamp", {"size 400 mm lamp"}),
        ("100 cm lamp", {"1000 mm lamp", "1 m lamp"}),
        ("lamp 1.2m", {"lamp 120cm"}),
        ("1,000 g flour", {"1 kg flour"}),
        ("juice 250 ml", {"juice 0.25 l"}),
    ],
)
def test_a_quantity_is_written_in_another_unit(query, forms):
    assert {pair.query for pair in perturbed("units", en(query), range(30))} == forms


@pytest.mark.parametrize(
    "query", ["lamp", "30 x 40 cm rug", "10-20 cm nails", "5g phone", "x20cm", "3 mugs", "10 cmx lamp", "10 to 20 cm", "0 cm"]
)
def test_units_leave_out_what_is_no_single_quantity(query):
    assert perturbed("units", en(query, title="mug")) == [None] * 12


def test_a_quantity_of_the_title_is_taken_where_the_query_has_none():
    assert perturbed("units", en(title="red mug, 500 g"))[0].title == "red mug, 0.5 kg"
    zh = perturbed("units", Pair(pair_id="p", query="床单", title="床单 120厘米 100米色"), range(30), "zh")
    assert {pair.title for pair in zh} == {"床单 1200毫米 100米色", "床单 1.2米 100米色"}


def test_a_typo_is_one_slip_in_a_long_word():
    words = {"yellow", "backpack"}
    for pair in perturbed("typo", en("not yellow x2000 backpack for men"), range(40)):
        query = pair.query.split()
        assert query[0] == "not" and query[2] == "x2000" and query[4:] == ["for", "men"]
        wrong = [word for word in (query[1], query[3]) if word not in words]
        right = next(iter(words - set(query)))
        assert len(wrong) == 1 and wrong[0][0] == right[0] and wrong[0][-1] == right[-1]
        assert len(right) - len(wrong[0]) in (0, 1) and not set(wrong[0]) - set(right)
    assert perturbed("typo", en("mug without red")) == [None] * 12  # words that rule out are spared
    assert "boot" not in {pair and pair.query for pair in perturbed("typo", en("booot"), range(40))}  # a word of the shop


def test_case_and_space_keep_the_letters():
    letters = re.compile(r"\w")
    for name in ("case", "spacing"):
        for pair in perturbed(name, en("red mug 40 cm")):
            assert letters.findall(pair.query.lower()) == letters.findall("red mug 40 cm")
    assert perturbed("case", en("40 50")) == [None] * 12


def test_the_two_lexicons_translate_each_other():
    """Entry by entry and form by form: there and back gives the query again."""
    there, back = Perturber(SHOP, "en"), Perturber(SHOP, "zh")
    translated = [(pair, there.perturb("translation", pair)) for pair in SHOP_PAIRS["en"]]
    done = [(pair, other) for pair, other in translated if other is not None]
    assert len(done) > 80
    for pair, other in done:
        assert not re.search("[a-wyz]", other.query) and back.perturb("translation", other).query == pair.query
    by_hand = {"set of 6 mug": "6件套 马克杯", "crimson lumo lamp not red": "朱砂色 光屿 台灯 不要红色"}
    by_hand |= {"something to run in blue": "用来跑步的东西 蓝色的", "is there a steel samovar": "有没有不锈钢 茶炊"}
    assert {query: there.perturb("translation", en(query)).query for query in by_hand} == by_hand
    assert there.perturb("translation", en("mug under 50 dollars")) is None  # 50 dollars are not 50 yuan
    assert there.perturb("translation", en("cordless drill")) is None


def test_a_table_of_translations_comes_first_whatever_the_case():
    table = {"Red  MUG": "rote Tasse"}
    assert perturbed("translation", en("red mug"), translations=table)[0].query == "rote Tasse"


def test_shuffles_keep_every_part():
    attributes = {"colour": "red", "size": "40 cm", "pieces": "2"}
    pair = en(title="mug, red, 40 cm, new", attributes=attributes)
    orders = {tuple(changed.attributes) for changed in perturbed("attribute-order", pair, range(40))}
    assert len(orders) == 5 and all(sorted(order) == sorted(attributes) for order in orders)
    titles = {changed.title for changed in perturbed("title-order", pair, range(40))}
    assert len(titles) == 5 and all(title.startswith("mug, ") for title in titles)
    assert {changed.title for changed in perturbed("title-order", en(title="mug, 1,000 g, red"))} == {"mug, red, 1,000 g"}
    assert perturbed("attribute-order", en(attributes={"colour": "red"})) == [None] * 12
    assert perturbed("title-order", en(title="Bosch cordless drill")) == [None] * 12


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_rewritten_pair_of_the_shop_still_has_its_label(language):
    """The program teacher, which reads texts and photo and looks at no label, comes to the same verdict."""
    program = ShopProgram(SHOP, language)
    perturber, checked = Perturber(SHOP, language), 0
    rows = load_lexicon(language).facts()
    facts = [Fact("", row["kind"], row["dimension"], row["phrase"], row["value"]) for row in rows]
    for pair in SHOP_PAIRS[language]:
        for name in ("word-order", "attribute-order", "title-order"):
            changed = perturber.perturb(name, pair)
            if changed is None:
                continue
            wishes = program.knowledge(changed, facts) if name != "word-order" else _reordered(program, pair, changed, facts)
            evidence = program.multimodal(changed, wishes, facts)
            tiers = [ruling.tier for ruling in program.rules(changed, wishes, evidence)]
            assert min(tiers, key=SHOP.index) == pair.label, (name, changed)
            checked += 1
    assert checked > 100


def _reordered(program, pair, changed, facts):
    """The demands of the query in its new order are those of the old one."""
    wishes = program.knowledge(changed, facts)
    assert {(wish.dimension, wish.wanted) for wish in wishes} == {
        (wish.dimension, wish.wanted) for wish in program.knowledge(pair, facts)
    }
    return wishes


def test_unknown_names_and_languages_are_refused_with_the_known_ones():
    with pytest.raises(LoreError, match="order-in-titel.*order-in-title"):
        chosen(["order-in-titel"])
    assert [perturbation.name for perturbation in chosen(["units", "case"])] == ["case", "units"]
    with pytest.raises(LoreError, match="en, zh"):
        Perturber(SHOP, "fr")
