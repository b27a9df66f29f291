"""Atomic writes: a file or folder appears complete or not at all, even if the process or the machine dies.

Each write goes to `.NAME.MACHINE.PID.RANDOM.part` in the target's folder, is flushed to disk and is then renamed. The folder is
flushed too, so that the new name survives a power loss. RANDOM separates threads and processes that write the same file; the last
rename wins.

The next write of the same name removes the part files of killed processes. MACHINE identifies the machine, because a process id is
only valid on its own machine and the disk may be shared. A part file of this machine is removed when its process is gone. A part
file of another machine is removed when it has not changed for a week.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

FOREIGN_SECONDS = 7 * 24 * 3600.0
"""Age at which a part file of another machine is removed."""
_PART = re.compile(r"\.(?P<machine>[0-9a-f]{8})\.(?P<pid>\d+)\.[0-9a-f]{8}\.part$")


def part_of(path: Path) -> Path:
    """A new temporary name next to `path`, to be passed to `replace_file`. Removes the part files of dead processes."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        match = _PART.fullmatch(old.name.removeprefix(f".{path.name}"))
        if match and _is_left_over(old, match["machine"], int(match["pid"])):
            _remove(old)
    return path.with_name(f".{path.name}.{machine()}.{os.getpid()}.{secrets.token_hex(4)}.part")


def replace_file(part: Path, path: Path) -> None:
    """Flushes a written file to disk and renames it to `path`."""
    _flush(part)
    os.replace(part, path)
    _flush(path.parent)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """An open binary file that becomes `path` when the block ends. If the block raises, the file is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        with open(part, "wb") as file:
            yield file
        replace_file(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Writes the text in UTF-8, completely or not at all."""
    part = part_of(path)
    try:
        part.write_text(text, encoding="utf-8")
        replace_file(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """The name of a folder to create. It becomes `path` when the block ends. If the block raises, the folder is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        yield part
        replace_folder(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def replace_folder(part: Path, path: Path) -> None:
    """Flushes the files of a written folder to disk and renames it to `path`. An existing folder is moved aside first and removed
    last, so that a complete folder always exists on disk."""
    for file in part.rglob("*"):
        _flush(file)
    _flush(part)
    old = part_of(path) if path.exists() else None
    if old is not None:
        os.replace(path, old)
    os.replace(part, path)
    _flush(path.parent)
    if old is not None:
        shutil.rmtree(old)


@cache
def machine() -> str:
    """8 hex digits that identify the machine or container that process ids belong to. They do not reveal its name."""
    known = [socket.gethostname()]
    try:
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        known.append(os.readlink("/proc/self/ns/pid"))
    except OSError:  # not Linux: use the host name alone
        pass
    return hashlib.blake2b("\n".join(known).encode(), digest_size=4).hexdigest()


def _is_left_over(part: Path, where: str, pid: int) -> bool:
    if where == machine():
        return not _runs(pid)
    try:
        return time.time() - part.stat().st_mtime > FOREIGN_SECONDS
    except FileNotFoundError:  # another process has removed or renamed it
        return False


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush a folder; its files are already flushed
            raise
    finally:
        os.close(handle)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # the process of another user; a number too large for a process id
        return True
    return True
