"""Output of a GoodRate: a table and remarks for people, JSON for programs."""

import json
from collections.abc import Iterable
from math import isfinite, isnan
from pathlib import Path

from rich.box import SIMPLE_HEAD

from lore.data.rejected_rows import RejectedWriter, is_rejected_file, rejected_path
from lore.eval.goodrate.estimate import GoodRate
from lore.eval.measures.bootstrap import Estimate
from lore.support.atomic_files import write_atomic
from lore.support.console import Console, Table, Text
from lore.support.outputs import Output, begins_with, checked_outputs

MARKS = ('{\n "lore": "goodrate",', '{\n "log": {\n  "path": ')
"""What the JSON file begins with, in this version and in earlier ones."""


def show(found: GoodRate, console: Console) -> None:
    log, rated = found.summary["log"], found.summary["rated"]
    title = f"{log['rows']:,} shown items, {log['pages']:,} pages, {log['queries']:,} queries"
    if rated["path"]:
        title += f"; {rated['labeled']:,} pairs rated"
    if found.summary["top"]:
        title += f"; first {found.summary['top']} positions"
    console.print(Text(f"GoodRate of {log['path']}: {title}"), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("%", no_wrap=True)
    for heading in ("judge alone", "rated alone", "both", "lambda", "rated", "worth"):
        table.add_column(heading, justify="right", no_wrap=True)
    for before, rate in zip([None, *found.rates], found.rates, strict=False):
        if before and before.of != rate.of:
            table.add_section()
        estimate = rate.estimate
        cells = [percent(estimate.judge), percent(estimate.rated), percent(estimate.powered)]
        power = "–" if isnan(estimate.power) else f"{estimate.power:.2f}"
        worth = "–" if isnan(estimate.gain) else f"{estimate.gain * rate.rated:,.0f}"
        table.add_row(f"{rate.of} {rate.system}", *cells, power, f"{rate.rated:,}", worth)
    console.print(table)
    what = "this log, if all of it were rated" if found.summary["target"] == "log" else "all queries like those of this log"
    console.print(
        Text(
            f"± 95 % intervals for {what}. The judge alone is biased by its errors, and its interval does not include them; the "
            "other two are unbiased if the sample is random. Worth: labels needed for an equally short interval without the judge."
        )
    )
    for remark in found.remarks:
        console.print(Text(f"! {remark}"))
    for problem in found.rejected[:5]:
        console.print(Text(f"  {problem}"), soft_wrap=True)


def percent(estimate: Estimate) -> str:
    if isnan(estimate.value):
        return "–"
    value = f"{100 * estimate.value + 0.0:.1f}"
    return value if isnan(estimate.low) else f"{value} ± {50 * (estimate.high - estimate.low):.1f}"


def to_json(found: GoodRate) -> dict:
    """Shares from 0 to 1; null if undefined."""
    rates: dict[str, list[dict]] = {}
    for rate in found.rates:
        estimate = rate.estimate
        numbers = {"lambda": estimate.power, "gain": estimate.gain, "effective_rated_queries": rate.clusters}
        numbers = {name: round(number, 6) if isfinite(number) else None for name, number in numbers.items()}
        rates.setdefault(rate.of, []).append(
            {
                "system": rate.system,
                "shown": rate.shown,
                "rated": rate.rated,
                "judge_alone": estimate.judge.to_json(),
                "rated_alone": estimate.rated.to_json(),
                "prediction_powered": estimate.powered.to_json(),
                **numbers,
            }
        )
    return {**found.summary, **rates, "remarks": found.remarks}


def output_files(out: Path, inputs: Iterable[str | Path], *, force: bool = False) -> list[Path]:
    """The JSON file and the file of unreadable rows. Raises LoreError for files that are no earlier output."""
    outputs = [Output(out, begins_with(*MARKS)), Output(rejected_path(out), is_rejected_file)]
    return checked_outputs(outputs, inputs, force=force)


def save(found: GoodRate, out: Path, *, inputs: Iterable[str | Path] = (), force: bool = False) -> Path | None:
    """Writes the JSON file, and unreadable rows to <name>.rejected.jsonl beside it. Returns the path of the latter, if any. inputs:
    what was read and must not be overwritten. force: replace files that are no earlier output."""
    target, listed = output_files(out, inputs, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    with RejectedWriter(target, listed) as writer:
        for problem in found.rejected:
            writer.write(problem)
    content = {"lore": "goodrate", **to_json(found)}
    write_atomic(target, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return rejected_path(out) if writer.count else None
