"""Files and folders that a command writes where its user says (`-o`). They are checked before the command works for them.

An output is refused if it is, or lies in, an input of the command; if it is a device, pipe or socket; and, without `--force`, if it
exists and does not carry the mark of its kind. The mark is what files of the kind begin with, or the metadata of a Parquet file, so
other programs read the files as ever. An empty file has nothing to lose and is replaced.

    (out,) = checked_outputs([Output(output_path(given), begins_with("pair_id,"))], inputs=[log], force=force)
    write_atomic(out, text)

The functions return the file behind a symbolic link, so that a link stays one. lore.support.atomic_files keeps the permissions and
the owner of a file that is replaced.
"""

import glob
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from lore.support.errors import LoreError

REJECTED = ".rejected.jsonl"
"""End of the names of the files of rejected rows. A command writes them beside its output."""
MAX_LINKS = 40
HEAD_BYTES = 64 * 2**10
SYSTEM = ("/dev", "/proc", "/sys")
ORDINARY = ("/dev/shm",)
Id = tuple[int, int]  # device and inode: the same file under all of its names


@dataclass(frozen=True)
class Output:
    """A file to write. is_own: whether an existing file is an earlier output of this kind."""

    path: Path
    is_own: Callable[[Path], bool]


def output_path(given: str | Path, option: str = "-o", *, folder: bool = False) -> Path:
    """The path of an output as a user typed it. Raises LoreError if it names no file. `~` is the home folder.

    option: the option that it was given with. folder: it names a folder.
    """
    given = os.path.expanduser(given)
    if not given.strip():
        raise LoreError(f"{option} is empty, so there is no place to write to. Name a {'folder' if folder else 'file'}.")
    path = Path(given)
    if not folder and (given.endswith(os.sep) or path.name in ("", "..")):
        raise LoreError(f"{option} {given} names a folder, and the output is a file. Name a file.")
    if path.name.lower().endswith(REJECTED):
        raise LoreError(
            f"{option} {given} has the name of rejected rows: the next command that writes {path.name[: -len(REJECTED)]} would "
            "replace it. Choose another name."
        )
    return path


def checked_outputs(
    outputs: Sequence[Output],
    inputs: Iterable[str | Path] = (),
    *,
    force: bool = False,
    in_place: str | Path | None = None,
) -> list[Path]:
    """The files to write, behind their links. Raises LoreError for outputs that would destroy something.

    inputs: files, folders and globs that the command reads; missing ones are ignored. force: replace files without the mark.
    in_place: the one input that the command may replace, if it is a single file and the output is not another name of it.
    """
    given = [str(one) for one in inputs]
    read, folders = _known(given)
    own = os.path.realpath(in_place) if in_place is not None and os.path.isfile(in_place) else None
    found = [_file(output.path) for output in outputs]
    for output, path in zip(outputs, found, strict=True):
        shown, there = output.path, _id(path)
        _refuse_inputs(shown, path, {} if str(path) == own else read, folders, given)
        if there is not None and not force and path.stat().st_size and not _safely(output.is_own, path):
            raise LoreError(
                f"{shown} was not written by this command, so it is not overwritten. Name another file, or pass --force to "
                "replace it."
            )
        if there is not None and not os.access(path, os.W_OK):
            raise LoreError(f"{shown} is read-only, so it is not overwritten. Name another file, or allow writing to it.")
    for number, path in enumerate(found):
        for other, before in zip(outputs, found[:number], strict=False):
            if path == before or path in before.parents or before in path.parents or (_id(path) and _id(path) == _id(before)):
                raise LoreError(
                    f"{outputs[number].path} and {other.path} are outputs of one command, and cannot be the same file or one in "
                    "the other. Choose another name for one of them."
                )
    return found


def checked_folder(path: Path, inputs: Iterable[str | Path] = ()) -> Path:
    """The folder to write or to fill, behind its links. Raises LoreError for a file, for a folder in an input, and for one that
    holds an input."""
    given = [str(one) for one in inputs]
    read, folders = _known(given)
    real = _behind_links(path)
    if real.exists() and not real.is_dir():
        raise LoreError(f"{path} is {_kind(real)}, and the output is a folder. Name a folder.")
    _need_folder(path, real)
    _refuse_inputs(path, real, read, folders, given)
    there = _id(real)
    for one in given:
        if there is not None and there in {_id(parent) for parent in Path(os.path.realpath(one)).parents}:
            raise LoreError(f"{path} holds {one}, an input of this command. Name another folder.")
    return real


def begins_with(*marks: str) -> Callable[[Path], bool]:
    """For `Output.is_own`: whether a file begins with one of the marks, after a byte order mark."""

    def is_own(path: Path) -> bool:
        return head_of(path).startswith(tuple(mark.encode() for mark in marks))

    return is_own


def head_of(path: Path) -> bytes:
    """The first bytes of a file, without a byte order mark."""
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf")


def never(path: Path) -> bool:
    """For `Output.is_own`: the output of an earlier start is precious too."""
    return False


def _file(shown: Path) -> Path:
    path = _behind_links(shown)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        _need_folder(shown, path)
        return path
    if stat.S_ISDIR(mode):
        raise LoreError(f"{shown} is a folder, and the output is one file that cannot replace it. Name a file.")
    if not stat.S_ISREG(mode):
        raise LoreError(f"{shown} is {_kind(path)}, and the output is a file that would replace it. Name a file.")
    _need_folder(shown, path)
    return path


def _behind_links(shown: Path) -> Path:
    """The path that a symbolic link leads to. Raises LoreError for a place where the system keeps no ordinary files, such as
    /dev/stdout, which may lead to an ordinary file that somebody else holds open."""
    path = Path(os.path.abspath(shown))
    for _ in range(MAX_LINKS):
        parent = os.path.realpath(path.parent)
        if _below(parent, SYSTEM) and not _below(parent, ORDINARY):
            raise LoreError(
                f"{shown} leads to {parent}, where the system keeps devices and no files. Name a file; if another program should "
                "read the output, let it read that file."
            )
        path = Path(parent) / path.name if path.name else Path(parent)
        if not path.is_symlink():
            return path
        path = Path(os.path.abspath(path.parent / os.readlink(path)))
    raise LoreError(f"{shown} is a symbolic link that leads to itself. Name another file.")


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _need_folder(shown: Path, path: Path) -> None:
    """Raises LoreError if the folder of an output cannot be created or written to."""
    parent = next(parent for parent in path.parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise LoreError(f"{shown} cannot be created, because {parent} is no folder. Name a file in another folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise LoreError(f"{parent} cannot be written to, so {shown} cannot be created in it. Name a file in another folder.")


def _kind(path: Path) -> str:
    mode = path.stat().st_mode
    kinds = {
        stat.S_ISREG: "a file",
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for test, name in kinds.items() if test(mode)), "no file")


def _known(inputs: list[str]) -> tuple[dict[Id, str], dict[Id, str]]:
    """The files and the folders of the inputs, each with the input that names it."""
    files: dict[Id, str] = {}
    folders: dict[Id, str] = {}
    for one in inputs:
        for name in [one] if os.path.exists(one) else glob.glob(one):
            if (found := _id(Path(name))) is not None:
                (folders if os.path.isdir(name) else files).setdefault(found, name)
    return files, folders


def _refuse_inputs(shown: Path, path: Path, read: dict[Id, str], folders: dict[Id, str], inputs: list[str]) -> None:
    if (name := read.get(_id(path))) is not None:
        same = "" if str(shown) == name else f" ({name})"
        raise LoreError(f"{shown} is an input of this command{same} and would be overwritten. Choose another name.")
    if path.is_file() and path.stat().st_nlink > 1:  # perhaps another name of a file in an input folder
        for folder in folders.values():
            if any(_id(Path(place) / name) == _id(path) for place, _, names in os.walk(folder) for name in names):
                raise LoreError(f"{shown} is an input of this command (a file in {folder}). Choose another name.")
    for parent in (path, *path.parents):
        if (name := folders.get(_id(parent))) is not None:
            raise LoreError(
                f"{shown} lies in {name}, an input of this command, and would be taken for a part of it. Choose another folder."
            )
    for one in inputs:
        if glob.has_magic(one) and not os.path.exists(one) and PurePath(os.path.abspath(shown)).match(os.path.abspath(one)):
            raise LoreError(f"{shown} matches {one}, so the next run would read it as an input. Choose another name.")


def _id(path: Path) -> Id | None:
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return state.st_dev, state.st_ino


def _safely(is_own: Callable[[Path], bool], path: Path) -> bool:
    try:
        return is_own(path)
    except (LoreError, OSError, ValueError):
        return False
