"""Whether a finished label folder has something to do again."""

from typing import Any

from lore.data.rejected_rows import Rejection
from lore.label.config import InputSection
from lore.label.inputs import open_input
from lore.label.ledger import RANGE
from lore.label.schema import FAILURES, VERDICTS, WORK


def why_unfinished(section: InputSection, folder: Any) -> str | None:
    """Why a finished folder is opened again: pairs that get another try, deleted label files, or another input. None: it stays
    finished. folder: the RunFolder."""
    summary = folder.summary
    if pending := summary.get("pending"):
        return f"{pending:,} pairs without an answer are asked again"
    if summary.get("foreign"):
        return "another run has worked in the folder at the same time, and its labels are checked"
    files = sum(1 for kind in (VERDICTS, FAILURES) for path in (folder / kind).glob("*.parquet") if RANGE.match(path.name))
    if files < summary.get("files", 0):
        return f"{summary['files'] - files:,} label files are missing, and their pairs are asked again"
    if open_input(section, folder / WORK, Nothing()).fingerprint != summary.get("input"):
        return "the input has changed, and its new pairs are labelled"
    return None


class Nothing:
    """Takes no rejected rows: where only the fingerprint of an input is read."""

    def write(self, rejection: Rejection) -> None:
        """Takes no row."""
