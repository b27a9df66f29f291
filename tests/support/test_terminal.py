"""Text for a terminal: what a reader does not see becomes visible, and no stream refuses it."""

import io
import logging
import os
import pty
import sys
import unicodedata
import warnings

import pytest

from lore.run.entry import exit_status
from lore.support.console import Console, Table, Text
from lore.support.errors import LoreError
from lore.support.progress import track
from lore.support.terminal import GuardedStream, flush_streams, guarded_streams, print_line, print_lines, print_note
from lore.support.text import printable

VISIBLE_FORMATS = (
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"  # Arabic and Kaithi signs
)


def test_every_character_that_is_not_seen_is_replaced():
    for number in range(0x110000):
        c = chr(number)
        kind = unicodedata.category(c)
        if kind in ("Cc", "Cs", "Zl", "Zp") or kind == "Cf" and c not in VISIBLE_FORMATS and not 0x13430 <= number <= 0x1345F:
            assert printable(f"a{c}b") in ("a b", "a\ufffdb"), hex(number)
        elif kind[0] in "LNPS" and printable(c) != c:
            assert c in "\u115f\u1160\u3164\uffa0\u2800", hex(number)  # letters and signs without a picture


@pytest.mark.parametrize(
    "text",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0915\u094d\u200d\u0937",
        "\u2764\ufe0f 1\ufe0f\u20e3",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "Größe 45 °C 漢字",
    ],
)
def test_text_that_needs_joiners_stays(text):
    assert printable(text) == text


def test_a_joiner_inside_latin_words_is_seen():
    assert printable("pay\u200dpal x\ufe0fy a\u200bb") == "pay\ufffdpal x\ufffdy a\ufffdb"


def test_a_message_is_one_line_and_a_text_keeps_its_lines(capsys):
    print_line("a\nb\x1b[2J")
    print_lines("c\nd\r\n")
    print_note("e\u2028f")
    assert capsys.readouterr() == ("a b\ufffd[2J\nc\nd \n", "e f\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "utf-16-le"])
def test_tables_and_lines_reach_every_encoding(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, newline="\n", write_through=True))
    table = Table(title="[draft] \ud83d", caption=":x:")
    table.add_column("\u6f22 \u0394 [/x]", overflow="fold")
    table.add_row("[red]a\nb[/]\x1b]8;;x\x07")
    table.add_row(Text("one\ntwo", "red"))
    Console().print(table)
    Console().print("[/x] :x: [link=https://x.example]l[/link]", Text("\u202eabc"))
    print_line("– 漢字 \ud83d")
    shown = raw.getvalue().decode(encoding)
    assert "[draft]" in shown and ":x:" in shown and "[red]a b[/]" in shown and "[/x] :x: [link=https://x.example]l[/link]" in shown
    assert not any(c in shown for c in "\x1b\x07\r\u202e\ud83d\u274c")


def test_what_libraries_write_is_cleaned_too(capsys):
    with guarded_streams():
        sys.stderr.write(warnings.formatwarning("bad \x1b]0;t\x07\r name", UserWarning, "f.py", 1, "line"))
        print("value \x9b2J", end="\n", file=sys.stderr)
        handler = logging.StreamHandler()
        handler.emit(logging.LogRecord("x", logging.ERROR, "f", 1, "\x1b[31mred\x1b[0m %s", ("\u202e",), None))
        sys.excepthook(ValueError, ValueError("half \ud83d \x1b[2J"), None)
        print("\x1b[?25l\x1b[2Kdrawn again\x1b(B")  # another library's progress bar
        assert not isinstance(sys.stdout.stream, GuardedStream)
    shown = "".join(capsys.readouterr())
    assert (
        "\ufffd]0;t\ufffd  name" in shown
        and "value \ufffd2J" in shown
        and "red \ufffd" in shown
        and "half \ufffd \ufffd[2J" in shown
    )
    assert not any(c in shown for c in "\x1b\x07\r\x9b\u202e\ud83d")
    assert shown.startswith("drawn again\n")
    assert not isinstance(sys.stdout, GuardedStream)


def test_a_progress_bar_on_a_terminal_keeps_its_control_and_no_other(monkeypatch):
    leader, follower = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", os.fdopen(follower, "w"))
    monkeypatch.setattr(sys, "stdout", sys.stderr)
    with guarded_streams():
        for _ in track(range(3), "[draft] \x1b]0;t\x07 :x:"):
            print("row \x1b]8;;https://x.example\x07\x1b[2J\x1b[5A")
        sys.stdout.write("\r 50% of \x1b[2J\r it")
    sys.stderr.flush()
    shown = ""
    while not shown.endswith(" it"):
        shown += os.read(leader, 4096).decode()
    sys.stderr.close()
    os.close(leader)
    assert "[draft] \ufffd]0;t\ufffd :x:" in shown and "\x1b[2K" in shown
    assert "\x1b]" not in shown and "\x1b[2J" not in shown and "\x1b[5A" not in shown
    assert shown.endswith("\r 50% of \ufffd[2J  it")


class Bare:
    """The least that a notebook or a test puts in place of a stream."""

    def __init__(self):
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


def test_streams_that_are_no_files_take_everything(monkeypatch):
    out, err = Bare(), Bare()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with guarded_streams():
        print_line("line\x1b", flush=True)
        for _ in track(range(2), "bar"):
            print_note("note")
        sys.stderr.write("\r 50%")
        assert not sys.stderr.isatty()
        flush_streams()
    assert out.text == "line\ufffd\n"
    assert "note\n" in err.text and "bar" in err.text and err.text.endswith("\n 50%")


def raising(error: Exception):
    def action():
        raise error

    return action


@pytest.mark.parametrize("action", [lambda: print_line("result"), raising(LoreError("bad")), raising(OSError("bad"))], ids=["printed", "refused", "failed"])
@pytest.mark.parametrize("full", ["stdout", "stderr"])
def test_a_full_stream_is_an_error_and_never_a_traceback(full, action, monkeypatch, capsys):
    stream = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(sys, full, stream)
    printed = action() is None if action.__name__ == "<lambda>" else False
    assert exit_status(action) == int(full == "stdout" or not printed)
    stream.close()  # what it did not take is gone: Python's shutdown has nothing to report
    shown = capsys.readouterr()
    if full == "stdout":
        assert shown.err.startswith("error: ") and "Traceback" not in shown.err
        assert "/dev/full takes no more output" in shown.err or not printed
    else:
        assert shown.out == "result\nresult\n" * printed


def test_a_closed_pipe_ends_the_process_quietly(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as ended:
        exit_status(lambda: print_line("result"))
    stream.close()
    assert ended.value.code == 1 and capsys.readouterr().err == ""
