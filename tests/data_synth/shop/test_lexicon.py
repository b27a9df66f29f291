"""The shop's words: every language has the same shop, and a file that contradicts itself is refused."""

import re
import string

import pytest
import yaml

from lore.data_synth.shop.catalogue import OUTCOMES
from lore.data_synth.shop.lexicon import FOLDER, Lexicon, load_lexicon
from lore.data_synth.shop.photos import SHAPES
from lore.support.errors import LoreError

LANGUAGES = ("en", "zh")


def raw(language: str) -> dict:
    return yaml.safe_load((FOLDER / f"{language}.yaml").read_text(encoding="utf-8"))


def form(value):
    """The shape of a lexicon: ids, numbers and sizes without the words."""
    if isinstance(value, dict):
        return {key: form(v) for key, v in value.items()}
    if isinstance(value, list):
        return [form(v) for v in value]
    return value if not isinstance(value, str) else sorted(field for _, field, *_ in string.Formatter().parse(value) if field)


def test_chinese_and_english_hold_the_same_shop():
    en, zh = (load_lexicon(language).model_dump() for language in LANGUAGES)
    assert form(en) == form(zh)
    for a, b in zip(en["families"], zh["families"], strict=True):
        assert (a["shape"], a["materials"], a["demands"]) == (b["shape"], b["materials"], b["demands"])
    for part, link in (("types", "family"), ("accessories", "main"), ("brands", "parent")):
        target = {"types": "families", "accessories": "types", "brands": "brands"}[part]
        places = [[[x["name"] for x in lexicon[target]].index(x[link]) for x in lexicon[part] if x[link]] for lexicon in (en, zh)]
        assert places[0] == places[1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_shapes_and_demands_are_known(language):
    lexicon = load_lexicon(language)
    for family in lexicon.families:
        assert family.shape in SHAPES
        assert set(family.demands) <= OUTCOMES.keys()
        assert len([t for t in lexicon.types if t.family == family.name]) > 1, "a sibling needs a second type"
    for colour in lexicon.colours:
        kin = [c for c in lexicon.colours if c.family == colour.family]
        assert 1 < len(kin) < len(lexicon.colours), "colour-family needs a second colour, colour-other a second family"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_word_means_one_thing(language):
    """No word of the shop stands for two values, and no value is part of another of its own dimension."""
    lexicon = load_lexicon(language)
    groups = [
        [w for t in lexicon.types for w in (t.name, *t.jargon, *t.needs)] + [a.name for a in lexicon.accessories],
        [w for b in lexicon.brands for w in (b.name, *b.lines)],
        [w for c in lexicon.colours for w in (c.name, *c.words)],
        lexicon.patterns,
        [m for pool in lexicon.materials.values() for m in pool],
        [w for a in lexicon.audiences for w in (a.name, *a.words)],
        [m for series in lexicon.models for m in series],
    ]
    words = [word for group in groups for word in group]
    assert len(words) == len(set(words))
    if language == "zh":  # English words end at a space; Chinese phrases glue their words, so one must not hide in another
        for group in groups[1:]:
            assert not [(a, b) for a in group for b in group if a != b and a in b]


def test_chinese_has_no_latin_words_but_model_numbers():
    def texts(value):
        if isinstance(value, dict):
            yield from (t for v in value.values() for t in texts(v))
        elif isinstance(value, list):
            yield from (t for v in value for t in texts(v))
        elif isinstance(value, str):
            yield value

    zh = raw("zh")
    ids = {"zh", "soft", "hard", *SHAPES, *OUTCOMES}
    latin = {w for t in texts(zh) for w in re.findall("[A-Za-z]+[0-9]*", re.sub(r"\{[^}]*\}", "", t))} - ids
    assert latin == {m for series in zh["models"] for m in series}


def test_facts_resolve_to_values_of_the_shop():
    lexicon = load_lexicon("zh")
    facts = lexicon.facts()
    assert {fact["kind"] for fact in facts} == {"jargon", "need", "accessory", "line", "sub-brand", "word", "count"}
    assert {"kind": "jargon", "dimension": "category", "phrase": "马灯", "value": "露营灯"} in facts
    values = {x.name for x in (*lexicon.types, *lexicon.brands, *lexicon.colours, *lexicon.audiences)} | {"1"}
    assert {fact["value"] for fact in facts} <= values


def test_wrong_references_are_all_named():
    broken = raw("en")
    broken["types"][0]["family"] = "boats"
    broken["accessories"][0]["for"] = "yacht"
    broken["brands"][-1]["parent"] = "nobody"
    broken["phrases"]["size"] = ["{v} cm"]
    broken["notation"] = {"negated": "not {v}"}
    with pytest.raises(ValueError) as error:
        Lexicon.model_validate(broken)
    for part in ("no family boats", "no type yacht", "no parent nobody", "phrase size", "notation"):
        assert part in str(error.value)


def test_an_unknown_language_lists_the_known_ones():
    with pytest.raises(LoreError, match="'de', so no shop can be made. Choose one of: en, zh"):
        load_lexicon("de")
