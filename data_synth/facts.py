"""Evidence for a teacher: a table of facts, or the best passages of a text folder. Recorded with the trace, never shown to a judge."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """One piece of evidence. text: what the teacher reads. The others are filled in where the source is a table."""

    text: str
    kind: str = ""
    dimension: str = ""
    phrase: str = ""
    value: str = ""
