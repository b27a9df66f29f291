"""What the commands over finished runs share: a console that cuts nothing in a file, texts of strangers, files of their own."""

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
    """Standard output, wide where it is no terminal."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    return with_room(Console(highlight=False), WIDE)


def text(content: object, style: str = "", *, limit: int = 300) -> Text:
    """A text of whoever for a terminal: no markup, no control character, at most `limit` characters."""
    content = str(content)
    cut = "…" * (len(content) > limit)
    return Text(printable(content[:limit]) + cut, style)


def signed(estimate: Estimate) -> str:
    """A difference with its sign, in three digits, and its interval."""
    if isnan(estimate.value):
        return "–"
    ends = "" if isnan(estimate.low) else f" [{_three(estimate.low)}, {_three(estimate.high)}]"
    return f"{_three(estimate.value)}{ends}"


def _three(number: float) -> str:
    return f"{round(number, 3) + 0.0:+.3f}"


def write_own(path: Path, content: str, mark: str) -> None:
    """All of the content or nothing. Raises LoreError for a file that is there and does not begin with `mark`, which every file
    of its kind begins with: only what the same command wrote is replaced."""
    if path.is_dir():
        raise LoreError(f"{path} is a folder; name a file.")
    if path.is_file() and path.stat().st_size:
        with open(path, "rb") as file:
            found = file.read(len(mark.encode()))
        if found != mark.encode():
            raise LoreError(f"{path} is there and was not written by this command, so it is not overwritten. Name another file.")
    with written_whole(path) as file:
        file.write(content.encode("utf-8", errors="backslashreplace"))
