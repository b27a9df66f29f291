"""What an import of pairs, items, events or places found."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lore.data.rejected_rows import RejectedWriter, Rejection

SHOWN_PER_REASON = 3


@dataclass
class Report:
    """Counts of an import. A row with two problems counts once in `rejected_rows` and once for each of its reasons."""

    what: str = "pairs"
    """pairs, items, events or town."""
    rows: int = 0
    kept: int = 0
    rejected_rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    conflicting: int = 0
    """Pairs that repeat another one with another label."""
    dropped: int = 0
    """Of the duplicates and conflicting labels. Equal items and equal events always are."""
    left_out: int = 0
    """Events that are about no item, such as page views, and elements of OpenStreetMap that are no place."""
    unlabeled: int = 0
    """Pairs without a label."""
    distributions: int = 0
    """Pairs with a label_distribution."""
    unsplit: int = 0
    """Pairs without a split."""
    counts: dict[str, int] = field(default_factory=dict)
    """Different users and items of the events; places of each kind."""
    bad_photos: list[str] = field(default_factory=list)
    """Kept rows with unreadable photos: file, row and the problem. At most the first hundred."""
    repeats: list[str] = field(default_factory=list)
    """The first duplicates and the first conflicting labels, with file and row of both pairs."""
    photos_elsewhere: str | None = None
    """Common folder of the photos that are stored as a path outside of the folder of `out`. Readers must name it as image_root."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """The columns that a field of items or events is read from."""
    extra_columns: list[str] = field(default_factory=list)
    """Columns that are not read."""
    out: str | None = None
    rejected: str | None = None
    examples: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        known = {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}
        return {known.pop("what"): known.pop("kept"), **known}

    def reject(self, problems: list[Rejection], writer: RejectedWriter | None) -> None:
        """Counts a rejected row and, with a writer, writes its problems."""
        self.rejected_rows += 1
        for problem in problems:
            self.reasons[problem.reason] += 1
            if self.reasons[problem.reason] <= SHOWN_PER_REASON:
                self.examples.append(str(problem))
            if writer:
                writer.write(problem)
