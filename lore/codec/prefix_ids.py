"""Token ids of texts that begin alike, such as the prompts of a judge: the common beginning is tokenized once.

A text may be cut before a special token without changing its ids: fast tokenizers search for those tokens in the raw text first
and tokenize what is between them piece by piece. A beginning is used only after both ways have given the same ids for a text.
"""

import re
import weakref
from collections.abc import Callable
from typing import Any

SHORTEST = 200  # characters of a beginning: shorter ones are tokenized faster than found
LONGEST = 100_000  # characters in which a beginning is looked for
HELD = 4  # beginnings of a tokenizer
PER_CHARACTER = 4  # tokens of an ASCII character at the very most: one, and a tokenizer's normalizer may add some

_known: "weakref.WeakKeyDictionary[Any, tuple[int, _Beginnings]]" = weakref.WeakKeyDictionary()


class _Beginnings:
    """The latest beginnings of the texts of one tokenizer, each up to a special token, with their ids."""

    def __init__(self, tokenizer: Any):
        # With these settings a token is found in the raw text as it stands, whatever surrounds it.
        safe = [
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.content[:1].strip() and not (token.normalized or token.lstrip or token.single_word)
        ]
        self.backend = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
        marks = "|".join(map(re.escape, sorted(safe, key=len, reverse=True)))
        self.marks = re.compile(marks) if marks and self.backend is not None else None
        self.held: list[tuple[str, int, list[int]]] = []  # (beginning with its last token, length and ids without it), latest first
        self.latest = ""

    def ids(self, text: str, whole: Callable[[str], list[int]]) -> list[int]:
        """Ids of a text. whole: tokenizes any text."""
        for beginning, cut, ids in self.held:
            if text.startswith(beginning):
                return ids + self._rest(text[cut:], whole)
        found = whole(text)
        (cut, end), self.latest = self._last_mark(text), text[:LONGEST]
        if cut >= SHORTEST:
            first = whole(text[:cut])
            if first + self._rest(text[cut:], whole) == found:
                self.held = [(text[:end], cut, first), *self.held[: HELD - 1]]
        return found

    def _rest(self, text: str, whole: Callable[[str], list[int]]) -> list[int]:
        backend = self.backend
        if backend.truncation is not None or backend.padding is not None or backend.encode_special_tokens:
            return whole(text)  # which resets them
        return backend.encode(text, add_special_tokens=False).ids

    def _last_mark(self, text: str) -> tuple[int, int]:
        """(start, end) of the last special token in what this text and the one before it begin with."""
        shared = common_length(text, self.latest)
        return max((found.span() for found in self.marks.finditer(text, 0, shared)), default=(0, 0))


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that holds its special tokens already."""

    def whole(some: str) -> list[int]:
        return list(tokenizer(some, add_special_tokens=False)["input_ids"])

    if len(text) < SHORTEST:
        return whole(text)
    known = _beginnings(tokenizer)
    return known.ids(text, whole) if known.marks is not None else whole(text)


def surely_within(tokenizer: Any, text: str, tokens: int) -> bool:
    """Whether a text has at most this many tokens by a bound that needs no tokenizing. False says nothing."""
    for beginning, cut, ids in _beginnings(tokenizer).held:
        if text.startswith(beginning):
            rest = text[cut:]
            return rest.isascii() and len(ids) + PER_CHARACTER * len(rest) <= tokens
    return False


def _beginnings(tokenizer: Any) -> _Beginnings:
    size = len(tokenizer)  # tokens can be added after the first call
    known = _known.get(tokenizer)
    if known is None or known[0] != size:
        known = _known[tokenizer] = (size, _Beginnings(tokenizer))
    return known[1]


def common_length(one: str, other: str) -> int:
    """Length of the common beginning of two texts."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
