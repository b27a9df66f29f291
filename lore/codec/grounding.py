"""Checks that a rationale's citations occur in the item, and that it does not mention raters or hints.

Trace verification (lore.data_synth.synthesis) and the rewards share these rules. A citation is grounded when its words occur
in the cited field in the same order and are not negated (lore.codec.lexical_match). Not checked: photo content, unless there
is a caption, and synonyms.
"""

import re

from lore.codec.judgement import unresolved
from lore.codec.lexical_match import BREAK, NEGATIONS, function_words, missing_words, pieces, stands_apart
from lore.data.pair import Pair
from lore.support.text import normalize

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
    """The text of each source that a demand can cite. caption: text that describes the photo; None if there is no caption."""
    attributes = [f"{key} {value}" for key, value in pair.attributes.items()]
    attributes += [pair.brand or "", pair.category or "", pair.shop or ""]
    attributes += [] if pair.price is None else [f"{pair.price:.2f}"]
    return {
        "title": pair.title,
        "attributes": BREAK.join(attributes),
        "description": pair.description or "",
        "photo": caption,
    }


def why_ungrounded(wanted: str, found: str, source: str, places: dict[str, str | None], *, has_photo: bool) -> str:
    """Why a finding is not grounded in its cited source; "" if it is, or if the source has no text to compare with.

    wanted, found, source: fields of Demand; places: the result of `citable`.
    """
    found = unresolved(found)
    if source == "none":
        if pieces(found) and normalize(found) not in NOTHING:
            return f"{found!r} is cited from nowhere"
        asked, title = wanted.rpartition(" = ")[2], places["title"]
        if _is_worded(asked) and not missing_words(asked, title) and not stands_apart(asked, title):
            return f"nothing is found, and {asked!r} stands in the title"
        return ""
    if source == "photo" and not has_photo:
        return "cites a photo, and there is none"
    if not pieces(found):
        return f"{found!r} is not a value"
    text = places[source]
    if text is None:  # a photo without a caption: there is no text to compare with
        return ""
    if missing := missing_words(found, text, passed_over=function_words("en") - NEGATIONS):
        return f"{', '.join(missing)} does not stand in the {source}"
    if source != "photo" and (why := stands_apart(found, text)):  # a caption may use another word order
        return f"the words of {found!r} {why} in the {source}"
    return ""


def _is_worded(text: str) -> bool:
    """Whether a demand contains words. A bare number in the title may refer to something else."""
    found = pieces(text)
    return any(not piece[0].isdigit() for piece in found) and NEGATIONS.isdisjoint(found)


def leaks(text: str, pair: Pair) -> list[str]:
    """Phrases in `text` that mention raters, labels or hints and do not occur in the pair's own texts."""
    texts = [pair.query, pair.title, pair.description, pair.brand, pair.category, *pair.attributes, *pair.attributes.values()]
    own = {match[0].casefold() for text in texts if text for match in LEAKS.finditer(text)}
    return [match[0] for match in LEAKS.finditer(text) if match[0].casefold() not in own]
