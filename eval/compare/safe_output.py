"""Safe output of the commands over finished runs: a wide console, escaped text, and files that only their command replaces."""

import codecs
import sys
from math import isnan
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lore.eval.measures.bootstrap import Estimate
from lore.eval.report.console import with_room
from lore.support.atomic_files import written_whole
from lore.support.errors import LoreError
from lore.support.text import printable

WIDE = 250


def open_console() -> Console:
    """A console on standard output; wide if the output is not a terminal, so nothing is cut."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    return with_room(Console(highlight=False), WIDE)


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


def write_own(path: Path, content: str, mark: str) -> None:
    """Writes the content atomically. Raises LoreError if the file exists and does not begin with `mark`, the first bytes of every
    file of its kind: a command replaces only its own output."""
    if path.is_dir():
        raise LoreError(f"{path} is a folder, and the output is a file. Name a file.")
    if path.is_file() and path.stat().st_size:
        with open(path, "rb") as file:
            found = file.read(len(codecs.BOM_UTF8 + mark.encode()))
        if not found.removeprefix(codecs.BOM_UTF8).startswith(mark.encode()):
            raise LoreError(f"{path} was not written by this command, so it is not overwritten. Name another file.")
    with written_whole(path) as file:
        file.write(content.encode("utf-8", errors="backslashreplace"))
