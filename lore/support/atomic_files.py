"""Atomic writes: a file or folder appears complete or not at all, even if the process or the machine dies.

Each write goes to `.NAME.MACHINE.PID.RANDOM.part` in the target's folder, is flushed to disk and is then renamed. The folder is
flushed too, so that the new name survives a power loss. RANDOM separates threads and processes that write the same file; the last
rename wins. A folder that is replaced is called `.NAME.MACHINE.PID.RANDOM.old` between the two renames.

A file that replaces another one takes over its permissions, owner and group. Until it is complete, nobody may read it who may not
read the old one.

The next write of the same name removes the part files of killed processes, and restores the old folder if the process was killed
between the renames. MACHINE identifies the machine, because a process id is only valid on its own machine and the disk may be
shared. A part file of this machine is removed when its process is gone. A part file of another machine is removed when it has not
changed for a week.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

FOREIGN_SECONDS = 7 * 24 * 3600.0
"""Age at which a part file of another machine is removed."""
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})\.(?P<pid>\d+)\.[0-9a-f]{8}\.(?:part|old)")


def part_of(path: Path) -> Path:
    """A new temporary name next to `path`, to be passed to `replace_file`. Clears what dead processes left of `path`."""
    _clear_left_overs(path)
    return _temporary(path, "part")


def clear_parts(folder: Path) -> None:
    """Clears the part files and old folders in a folder that no other process writes to, whoever left them. Skips subfolders."""
    for part in folder.glob(".*.part"):
        remove(part)
    for old in sorted(folder.glob(".*.old"), key=lambda old: old.stat().st_mtime, reverse=True):
        if match := _TEMPORARY.fullmatch(old.name):
            _restore_or_remove(old, folder / match["name"])


def open_part(part: Path, path: Path) -> BinaryIO:
    """Creates the temporary file of `path`. If `path` exists, only those may read the new file who may read the old one."""
    there = _regular(path)
    mode = 0o666 if there is None else stat.S_IMODE(there.st_mode) & 0o600  # 0o666: less the process's umask
    return os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb")


def replace_file(part: Path, path: Path) -> None:
    """Flushes a written file to disk and renames it to `path`. An existing file passes on its permissions, owner and group."""
    if (there := _regular(path)) is not None:
        _take_over(part, there)
    _flush(part)
    os.replace(part, path)
    _flush(path.parent)


def publish_once(part: Path, path: Path) -> bool:
    """Flushes a written file to disk and gives it the name `path`, unless that name exists: then returns False. Of several
    processes that publish the same name, on any machine, exactly one succeeds. The caller removes the part file.
    """
    _flush(part)
    try:
        os.link(part, path)
    except FileExistsError:
        if not os.path.samefile(part, path):  # on NFS, a repeated request finds the name that it has just made itself
            return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # A file system without hard links: between the check and the rename another process could publish the same content.
        if path.exists():
            return False
        os.rename(part, path)
    _flush(path.parent)
    return True


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """An open binary file that becomes `path` when the block ends. If the block raises, the file is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        with open_part(part, path) as file:
            yield file
        replace_file(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Writes the text in UTF-8, completely or not at all."""
    part = part_of(path)
    try:
        with open_part(part, path) as file:
            file.write(text.encode("utf-8"))
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
        remove(part)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A new folder next to `path` for intermediate files. It is removed when the block ends or, after a kill, by the next write of
    `path`."""
    folder = part_of(path)
    folder.mkdir(mode=0o700, parents=True)
    try:
        yield folder
    finally:
        remove(folder)


def replace_folder(part: Path, path: Path) -> None:
    """Flushes the files of a written folder to disk and renames it to `path`. An existing folder is moved aside first and removed
    last. After a kill between the renames, the next write of `path` or `clear_parts` restores it."""
    flush_folder(part)
    _clear_left_overs(path)
    old = _temporary(path, "old") if path.exists() else None
    if old is not None:
        os.utime(path)  # another machine counts the age of the old folder from now
        os.replace(path, old)
    try:
        os.replace(part, path)
    except BaseException:
        if old is not None:
            _restore_or_remove(old, path)
        raise
    _flush(path.parent)
    if old is not None:
        remove(old)


def flush_folder(folder: Path) -> None:
    """Flushes a folder and everything in it to disk."""
    for path in folder.rglob("*"):
        _flush(path)
    _flush(folder)


def remove(path: Path) -> None:
    """Removes a temporary file or folder, as far as possible. Another process may be removing it too."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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


def _regular(path: Path) -> os.stat_result | None:
    """The state of a regular file; None for anything else. Does not follow a symbolic link."""
    try:
        state = os.lstat(path)
    except OSError:
        return None
    return state if stat.S_ISREG(state.st_mode) else None


def _take_over(part: Path, there: os.stat_result) -> None:
    own = os.stat(part)
    for user, group in ((there.st_uid, there.st_gid), (-1, there.st_gid)):
        if (own.st_uid, own.st_gid) == (there.st_uid, there.st_gid):
            break
        try:
            os.chown(part, user, group)
            break
        except OSError:  # only root gives files away; without any change the file belongs to who writes it
            continue
    os.chmod(part, stat.S_IMODE(there.st_mode))  # after chown, which clears some bits


def _temporary(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{machine()}.{os.getpid()}.{secrets.token_hex(4)}.{suffix}")


def _clear_left_overs(path: Path) -> None:
    for found in path.parent.glob(f".{glob.escape(path.name)}.*"):
        match = _TEMPORARY.fullmatch(found.name)
        if match and match["name"] == path.name and _is_left_over(found, match["machine"], int(match["pid"])):
            if found.suffix == ".old":
                _restore_or_remove(found, path)
            else:
                remove(found)


def _restore_or_remove(old: Path, path: Path) -> None:
    """An old folder is the only complete copy while `path` is missing."""
    if path.exists():
        remove(old)
        return
    with suppress(OSError):  # another process has restored it or has written a new one
        os.rename(old, path)


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
