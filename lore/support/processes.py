"""The rank of this process in a launch, and messages from the main process only."""

from __future__ import annotations

import os
from functools import cache

from lore.support.terminal import print_line


def rank() -> int:
    return int(os.environ.get("RANK") or 0)


def is_main_process() -> bool:
    """True for rank 0 and for a process without a launcher."""
    return rank() == 0


def say(message: str) -> None:
    """Prints one line, in the main process only."""
    if is_main_process():
        print_line(message, flush=True)


@cache
def say_once(message: str) -> None:
    """`say`, but the same line only once a process: a dry pass and the loading after it find the same things."""
    say(message)


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1)
