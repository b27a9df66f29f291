"""The only module that writes to stdout and stderr. `lore.support.console` has tables and colors on top of it.

Queries, titles, paths, header names and replies of servers are printed by nearly every command, and any of them may hold control
sequences, direction marks or half a character. A terminal obeys them, and a stream in ASCII refuses them. Hence every text passes
here: what a reader cannot see becomes a visible sign, and what the stream's encoding lacks becomes an escape.

`guard_streams` does the same for text that others write: warnings, logs, tracebacks and progress bars of the libraries.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from lore.support.text import printable, printable_lines

_PLAIN_SIGNS = str.maketrans({"\ufffd": "?", "–": "-", "—": "-", "−": "-", "×": "x", "’": "'", "“": '"', "”": '"'})
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_UPWARDS = re.compile(r"(?:\x1b\[A)+")


def print_line(message: object = "", *, flush: bool = False) -> None:
    """Prints one line to stdout. A line end inside the message becomes a space: a value from outside begins no line of its own."""
    _put(sys.stdout, printable(message) + "\n", flush)


def print_lines(text: object) -> None:
    """Prints text of several lines, such as a recipe, to stdout."""
    _put(sys.stdout, printable_lines(text).removesuffix("\n") + "\n")


def print_note(message: object) -> None:
    """Prints one line to stderr: warnings, and what does not belong to the result."""
    _put(sys.stderr, printable(message) + "\n", flush=True)


def print_note_lines(text: object) -> None:
    """Prints text of several lines to stderr."""
    _put(sys.stderr, printable_lines(text).removesuffix("\n") + "\n", flush=True)


def print_json(value: Any) -> None:
    """Prints a value as one line of JSON to stdout, for programs. JSON in ASCII holds no control character."""
    _put(sys.stdout, json.dumps(value) + "\n")


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Guards stdout and stderr inside the block."""
    before = sys.stdout, sys.stderr
    guard_streams()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def guard_streams() -> None:
    """Cleans what anyone writes to stdout and stderr from now on. Call it before the libraries are imported: their log handlers
    keep the stream that they find. Further calls have no effect."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, GuardedStream):
            setattr(sys, name, GuardedStream(stream))


def flush_streams() -> None:
    """Flushes both streams. Ends the process with status 1 if the reader of one is gone."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            TerminalStream(unguarded(stream)).flush()


def unguarded(stream: TextIO) -> TextIO:
    """The stream below a guard, for text that is clean already and has styles of its own."""
    while isinstance(stream, TerminalStream):
        stream = stream.stream
    return stream


class TerminalStream:
    """A text stream that takes any text: characters that its encoding lacks become escapes. If the reader of a pipe is gone (`lore
    data stats x | head`), the process ends quietly with status 1."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        self._call(self.stream.write, _encodable(text, self.stream))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._call(self.stream.flush)

    def _call(self, method: Any, *arguments: Any) -> None:
        try:
            method(*arguments)
        except BrokenPipeError:
            # What is left in the buffer goes nowhere, so that Python's shutdown does not report the pipe again.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            raise SystemExit(1) from None

    def __getattr__(self, name: str) -> Any:
        if name == "stream":  # a copy that is still empty
            raise AttributeError(name)
        return getattr(self.stream, name)


class GuardedStream(TerminalStream):
    """A stream for everybody's text. Styles are dropped, and cursor movements except that a text on a terminal may begin with \\r:
    by this a progress bar draws its line again."""

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if not _UPWARDS.fullmatch(text):  # the cursor movements of a second progress bar
            again = text.startswith("\r")
            rest = printable_lines(_STYLE.sub("", text.lstrip("\r")))
            start = "" if not again else "\r" if self.stream.isatty() else "\n" * bool(rest.strip())
            super().write(start + rest)
        return len(text)


def _put(stream: TextIO | None, text: str, flush: bool = False) -> None:
    if stream is None:  # a process without a console, such as pythonw
        return
    stream = TerminalStream(unguarded(stream))
    stream.write(text)
    if flush:
        stream.flush()


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None)
    if not encoding:
        return text
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return text.translate(_PLAIN_SIGNS).encode(encoding, "backslashreplace").decode(encoding)
