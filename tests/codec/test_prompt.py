"""Guards lore/codec/prompt.py: a prompt holds one item whatever its text says, fits its budget, and has a hash of its own."""

import re
import time
import timeit
from collections import Counter

import pytest
import tokenizers_for_tests as small
from attacks import ATTACKS, TEXTS, control_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lore.codec import prompt
from lore.codec.chat_template import answer_glue
from lore.codec.judgement import renderer_hash
from lore.codec.prompt import PromptFormat, count_prompt_tokens, render
from lore.codec.sanitize import control_strings, neutralize
from lore.data.pair import Pair
from lore.rubric.demand import Demand
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

ORDERS = ("reason_first", "answer_first", "answer_only")
RAIR = load_rubric("rair")
WANDS = load_rubric("wands")
NAME = PromptFormat(detail="name")
RED = Image.new("RGB", (8, 8), "red")


def pair_of(**fields) -> Pair:
    return Pair(**{"pair_id": "p", "query": "red dress", "title": "Red cotton dress", **fields})


def text_of(message: dict) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "<IMAGE>") for part in content)


def test_the_item_is_written_with_the_fields_it_has():
    full = pair_of(
        brand="Lumo",
        category="Dresses",
        shop="Lumo store",
        price=39.9,
        attributes={"Colour": "red", "Size": "M"},
        description="Light.",
    )
    system, user = render(full, RAIR, NAME)
    assert system == {"role": "system", "content": "Judge relevance. Rubric: rair."}
    assert user == {
        "role": "user",
        "content": "<query>red dress</query>\n<item>\n<title>Red cotton dress</title>\n<brand>Lumo</brand>\n"
        "<category>Dresses</category>\n<shop>Lumo store</shop>\n<price>39.90</price>\n"
        "<attributes>Colour: red; Size: M</attributes>\n<description>Light.</description>\n</item>",
    }
    bare = render(pair_of(price=40.0, description="\u200b", brand=" "), RAIR, NAME)[1]["content"]
    assert bare == "<query>red dress</query>\n<item>\n<title>Red cotton dress</title>\n<price>40</price>\n</item>"


def test_labels_and_gold_reasoning_never_reach_the_prompt():
    gold = pair_of(
        label="L2",
        rationale="GOLD",
        mismatch="GOLD",
        rules=["GOLD"],
        demands=[Demand(*["GOLD"] * 6)],
        source="GOLD",
        slices=["GOLD"],
    )
    assert render(gold, RAIR, PromptFormat()) == render(pair_of(), RAIR, PromptFormat())


def test_the_system_text_holds_as_much_rubric_as_asked():
    full, tiers, name = (render(pair_of(), RAIR, PromptFormat(detail=d))[0]["content"] for d in ("full", "tiers", "name"))
    assert all(f"- {rule.tier} {rule.id}, {rule.dimension}: {rule.principle}" in full for rule in RAIR.rules)
    assert all(f"- {tier.id} ({tier.name}): {tier.meaning}" in text for tier in RAIR.tiers for text in (full, tiers))
    assert "colour-accent" not in tiers
    assert name == "Judge relevance. Rubric: rair."
    assert full.index("Tiers") < full.index("Dimensions") < full.index("Rules") < full.index("Answer with")
    assert "\n\n\n" not in full + tiers


def test_the_answer_line_states_the_order():
    lines = [render(pair_of(), RAIR, PromptFormat(order=order))[0]["content"].splitlines()[-1] for order in ORDERS]
    tags = [re.findall("<([a-z]+)>", line) for line in lines]
    assert tags == [
        ["reason", "verdict", "mismatch", "rules"],
        ["verdict", "mismatch", "rules", "reason"],
        ["verdict"],
    ]
    assert "(only for L2)" in lines[0]
    assert "mismatch" not in render(pair_of(), WANDS, PromptFormat())[0]["content"]


def test_chinese_instructions():
    system = render(pair_of(), RAIR, PromptFormat(language="zh"))[0]["content"]
    assert system.startswith("你要判断")
    assert "规则（档位 编号，维度）" in system
    assert system.splitlines()[-1].startswith("依次输出 <reason>")
    assert render(pair_of(), RAIR, PromptFormat(detail="name", language="zh"))[0]["content"] == "判断相关性。规则：rair。"


def test_a_photo_comes_last_inside_the_item():
    system, user = render(pair_of(description="Light."), RAIR, NAME, image=RED)
    assert [part["type"] for part in user["content"]] == ["text", "image", "text"]
    assert user["content"][1]["image"] is RED
    assert text_of(user).endswith("<description>Light.</description>\n<photo><IMAGE></photo>\n</item>")
    assert system["content"] == [{"type": "text", "text": "Judge relevance. Rubric: rair."}]


def test_the_pairs_own_photo_is_loaded_unless_it_is_not_wanted(tmp_path):
    RED.save(tmp_path / "red.png")
    pair = pair_of(image={"bytes": None, "path": str(tmp_path / "red.png")})
    shown = render(pair, RAIR, NAME)[1]["content"][1]["image"]
    assert shown.getpixel((0, 0)) == (255, 0, 0)
    hidden = render(pair, RAIR, PromptFormat(detail="name", photo=False), image=RED)
    assert hidden == render(pair_of(), RAIR, NAME)


def test_wrong_formats_are_named():
    with pytest.raises(LoreError, match="prompt.order is 'verdict_first'; expected one of reason_first"):
        PromptFormat(order="verdict_first")
    with pytest.raises(LoreError, match="max_prompt_tokens is 0"):
        PromptFormat(max_prompt_tokens=0)


FIELDS = re.compile(
    r"<query>(?P<query>[^<>\n]*)</query>\n<item>\n<title>(?P<title>[^<>\n]*)</title>\n"
    r"(?:<brand>(?P<brand>[^<>\n]*)</brand>\n)?(?:<category>(?P<category>[^<>\n]*)</category>\n)?"
    r"(?:<attributes>(?P<attributes>[^<>\n]*)</attributes>\n)?(?:<description>(?P<description>[^<>\n]*)</description>\n)?</item>"
)


@pytest.mark.parametrize("name", small.CHAT_TOKENIZERS)
@settings(max_examples=80, deadline=None)
@given(
    query=TEXTS,
    title=TEXTS,
    brand=TEXTS,
    category=TEXTS,
    attributes=st.dictionaries(TEXTS, TEXTS, max_size=3),
    description=TEXTS,
)
def test_no_field_yields_a_control_token_or_another_field(name, query, title, brand, category, attributes, description):
    tokenizer = small.CHAT_TOKENIZERS[name]()
    control = control_strings(tokenizer)
    hostile = pair_of(query=query, title=title, brand=brand, category=category, attributes=attributes, description=description)
    messages = render(hostile, RAIR, NAME, tokenizer=tokenizer)
    assert special_tokens(messages, tokenizer) == special_tokens(render(pair_of(), RAIR, NAME, tokenizer=tokenizer), tokenizer)
    found = FIELDS.fullmatch(messages[1]["content"])
    assert found
    for field, text in (
        ("query", query),
        ("title", title),
        ("brand", brand),
        ("category", category),
        ("description", description),
    ):
        assert (found[field] or "") == neutralize(text, control)
    entries = found["attributes"].split("; ") if found["attributes"] else []
    kept = [(key, value) for key, value in attributes.items() if neutralize(value, control)]
    assert len(entries) == len(kept)
    assert all(re.fullmatch("[^:]+: .+", entry) for entry in entries)


def special_tokens(messages: list, tokenizer) -> Counter:
    ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))["input_ids"]
    return Counter(i for i in ids if i in control_ids(tokenizer))


@pytest.mark.parametrize("attack", ATTACKS, ids=ascii)
def test_without_a_tokenizer_fields_stay_fields_too(attack):
    hostile = pair_of(title=f"dress {attack}", description=f"{attack} x", attributes={f"a{attack}": f"b{attack}"})
    found = FIELDS.fullmatch(render(hostile, RAIR, NAME)[1]["content"])
    assert found
    assert found["title"] == neutralize(f"dress {attack}")
    assert found["attributes"].count(": ") >= 1
    assert ";" not in found["attributes"]


def test_rendering_is_quick():
    pair = pair_of(
        brand="Lumo",
        attributes={"Colour": "red", "Size": "M", "Material": "cotton"},
        description="Light and long. " * 5,
    )
    render(pair, RAIR, PromptFormat())
    for _ in range(20):  # other programs may have the processor for a while
        seconds = min(timeit.repeat(lambda: render(pair, RAIR, PromptFormat()), number=100, repeat=20)) / 100
        if seconds < 50e-6:
            break
        time.sleep(0.2)
    assert seconds < 50e-6


class Counting:
    """A tokenizer that notes how often a prompt was measured."""

    def __init__(self, tokenizer):
        self.tokenizer, self.counts = tokenizer, 0
        self.chat_template = tokenizer.chat_template

    def apply_chat_template(self, *args, **kwargs):
        self.counts += 1
        return self.tokenizer.apply_chat_template(*args, **kwargs)


LONG = {
    "title": "red cotton dress " * 10,
    "brand": "Lumo",
    "attributes": {f"key{i}": f"value{i} of the dress" for i in range(12)},
    "description": "a long summer dress for women " * 20,
}


def fitted(budget: int, **fields) -> tuple[re.Match, int]:
    tokenizer = Counting(small.chatml())
    answer_glue(tokenizer)  # looked up once a tokenizer
    tokenizer.counts = 0
    messages = render(
        pair_of(**{**LONG, **fields}), RAIR, PromptFormat(detail="name", max_prompt_tokens=budget), tokenizer=tokenizer
    )
    assert count_prompt_tokens(messages, small.chatml()) <= budget
    return FIELDS.fullmatch(messages[1]["content"]), tokenizer.counts


def tokens_of(**fields) -> int:
    return count_prompt_tokens(render(pair_of(**{**LONG, **fields}), RAIR, NAME), small.chatml())


def test_what_fits_is_measured_once_and_left_whole():
    found, counts = fitted(tokens_of())
    assert counts == 1
    assert found["description"] == LONG["description"].strip()


def test_the_description_goes_first():
    found, counts = fitted(tokens_of() - 1)
    assert LONG["description"].startswith(found["description"])
    assert len(found["description"]) > 0.9 * len(LONG["description"])
    assert counts < 12
    short, _ = fitted(tokens_of(description=None) + 10)
    assert 0 < len(short["description"]) < 40
    for cut in (found, short):
        assert cut["attributes"].count(";") == 11
        assert cut["title"] == LONG["title"].strip()


def test_attributes_go_next_from_the_last():
    found, _ = fitted(tokens_of(description=None) - 1)
    assert found["description"] is None
    assert found["attributes"].split("; ")[-1] == "key10: value10 of the dress"
    found, _ = fitted(tokens_of(description=None, attributes={"key0": "value0 of the dress"}))
    assert found["attributes"] == "key0: value0 of the dress"
    assert found["brand"] == "Lumo"
    assert found["title"] == LONG["title"].strip()


def test_the_titles_end_goes_last():
    whole = tokens_of(description=None, attributes={}, brand=None)
    found, _ = fitted(whole)
    assert found["title"] == LONG["title"].strip()
    found, counts = fitted(whole - 5)
    assert LONG["title"].startswith(found["title"])
    assert 20 < len(found["title"]) < len(LONG["title"].strip())
    assert (found["brand"], found["attributes"], found["description"], found["query"]) == (
        None,
        None,
        None,
        "red dress",
    )
    assert counts < 15


@settings(max_examples=60, deadline=None)
@given(budget=st.integers(40, 700), description=TEXTS, title=TEXTS.map(lambda text: "dress " + text))
def test_every_cut_fits_and_uses_its_budget(budget, description, title):
    try:
        found, _ = fitted(budget, description=description * 5, title=title)
    except LoreError:
        assert budget < tokens_of(description=None, attributes={}, brand=None, title="d") + 8
        return
    control = control_strings(small.chatml())
    assert neutralize(title, control).startswith(found["title"])
    assert neutralize(description * 5, control).startswith(found["description"] or "")
    if found["title"] != neutralize(title, control):
        assert (found["brand"], found["attributes"], found["description"]) == (None, None, None)
    if found["attributes"] is None or found["attributes"].count(";") < 11:
        assert found["description"] is None


def test_query_and_rubric_are_never_cut():
    with pytest.raises(LoreError, match="Rubric rair and the query take .* neither is ever cut.*prompt.detail"):
        render(
            pair_of(query="red dress " * 300),
            RAIR,
            PromptFormat(detail="name", max_prompt_tokens=300),
            tokenizer=small.chatml(),
        )
    with pytest.raises(LoreError, match="max_prompt_tokens=2048"):
        render(pair_of(), RAIR, PromptFormat(), tokenizer=small.chatml())


def test_megabyte_texts_are_cut_in_little_time():
    huge = pair_of(title="red dress " * 100_000, description="[IN<|im_end|>" * 100_000, brand="B" * 1_000_000)
    fmt = PromptFormat(detail="name", max_prompt_tokens=200)
    seconds = timeit.timeit(lambda: render(huge, RAIR, fmt, tokenizer=small.chatml()), number=1)
    assert seconds < 5


def test_a_photo_counts_as_its_placeholder():
    plain = count_prompt_tokens(render(pair_of(), RAIR, NAME), small.chatml())
    with_photo = count_prompt_tokens(render(pair_of(), RAIR, NAME, image=RED), small.chatml())
    assert plain < with_photo < plain + 20


def test_a_tokenizer_without_chat_template_is_an_error():
    bare = small.wrap(small.byte_level(None, 300), None)
    with pytest.raises(LoreError, match="has no chat template"):
        render(pair_of(), RAIR, NAME, tokenizer=bare)


def test_the_hash_changes_with_what_the_model_sees_and_writes(tmp_path, monkeypatch):
    formats = [
        PromptFormat(order=o, detail=d, language=la) for o in ORDERS for d in ("full", "tiers", "name") for la in ("en", "zh")
    ]
    hashes = [renderer_hash(rubric, fmt) for rubric in (RAIR, WANDS) for fmt in formats]
    assert len(set(hashes)) == len(hashes)
    assert renderer_hash(RAIR, PromptFormat(photo=False, max_prompt_tokens=99)) == renderer_hash(RAIR, PromptFormat())
    before = renderer_hash(RAIR, PromptFormat())
    text = (prompt.PROMPTS / "judge.en.md").read_text(encoding="utf-8")
    (tmp_path / "judge.en.md").write_text(text.replace("You judge", "You decide"), encoding="utf-8")
    monkeypatch.setattr(prompt, "PROMPTS", tmp_path)
    monkeypatch.setattr(prompt, "_system_texts", {})
    prompt._template.cache_clear()
    try:
        assert renderer_hash(RAIR, PromptFormat()) != before
    finally:
        prompt._template.cache_clear()
