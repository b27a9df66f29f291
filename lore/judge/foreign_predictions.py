"""Reads verdicts of another program or an earlier evaluation from a table, and rejects a table that does not match the test set."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from lore.data.rejected_rows import Rejection
from lore.data.tables.any_table import DELIMITERS, JSONL, suffix_of, table_records
from lore.data.tables.ids import known_as, spreadsheet_hint
from lore.judge.verdict import Verdict, from_row, unscored
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError
from lore.support.progress import track
from lore.support.text import encodable, printable

SHOWN_IDS = 5
NEEDED = ("pair_id", "tier")


def read_predictions(
    path: str | Path,
    rubric: Rubric,
    required: Iterable[str],
    optional: Iterable[str] = (),
    judge: str | None = None,
    *,
    left_out: Iterable[str] = (),
    rows: list[dict[str, Any]] | None = None,
) -> dict[str, Verdict]:
    """Verdicts by pair_id from a parquet, jsonl or csv file with the columns pair_id, tier and optionally p_<tier>.

    required: ids that must occur exactly once. optional: ids that must either all occur or all be absent. left_out: ids that may
    occur and are ignored, because a limit of the recipe excludes them. rows: result of `prediction_rows`, if the file was read
    already. An empty tier counts as a format failure of that judge.

    Raises LoreError with the ids for any other id, a duplicate id, an unknown tier, or probabilities that do not sum to 1.
    """
    path = Path(path)
    required, optional = list(required), list(optional)
    passed_over = set(left_out) - set(required) - set(optional)
    rows = prediction_rows(path) if rows is None else rows
    spelled = known_as([*required, *optional, *passed_over])
    rows = [row | {"pair_id": spelled(row["pair_id"])} for row in _select(rows, path, judge)]
    rows = [row for row in rows if row["pair_id"] not in passed_over]
    _check_columns(path, {key for row in rows for key in row}, rubric)
    counts = Counter(row["pair_id"] for row in rows)
    known = set(required) | set(optional)
    problems = {
        "missing": [pair_id for pair_id in required if pair_id not in counts],
        "given more than once": [pair_id for pair_id, times in counts.items() if times > 1],
        "no pair of this test": [pair_id for pair_id in counts if pair_id not in known],
    }
    if any(pair_id in counts for pair_id in optional):
        problems["missing from the calibration split"] = [pair_id for pair_id in optional if pair_id not in counts]
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
    without = [v.pair_id for v in verdicts.values() if v.tier is not None and v.probabilities is None and not unscored(v)]
    if with_probabilities and without:
        wrong["without probabilities while others have them"] = without
    refuse(path, problems | wrong)
    return verdicts


def _check_columns(path: Path, columns: set[str], rubric: Rubric) -> None:
    """Raises LoreError for columns that look like tier probabilities but would be ignored silently."""
    expected = {f"p_{tier}" for tier in rubric.tier_ids}
    if any(name.casefold() in {wanted.casefold() for wanted in expected} for name in columns) and not expected <= columns:
        found = ", ".join(sorted(name for name in columns if name.startswith(("p_", "P_"))))
        raise LoreError(
            f"predictions file {path} has the columns {found}; expected {', '.join(sorted(expected))}, or none of them. An "
            "incomplete distribution says nothing about confidence: add the missing columns, or remove these."
        )


def refuse(path: Path, problems: dict[str, list[str]]) -> None:
    """Raises LoreError when any list of pair ids is not empty. problems: what is wrong with the ids -> pair ids."""
    lines = []
    for what, ids in problems.items():
        if ids:
            shown = ", ".join(str(pair_id)[:80] for pair_id in ids[:SHOWN_IDS])
            lines.append(
                f"  {len(ids)} pair id{'s' * (len(ids) > 1)} {what}: {shown}{', …' if len(ids) > SHOWN_IDS else ''}"
            )
    if lines:
        hint = spreadsheet_hint(pair_id for ids in problems.values() for pair_id in ids)
        raise LoreError(
            f"{path} does not match the pairs to score, and LORE does not score a part of them:\n"
            + "\n".join(lines)
            + "\n"
            f"Write one row per pair, keyed by its pair_id.{hint}"
        )


def _is_distribution(probabilities: list[float]) -> bool:
    numbers = all(isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 1 + 1e-3 for p in probabilities)
    return numbers and abs(sum(probabilities) - 1) < 1e-3


def prediction_rows(path: Path, named_by: str = "judges.<name>.predictions") -> list[dict[str, Any]]:
    """Rows with at least the columns pair_id (a string) and tier. named_by: the recipe key or option that names the file.

    Raises LoreError for a file that is missing or damaged, lacks a column, or has an unreadable row.
    """
    if not path.is_file():
        raise LoreError(f"predictions file {path} does not exist. Correct {named_by}, or run the program that writes it first.")
    try:
        read = partial(table_records, is_number=lambda name: name.startswith("p_"))
        records = list(track(read(path), f"reading {path.name}"))
        if not records:  # a file with only a header must still have the right columns
            list(read(path, NEEDED))
    except LoreError as error:
        raise LoreError(f"predictions file {path} cannot be read, and LORE does not score a part of it: {error}") from error
    rows = [_cells(path, record) for record in records]
    columns = {key for row in rows for key in row}
    if rows and (absent := [name for name in NEEDED if name not in columns]):
        found = printable(", ".join(sorted(columns)))
        raise LoreError(f"predictions file {path} has no column {' and no '.join(absent)}; found {found}")
    for row in rows:
        row["pair_id"] = str(row.get("pair_id"))
    return rows


def _cells(path: Path, record: tuple[int, dict[str, Any]] | Rejection) -> dict[str, Any]:
    """A row with its probabilities as numbers."""
    unit = "line" if suffix_of(path) in JSONL else "row"
    if isinstance(record, Rejection):
        raise LoreError(
            f"predictions file {path}, {unit} {record.row}: found {record.found}, expected {record.expected}. Correct the "
            "row: LORE does not score a part of a file."
        )
    number, cells = record
    try:
        if suffix_of(path) in DELIMITERS:
            cells |= {name: float(value) if value else None for name, value in cells.items() if name.startswith("p_")}
        cells = {encodable(name): _encodable_cell(value) for name, value in cells.items()}
    except ValueError as error:
        raise LoreError(
            f"predictions file {path}, {unit} {number}: {error}. Correct the row: LORE does not score a part of a file."
        ) from error
    return cells


def _encodable_cell(value: Any) -> Any:
    """A cell without half characters. Raises ValueError for bytes that are not UTF-8, which readers write as surrogates: the file
    has another encoding, so its texts would be wrong."""
    if isinstance(value, list):
        return [_encodable_cell(item) for item in value]
    if not isinstance(value, str):
        return value
    if any("\udc80" <= character <= "\udcff" for character in value):
        value.encode()
    return encodable(value)


def _select(rows: list[dict], path: Path, judge: str | None) -> list[dict]:
    names = sorted({str(row["judge"]) for row in rows if row.get("judge") is not None})
    if judge is None and len(names) > 1:
        raise LoreError(
            f"{path} contains the verdicts of {len(names)} judges ({printable(', '.join(names))}). Choose one with "
            "predictions_judge."
        )
    if judge is not None and judge not in names:
        raise LoreError(
            f"{path} has no judge {judge!r}; found {printable(', '.join(names)) or 'no column judge'}. Correct predictions_judge."
        )
    return rows if judge is None else [row for row in rows if row.get("judge") is not None and str(row["judge"]) == judge]
