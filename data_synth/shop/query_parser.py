"""Parses queries and titles into phrases of the embedded shop's lexicon, to reorder or translate them.

Real queries are parsed as far as the lexicon's plain words allow: one run of unknown words is taken as the requested thing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from lore.data_synth.shop.lexicon import Lexicon, load_lexicon

NUMBER = re.compile(r"\d+")
HEADS = ("category", "need", "unknown")
NUMBERS = ("size", "bundle", "price")
LONGEST = 12  # tokens of one phrase

Slot = tuple
"""Position of a word in its lexicon. The same position in the lexicon of another language has the same meaning."""


@dataclass(frozen=True)
class Phrase:
    """One demand in the words of a query. key, form: which form of which list of lexicon.phrases; bare: the value alone."""

    words: str
    key: str
    form: int = 0
    slot: Slot = ()
    bare: bool = False


@dataclass(frozen=True)
class ReadQuery:
    phrases: list[Phrase]
    question: int | None = None
    """Form of the question around the phrases; None without one."""


class ShopWords:
    """The phrases of one language."""

    def __init__(self, language: str):
        self.lexicon = lexicon = load_lexicon(language)
        self.surfaces: dict[Slot, str] = {}
        self._asked: dict[str, Phrase] = {}
        for keys, slot, surface in _entries(lexicon):
            self.surfaces[slot] = surface
            for key in keys:
                for number, form in enumerate(lexicon.phrases[key]):
                    words = form.format(v=surface)
                    self._asked.setdefault(words.casefold(), Phrase(words, key, number, slot, form == "{v}"))
        self._offered = {text.casefold() for text in _offered(lexicon)}
        self.vocabulary = {token for phrase in self._asked for token in phrase.split()}

    def read(self, query: str) -> ReadQuery | None:
        """The query's phrases in order, with its own spelling; None if it requests more than one thing, or none."""
        phrases = self._phrases(query)
        if _one_head(phrases, known=True):
            return ReadQuery(phrases)
        for number, form in enumerate(self.lexicon.phrases["question"]):
            before, _, after = form.partition("{v}")
            if len(query) > len(before + after) and query.startswith(before) and query.endswith(after):
                inner = self._phrases(query[len(before) : len(query) - len(after)])
                if _one_head(inner, known=True):
                    return ReadQuery(inner, number)
        return ReadQuery(phrases) if _one_head(phrases) else None

    def written(self, query: ReadQuery) -> str:
        words = self.lexicon.joiner.join(phrase.words for phrase in query.phrases)
        return words if query.question is None else self.lexicon.phrases["question"][query.question].format(v=words)

    def title_parts(self, title: str) -> list[str] | None:
        """The parts of a shop's title; None for a title with a word that the lexicon does not have."""
        parts = []
        for words, known in _longest(title.split(), lambda text: text in self._offered):
            if not known:
                return None
            parts.append(words)
        return parts

    def _phrases(self, query: str) -> list[Phrase]:
        phrases: list[Phrase] = []
        for words, known in _longest(query.split(), lambda text: text in self._asked):
            if known:
                plain = words.casefold()
                phrases.append(replace(self._asked.get(plain) or self._asked[NUMBER.sub("#", plain)], words=words))
            elif phrases and phrases[-1].key == "unknown":
                phrases[-1] = Phrase(f"{phrases[-1].words} {words}", "unknown")
            else:
                phrases.append(Phrase(words, "unknown"))
        return phrases


@cache
def shop_words(language: str) -> ShopWords:
    return ShopWords(language)


def translated(query: ReadQuery, source: ShopWords, target: ShopWords) -> str | None:
    """The query in the other lexicon's words, phrase by phrase. None if a word is unknown, and for prices: a price in dollars has
    no equal price in yuan."""
    words = []
    for phrase in query.phrases:
        if phrase.slot not in target.surfaces or phrase.key == "price":
            return None
        value = target.surfaces[phrase.slot]
        if value == "#":
            value = NUMBER.search(phrase.words)[0]
        words.append(target.lexicon.phrases[phrase.key][phrase.form].format(v=value))
    text = target.lexicon.joiner.join(words)
    return text if query.question is None else target.lexicon.phrases["question"][query.question].format(v=text)


def _one_head(phrases: list[Phrase], known: bool = False) -> bool:
    heads = [phrase for phrase in phrases if phrase.key in HEADS]
    return len(heads) == 1 and not (known and heads[0].key == "unknown")


def _longest(tokens: list[str], is_known) -> Iterator[tuple[str, bool]]:
    """Splits tokens into known phrases, longest first from the left; unknown tokens stay single."""
    at = 0
    while at < len(tokens):
        for length in range(min(LONGEST, len(tokens) - at), 0, -1):
            words = " ".join(tokens[at : at + length])
            if is_known(words.casefold()) or is_known(NUMBER.sub("#", words.casefold())):
                yield words, True
                at += length
                break
        else:
            yield tokens[at], False
            at += 1


def _entries(lexicon: Lexicon) -> Iterator[tuple[tuple[str, ...], Slot, str]]:
    """(lists of phrases that use it, slot, word) for every word that a query can contain."""
    for i, kind in enumerate(lexicon.types):
        yield ("category",), ("type", i), kind.name
        yield from ((("category",), ("jargon", i, j), word) for j, word in enumerate(kind.jargon))
        yield from ((("need",), ("need", i, j), word) for j, word in enumerate(kind.needs))
    for i, accessory in enumerate(lexicon.accessories):
        yield ("category",), ("accessory", i), accessory.name
    for i, brand in enumerate(lexicon.brands):
        yield ("brand",), ("brand", i), brand.name
        yield from ((("brand",), ("line", i, j), line) for j, line in enumerate(brand.lines))
    for i, colour in enumerate(lexicon.colours):
        for j, word in enumerate((colour.name, *colour.words)):
            yield ("colour", "colour_not"), ("colour", i, j), word
    for i, pattern in enumerate(lexicon.patterns):
        yield ("pattern",), ("pattern", i), pattern
    for kind, materials in lexicon.materials.items():
        yield from ((("material", "material_pure"), ("material", kind, i), name) for i, name in enumerate(materials))
    for i, audience in enumerate(lexicon.audiences):
        for j, word in enumerate((audience.name, *audience.words)):
            yield ("audience",), ("audience", i, j), word
    for i, series in enumerate(lexicon.models):
        yield from ((("model",), ("model", i, j), model) for j, model in enumerate(series))
    yield from (((key,), (key,), "#") for key in NUMBERS)


def _offered(lexicon: Lexicon) -> Iterator[str]:
    """Every part of a title, with # for numbers."""
    texts, colours = lexicon.texts, [colour.name for colour in lexicon.colours]
    yield from (kind.name for kind in lexicon.types)
    yield from (texts["accessory"].format(v=a.name, main=a.main) for a in lexicon.accessories)
    yield from (texts["colour"].format(v=colour) for colour in colours)
    yield from (texts["colour_accent"].format(v=colour, accent=accent) for colour in colours for accent in colours)
    yield from (texts["pattern"].format(v=pattern) for pattern in lexicon.patterns)
    yield from (texts["brand"].format(v=word) for brand in lexicon.brands for word in (brand.name, *brand.lines))
    yield from (texts["audience"].format(v=audience.name) for audience in lexicon.audiences)
    yield from (texts["model"].format(v=model) for series in lexicon.models for model in series)
    for name in (name for names in lexicon.materials.values() for name in names):
        yield texts["material"].format(v=name)
        yield texts["material_share"].format(share="#", v=name)
    yield from (texts[key].format(v="#") for key in ("size", "bundle"))
    yield texts["bundle_single"]
