"""One demand of a query: what rationales are made of."""

from dataclasses import dataclass


@dataclass(slots=True)
class Demand:
    """One demand of the query and how the item meets it. `source`: title, attributes, description, photo or none."""

    dimension: str
    wanted: str
    found: str
    source: str
    rule: str
    tier: str
