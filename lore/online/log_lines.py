"""The log of the service: one line of JSON per request (lore.online.exchange), and one per warning of what serves the requests.

A thread writes the lines to stderr. A terminal or a pipe that takes no more would otherwise hold up the event loop, and with it
every answer. Lines that wait are bounded; what does not fit is dropped and counted.
"""

import json
import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lore.online.exchange import log
from lore.support.errors import LoreError
from lore.support.terminal import print_note

SERVERS = ("uvicorn.error", "asyncio")
"""Loggers of what serves the requests."""
MOST_CHARACTERS = 300
"""Of one of their messages."""
MOST_WAITING = 10_000
CLOSE_SECONDS = 2.0


@contextmanager
def logged() -> Iterator[None]:
    """Inside the block, the log is written."""
    writer = LogWriter()
    writer.start()
    chosen = {log: (LogHandler(writer), logging.INFO)}
    chosen |= {logging.getLogger(name): (ServerHandler(writer), logging.WARNING) for name in SERVERS}
    before = [(logger, logger.level, logger.propagate) for logger in chosen]
    for logger, (handler, level) in chosen.items():
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(chosen[logger][0])
            logger.setLevel(level)
            logger.propagate = propagate
        writer.close()


class LogWriter:
    """Writes lines in a thread. `put` never waits."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, line: str) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Writes what waits, for a few seconds at most."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            with suppress(LoreError, SystemExit):  # a full disk, a closed pipe: they do not end the service
                print_note(line)
                if dropped:
                    print_note(json.dumps({"level": "warning", "message": f"{dropped:,} lines of the log were dropped"}))


class LogHandler(logging.Handler):
    """Lines that are JSON already."""

    def __init__(self, writer: LogWriter):
        super().__init__()
        self.writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        self.writer.put(self.line(record))

    def line(self, record: logging.LogRecord) -> str:
        return record.getMessage()


class ServerHandler(LogHandler):
    """What uvicorn and asyncio say, such as that bytes are no HTTP. Of an exception only its type: its words could hold a text of a
    request."""

    def line(self, record: logging.LogRecord) -> str:
        said = {"time": round(record.created, 3), "logger": record.name, "level": record.levelname.lower()}
        said["message"] = record.getMessage().partition("\n")[0][:MOST_CHARACTERS]
        if record.exc_info and record.exc_info[0] is not None:
            said["exception"] = record.exc_info[0].__name__
        return json.dumps(said)
