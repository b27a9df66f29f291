"""The program teacher of the embedded shop: parses query, texts and photo with the lexicon and the given facts, and executes the
rules. It never reads a pair's label, gold demands or rationale.

A word that neither the lexicon's plain vocabulary nor a fact explains cannot be resolved, so jargon needs facts.
"""

import re

import numpy as np

from lore.data.images import image_bytes, load_image
from lore.data.pair import Pair
from lore.data_synth.shop.catalogue import Shop
from lore.data_synth.shop.lexicon import Lexicon, load_lexicon
from lore.data_synth.shop.photos import colour_shares
from lore.data_synth.shop.rules import ItemValue, Want, found_text, judge, wanted_text
from lore.data_synth.synthesis.facts import RELATIONS, Fact
from lore.data_synth.synthesis.trace import Evidence, Ruling, Unreadable, Wish
from lore.rubric.rubric import Rubric

NUMBER = re.compile(r"\d+")
WORDED = ("category", "colour", "pattern", "brand", "material", "audience", "model")
MARKS = ((255, 255, 255), (40, 40, 40))  # colors of stripes and dots in photos.draw_photo
LIGHT = (0.9, 1.05)
LONGEST = 12  # words of one phrase

Known = dict[str, tuple]  # phrase, with # for its numbers -> meaning


class ShopProgram:
    """Implements the three steps for one lexicon and rubric."""

    def __init__(self, rubric: Rubric, language: str = "en"):
        self.name = f"shop-{language}"
        self.rubric, self.lexicon = rubric, load_lexicon(language)
        self.kinds = Shop(self.lexicon).kinds
        self._asked = _asked(self.lexicon)
        self._offered = _offered(self.lexicon)
        self._inverse = _inverse_notation(self.lexicon)

    def knowledge(self, pair: Pair, facts: list[Fact]) -> list[Wish]:
        known = self._asked | {
            form: (fact.dimension, fact.value, fact.phrase, negated, pure)
            for fact in facts
            if fact.kind not in RELATIONS and fact.dimension in WORDED
            for form, negated, pure in _forms(self.lexicon, fact.dimension, fact.phrase, need=fact.kind == "need")
        }
        query = self._without_question(pair.query)
        wishes = []
        for words, meaning, number in _read(query, known, self.lexicon.joiner):
            dimension, value, said, negated, pure = meaning
            want = Want(dimension, number or value, said, negated, pure)
            wishes.append(Wish(dimension, words, wanted_text(want, self.lexicon.notation)))
        wishes.sort(key=lambda wish: wish.dimension != "category")
        if not wishes or wishes[0].dimension != "category":
            raise Unreadable(f"{query!r} names no kind of thing")
        return wishes

    def multimodal(self, pair: Pair, wishes: list[Wish], facts: list[Fact]) -> list[Evidence]:
        lines = {fact.phrase: ("brand", fact.value, fact.phrase, None) for fact in facts if fact.kind == "line"}
        known = self._offered | lines
        offered = self._texts(pair.title, "title", known)
        for value in pair.attributes.values():
            offered |= self._texts(value, "attributes", known)
        if pair.brand:
            offered["brand"] = ItemValue(pair.brand, "attributes")
        if pair.price is not None:
            offered["price"] = ItemValue(f"{pair.price:g}", "attributes")
        if pair.image and any(w.dimension in ("colour", "pattern") and w.dimension not in offered for w in wishes):
            offered = read_photo(image_bytes(pair.image), self.lexicon) | offered
        found = [offered.get(wish.dimension) for wish in wishes]
        return [Evidence(found_text(shown, self.lexicon.notation), shown.source if shown else "none") for shown in found]

    def rules(self, pair: Pair, wishes: list[Wish], evidence: list[Evidence]) -> list[Ruling]:
        wants = [self._want(wish) for wish in wishes]
        offered = {
            wish.dimension: self._item_value(wish.dimension, found)
            for wish, found in zip(wishes, evidence, strict=True)
            if found.source != "none"
        }
        try:
            return [Ruling(demand.rule, demand.tier) for demand in judge(wants, offered, self.kinds, self.rubric)]
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise Unreadable(f"no rule of {self.rubric.name} fits what was found ({error!r})") from error

    def _without_question(self, query: str) -> str:
        for form in sorted(self.lexicon.phrases["question"], key=len, reverse=True):
            before, after = form.split("{v}")
            if query.startswith(before) and query.endswith(after) and len(before + after) > 0:
                return query[len(before) : len(query) - len(after)]
        return query

    def _texts(self, text: str, source: str, known: Known) -> dict[str, ItemValue]:
        found = {}
        for _, (dimension, value, said, more), number in _read(text, known, self.lexicon.joiner):
            if dimension == "colour":
                rest = colour_shares(more)
            else:
                rest = {"share": float(number)} if dimension == "material" and number else {}
            found[dimension] = ItemValue(value or number, source, said, **rest)
        return found

    def _want(self, wish: Wish) -> Want:
        text, flags = wish.wanted, {}
        key = {"colour": "negated", "material": "pure"}.get(wish.dimension)
        if key and (match := self._inverse[key].fullmatch(text)):
            text, flags = match["v"], {key: True}
        said, resolved, value = text.partition(" = ")
        return Want(wish.dimension, value if resolved else said, said if resolved else None, **flags)

    def _item_value(self, dimension: str, evidence: Evidence) -> ItemValue:
        text, source = evidence.found, evidence.source
        said, resolved, value = text.partition(" = ")
        if resolved:
            return ItemValue(value, source, said)
        if dimension == "colour":
            match = self._inverse["accent"].fullmatch(text)
            value, accent = (match["v"], match["accent"]) if match else (text, None)
            return ItemValue(value, source, **colour_shares(accent))
        if dimension == "material" and (match := self._inverse["share"].fullmatch(text)):
            return ItemValue(match["v"], source, None, float(match["share"]))
        return ItemValue(text, source)


def _read(text: str, known: Known, joiner: str) -> list[tuple[str, tuple, str | None]]:
    """Splits a text into known phrases, longest first from the left: (phrase, meaning, its number)."""
    tokens, at, out = text.split(joiner), 0, []
    while at < len(tokens):
        for length in range(min(LONGEST, len(tokens) - at), 0, -1):
            phrase = joiner.join(tokens[at : at + length])
            number = None
            meaning = known.get(phrase)
            if meaning is None and (numbers := NUMBER.findall(phrase)):
                meaning, number = known.get(NUMBER.sub("#", phrase)), numbers[0]
            if meaning is not None:
                out.append((phrase, meaning, number))
                at += length
                break
        else:
            raise Unreadable(f"{tokens[at]!r} in {text!r} is no word that lexicon or facts know")
    return out


def _forms(lexicon: Lexicon, dimension: str, value: str, need: bool = False) -> list[tuple[str, bool, bool]]:
    """All forms in which a query expresses a value: (phrase, negated, pure)."""
    keys = [("need" if need else dimension, False, False)]
    keys += [("colour_not", True, False)] if dimension == "colour" else []
    keys += [("material_pure", False, True)] if dimension == "material" else []
    return [(form.format(v=value), negated, pure) for key, negated, pure in keys for form in lexicon.phrases[key]]


def _asked(lexicon: Lexicon) -> Known:
    """Phrases of a query in plain words, with their meaning."""
    plain = [("category", t.name) for t in lexicon.types] + [("category", a.name) for a in lexicon.accessories]
    plain += [("colour", colour.name) for colour in lexicon.colours] + [("pattern", pattern) for pattern in lexicon.patterns]
    plain += [("brand", brand.name) for brand in lexicon.brands]
    plain += [("material", name) for names in lexicon.materials.values() for name in names]
    plain += [("audience", audience.name) for audience in lexicon.audiences]
    plain += [("model", model) for series in lexicon.models for model in series]
    known = {
        form: (dimension, value, None, negated, pure)
        for dimension, value in plain
        for form, negated, pure in _forms(lexicon, dimension, value)
    }
    for dimension in ("size", "bundle", "price"):
        known |= {form.format(v="#"): (dimension, None, None, False, False) for form in lexicon.phrases[dimension]}
    return known


def _offered(lexicon: Lexicon) -> Known:
    """Phrases of a title or an attribute, with their meaning: (dimension, value, said, accent or None)."""
    texts = lexicon.texts
    known = {t.name: ("category", t.name, None, None) for t in lexicon.types}
    known |= {texts["accessory"].format(v=a.name, main=a.main): ("category", a.name, None, None) for a in lexicon.accessories}
    colours = [colour.name for colour in lexicon.colours]
    known |= {texts["colour"].format(v=c): ("colour", c, None, None) for c in colours}
    known |= {texts["colour_accent"].format(v=c, accent=a): ("colour", c, None, a) for c in colours for a in colours if a != c}
    known |= {texts["pattern"].format(v=p): ("pattern", p, None, None) for p in lexicon.patterns}
    known |= {texts["brand"].format(v=b.name): ("brand", b.name, None, None) for b in lexicon.brands}
    known |= {texts["audience"].format(v=a.name): ("audience", a.name, None, None) for a in lexicon.audiences}
    known |= {texts["model"].format(v=m): ("model", m, None, None) for series in lexicon.models for m in series}
    for name in (name for names in lexicon.materials.values() for name in names):
        known[texts["material"].format(v=name)] = ("material", name, None, None)
        known[texts["material_share"].format(share="#", v=name)] = ("material", name, None, None)
    known |= {texts[dimension].format(v="#"): (dimension, None, None, None) for dimension in ("size", "bundle")}
    known[texts["bundle_single"]] = ("bundle", "1", texts["bundle_single"], None)
    return known


def _inverse_notation(lexicon: Lexicon) -> dict[str, re.Pattern]:
    groups = {"{v}": "(?P<v>.+)", "{accent}": "(?P<accent>.+)", "{share:g}": r"(?P<share>[\d.]+)"}
    inverse = {}
    for key in ("negated", "pure", "accent", "share"):
        pattern = re.escape(lexicon.notation[key])
        for placeholder, group in groups.items():
            pattern = pattern.replace(re.escape(placeholder), group)
        inverse[key] = re.compile(pattern)
    return inverse


def read_photo(data: bytes, lexicon: Lexicon) -> dict[str, ItemValue]:
    """Color and pattern of a generated photo from its pixels: the dominant color, an accent stripe, stripes or dots."""
    pixels = np.asarray(load_image(data)).astype(int)
    on_item = (pixels != pixels[0, 0]).any(axis=-1)
    codes, counts = np.unique(pixels[on_item] @ (1 << 16, 1 << 8, 1), return_counts=True)  # sorting rows of three is slow
    colours = zip((codes >> 16).tolist(), (codes >> 8 & 255).tolist(), (codes & 255).tolist(), strict=True)
    plain = [(count, colour) for colour, count in zip(colours, counts.tolist(), strict=True) if colour not in MARKS]
    if not plain:
        raise Unreadable("a photo of nothing")
    ranked = sorted(plain, reverse=True)
    dominant = _nearest(ranked[0][1], lexicon)
    accents = {colour.rgb: colour.name for colour in lexicon.colours if colour.name != dominant}
    accent = next((accents[c] for n, c in ranked[1:] if c in accents and n > 0.04 * on_item.sum()), None)
    base = next(colour.rgb for colour in lexicon.colours if colour.name == dominant)
    marks = (pixels == (MARKS[0] if sum(base) < 480 else MARKS[1])).all(axis=-1) & on_item
    width = on_item.sum(axis=1)
    full = (width >= 8) & (marks.sum(axis=1) >= 0.95 * width)
    pattern = lexicon.patterns[1 if full.sum() >= 2 else 2 if marks.sum() >= 4 else 0]
    return {"colour": ItemValue(dominant, "photo", **colour_shares(accent)), "pattern": ItemValue(pattern, "photo")}


def _nearest(seen: tuple[int, ...], lexicon: Lexicon) -> str:
    """The lexicon's color nearest to the seen one, allowing for the photo's brightness."""

    def distance(rgb):
        light = min(max(sum(a * b for a, b in zip(seen, rgb, strict=True)) / sum(a * a for a in rgb), LIGHT[0]), LIGHT[1])
        return sum((a - min(255, light * b)) ** 2 for a, b in zip(seen, rgb, strict=True))

    return min(lexicon.colours, key=lambda colour: distance(colour.rgb)).name
