"""Demands of a query, the units of a rationale, and their text.

A value that holds a separator of that text, such as a title with bars, is written with escapes: `\\|`, `\\;`, and `\u000a` for
characters that an answer cannot hold. Every other value stands in the text as it is.
"""

import re
from dataclasses import dataclass

SOURCES = ("title", "attributes", "description", "photo", "none")
# A demand starts with one word and a colon. Any other semicolon is part of a value.
_BETWEEN = re.compile(r"(?:(?<!\\);\s++|(?<!\n)\n++)(?=[^\s;|]++(?<=[^\s;|]:) )")
_DEMAND = re.compile(r"(?P<dimension>[^\s;|]+): (?P<wanted>.+)")
_FOUND = re.compile(rf"(?P<found>.+) \((?P<source>{'|'.join(SOURCES)})\)")

EMPTY = r"\0"
"""Stands for an empty value."""
# Control characters and white space: what an answer loses, and what ends a line or a text.
_CODES = r"00[01][0-9a-f]|0020|003c|005c|007f|00[89][0-9a-f]|00a0|1680|200[0-9a]|202[89f]|205f|3000"
_ESCAPE = re.compile(rf"\\(?:([|;])|u({_CODES}))")
# A backslash that would begin an escape, or would escape what follows the value.
_BACKSLASH = re.compile(rf"\\(?=[|;]|u(?:{_CODES})|\Z)")
_BAR = re.compile(r"(?<![^ ])\|(?![^ ])")
_SEMICOLON = re.compile(r";(?=\s++[^\s;|]++(?<=[^\s;|]:)(?: |\Z)|\s*+\Z)")
# Line breaks, control characters, white space at the ends, and brackets of the answer's own tags and of control tokens.
_UNWRITABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]|\A\s|\s\Z|<(?=\||/?(?:reason|verdict|mismatch|rules|think)>)")


@dataclass(slots=True)
class Demand:
    """One demand of the query and how the item meets it. `source`: one of SOURCES."""

    dimension: str
    wanted: str
    found: str
    source: str
    rule: str
    tier: str


def written_value(text: str) -> str:
    """`wanted` or `found` as it stands in a rationale, so that `read_demands` returns the same text."""
    if not text or text == EMPTY:
        return EMPTY if not text else rf"\u005c{text[1:]}"
    if "\\" in text:
        text = _BACKSLASH.sub(r"\\u005c", text)
    text = _UNWRITABLE.sub(lambda found: rf"\u{ord(found[0]):04x}", text)
    if "|" in text:
        text = _BAR.sub(r"\\|", text)
    if ";" in text:
        text = _SEMICOLON.sub(r"\\;", text)
    return text


def _read_value(text: str) -> str:
    if "\\" not in text:
        return text
    return "" if text == EMPTY else _ESCAPE.sub(lambda found: found[1] or chr(int(found[2], 16)), text)


def read_demands(rationale: str) -> list[Demand | None]:
    """Parses a short rationale in the format of judgement.render_demands. A piece that is not a demand becomes None.

    Omitted parts of a demand (found and source, or rule and tier) are empty strings. Names are not checked against a rubric.
    """
    return [_read_demand(text) for text in demand_texts(rationale)]


def demand_texts(rationale: str) -> list[str]:
    """The pieces of a short rationale, one a demand."""
    return [piece.strip() for piece in _BETWEEN.split(rationale) if piece.strip()]


def _read_demand(text: str) -> Demand | None:
    head, *rest = (text if text.endswith(r"\;") else text.removesuffix(";")).split(" | ")
    begun = _DEMAND.fullmatch(head)
    if begun is None or len(rest) > 2:
        return None
    found = source = ""
    if rest and (cited := _FOUND.fullmatch(rest[0])):
        found, source = cited["found"], cited["source"]
        rest = rest[1:]
    ruling = rest[0].split() if rest else []
    if len(rest) > 1 or len(ruling) > 2:
        return None
    rule, tier = ("", *ruling) if len(ruling) == 1 else ruling or ("", "")
    return Demand(begun["dimension"], _read_value(begun["wanted"]), _read_value(found), source, rule, tier)
