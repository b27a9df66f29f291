"""Files and folders that appear whole or not at all, whenever the process or the machine dies.

Everything is written to `.NAME.MACHINE.PID.RANDOM.part` beside its place, flushed to the disk and then renamed; the folder that
holds it is flushed too, so that the new name outlives a power cut. The random part keeps threads and processes that write the same
file apart, and the last of them wins.

What killed processes have left is removed by the next write of the same name. On a shared disk a process id says nothing about
another machine, so MACHINE tells whose it is: a leftover of this machine goes when its process is gone, one of another machine when
it has not been written to for a week.
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
"""A leftover of another machine is removed when it is this old."""
_PART = re.compile(r"\.(?P<machine>[0-9a-f]{8})\.(?P<pid>\d+)\.[0-9a-f]{8}\.part$")


def part_of(path: Path) -> Path:
    """A new name beside `path` for what becomes it, see `replace_file`. Leftovers of dead processes are removed."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        match = _PART.fullmatch(old.name.removeprefix(f".{path.name}"))
        if match and _is_left_over(old, match["machine"], int(match["pid"])):
            _remove(old)
    return path.with_name(f".{path.name}.{machine()}.{os.getpid()}.{secrets.token_hex(4)}.part")


def replace_file(part: Path, path: Path) -> None:
    """Puts a written file in its place, after its bytes are on the disk."""
    _flush(part)
    os.replace(part, path)
    _flush(path.parent)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it becomes `path` when the block ends, and nothing is left of it where the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        with open(part, "wb") as file:
            yield file
        replace_file(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """All of the text, in UTF-8, or nothing."""
    part = part_of(path)
    try:
        part.write_text(text, encoding="utf-8")
        replace_file(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """The name of a folder to make; it becomes `path` when the block ends, and nothing is left of it where the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        yield part
        replace_folder(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def replace_folder(part: Path, path: Path) -> None:
    """Puts a written folder in its place, after its files are on the disk. An older folder is moved away first and removed then,
    so that there is always one of them."""
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
    """8 hex digits for the machine, or the container, whose process ids are meant; no name can be read from them."""
    known = [socket.gethostname()]
    try:
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        known.append(os.readlink("/proc/self/ns/pid"))
    except OSError:  # not Linux: the host's name has to do
        pass
    return hashlib.blake2b("\n".join(known).encode(), digest_size=4).hexdigest()


def _is_left_over(part: Path, where: str, pid: int) -> bool:
    if where == machine():
        return not _runs(pid)
    try:
        return time.time() - part.stat().st_mtime > FOREIGN_SECONDS
    except FileNotFoundError:  # another process has just removed or renamed it
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
        if not path.is_dir():  # some file systems cannot flush a folder; its files are safe by then
            raise
    finally:
        os.close(handle)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; no number that a process could have
        return True
    return True
