"""The base class of all errors that users see. A message says what happened, why it matters and what to change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
    named = isinstance(error, (OSError, ImportError)) or type(error) is ValueError
    return (text if named and text else f"{type(error).__name__}: {text}")[:600]


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
