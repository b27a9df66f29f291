"""Prints one line per periodic evaluation above the progress bar. A log file gets the same plain lines."""

from typing import Any

from lore.support.console import Console, Text
from lore.train.watch.collapse_rules import Watch

COLUMNS = (
    ("step", 6, "step", "d"),
    ("pass@1", 7, "pass_at_1", ".3f"),
    ("pass@k", 7, "pass_at_k", ".3f"),
    ("F1", 6, "macro_f1", ".3f"),
    ("entropy", 8, "entropy", ".3f"),
    ("tokens", 7, "length", ".1f"),
    ("no verdict", 11, "format_failures", ".0%"),
    ("top tier", 12, "top", ""),
    ("reward", 8, "reward", ".3f"),
    ("zero adv.", 10, "zero_spread", ".0%"),
    ("gap", 9, "gap", ".4f"),
)
HEADER_EVERY = 20


def watch_cells(line: dict[str, Any]) -> list[str]:
    """The values of an evaluation as text, one per column of COLUMNS. reward, zero_spread and gap are training values."""
    probe, training = line["probe"], line.get("training", {})
    top = f"{probe['top_tier']} {probe['top_share']:.0%}" if probe["top_tier"] else None
    values = {**probe, **{key: training.get(key) for key in ("zero_spread", "gap")}}
    values |= {"step": line["step"], "reward": training.get("reward", probe.get("reward")), "top": top}
    cells = ((values.get(key), form) for _, _, key, form in COLUMNS)
    return ["–" if value is None else format(value, form) for value, form in cells]


def watch_line(line: dict[str, Any]) -> str:
    """An evaluation as one row of the table."""
    return "".join(cell.rjust(width) for cell, (_, width, _, _) in zip(watch_cells(line), COLUMNS, strict=True))


def print_watch(watch: Watch, console: Console, *, started_here: bool = False) -> None:
    """Prints the newest evaluation as a plain line; prints the header every HEADER_EVERY lines and if `started_here`.

    console: the console of the progress bar, which then stays below the line.
    """
    if started_here or len(watch.history) % HEADER_EVERY == 1:
        console.print(Text("".join(name.rjust(width) for name, width, _, _ in COLUMNS), style="bold"), soft_wrap=True)
    line = watch.history[-1]
    best = "  best" if line["step"] == watch.best_step else ""
    console.print(Text(watch_line(line) + best), soft_wrap=True)
    if "stopped" in line:
        console.print(Text(f"stopped at step {line['step']}: {line['stopped']}", style="bold red"), soft_wrap=True)
