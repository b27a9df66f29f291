"""Output of a comparison: tables and sentences for people, JSON and the changed pairs for programs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lore.data.tables.csv import csv_text
from lore.eval.compare.changes import add_titles, changed_pairs, counted, examples
from lore.eval.compare.compare import BETTER, MIN_QUERIES, WORSE, Comparison, Difference, Options, PartDifference
from lore.eval.compare.finished import found_apart
from lore.eval.compare.safe_output import open_console, signed, text
from lore.eval.compare.sides import Side, Sides
from lore.eval.measures.bootstrap import LEVEL
from lore.eval.report.console import column_titles
from lore.support.atomic_files import written_whole
from lore.support.console import Console, Table, Text
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint
from lore.support.outputs import Output, begins_with, checked_outputs

ONE_LINE = 120  # columns that the widest table needs
STYLES = {BETTER: "green", WORSE: "red"}
JSON_MARK = '{"lore": "compare", '
JSONL_MARK = '{"baseline": '
CSV_MARK = "baseline,compared,pair_id,"


def report(
    sides: Sides,
    comparisons: list[Comparison],
    options: Options,
    *,
    metrics: Sequence[str] = (),
    shown: int = 3,
    out: Path | None = None,
    as_json: Path | None = None,
    force: bool = False,
) -> None:
    """Prints every comparison. Writes all changed pairs to `out` (.jsonl or .csv) and all results to `as_json`. shown: number of
    examples printed per kind. force: replace files that are no earlier output."""
    files = output_files(sides, out, as_json, force)
    titles = metric_titles(comparisons, metrics)
    console = open_console()
    _print_head(console, sides, options)
    changed = [changed_pairs(comparison) for comparison in comparisons]
    why_untitled = add_titles([row for rows in changed for row in rows], sides.first.run)
    for comparison, rows in zip(comparisons, changed, strict=True):
        console.print()
        _print_sentences(console, comparison, titles)
        _print_metrics(console, comparison, titles)
        _print_parts(console, comparison, metrics)
        if not metrics:
            _print_apart(console, comparison)
        _print_changes(console, comparison, rows, shown)
    if why_untitled:
        console.print(text(why_untitled), soft_wrap=True)
    if out is not None:
        _write(files[out], _changed_text(out, [row for rows in changed for row in rows]))
        console.print(text(f"changed pairs: {out}"), soft_wrap=True)
    if as_json is not None:
        content = to_json(sides, comparisons, changed, options)
        _write(files[as_json], json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
        console.print(text(f"all results: {as_json}"), soft_wrap=True)


def output_files(sides: Sides, out: Path | None, as_json: Path | None, force: bool) -> dict[Path, Path]:
    """The files to write, by the path that the user gave. Raises LoreError for a file that is no output of a comparison."""
    if out is not None and out.suffix.lower() not in (".jsonl", ".csv"):
        raise LoreError(f"--out {out}: found {out.suffix or 'no extension'}, expected .jsonl or .csv")
    runs = [side.run for side in (sides.first, *sides.others)]
    read = [path for run in runs for path in (run.folder, run.predictions, run.data_files())]
    outputs = [Output(out, begins_with(JSONL_MARK if out.suffix.lower() == ".jsonl" else CSV_MARK))] if out is not None else []
    outputs += [Output(as_json, begins_with(JSON_MARK))] if as_json is not None else []
    found = checked_outputs(outputs, [path for path in read if path is not None], force=force)
    return {output.path: path for output, path in zip(outputs, found, strict=True)}


def metric_titles(comparisons: list[Comparison], wanted: Sequence[str]) -> dict[str, str]:
    """Metric name to title, in the order of the tables. Raises LoreError for a metric that these judges do not have."""
    known = list(dict.fromkeys(name for comparison in comparisons for name in comparison.metrics))
    titles = column_titles(comparisons[0].baseline.run.tiers)
    titles = {name: titles.get(name, name) for name in [*titles, *known] if name in known}
    for name in wanted:
        if name not in titles:
            have = ", ".join(titles)
            raise LoreError(f"--metric {name}: these judges have no such metric; they have {have}.{nearest_hint(name, known)}")
    return {name: titles[name] for name in wanted or titles}


def _print_head(console: Console, sides: Sides, options: Options) -> None:
    first, run = sides.first, sides.first.run
    where = f"split {run.data['split']}, " if run.data.get("split") else ""
    console.print(
        text(
            f"Baseline {first.name}. {len(first.predictions):,} pairs of {int(sides.groups.max()) + 1:,} queries, {where}rubric "
            f"{run.rubric['name']}; {options.samples:,} paired resamples of the queries, seed {options.seed}.",
            limit=1000,
        ),
        soft_wrap=True,
    )
    if options.prior:
        shares = ", ".join(f"{tier} {share:g}" for tier, share in run.measured.prior.items())
        console.print(text(f"Tiers are weighted by metrics.prior of {run.name}: {shares}."), soft_wrap=True)
    if sides.weights is not None:
        console.print(text(f"Each pair is weighted by its label_weight, as in {run.name}."), soft_wrap=True)
    for note in sides.notes:
        console.print(text(f"Note: {note}.", limit=1000), soft_wrap=True)


def _print_sentences(console: Console, comparison: Comparison, titles: dict[str, str]) -> None:
    by_verdict: dict[str, list[str]] = {}
    for name, title in titles.items():
        if name in comparison.metrics:
            by_verdict.setdefault(comparison.metrics[name].verdict, []).append(title)
    findings = "; ".join(f"{verdict} in {', '.join(names)}" for verdict, names in sorted(by_verdict.items()))
    sentence = f"{comparison.compared.name} against {comparison.baseline.name}: {findings}."
    console.print(text(sentence, "bold", limit=2000), soft_wrap=True)


def _table(title: str, comparison: Comparison, first: str, *more: str) -> Table:
    table = Table(title=text(title), title_justify="left")
    table.add_column(text(first), overflow="fold")
    for name in (*more, comparison.baseline.name, comparison.compared.name, "difference"):
        table.add_column(text(name), justify="right", overflow="fold")
    return table


def _cells(console: Console, difference: Difference) -> list[Text]:
    """The values of a row; in a narrow terminal the intervals go below their values."""
    values = (str(difference.baseline), str(difference.compared), signed(difference.difference))
    return [Text(value.replace(" ", "\n", 1) if console.width < ONE_LINE else value) for value in values]


def _p(difference: Difference) -> str:
    p = difference.p_adjusted
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _word(difference: Difference) -> Text:
    return text(difference.verdict, STYLES.get(difference.verdict, ""))


def _print_metrics(console: Console, comparison: Comparison, titles: dict[str, str]) -> None:
    table = _table("all pairs", comparison, "metric")
    table.add_column("", overflow="fold")
    for name, title in titles.items():
        if name in comparison.metrics:
            difference = comparison.metrics[name]
            table.add_row(text(title), *_cells(console, difference), _word(difference))
    console.print(table)


def _print_parts(console: Console, comparison: Comparison, metrics: Sequence[str]) -> None:
    name = "acc_2" if "acc_2" in metrics and "acc_k" not in metrics else "acc_k"
    title = {"acc_2": "Acc@2", "acc_k": f"Acc@{len(comparison.baseline.run.tiers)}"}[name]
    recall = f"{title} by label" + (" (recall of the tier)" if name == "acc_k" else "")
    for heading, first, parts in ((recall, "label", comparison.tiers), (f"{title} by slice", "slice", comparison.slices)):
        if not parts:
            continue
        narrow = console.width < ONE_LINE
        table = _table(heading, comparison, first, "pairs", *["queries"] * (not narrow))
        table.add_column("adj. p", justify="right")
        table.add_column("", overflow="fold")
        for part_name, part in parts.items():
            difference = getattr(part, name)
            sizes = [f"{part.pairs:,}", *[f"{part.queries:,}"] * (not narrow)]
            table.add_row(text(part_name), *sizes, *_cells(console, difference), _p(difference), _word(difference))
        console.print(table)
    console.print(text(_on_chance(comparison.parts, name), limit=1000), soft_wrap=True)


def _on_chance(parts: list[PartDifference], name: str) -> str:
    differences = [getattr(part, name) for part in parts]
    clear = [d for d in differences if d.difference.low > 0 or d.difference.high < 0]
    called = sum(d.verdict in (BETTER, WORSE) for d in clear)
    return (
        f"{len(parts)} parts: without any real difference, about {(1 - LEVEL) * len(parts):.1f} of the intervals would exclude "
        f"zero by chance. {len(clear)} exclude it, and {called} of them count as a difference: that takes a p-value under "
        f"{1 - LEVEL:.2f} after Benjamini and Hochberg's adjustment for many parts, and {MIN_QUERIES} queries with different "
        "verdicts."
    )


def _print_apart(console: Console, comparison: Comparison) -> None:
    """Results that both judges have but that cannot be paired, because the runs do not store the verdicts behind them."""
    first, second = (found_apart(side.run.judges[side.judge]) for side in (comparison.baseline, comparison.compared))
    if common := [name for name in first if name in second]:
        table = Table(title="measured by each run itself (not paired)", title_justify="left")
        table.add_column("finding", overflow="fold")
        for side in (comparison.baseline, comparison.compared):
            table.add_column(text(side.name), justify="right", overflow="fold")
        for name in common:
            table.add_row(text(name), text(first[name]), text(second[name]))
        console.print(table)


def _print_changes(console: Console, comparison: Comparison, rows: list[dict[str, Any]], shown: int) -> None:
    total = len(comparison.baseline.predictions)
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in counted(rows).items() if count)
    console.print(text(f"{len(rows):,} of {total:,} verdicts differ{': ' * bool(rows)}{kinds}", limit=1000), soft_wrap=True)
    for way, found in examples(rows, shown).items():
        for row in found:
            verdicts = f"label {row['label']}: {_verdict_text(row, 'baseline')} -> {_verdict_text(row, 'compared')}"
            console.print(text(f"  {way}  ", STYLES[way]) + text(f"{verdicts}  {row['pair_id']}"), soft_wrap=True)
            console.print(text(f"    query: {row['query']}"), soft_wrap=True)
            if row["title"]:
                console.print(text(f"    title: {row['title']}"), soft_wrap=True)


def _verdict_text(row: dict[str, Any], who: str) -> str:
    confidence = row[f"{who}_confidence"]
    return row[f"{who}_verdict"] + ("" if confidence is None else f" ({confidence:.2f})")


def to_json(sides: Sides, comparisons: list[Comparison], changed: list[list[dict]], options: Options) -> dict[str, Any]:
    """All results of the comparison."""
    run = sides.first.run
    return {
        "lore": "compare",
        "baseline": _who(sides.first),
        "rubric": run.rubric,
        "pairs": len(sides.first.predictions),
        "queries": int(sides.groups.max()) + 1,
        "samples": options.samples,
        "seed": options.seed,
        "prior": run.measured.prior if options.prior else None,
        "label_weights": sides.weights is not None,
        "notes": sides.notes,
        "comparisons": [
            {
                "compared": _who(comparison.compared),
                "metrics": {name: value.to_json() for name, value in comparison.metrics.items()},
                "by_label": {name: part.to_json() for name, part in comparison.tiers.items()},
                "slices": {name: part.to_json() for name, part in comparison.slices.items()},
                "apart": {
                    who: {name: value.to_json() for name, value in found_apart(side.run.judges[side.judge]).items()}
                    for who, side in (("baseline", comparison.baseline), ("compared", comparison.compared))
                },
                "changes": counted(rows),
                "changed_pairs": rows,
            }
            for comparison, rows in zip(comparisons, changed, strict=True)
        ],
    }


def _who(side: Side) -> dict[str, Any]:
    return {"name": side.name, "run": side.run.name, "judge": side.judge, "path": str(side.run.folder or side.run.predictions)}


def _write(path: Path, content: str) -> None:
    with written_whole(path) as file:
        file.write(content.encode("utf-8", errors="backslashreplace"))


def _changed_text(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix.lower() == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    columns = list(rows[0]) if rows else CSV_MARK.rstrip(",").split(",")
    plain = [row | {name: "; ".join(row[name]) for name in ("changes", "slices")} for row in rows]
    return csv_text(columns, [[row[name] for name in columns] for row in plain])
