"""The base class of all errors that users see. A message says what happened, why it matters and what to change."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_FULL = "The file system takes no more bytes. Free some space, raise the quota, or write to a larger disk (LORE_RUNS)."
_FORBIDDEN = "This process may not do that there. Correct the permissions, or name a folder that it may write (LORE_RUNS)."
_IN_THE_WAY = "A file lies where a folder is needed, or the reverse. Move it, or choose another name."
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "The file is larger than the file system or a limit allows. Write to another disk, or raise ulimit -f.",
    errno.EROFS: _FORBIDDEN,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENAMETOOLONG: "The path is longer than the file system allows. Use shorter names (`run`, LORE_RUNS, the output).",
    errno.ELOOP: "Links point to one another in a circle. Remove one of them.",
    errno.EMFILE: "The process has too many open files. Raise the limit (ulimit -n).",
    errno.ENFILE: "The machine has too many open files. End other processes.",
    errno.EIO: "The disk or the network file system failed. Check it, then run the same command again.",
    errno.ESTALE: "The network file system has replaced the file. Run the same command again.",
}


class LoreError(Exception):
    """An error that the author of the recipe, the rubric or the data can fix.

    same_on_every_rank: every process of a launch raises the same error, so only one process per node prints it.
    """

    def __init__(self, message: str, *, same_on_every_rank: bool = False):
        super().__init__(message)
        self.same_on_every_rank = same_on_every_rank


def reason(error: BaseException) -> str:
    """The error in one line of at most 600 characters. A bare KeyError or TypeError says too little without its name."""
    text = " ".join(str(error).split())
    named = isinstance(error, (OSError, ImportError, LoreError)) or type(error) is ValueError
    return (text if named and text else f"{type(error).__name__}: {text}")[:600]


def os_error_message(error: OSError) -> str:
    """An error of the operating system as a message: what failed at which path, and what to change."""
    advice = _ADVICE.get(error.errno)
    return "\n".join([f"{reason(error)}.", *([advice] if advice else []), "LORE_DEBUG=1 shows the traceback."])


@contextmanager
def translated(explain: Callable[[Exception], tuple[str, str]]) -> Iterator[None]:
    """Translates whatever a library raises inside the block into a LoreError. explain: (what failed, what to change)."""
    try:
        yield
    except LoreError:
        raise
    except Exception as error:
        failed, advice = explain(error)
        raise LoreError(f"{failed}: {reason(error)}\n{advice}") from error
