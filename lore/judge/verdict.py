"""The Verdict row: one judge's answer to one pair. Evaluation, cache, labels and review all read and write this row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import attrgetter
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from lore.support.text import encodable

Source = Literal["judge", "student", "cache"]
UNSCORED = "scores refused"
"""Begins the detail of a verdict whose answer is written and read, but whose tier probabilities the server refused."""
GUIDED = "read from the tier tokens"
"""Begins the detail of a verdict whose written answer had no readable one, see `lore.judge.ask.judge_chunk`."""


@dataclass(slots=True)
class Verdict:
    """One judge's answer to one pair. For a format failure, tier is None and `failure` has the reason."""

    pair_id: str
    tier: str | None
    probabilities: list[float] | None = None
    """[K], one per tier in rubric order."""
    rationale: str = ""
    mismatch: str | None = None
    rules: list[str] = field(default_factory=list)
    failure: str | None = None
    text: str | None = None
    """The generated answer; None if the judge only scored the tiers."""
    photo: str = "none"
    """seen, hidden (not shown to the judge), failed (unreadable, or rejected by the model's processor; judged as text) or none (the
    pair has no photo)."""
    judge_id: str | None = None
    """Weights, adapter, rubric and renderer that answered, see `lore.judge.card.judge_id`; None if unknown."""
    tokens: int | None = None
    """Generated tokens; None if the judge only scored the tiers."""
    source: Source = "judge"
    seconds: float | None = None
    """Seconds spent on the pair; None by default, since it differs from run to run."""
    detail: str | None = None
    """Why there is no answer, or no probabilities (`unscored`), in the words of the server or of the renderer; or why the tier was
    read from the tier tokens (`guided`). None otherwise."""


def unscored(verdict: Verdict) -> str | None:
    """Why a written verdict has no tier probabilities, if the server refused them; None for all others."""
    return verdict.detail if verdict.failure is None and (verdict.detail or "").startswith(UNSCORED) else None


def guided(verdict: Verdict) -> str | None:
    """The failure of the written answer, if the tier was read from the tier tokens instead; None for all others."""
    begins, _, failure = (verdict.detail or "").partition(": ")
    return failure if verdict.failure is None and begins == GUIDED else None


def verdict_schema(tier_ids: list[str]) -> pa.Schema:
    """Columns of a table of verdicts, with one probability column `p_<tier>` per tier."""
    return pa.schema(
        [
            ("pair_id", pa.string()),
            ("tier", pa.string()),
            *((f"p_{tier}", pa.float64()) for tier in tier_ids),
            ("failure", pa.string()),
            ("rationale", pa.string()),
            ("mismatch", pa.string()),
            ("rules", pa.list_(pa.string())),
            ("text", pa.string()),
            ("photo", pa.string()),
            ("judge_id", pa.string()),
            ("tokens", pa.int64()),
            ("source", pa.string()),
            ("seconds", pa.float64()),
            ("detail", pa.string()),
        ]
    )


AS_THEY_ARE = tuple(name for name in Verdict.__slots__ if name != "probabilities")


def to_row(verdict: Verdict, tier_ids: list[str]) -> dict[str, Any]:
    """The verdict as a row of `verdict_schema`."""
    probabilities = verdict.probabilities or [None] * len(tier_ids)
    row = {name: getattr(verdict, name) for name in AS_THEY_ARE}
    return row | {f"p_{tier}": value for tier, value in zip(tier_ids, probabilities, strict=True)}


def to_columns(verdicts: Sequence[Verdict], tier_ids: list[str]) -> dict[str, pa.Array]:
    """The verdicts as columns of `verdict_schema`, by name."""
    schema = verdict_schema(tier_ids)
    values = zip(*map(attrgetter(*AS_THEY_ARE), verdicts), strict=True) if verdicts else repeat((), len(AS_THEY_ARE))
    columns = {name: pa.array(column, schema.field(name).type) for name, column in zip(AS_THEY_ARE, values, strict=True)}
    probabilities = pa.array([verdict.probabilities for verdict in verdicts], pa.list_(pa.float64()))
    return columns | {f"p_{tier}": pc.list_element(probabilities, index) for index, tier in enumerate(tier_ids)}


def from_row(row: dict[str, Any], tier_ids: list[str]) -> Verdict:
    """The verdict of a row. All columns except pair_id and tier may be absent: other programs and older versions write fewer."""
    probabilities = [row.get(f"p_{tier}") for tier in tier_ids]
    return Verdict(
        pair_id=row["pair_id"],
        tier=row.get("tier"),
        probabilities=None if None in probabilities else probabilities,
        rationale=_text(row.get("rationale")) or "",
        mismatch=_text(row.get("mismatch")),
        rules=_rules(row.get("rules")),
        failure=_text(row.get("failure")),
        detail=_text(row.get("detail")),
        text=_text(row.get("text")),
        photo=_text(row.get("photo")) or "none",
        judge_id=_text(row.get("judge_id")),
        tokens=_in_range(row.get("tokens"), int, 2**62),
        source=source if isinstance(source := row.get("source"), str) and source in get_args(Source) else "judge",
        seconds=_in_range(row.get("seconds"), int | float, 1e300),
    )


def _text(value: object) -> str | None:
    return None if value is None else encodable(str(value))


def _in_range(value: Any, kind: Any, most: float) -> Any:
    """A number that a table of verdicts can hold; None for everything else."""
    return value if isinstance(value, kind) and not isinstance(value, bool) and 0 <= value <= most else None


def _rules(value: object) -> list[str]:
    """Rules from a list, or from a string with spaces between the rules."""
    return [encodable(str(rule)) for rule in value] if isinstance(value, list) else encodable(str(value or "")).split()
