"""Files under way: `.name.PID.part` beside the file they become, so that a killed process leaves nothing half written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def part_of(path: Path) -> Path:
    """Where this process writes `path` until it is whole. Parts of processes that are gone are removed."""
    for old in path.parent.glob(f".{_literal(path.name)}.*.part"):
        pid = old.name.removeprefix(f".{path.name}.").removesuffix(".part")
        if pid.isdecimal() and not _runs(int(pid)):
            old.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.part")


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it becomes `path` when the block ends, and nothing is left of it where the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _literal(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; no number that a process could have
        return True
    return True


def write_atomic(path: Path, text: str) -> None:
    """All of the text or nothing, whenever the process dies."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
