"""How a process of LORE ends: `lore ...`, `python -m lore`, `python x.yaml`, `accelerate launch x.yaml` and torchrun all pass here.

A LoreError or OSError is a message and status 1, never a traceback. LORE_DEBUG=1 shows the traceback.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress

from lore.support.errors import LoreError, os_error_message
from lore.support.processes import rank


def exit_status(action: Callable[[], int | None]) -> int:
    """Calls `action` and returns its status. Reports a LoreError or OSError to stderr, and then returns 1."""
    if sys.stdout is None:  # closed by who started the process, as in `lore ... >&-`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    try:
        try:
            return action() or 0
        finally:
            sys.stdout.flush()  # a full disk or a closed pipe behind stdout is an error of this command too
    except (LoreError, OSError) as error:
        if os.environ.get("LORE_DEBUG"):
            raise
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            _drop_output()
            return 1
        report_error(error if isinstance(error, LoreError) else LoreError(os_error_message(error)))
        if isinstance(error, OSError):
            _drop_output()
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130


def _reader_is_gone() -> bool:
    """Whether nobody reads stdout any more, as with `lore ... | head`."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return bool(poll.poll(0))
    except (OSError, ValueError):  # a stdout without a file
        return False


def _drop_output() -> None:
    """Sends what stdout does not take to nowhere. Python would write it once more at its end, and fail again with a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_error(error: LoreError) -> None:
    """Prints the error to stderr. When every rank raises the same error, only the first process of each machine prints it."""
    if error.same_on_every_rank and int(os.environ.get("LOCAL_RANK") or 0) != 0:
        return
    from rich.console import Console  # a dry run without an error prints none
    from rich.markup import escape

    who = f"rank {rank()}: " if int(os.environ.get("WORLD_SIZE") or 1) > 1 else ""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]{who}error:[/] {escape(str(error))}")
