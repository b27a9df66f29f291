"""The report page of a label folder. Not filled in yet."""

from pathlib import Path

from lore.label.summary import Summary
from lore.rubric.rubric import Rubric


def write_report(folder: Path, summary: Summary, rubric: Rubric, described: str) -> None:
    """Writes report.html. described: one line on the judge and how it was asked."""
    return None
