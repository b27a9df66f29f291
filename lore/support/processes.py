"""Which process of a launch this is, and how the main one speaks to people."""

from __future__ import annotations

import os


def rank() -> int:
    return int(os.environ.get("RANK") or 0)


def is_main_process() -> bool:
    """True for rank 0 and for a process that was not started by a launcher."""
    return rank() == 0


def say(message: str) -> None:
    """One line for people, from the main process."""
    if is_main_process():
        print(message, flush=True)


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1)
