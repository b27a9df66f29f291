"""Other ways to write the same query or item. The label stays, and a judge should give the same verdict.

Pairs whose meaning might change are left out: word order and translation need queries with words of the shop's lexicon, typos skip
numbers and short words, and units skip ranges and products (30 x 40 cm).
"""

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from itertools import permutations

from lore.codec.tokenize import content_terms
from lore.data.pair import Pair
from lore.data_synth.perturb.material import Material
from lore.data_synth.shop.query_parser import HEADS, Phrase, ReadQuery, translated
from lore.support.text import normalize

LONG_WORD = 5  # letters; a typo in a shorter word can make another word
COMMA = re.compile(r",\s+|，\s*")  # not the comma in 1,000
JOINED = re.compile(r"\d\s*(?:[x×*/~–-]|to|by|or|and|或|到|至|乘)\s*$", re.IGNORECASE)
JOINS = re.compile(r"\s*(?:[x×*/~–-]|to|by|or|and|或|到|至|乘)\s*\d", re.IGNORECASE)
NEAR = 32  # characters before a number that can join it with another one
NUMBER = r"(?<![\d.,\w])(\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)\s*"


def word_order(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    """Permutes the attribute words before the head, and the phrases after it. A single attribute moves to the other side.

    None if a color is excluded, if two words of one dimension could belong together (navy blue), if the lexicon does not know
    which words are attributes, if the head contains function words (red and white shirt), or if two numbers would be adjacent.
    """
    query = material.shop.read(pair.query)
    if query is None or any(phrase.key == "colour_not" for phrase in query.phrases):
        return None
    keys = [phrase.key for phrase in query.phrases]
    at = next(number for number, key in enumerate(keys) if key in HEADS)
    before, head, after = query.phrases[:at], query.phrases[at], query.phrases[at + 1 :]
    if len(set(keys)) < len(keys) or not all(phrase.bare for phrase in before):
        return None
    if head.key == "unknown" and not all(map(content_terms, head.words.split())):
        return None
    orders = [[*first, head, *last] for first in permutations(before) for last in permutations(after)]
    if len(before) == 1 and not after and head.key == "category":
        orders.append([head, *before])
    orders = [order for order in orders if order != query.phrases and not _numbers_meet(order)]
    if not orders:
        return None
    return replace(pair, query=material.shop.written(ReadQuery(rng.choice(orders), query.question)))


def _numbers_meet(phrases: list[Phrase]) -> bool:
    words = [phrase.words.split() for phrase in phrases]
    return any(re.search(r"\d", left[-1]) and re.search(r"\d", right[0]) for left, right in zip(words, words[1:], strict=False))


def letter_case(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    """The query in upper case, title case or lower case."""
    forms = [pair.query.upper(), pair.query.title(), pair.query.lower()]
    forms = [form for form in forms if form != pair.query and form.lower() == pair.query.lower()]
    return replace(pair, query=rng.choice(forms)) if forms else None


def units(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    """Converts one quantity of the query, or else of the title, to another unit: 100 cm as 1 m."""
    for name in ("query", "title"):
        text = getattr(pair, name)
        if found := list(_conversions(text, material)):
            start, end, written = rng.choice(found)
            return replace(pair, **{name: f"{text[:start]}{written}{text[end:]}"})
    return None


def _conversions(text: str, material: Material) -> Iterator[tuple[int, int, str]]:
    """(start, end, the same quantity in another unit) of every quantity."""
    for unit in material.wordings.units:
        end = r"(?![^\W\d_])" if unit.unit.isascii() else "(?!色)"  # 米色 is a color
        for match in re.finditer(NUMBER + re.escape(unit.unit) + end, text):
            number = Decimal(match[1].replace(",", ""))
            if not unit.least <= number <= unit.most or number == 0:
                continue
            if JOINED.search(text[max(0, match.start() - NEAR) : match.start()]) or JOINS.match(text, match.end()):
                continue
            gap = " " if " " in match[0] else ""
            yield match.start(), match.end(), f"{_plain(number * unit.factor)}{gap}{unit.to}"


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def typo(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    """Drops one letter inside a long word of the query, or swaps it with its neighbor. The result is not a word of the lexicon, and
    words of exclusion are skipped."""
    spared = {word for form in material.shop.lexicon.phrases["colour_not"] for word in form.split()}
    words = pair.query.split(" ")
    places = [
        (number, at)
        for number, word in enumerate(words)
        if len(word) >= LONG_WORD and word.isascii() and word.isalpha() and word.casefold() not in spared
        for at in range(1, len(word) - 2)
    ]
    rng.shuffle(places)
    for number, at in places:
        word = words[number]
        dropped, swapped = word[:at] + word[at + 1 :], word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        for wrong in rng.sample([dropped, swapped], 2):
            if wrong != word and wrong.casefold() not in material.shop.vocabulary:
                return replace(pair, query=" ".join([*words[:number], wrong, *words[number + 1 :]]))
    return None


def spacing(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    """Punctuation around the query and extra spaces inside it (which the prompt removes again)."""
    wording = rng.choice(material.wordings.punctuation)
    return replace(pair, query=wording.format(text=pair.query.replace(" ", "  ")))


def translation(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    """The query in the other language: from the translation table, else word by word if the lexicon knows all of it."""
    known = material.translations.get(normalize(pair.query))
    if known is None and (query := material.shop.read(pair.query)):
        known = translated(query, material.shop, material.other_shop)
    return replace(pair, query=known) if known else None


def attribute_order(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    """The item's attributes in another order."""
    shuffled = _shuffled(list(pair.attributes.items()), rng)
    return replace(pair, attributes=dict(shuffled)) if shuffled else None


def title_order(pair: Pair, material: Material, rng: random.Random) -> Pair | None:
    """The parts of the title in another order: the parts between commas after the first one, or all parts of a title that the
    shop's lexicon knows as a whole, because its sellers write them in any order."""
    first, *rest = COMMA.split(pair.title)
    if len(rest) > 1 and (shuffled := _shuffled(rest, rng)):
        return replace(pair, title=", ".join([first, *shuffled]))
    parts = material.shop.title_parts(pair.title)
    shuffled = _shuffled(parts, rng) if parts else None
    return replace(pair, title=" ".join(shuffled)) if shuffled else None


def _shuffled(parts: list, rng: random.Random) -> list | None:
    """Another order; None if all orders are equal."""
    if len({repr(part) for part in parts}) < 2:
        return None
    while (order := rng.sample(parts, len(parts))) == parts:
        pass
    return order
