"""The rank of this process in a launch, and messages from the main process only."""

from __future__ import annotations

import os
import select
import signal
import threading
from functools import cache
from pathlib import Path

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


def end_with(owner: int) -> bool:
    """Makes this process and those between it and `owner` end when `owner` ends, however it does: nobody tidies up after a SIGKILL.

    owner: id of a process that this one descends from. Returns False, and does nothing, if it does not descend from it, or if the
    system cannot say (only Linux can).
    """
    if not hasattr(os, "pidfd_open"):
        return False
    ended: int = os.pidfd_open(owner)
    line = [os.getpid()]
    while line[-1] not in (0, owner):  # 0: the kernel
        line.append(int(Path(f"/proc/{line[-1]}/stat").read_text().rpartition(")")[2].split()[1]))
    if line[-1] != owner or len(line) == 1:
        os.close(ended)
        return False
    threading.Thread(target=_end_after, args=(ended, line[-2::-1]), daemon=True, name="end_with").start()
    return True


def _end_after(ended: int, processes: list[int]) -> None:
    """Waits for the end of the process that `ended` stands for and kills the others, this process last."""
    wait = select.poll()
    wait.register(ended, select.POLLIN)
    wait.poll()
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            pass
