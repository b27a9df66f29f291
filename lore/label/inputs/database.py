"""SQLite files in the work folder of a labelling run: made once from the input, and made anew when the input has changed."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from lore.support.atomic_files import part_of, replace_file
from lore.support.errors import LoreError

CACHE_KIB = 65536
"""Memory that a connection uses for pages."""


def open_database(path: Path, fingerprint: str, fill: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    """A connection to read the database at `path`. fingerprint: of all that it is made from. fill: writes its tables. Raises
    LoreError if it cannot be written."""
    if (found := _opened(path, fingerprint)) is not None:
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        made = sqlite3.connect(part, isolation_level=None)
        try:
            made.execute("pragma journal_mode = off")
            made.execute("pragma synchronous = off")
            made.execute(f"pragma cache_size = -{CACHE_KIB}")
            made.execute("begin")
            fill(made)
            made.execute("create table made_from (fingerprint text)")
            made.execute("insert into made_from values (?)", (fingerprint,))
            made.execute("commit")
        finally:
            made.close()
        replace_file(part, path)
    except sqlite3.Error as error:
        raise LoreError(
            f"Writing {path} failed: {error}. It holds what a join of the input needs. If the disk is full, make room in this "
            "folder and start the run again."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    opened = _opened(path, fingerprint)
    if opened is None:
        raise LoreError(f"{path} cannot be read back after it was written. Check the disk.")
    return opened


def _opened(path: Path, fingerprint: str) -> sqlite3.Connection | None:
    """None if the file is missing, damaged or made from something else."""
    if not path.is_file():
        return None
    connection = sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True, check_same_thread=False)
    try:
        if connection.execute("select fingerprint from made_from").fetchall() == [(fingerprint,)]:
            connection.execute(f"pragma cache_size = -{CACHE_KIB}")
            return connection
    except sqlite3.Error:
        pass  # another file, or a damaged one: it is made anew
    connection.close()
    return None


def _quoted(path: Path) -> str:
    return Path(os.path.abspath(path)).as_uri().removeprefix("file://")
