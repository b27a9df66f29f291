"""Finds the words of one text in another. Trace verification, rewards and the program teacher use it.

Not supported: synonyms, and anything else that needs a dictionary.
"""

import re
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

from lore.support.text import normalize

THOUSANDS = r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?(?!\d)"
PIECE = re.compile(rf"[\u3400-\u9fff\uf900-\ufaff]+|{THOUSANDS}|\d+(?:[.,]\d+)?|[^\W\d_\u3400-\u9fff\uf900-\ufaff]+")
HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
OWNER = re.compile(r"(?<=\w)['’]s\b", re.IGNORECASE)
NEGATIONS = frozenset({"no", "not", "without", "non", "never"})
HAN_NEGATIONS = "不无没非未"
MOST_BETWEEN = 4
MARK = re.compile(r"[\u3400-\u9fff]|\w+|[^\w\s]")
INCH = re.compile(r"""\d\s?(?:"|”|″|''|in\b)""", re.IGNORECASE)
TEXTS, WORDS = 1024, 2**16  # cache sizes: each pair's texts are searched many times, and texts share words


def pieces(text: str) -> list[str]:
    """Words, numbers and runs of Han characters: case-folded, without a plural s or trailing decimal zeros."""
    return list(_pieces(text))


@lru_cache(maxsize=TEXTS)
def _pieces(text: str) -> tuple[str, ...]:
    return tuple(_stem(piece) for piece in PIECE.findall(normalize(text)))


def spellings(text: str) -> dict[str, str]:
    """Maps each of `pieces` to its first spelling in the text."""
    found: dict[str, str] = {}
    for piece in PIECE.findall(normalize(text)):
        found.setdefault(_stem(piece), piece)
    return found


def content_words(text: str, language: str) -> list[str]:
    """Pieces of `text` without function words. Han runs have no word boundaries, so each character counts as a word."""
    small, words = function_words(language), []
    glued = re.compile("|".join(sorted(filter(HAN.match, small), key=len, reverse=True)) or "$^")
    for piece in pieces(text):
        if HAN.match(piece):
            words += "".join(glued.split(piece))
        elif piece not in small:
            words.append(piece)
    return words


def missing_words(text: str, place: str, passed_over: frozenset[str] | None = None) -> list[str]:
    """Pieces of `text` that do not occur in `place`.

    Function words (or `passed_over`, if given) are skipped. A Han run may be part of a longer run. Common spelling variants
    match: battery and batteries, t-shirt and tshirt, men's and mens, 55" and 55 inch.
    """
    held, said = pieces(place), pieces(OWNER.sub("", text))
    held += pieces(OWNER.sub("", place)) + ["inch"] * bool(INCH.search(place))
    have = {form for piece in held for form in forms(piece)} | {a + b for a, b in pairwise(held) if a.isalpha() and b.isalpha()}
    divided = {part for a, b in pairwise(said) if a.isalpha() and b.isalpha() and a + b in have for part in (a, b)}
    whole = normalize(place).replace(" ", "")
    small = function_words("en") if passed_over is None else passed_over
    return [
        piece
        for piece in said
        if have.isdisjoint(forms(piece))
        and piece not in small
        and piece not in divided
        and not (HAN.match(piece) and piece in whole)
    ]


def stands_apart(text: str, place: str) -> str:
    """Why `place` does not say the same as `text`, although it contains all of its words; "" if it does say the same.

    The words have to occur in the same order with at most MOST_BETWEEN other words between them, with each number right
    before the word that it counts, and without a preceding negation that `text` lacks. Words that `place` joins, splits or
    contains inside a Han run are not checked for order.
    """
    held, said = pieces(place), pieces(text)
    small = function_words("en") - NEGATIONS
    said = [piece for piece in said if piece not in small]
    places = [[at for at, other in enumerate(held) if not forms(piece).isdisjoint(forms(other))] for piece in said]
    if said and all(places):
        runs = [run for start in places[0] if (run := _in_order(said, places, start))]
        if not runs:
            return "do not stand together"
        if NEGATIONS.isdisjoint(said) and all(run[0] and held[run[0] - 1] in NEGATIONS for run in runs):
            return "are negated"
    whole = normalize(place).replace(" ", "")
    for piece in said:
        if HAN.match(piece) and piece[0] not in HAN_NEGATIONS:
            before = [whole[found.start() - 1] if found.start() else "" for found in re.finditer(re.escape(piece), whole)]
            if before and all(letter and letter in HAN_NEGATIONS for letter in before):
                return "are negated"
    return ""


def _in_order(said: list[str], places: list[list[int]], start: int) -> list[int]:
    """Positions of all words in order, beginning at `start`; empty if there are none."""
    run = [start]
    for before, found in zip(said, places[1:], strict=False):
        following = [at for at in found if at > run[-1] and (not before[0].isdigit() or at == run[-1] + 1)]
        if not following:
            return []
        run.append(following[0])
    return run if run[-1] - run[0] + 1 - len(run) <= MOST_BETWEEN else []


@cache
def function_words(language: str) -> frozenset[str]:
    import yaml  # only where grounding is checked

    lists = yaml.safe_load((Path(__file__).parent / "function_words.yaml").read_text(encoding="utf-8"))
    return frozenset(lists.get(language, "").split())


@lru_cache(maxsize=WORDS)
def _stem(piece: str) -> str:
    if piece[0].isdigit():
        piece = piece.replace(",", "") if re.fullmatch(THOUSANDS, piece) else piece
        whole, point, rest = piece.replace(",", ".").partition(".")
        return f"{whole}.{rest.rstrip('0')}".rstrip(".") if point else piece
    if piece.endswith(("sses", "shes", "ches", "xes", "zes")):
        return piece[:-2]
    return piece[:-1] if len(piece) > 3 and piece.endswith("s") and not piece.endswith("ss") else piece


@lru_cache(maxsize=WORDS)
def forms(piece: str) -> frozenset[str]:
    """A piece and its possible singular forms, as for batteries, sizes and lenses."""
    found = {piece}
    if piece.endswith("ie"):  # batterie, the stem of batteries
        found.add(f"{piece[:-2]}y")
    if len(piece) > 4 and piece.endswith("se"):
        found.add(piece[:-2])  # lenses: `_stem` has removed the s of lens
    if len(piece) > 2 and piece.endswith("z"):
        found.add(f"{piece}e")
    return frozenset(found)


def count_marks(text: str) -> int:
    """Number of words, punctuation marks and Han characters, which approximates the token count of common tokenizers."""
    return len(MARK.findall(text))
