"""How a process of LORE ends: `lore ...`, `python -m lore`, `python x.yaml`, `accelerate launch x.yaml` and torchrun all pass here.

A LoreError or OSError is a message and status 1, never a traceback. LORE_DEBUG=1 shows the traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from lore.support.errors import LoreError, os_error_message
from lore.support.processes import rank
from lore.support.terminal import flush_streams, guard_streams, print_note


def exit_status(action: Callable[[], int | None]) -> int:
    """Calls `action` and returns its status. Reports a LoreError or OSError to stderr, and then returns 1."""
    guard_streams()
    try:
        try:
            return action() or 0
        finally:
            flush_streams()  # a full disk or a closed pipe behind stdout is an error of this command too
    except (LoreError, OSError) as error:
        if os.environ.get("LORE_DEBUG"):
            raise
        report_error(error if isinstance(error, LoreError) else LoreError(os_error_message(error)))
        if isinstance(error, OSError):
            _drop_output()
        return 1
    except KeyboardInterrupt:
        print_note("interrupted; the same command resumes from the last checkpoint")
        return 130


def _drop_output() -> None:
    """Sends what stdout does not take to nowhere. Python would write it once more at its end, and fail again with a traceback."""
    if sys.stdout is None:  # closed by who started the process
        return
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_error(error: LoreError) -> None:
    """Prints the error to stderr. When every rank raises the same error, only the first process of each machine prints it.

    Further lines are indented: a line end in a name or a reply that the message quotes begins no line of its own.
    """
    if error.same_on_every_rank and int(os.environ.get("LOCAL_RANK") or 0) != 0:
        return
    from lore.support.console import Console, Text  # loads rich: a dry run without an error prints none

    who = f"rank {rank()}: " if int(os.environ.get("WORLD_SIZE") or 1) > 1 else ""
    console = Console(stderr=True, soft_wrap=True)
    message = str(error).replace("\n", "\n  ")
    console.print(Text.assemble((f"{who}error:", "bold red"), f" {message}"))
