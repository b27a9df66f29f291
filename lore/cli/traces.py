"""`lore traces`: show the traces of a teacher and why traces were rejected. Imports inside functions keep `lore --help` fast.

lore traces show runs/my-set --rejected --check grounding
lore traces summary runs/my-set
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lore.support.bounds import MAX_COUNT
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint
from lore.support.terminal import print_json, print_note

if TYPE_CHECKING:
    from lore.data_synth.synthesis.trace import Trace
    from lore.judge.chunk_store import ChunkStore
    from lore.support.console import Console, Text

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Read the traces of a synthesis run.",
)

RUN = typer.Argument(..., help="Run folder of stage synthesize.")
MAX_SHOWN = 4000  # characters of one text


@app.command()
def show(
    run: Path = RUN,
    rejected: bool = typer.Option(False, "--rejected", help="Only pairs without an accepted attempt."),
    accepted: bool = typer.Option(False, "--accepted", help="Only pairs with an accepted attempt."),
    check: str = typer.Option(None, help="Only pairs whose kept attempt failed this check: grounding, unreadable, refused, ..."),
    slice: str = typer.Option(None, help="Only pairs of this slice."),
    tier: str = typer.Option(None, help="Only pairs whose human label is this tier."),
    pair: str = typer.Option(None, help="Only the pair with this id."),
    limit: int = typer.Option(None, min=1, max=MAX_COUNT, help="Maximum number of traces."),
    pager: bool = typer.Option(True, " /--no-pager", help="Print without a pager, also in a terminal."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per line."),
) -> None:
    """Show traces one by one. Each has demands, verdict, checks, facts and attempts."""
    if rejected and accepted:
        raise LoreError("--rejected and --accepted exclude each other: pass only one of them.")
    store = _store(run)
    for option, wanted, column in (("--check", check, "checks"), ("--slice", slice, "slices"), ("--tier", tier, "label")):
        if wanted is not None:
            _need(option, wanted, column, store)
    found = (
        trace
        for trace in _traces(store)
        if not (rejected and trace.accepted or accepted and not trace.accepted)
        and (check is None or check in trace.failed)
        and (slice is None or slice in trace.slices)
        and (tier is None or trace.label == tier)
        and (pair is None or trace.pair_id == pair)
    )
    found = islice(found, limit)
    if as_json:
        for trace in found:
            print_json(trace.row())
        return
    shown = 0
    with _console(pager) as console:
        for trace in found:
            _show(console, trace)
            shown += 1
    if not shown:
        print_note("No trace of this run matches. `lore traces summary` counts all traces.")


@app.command()
def summary(
    run: Path = RUN,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead of tables."),
) -> None:
    """Count traces by tier, slice, check, attempts and cost. The dataset card shows the same tables."""
    from lore.data_synth.synthesis.summary import Counts, tables

    counts = Counts()
    for trace in _traces(_store(run)):
        counts.add(trace)
    if as_json:
        print_json(json.loads(counts.to_json()))
        return
    from lore.support.console import Table

    with _console(pager=False) as console:
        for table in tables(counts):
            shown = Table(title=_text(table.title), title_justify="left", caption=_text(table.note), caption_justify="left")
            for index, name in enumerate(table.columns):
                shown.add_column(_text(name), justify="right" if index else "left")
            for row in table.rows:
                shown.add_row(*map(_text, row))
            console.print(shown)


def _store(run: Path) -> ChunkStore:
    from lore.data_synth.synthesis.trace import trace_store

    store = trace_store(run)
    if store.numbers():
        return store
    if not run.is_dir():
        raise LoreError(f"There is no run folder {run}. Name the folder of a run of stage synthesize, such as runs/NAME.")
    raise LoreError(
        f"{run} has no traces/part-*.parquet. A run of stage synthesize writes the first one when its first chunk of pairs is "
        "done: start its recipe with `lore run`, or name another run."
    )


def _traces(store: ChunkStore) -> Iterator[Trace]:
    """All traces in the order of their pairs. Keeps one batch in memory."""
    from lore.data_synth.synthesis.trace import read_traces

    for number in store.numbers():
        yield from read_traces(store, number)


def _need(option: str, wanted: str, column: str, store: ChunkStore) -> None:
    """Raises LoreError with the nearest existing value if no trace has the wanted one."""
    known = {"unreadable": None, "refused": None} if column == "checks" else {}
    for number in store.numbers():
        for batch in store.batches(number, [column]):
            values = batch.column(column)
            if column != "label":
                values = values.flatten()
            if column == "checks":
                values = values.field("name")
            known |= dict.fromkeys(values.unique().to_pylist())
        if wanted in known:
            return
    names = sorted(str(name) for name in known)
    shown = ", ".join(_clean(name) for name in names[:40])
    hint = _clean(nearest_hint(wanted, names))
    raise LoreError(f"{option} {_clean(wanted)}: no trace of this run has it; existing values: {shown}.{hint}")


def _show(console: Console, trace: Trace) -> None:
    from rich.rule import Rule

    from lore.support.console import Table

    outcome = ("accepted" if trace.accepted else "rejected") + (" with hint" if trace.hinted else "")
    console.print(Rule(_text(f"{trace.pair_id}  {outcome}", "green" if trace.accepted else "red"), align="left"))
    _line(console, "query", trace.query)
    _line(console, "title", trace.title)
    if trace.image:
        _line(console, "photo", trace.image)
    if trace.caption:
        _line(console, "caption", trace.caption)
    if trace.slices:
        _line(console, "slices", ", ".join(trace.slices))
    same = trace.tier == trace.label
    _line(console, "verdict", f"{trace.tier or 'none'}, human label {trace.label}", "green" if same else "red")
    if trace.demands:
        columns = ("dimension", "wanted", "found", "source", "rule", "tier")
        table = Table()
        for name in columns:
            table.add_column(name, overflow="fold")
        for demand in trace.demands:
            table.add_row(*(_text(getattr(demand, name)) for name in columns))
        console.print(table)
    if trace.rationale:
        _line(console, "reasoning", trace.rationale)
    if trace.failure:
        _line(console, trace.failed[0], trace.failure, "red")
    for check in trace.checks:
        _line(
            console,
            "failed" if check.why else "passed",
            f"{check.name}{': ' * bool(check.why)}{check.why}",
            "red" if check.why else "",
        )
    for fact in trace.facts:
        _line(console, "fact", fact)
    for attempt in trace.attempts:
        failed = f"failed {', '.join(attempt.failed)}" if attempt.failed else "passed"
        hint = " with hint" if attempt.hinted else ""
        _line(console, "attempt", f"{attempt.draw}{hint}: {attempt.tier or 'no verdict'}, {failed}")
    console.print()


def _line(console: Console, name: str, text: str, style: str = "") -> None:
    console.print(_text(f"{name:<12}", "bold").append_text(_text(text, style)))


def _text(text: str, style: str = "") -> Text:
    """Untrusted text for a terminal: without markup and control characters, limited in length."""
    from lore.support.console import Text

    return Text(_clean(text), style)


def _clean(text: str) -> str:
    from lore.support.text import printable

    cut = f"… ({len(text):,} characters)" if len(text) > MAX_SHOWN else ""
    return printable(text[:MAX_SHOWN]) + cut


@contextmanager
def _console(pager: bool) -> Iterator[Console]:
    """A console on standard output. In a terminal it uses $PAGER (default less), which receives the traces as it reads them."""
    from lore.support.console import Console

    command = shlex.split(os.environ.get("PAGER") or "less")
    if not (pager and sys.stdout.isatty() and command and shutil.which(command[0])):
        yield Console()
        return

    class Piped(Console):
        @property
        def file(self) -> Any:
            return process.stdin  # whose BrokenPipeError is no reason to leave with status 1

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    options = {"force_terminal": "NO_COLOR" not in os.environ, "width": shutil.get_terminal_size().columns}
    environment = {"LESS": "FRX", **os.environ}
    with suppress(BrokenPipeError):  # the user may quit the pager early
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, encoding="utf-8", errors="replace", env=environment
        ) as process:
            yield Piped(file=process.stdin, **options)
