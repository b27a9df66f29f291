"""Summary of a label folder. Not filled in yet."""

from pathlib import Path

from pydantic import BaseModel

from lore.rubric.rubric import Rubric
from lore.support.console import Console


class RunTotals(BaseModel):
    """What the labelling of this start took. seconds: wall time; usd: None if no price is known."""

    pairs: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    usd: float | None = None


class Summary(BaseModel):
    pairs: int = 0


def summarize(
    folder: Path,
    rubric: Rubric,
    *,
    compare: Path | None,
    max_attempts: int | None = None,
    totals: RunTotals | None = None,
) -> Summary:
    """Reads the label files of a folder once and writes summary.json. compare: label folder of the last run; None: the folder's
    own earlier summary.json. max_attempts: attempts after which a failure is final; None: all are pending."""
    return Summary()


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Prints the summary as tables."""
    return None
