"""Safe output of the commands over finished runs: a wide console and escaped text."""

from math import isnan

from lore.eval.measures.bootstrap import Estimate
from lore.support.console import Console, Text, with_room
from lore.support.text import printable

WIDE = 250


def open_console() -> Console:
    """A console on standard output; wide if the output is not a terminal, so nothing is cut."""
    return with_room(Console(), WIDE)


def text(content: object, style: str = "", *, limit: int = 300) -> Text:
    """Untrusted text for a terminal: no markup, no control characters, at most `limit` characters."""
    content = str(content)
    cut = "…" * (len(content) > limit)
    return Text(printable(content[:limit]) + cut, style)


def signed(estimate: Estimate) -> str:
    """A difference with its sign, three decimals and its interval."""
    if isnan(estimate.value):
        return "–"
    ends = "" if isnan(estimate.low) else f" [{_three(estimate.low)}, {_three(estimate.high)}]"
    return f"{_three(estimate.value)}{ends}"


def _three(number: float) -> str:
    return f"{round(number, 3) + 0.0:+.3f}"
