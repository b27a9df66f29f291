"""Splits a text into words for lookup and ranking, in scripts with and without spaces."""

import re

from lore.support.text import normalize

# Written without spaces between words: Han, kana, Thai, Lao, Burmese, Khmer.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u065f\u0900-\u0dff"  # combining marks, which belong to the word
_WORDS = re.compile(rf"[{UNSPACED}]+|(?:[^\W{UNSPACED}]|[{MARKS}])+")
_IS_UNSPACED = re.compile(f"[{UNSPACED}]")
_PARTICLES = frozenset("的了吗呢吧啊着の")  # grammatical particles: character pairs that contain one are dropped


def content_terms(text: str) -> list[str]:
    """Content words: no stop words, single letters or short numbers, which occur in nearly every passage. Scripts without
    spaces yield character pairs."""
    from bm25s.stopwords import STOPWORDS_EN  # a dry run that checks perturbations or facts loads this module

    terms = []
    for word in _WORDS.findall(normalize(text)):
        if _IS_UNSPACED.match(word):
            pairs = [word[at : at + 2] for at in range(len(word) - 1)] or [word]
            terms += [pair for pair in pairs if _PARTICLES.isdisjoint(pair)]
        elif word not in STOPWORDS_EN and len(word) > (2 if word.isdecimal() else 1):
            terms.append(word)
    return terms
