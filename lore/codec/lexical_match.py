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
BREAK = "\x1e"
"""Stands between parts of a place of which the end of one does not negate the next."""
MARK = re.compile(r"[\u3400-\u9fff]|\w+|[^\w\s]")
INCH = re.compile(r"""\d\s?(?:"|”|″|''|in\b)""", re.IGNORECASE)
TEXTS, PLACES, WORDS = 1024, 64, 2**16  # cache sizes: each pair's texts are searched many times, and texts share words
LONG_WORD, LONG_TEXT = 64, 4096  # characters; longer words and texts would fill the memory of the caches
LONG_PLACES = 4
MAX_HAN_RUNS = 256  # different runs of Han characters of one text that are searched for; more would take quadratic time
STEPS_PER_WORD = 5  # of a search for words in order; only a text made for it needs more than about two


def pieces(text: str) -> list[str]:
    """Words, numbers and runs of Han characters: case-folded, without a plural s or trailing decimal zeros."""
    return list(_pieces(text) if len(text) <= LONG_TEXT else _pieces.__wrapped__(text))


@lru_cache(maxsize=TEXTS)
def _pieces(text: str) -> tuple[str, ...]:
    return tuple(stem(piece) for piece in PIECE.findall(normalize(text)))


def spellings(text: str) -> dict[str, str]:
    """Maps each of `pieces` to its first spelling in the text."""
    found: dict[str, str] = {}
    for piece in PIECE.findall(normalize(text)):
        found.setdefault(stem(piece), piece)
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
    said, where = pieces(OWNER.sub("", text)), _place(place)
    joined = {a + b for a, b in pairwise(said) if a.isalpha() and b.isalpha()} & where.forms
    divided = {part for a, b in pairwise(said) if a + b in joined for part in (a, b)}
    small = function_words("en") if passed_over is None else passed_over
    within = where.han_within(said)
    return [
        piece
        for piece in said
        if where.forms.isdisjoint(forms(piece)) and piece not in small and piece not in divided and piece not in within
    ]


class _Place:
    """A text that words are searched in. held: its pieces; begins: positions in `held` where a part begins; at: positions of each
    form in `held`; forms: every form that counts as held, with common spelling variants; whole: the text without spaces.
    """

    def __init__(self, text: str):
        self.held: list[str] = []
        self.begins: set[int] = set()
        for part in text.split(BREAK):
            self.begins.add(len(self.held))
            self.held += pieces(part)
        self.at: dict[str, list[int]] = {}
        for position, piece in enumerate(self.held):
            for form in forms(piece):
                self.at.setdefault(form, []).append(position)
        held = [*self.held, *pieces(OWNER.sub("", text)), *["inch"] * bool(INCH.search(text))]
        self.forms = {form for piece in held for form in forms(piece)}
        self.forms |= {a + b for a, b in pairwise(held) if a.isalpha() and b.isalpha()}
        self.whole = normalize(text).replace(" ", "")

    def positions(self, piece: str) -> set[int]:
        return {position for form in forms(piece) for position in self.at.get(form, ())}

    def han_within(self, said: list[str]) -> set[str]:
        """The runs of Han characters that stand in the text, also inside a longer run."""
        runs = list(dict.fromkeys(filter(HAN.match, said)))[:MAX_HAN_RUNS]
        return {run for run in runs if run in self.whole}


_short_place, _long_place = lru_cache(maxsize=PLACES)(_Place), lru_cache(maxsize=LONG_PLACES)(_Place)


def _place(text: str) -> _Place:
    return (_short_place if len(text) <= LONG_TEXT else _long_place)(text)


def stands_apart(text: str, place: str) -> str:
    """Why `place` does not say the same as `text`, although it contains all of its words; "" if it does say the same.

    The words have to occur in the same order with at most MOST_BETWEEN other words between them, with each number right
    before the word that it counts, and without a preceding negation that `text` lacks. Words that `place` joins, splits or
    contains inside a Han run are not checked for order.
    """
    where, said = _place(place), pieces(text)
    small = function_words("en") - NEGATIONS
    said = [piece for piece in said if piece not in small]
    found = {piece: where.positions(piece) for piece in dict.fromkeys(said)}
    if said and all(found.values()):
        why, steps = "do not stand together", STEPS_PER_WORD * (len(where.held) + len(said))
        for start in sorted(found[said[0]]):
            taken = _in_order(said, found, start, steps)
            steps -= abs(taken)
            if taken <= 0:
                if steps <= 0:
                    break
                continue
            if not NEGATIONS.isdisjoint(said) or start in where.begins or where.held[start - 1] not in NEGATIONS:
                why = ""
                break
            why = "are negated"
        if why:
            return why
    for run in where.han_within(said):
        if run[0] not in HAN_NEGATIONS and _always_behind(HAN_NEGATIONS, run, where.whole):
            return "are negated"
    return ""


def _in_order(said: list[str], found: dict[str, set[int]], start: int, most: int) -> int:
    """The number of steps if all words stand in order, beginning at `start`; otherwise, or after `most` steps, its negative.

    found: positions of each word.
    """
    at, between, steps = start, 0, 1
    for before, piece in pairwise(said):
        if steps >= most:
            return -steps
        room = 0 if before[0].isdigit() else MOST_BETWEEN - between
        steps += 1
        following = next((place for place in range(at + 1, at + 2 + room) if place in found[piece]), None)
        if following is None:
            return -steps
        between += following - at - 1
        at = following
    return steps


def _always_behind(letters: str, run: str, whole: str) -> bool:
    """Whether each `run` in `whole` follows one of the letters."""
    at = whole.find(run)
    while at >= 0:
        if at == 0 or whole[at - 1] not in letters:
            return False
        at = whole.find(run, at + len(run))
    return True


@cache
def function_words(language: str) -> frozenset[str]:
    from lore.config.yaml_text import read_yaml  # only where grounding is checked

    lists = read_yaml(Path(__file__).parent / "function_words.yaml")
    return frozenset(lists.get(language, "").split())


def stem(piece: str) -> str:
    """A word without its plural s, a number without commas or trailing decimal zeros."""
    return _stem(piece) if len(piece) <= LONG_WORD else _stem.__wrapped__(piece)


@lru_cache(maxsize=WORDS)
def _stem(piece: str) -> str:
    if piece[0].isdigit():
        piece = piece.replace(",", "") if re.fullmatch(THOUSANDS, piece) else piece
        whole, point, rest = piece.replace(",", ".").partition(".")
        return f"{whole}.{rest.rstrip('0')}".rstrip(".") if point else piece
    if piece.endswith(("sses", "shes", "ches", "xes", "zes")):
        return piece[:-2]
    return piece[:-1] if len(piece) > 3 and piece.endswith("s") and not piece.endswith("ss") else piece


def forms(piece: str) -> frozenset[str]:
    """A piece and its possible singular forms, as for batteries, sizes and lenses."""
    return _forms(piece) if len(piece) <= LONG_WORD else _forms.__wrapped__(piece)


@lru_cache(maxsize=WORDS)
def _forms(piece: str) -> frozenset[str]:
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
