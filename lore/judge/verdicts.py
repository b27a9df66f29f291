"""Verdicts as data: the row, the shards a judge leaves while it works, predictions.parquet, and predictions made
elsewhere."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError

SHOWN_IDS = 5


@dataclass(slots=True)
class Verdict:
    """One judge's answer to one pair. tier is None when the answer was a format failure; `failure` then says which."""

    pair_id: str
    tier: str | None
    probabilities: list[float] | None = None
    rationale: str = ""
    mismatch: str | None = None
    rules: list[str] = field(default_factory=list)
    failure: str | None = None
    text: str | None = None
    """The answer as it was written; None when only scores were asked for."""
    photo: str = "none"
    """seen, hidden (the judge was not shown it), failed (it could not be read or the model's processor refused it; judged
    as text) or none (the pair has no photo)."""


def verdict_fields(tier_ids: list[str]) -> list[tuple[str, pa.DataType]]:
    return [
        ("pair_id", pa.string()),
        ("tier", pa.string()),
        *((f"p_{tier}", pa.float64()) for tier in tier_ids),
        ("failure", pa.string()),
        ("rationale", pa.string()),
        ("mismatch", pa.string()),
        ("rules", pa.list_(pa.string())),
        ("text", pa.string()),
        ("photo", pa.string()),
    ]


def to_row(verdict: Verdict, tier_ids: list[str]) -> dict:
    probabilities = verdict.probabilities or [None] * len(tier_ids)
    row = {
        name: getattr(verdict, name)
        for name in ("pair_id", "tier", "failure", "rationale", "mismatch", "rules", "text", "photo")
    }
    return row | {f"p_{tier}": value for tier, value in zip(tier_ids, probabilities, strict=True)}


def from_row(row: dict, tier_ids: list[str]) -> Verdict:
    probabilities = [row.get(f"p_{tier}") for tier in tier_ids]
    return Verdict(
        pair_id=row["pair_id"],
        tier=row.get("tier"),
        probabilities=None if None in probabilities else probabilities,
        rationale=_text(row.get("rationale")) or "",
        mismatch=_text(row.get("mismatch")),
        rules=_rules(row.get("rules")),
        failure=_text(row.get("failure")),
        text=_text(row.get("text")),
        photo=row.get("photo") or "none",
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _rules(value: object) -> list[str]:
    """A list, or one text with spaces between the rules."""
    return [str(rule) for rule in value] if isinstance(value, list) else str(value or "").split()












def read_predictions(
    path: str | Path,
    rubric: Rubric,
    required: Iterable[str],
    optional: Iterable[str] = (),
    judge: str | None = None,
    *,
    left_out: Iterable[str] = (),
) -> dict[str, Verdict]:
    """Verdicts by pair_id from a parquet, jsonl or csv file with columns pair_id, tier and, where known, p_<tier>.

    Every required id must occur exactly once; the optional ones occur all or not at all; any other id, a doubled id, an
    unknown tier or probabilities that are no distribution are refused with the ids. An empty tier is a format failure
    of that judge. left_out: ids that may occur and are passed over, since a limit of the recipe left them out.
    """
    path = Path(path)
    required, optional = list(required), list(optional)
    passed_over = set(left_out) - set(required) - set(optional)
    rows = [row for row in _select(_rows(path), path, judge) if row["pair_id"] not in passed_over]
    _check_columns(path, {key for row in rows for key in row if isinstance(key, str)}, rubric)
    counts = Counter(row["pair_id"] for row in rows)
    known = set(required) | set(optional)
    problems = {
        "missing": [pair_id for pair_id in required if pair_id not in counts],
        "given more than once": [pair_id for pair_id, times in counts.items() if times > 1],
        "no pair of this test": [pair_id for pair_id in counts if pair_id not in known],
    }
    if any(pair_id in counts for pair_id in optional):
        problems["missing (of the calibration split)"] = [pair_id for pair_id in optional if pair_id not in counts]
    verdicts, wrong = (
        {},
        {"with a tier that the rubric does not have": [], "with probabilities that are no distribution": []},
    )
    for row in rows:
        try:
            row["tier"] = None if row.get("tier") in (None, "") else rubric.tier_of(row["tier"])
        except LoreError:
            wrong["with a tier that the rubric does not have"].append(f"{row['pair_id']} ({str(row['tier'])[:40]!r})")
            continue
        verdict = from_row(row, rubric.tier_ids)
        if verdict.tier is None:
            verdict.failure = verdict.failure or "no_verdict"
        if verdict.probabilities is not None and not _is_distribution(verdict.probabilities):
            wrong["with probabilities that are no distribution"].append(verdict.pair_id)
        verdicts[verdict.pair_id] = verdict
    with_probabilities = [v.pair_id for v in verdicts.values() if v.tier is not None and v.probabilities is not None]
    without = [v.pair_id for v in verdicts.values() if v.tier is not None and v.probabilities is None]
    if with_probabilities and without:
        wrong["without probabilities while others have them"] = without
    refuse(path, problems | wrong)
    return verdicts


def _check_columns(path: Path, columns: set[str], rubric: Rubric) -> None:
    """Raises LoreError for columns that look like probabilities of the tiers and would be passed over in silence."""
    expected = {f"p_{tier}" for tier in rubric.tier_ids}
    if any(name.casefold() in {wanted.casefold() for wanted in expected} for name in columns) and not expected <= columns:
        found = ", ".join(sorted(name for name in columns if name.startswith(("p_", "P_"))))
        raise LoreError(
            f"predictions file {path} has the columns {found}; expected {', '.join(sorted(expected))}, or none of them: with a "
            "part of the probabilities nothing is known of a verdict's confidence."
        )


def refuse(path: Path, problems: dict[str, list[str]]) -> None:
    """Raises LoreError when a list of pair ids is not empty."""
    lines = []
    for what, ids in problems.items():
        if ids:
            shown = ", ".join(str(pair_id)[:80] for pair_id in ids[:SHOWN_IDS])
            lines.append(
                f"  {len(ids)} pair id{'s' * (len(ids) > 1)} {what}: {shown}{', …' if len(ids) > SHOWN_IDS else ''}"
            )
    if lines:
        raise LoreError(
            f"{path} does not fit the tested pairs, and nothing is scored on a part of them:\n"
            + "\n".join(lines)
            + "\n"
            "Write one row per tested pair, keyed by its pair_id."
        )


def _is_distribution(probabilities: list[float]) -> bool:
    numbers = all(isinstance(p, int | float) and math.isfinite(p) and p >= 0 for p in probabilities)
    return numbers and abs(sum(probabilities) - 1) < 1e-3


def _rows(path: Path) -> list[dict]:
    if not path.is_file():
        raise LoreError(
            f"predictions file {path} does not exist. Correct judges.<name>.predictions, or run what writes it first."
        )
    try:
        columns, rows = _table(path)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise LoreError(f"predictions file {path} cannot be read, and nothing is scored on a part of it: {error}") from error
    if absent := [name for name in ("pair_id", "tier") if name not in columns]:
        found = ", ".join(sorted(map(str, columns))) or "nothing"
        raise LoreError(f"predictions file {path} has no column {' and no '.join(absent)}; found {found}")
    for row in rows:
        row["pair_id"] = str(row.get("pair_id"))
    return rows


def _table(path: Path) -> tuple[set[str], list[dict]]:
    """Names of the columns, also where there is no row, and the rows."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return set(table.column_names), table.to_pylist()
    if path.suffix in (".jsonl", ".ndjson"):
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        rows = [_parsed(path, number, _json_row, line) for number, line in enumerate(lines, 1) if line.strip()]
        return {key for row in rows for key in row}, rows
    if path.suffix in (".csv", ".tsv"):
        text = path.read_text(encoding="utf-8-sig")
        csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # an answer may be longer than 128 KB
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
        rows = [_parsed(path, reader.line_num, _csv_row, row) for row in reader]
        return set(reader.fieldnames or ()), rows
    raise LoreError(f"predictions file {path}: found {path.suffix or 'no extension'}, expected .parquet, .jsonl, .csv or .tsv")


def _parsed(path: Path, line: int, parse, raw) -> dict:
    try:
        return parse(raw)
    except ValueError as error:
        raise LoreError(
            f"predictions file {path}, line {line}: {error}. Nothing is scored while a row cannot be read."
        ) from error


def _json_row(line: str) -> dict:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"found {type(row).__name__}, expected an object with pair_id and tier")
    return row


def _csv_row(row: dict) -> dict:
    numbers = {key: float(value) if value else None for key, value in row.items() if key and key.startswith("p_")}
    return row | numbers


def _select(rows: list[dict], path: Path, judge: str | None) -> list[dict]:
    names = sorted({str(row["judge"]) for row in rows if row.get("judge") is not None})
    if judge is None and len(names) > 1:
        raise LoreError(
            f"{path} holds the verdicts of {len(names)} judges ({', '.join(names)}). Choose one with predictions_judge."
        )
    if judge is not None and judge not in names:
        raise LoreError(
            f"{path} has no judge {judge!r}; found {', '.join(names) or 'no column judge'}. Correct predictions_judge."
        )
    return rows if judge is None else [row for row in rows if row.get("judge") == judge]
