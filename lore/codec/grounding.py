"""Whether what a rationale cites stands in the item, and whether it speaks of hints: rules that the checks of traces and the
rewards share.

A value stands in a place when its words do, in their order and not negated (lore.codec.lexical_match). Left out: what a photo shows, for
which nothing is written, and synonyms.
"""

import re

from lore.codec.judgement import unresolved
from lore.codec.lexical_match import NEGATIONS, function_words, missing_words, pieces, stands_apart
from lore.data.pair import Pair
from lore.support.text import normalise

NOTHING = {"none", "nothing", "not stated", "not shown", "not specified", "not mentioned", "not given", "unknown", "null", "n/a"}
NOTHING |= {"-", "无", "没有", "未提及", "未说明", "未标明", "未注明", "未知"}
LEAKS = re.compile(
    r"\b(?:raters?|rated|human[ -](?:label|rat|judg)\w*|annotat\w+|ground[ -]?truth|gold[ -]label|given (?:label|tier|rating)"
    r"|as (?:the )?hint\w*|the hint|(?:the )?label says)\b"
    r"|人工(?:标注|标签|评)|标注(?:员|结果|者)?|评分员|评审员|打分员"
    r"|已知(?:标签|档位)|提示(?:中|里|给)",
    re.IGNORECASE,
)


def citable(pair: Pair, caption: str | None = None) -> dict[str, str | None]:
    """The text behind each source that a demand can cite. caption: what was written about the photo, if anything was."""
    attributes = [f"{key} {value}" for key, value in pair.attributes.items()]
    attributes += [pair.brand or "", pair.category or "", pair.shop or ""]
    attributes += [] if pair.price is None else [f"{pair.price:.2f}"]
    return {
        "title": pair.title,
        "attributes": "\n".join(attributes),
        "description": pair.description or "",
        "photo": caption,
    }


def why_ungrounded(wanted: str, found: str, source: str, places: dict[str, str | None], *, has_photo: bool) -> str:
    """Why a finding does not stand where it is said to; "" where it does, or where nothing is written to compare it with.

    wanted, found, source: as in Demand; places: see `citable`.
    """
    found = unresolved(found)
    if source == "none":
        if pieces(found) and normalise(found) not in NOTHING:
            return f"{found!r} is cited from nowhere"
        asked, title = wanted.rpartition(" = ")[2], places["title"]
        if _is_worded(asked) and not missing_words(asked, title) and not stands_apart(asked, title):
            return f"nothing is found, and {asked!r} stands in the title"
        return ""
    if source == "photo" and not has_photo:
        return "cites a photo, and there is none"
    if not pieces(found):
        return f"{found!r} is no value"
    text = places[source]
    if text is None:  # whoever saw the photo itself: nothing is written that could be compared
        return ""
    if missing := missing_words(found, text, passed_over=function_words("en") - NEGATIONS):
        return f"{', '.join(missing)} does not stand in the {source}"
    if source != "photo" and (why := stands_apart(found, text)):  # a caption has its own order of words
        return f"the words of {found!r} {why} in the {source}"
    return ""


def _is_worded(text: str) -> bool:
    """Whether a demand asks for something in words: a number alone may stand in a title for another thing."""
    found = pieces(text)
    return any(not piece[0].isdigit() for piece in found) and NEGATIONS.isdisjoint(found)


def leaks(text: str, pair: Pair) -> list[str]:
    """Words of `text` that speak of raters, labels or hints and do not stand in the pair's own texts."""
    texts = [pair.query, pair.title, pair.description, pair.brand, pair.category, *pair.attributes, *pair.attributes.values()]
    own = {match[0].casefold() for text in texts if text for match in LEAKS.finditer(text)}
    return [match[0] for match in LEAKS.finditer(text) if match[0].casefold() not in own]
