"""The Verdict row: what one judge says about one pair. Evaluation, cache, labels and review all write and read this row."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pyarrow as pa

Source = Literal["judge", "student", "cache"]


@dataclass(slots=True)
class Verdict:
    """One judge's answer to one pair. tier is None when the answer was a format failure; `failure` then says which."""

    pair_id: str
    tier: str | None
    probabilities: list[float] | None = None
    """[K], one per tier in rubric order."""
    rationale: str = ""
    mismatch: str | None = None
    rules: list[str] = field(default_factory=list)
    failure: str | None = None
    text: str | None = None
    """The answer as it was written; None when only scores were asked for."""
    photo: str = "none"
    """seen, hidden (the judge was not shown it), failed (it could not be read or the model's processor refused it; judged
    as text) or none (the pair has no photo)."""
    judge_id: str | None = None
    """Which weights, adapter, rubric and renderer answered, see `lore.judge.card.judge_id`; None where it is not known."""
    tokens: int | None = None
    """Decoded tokens of the answer; None when only scores were asked for."""
    source: Source = "judge"
    seconds: float | None = None
    """Time that the pair took; None unless it was asked for, since it differs from run to run."""


def verdict_schema(tier_ids: list[str]) -> pa.Schema:
    """Columns of a table of verdicts: the probabilities are one column `p_<tier>` per tier."""
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
        ]
    )


AS_THEY_ARE = tuple(name for name in Verdict.__slots__ if name != "probabilities")


def to_row(verdict: Verdict, tier_ids: list[str]) -> dict[str, Any]:
    """The verdict as a row of `verdict_schema`."""
    probabilities = verdict.probabilities or [None] * len(tier_ids)
    row = {name: getattr(verdict, name) for name in AS_THEY_ARE}
    return row | {f"p_{tier}": value for tier, value in zip(tier_ids, probabilities, strict=True)}


def from_row(row: dict[str, Any], tier_ids: list[str]) -> Verdict:
    """The verdict of a row. All columns but pair_id and tier may be absent: other programs and older versions write fewer."""
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
        judge_id=_text(row.get("judge_id")),
        tokens=tokens if isinstance(tokens := row.get("tokens"), int) else None,
        source=source if (source := row.get("source")) in get_args(Source) else "judge",
        seconds=seconds if isinstance(seconds := row.get("seconds"), int | float) else None,
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _rules(value: object) -> list[str]:
    """A list, or one text with spaces between the rules."""
    return [str(rule) for rule in value] if isinstance(value, list) else str(value or "").split()
