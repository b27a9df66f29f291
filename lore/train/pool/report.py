"""The report of a pool, on the terminal and in pool.md: pass rates by tier, confidence, and example pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lore.codec.markdown import markdown_text
from lore.support.console import Console, Table

EXAMPLES = 5
SHOWN_CHARACTERS = 400
RATES = ("0", "≤.25", "≤.5", "≤.75", "<1", "1")
CONFIDENCE = (0.0, 0.5, 0.7, 0.9, 0.99, 0.999, 1.0)
Rows = list[list[str]]


def tier_rows(table: pa.Table, tiers: list[str]) -> Rows:
    """Per labeled tier and in total: pairs, greedy accuracy, mean pass rate, share with any correct sample, then pairs by pass
    rate."""
    label_N = np.array(table["label"].to_pylist())
    rate_N, agrees_N = table["pass_rate"].to_numpy(), table["agrees"].to_numpy()
    rows = []
    for name, mask in [*((tier, label_N == tier) for tier in tiers), ("all", np.ones(len(table), bool))]:
        if not mask.any():
            continue
        rates = rate_N[mask]
        bins = np.where(rates == 1, 5, np.where(rates == 0, 0, np.minimum(np.ceil(rates * 4), 4))).astype(int)
        counts = [f"{(bins == index).sum():,}" for index in range(len(RATES))]
        rows.append([name, f"{mask.sum():,}", f"{agrees_N[mask].mean():.1%}", f"{rates.mean():.1%}", f"{(rates > 0).mean():.0%}"])
        rows[-1] += counts
    return rows


def confidence_rows(table: pa.Table) -> Rows:
    """Per bin of the largest tier probability: pairs, greedy accuracy, mean pass rate."""
    confidence_N = table["confidence"].to_numpy(zero_copy_only=False).astype(float)
    rate_N, agrees_N = table["pass_rate"].to_numpy(), table["agrees"].to_numpy()
    rows = []
    for low, high in zip(CONFIDENCE, CONFIDENCE[1:], strict=False):
        last = high == CONFIDENCE[-1]
        mask = (confidence_N >= low) & ((confidence_N <= high + 1e-9) if last else (confidence_N < high))
        if mask.any():
            share = [f"{agrees_N[mask].mean():.1%}", f"{rate_N[mask].mean():.1%}"]
            rows.append([f"{low:g} to {high:g}", f"{mask.sum():,}", *share])
    if (none := np.isnan(confidence_N)).any():
        rows.append(["no readable answer", f"{none.sum():,}", "0.0%", f"{rate_N[none].mean():.1%}"])
    return rows


def outcome_rows(table: pa.Table) -> Rows:
    """Counts of pairs by outcome, which show how many pairs can provide a training signal."""
    rate_N, total = table["pass_rate"].to_numpy(), len(table)
    counts = {
        "greedy answer correct": int(table["agrees"].to_numpy().sum()),
        "greedy answer incorrect": total - int(table["agrees"].to_numpy().sum()),
        "greedy answer unreadable": table["tier"].null_count,
        "all samples correct (zero advantage)": int((rate_N == 1).sum()),
        "all samples incorrect (zero advantage)": int((rate_N == 0).sum()),
        "correct and incorrect samples": int(((rate_N > 0) & (rate_N < 1)).sum()),
    }
    return [[name, f"{count:,}", f"{count / total:.1%}"] for name, count in counts.items()]


TABLES = (
    ("pass rate by labeled tier", ("label", "pairs", "greedy", "pass@1", "any", *RATES)),
    ("confidence", ("largest probability", "pairs", "greedy", "pass@1")),
    ("outcomes", ("", "pairs", "share")),
)


def _tables(table: pa.Table, tiers: list[str]) -> list[tuple[str, tuple[str, ...], Rows]]:
    found = (tier_rows(table, tiers), confidence_rows(table), outcome_rows(table))
    return [(title, columns, rows) for (title, columns), rows in zip(TABLES, found, strict=True)]


def print_report(table: pa.Table, tiers: list[str]) -> None:
    """Prints the tables."""
    console = Console()
    for title, columns, rows in _tables(table, tiers):
        shown = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            shown.add_column(column, justify="right" if index else "left")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)


def example_rows(table: pa.Table) -> dict[str, list[int]]:
    """Row numbers by kind of example, the most informative rows first."""
    rate_N, agreement_N = table["pass_rate"].to_numpy(), table["sample_agreement"].to_numpy()
    confidence_N = np.nan_to_num(table["confidence"].to_numpy(zero_copy_only=False).astype(float))
    solvable = np.flatnonzero((rate_N > 0) & (rate_N < 1))
    wrong = np.flatnonzero(rate_N == 0)
    split = np.flatnonzero(agreement_N < 1)
    return {
        "hardest solvable pairs (smallest pass rate above 0)": solvable[np.argsort(rate_N[solvable], kind="stable")],
        "all samples incorrect (most confident first)": wrong[np.argsort(-confidence_N[wrong], kind="stable")],
        "samples disagree (least agreement first)": split[np.argsort(agreement_N[split], kind="stable")],
    }


def report_markdown(path: Path, table: pa.Table, tiers: list[str]) -> str:
    """The text of pool.md: tables and examples. path: pool.parquet; table: its columns without the samples."""
    lines = ["# Pool", "", f"{len(table):,} pairs, each with {_samples_of(path)} sampled answers.", ""]
    for title, columns, rows in _tables(table, tiers):
        lines += [f"## {title.capitalize()}", "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    kinds = {title: list(map(int, rows[:EXAMPLES])) for title, rows in example_rows(table).items()}
    read = _rows(path, sorted({number for rows in kinds.values() for number in rows}))
    for title, numbers in kinds.items():
        lines += [f"## {title[0].upper()}{title[1:]}", ""]
        lines += [line for number in numbers for line in _example(read[number])] or ["None.", ""]
    return "\n".join(lines)


def _samples_of(path: Path) -> int:
    with pq.ParquetFile(path) as file:
        return len(next(file.iter_batches(1, columns=["samples"])).column(0)[0])


def _rows(path: Path, numbers: list[int]) -> dict[int, dict[str, Any]]:
    """These rows of the pool by number, read batch by batch."""
    found, start = {}, 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1024):
            inside = [number for number in numbers if start <= number < start + len(batch)]
            places = pa.array([number - start for number in inside], pa.int64())  # typed: a batch may hold none of the rows
            for number, row in zip(inside, batch.take(places).to_pylist(), strict=True):
                found[number] = row
            start += len(batch)
    return found


def _example(row: dict[str, Any]) -> list[str]:
    drawn: dict[str, list[dict[str, Any]]] = {}
    for sample in row["samples"]:
        drawn.setdefault(sample["tier"] or "unreadable", []).append(sample)
    confidence = "none" if row["confidence"] is None else f"{row['confidence']:.2f}"
    head = f"label {row['label']}, greedy {row['tier'] or 'unreadable'}, confidence {confidence}, pass rate {row['pass_rate']:g}"
    lines = [f"- **{markdown_text(row['query'][:SHOWN_CHARACTERS])}** ({markdown_text(row['pair_id'])}): {head}"]
    for tier, samples in sorted(drawn.items(), key=lambda item: -len(item[1])):
        lines.append(f"  - {tier}, {len(samples)} times: {markdown_text(samples[0]['text'][:SHOWN_CHARACTERS])}")
    return [*lines, ""]
