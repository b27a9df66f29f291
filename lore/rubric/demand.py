"""Demands of a query, the units of a rationale."""

import re
from dataclasses import dataclass

SOURCES = ("title", "attributes", "description", "photo", "none")
# A demand starts with one word and a colon. Any other semicolon is part of a value.
_BETWEEN = re.compile(r"(?:;\s++|(?<!\n)\n++)(?=[^\s:;|]++: )")
_DEMAND = re.compile(r"(?P<dimension>[^\s:;|]+): (?P<wanted>.+)")
_FOUND = re.compile(rf"(?P<found>.+) \((?P<source>{'|'.join(SOURCES)})\)")


@dataclass(slots=True)
class Demand:
    """One demand of the query and how the item meets it. `source`: one of SOURCES."""

    dimension: str
    wanted: str
    found: str
    source: str
    rule: str
    tier: str


def read_demands(rationale: str) -> list[Demand | None]:
    """Parses a short rationale in the format of judgement.render_demands. A piece that is not a demand becomes None.

    Omitted parts of a demand (found and source, or rule and tier) are empty strings. Names are not checked against a rubric.
    """
    return [_read_demand(piece.strip()) for piece in _BETWEEN.split(rationale) if piece.strip()]


def _read_demand(text: str) -> Demand | None:
    head, *rest = text.removesuffix(";").split(" | ")
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
    return Demand(begun["dimension"], begun["wanted"], found, source, rule, tier)
