"""A trace: a teacher's answers about one pair, step by step, their merged result, and the checks.

Every kind of teacher answers in plain JSON: `Wish` (a demand of the query), `Evidence` (what the item offers for it), `Ruling`
(the rule that applies). Merged, they are the demands of a Pair, and the codec renders them as a rationale.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from lore.codec.reasoning import after_reasoning
from lore.data.pair import PAIR_SCHEMA
from lore.engines.engine import RequestRefused
from lore.judge.chunk_store import ChunkStore
from lore.rubric.demand import Demand
from lore.support.text import encodable

STEPS = ("knowledge", "caption", "multimodal", "rules", "critic")
MAX_DEMANDS = 16
MAX_TEXT = 400  # characters of one field of a step's answer
MAX_ANSWER = 100_000  # characters of an answer that is searched for JSON
MAX_BRACES = 256  # that begin no JSON object; each of them may be read to the end of the answer


@dataclass(slots=True)
class Wish:
    """One demand of a query. words: the exact words of the query; empty for an implied demand. wanted: the value in short,
    `samovar = kettle` for resolved words, `not red` for an exclusion.
    """

    dimension: str
    words: str
    wanted: str


@dataclass(slots=True)
class Evidence:
    """What the item offers for the demand at the same index. source: one of SOURCES."""

    found: str
    source: str


@dataclass(slots=True)
class Ruling:
    """The rule that applies to a demand and its evidence, and its tier. rule is empty if the rubric has no rules."""

    rule: str
    tier: str


@dataclass(slots=True)
class Reply:
    """One step's answer of a teacher, and its cost. key: 16 hex digits over step, prompt, teacher and draw."""

    step: str
    key: str
    prompt_hash: str
    teacher: str
    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    finish_reason: str = "stop"
    """`length` if the answer was cut at max_tokens."""

    @property
    def is_cut(self) -> bool:
        """Whether the teacher did not finish: it reached max_tokens, or its reasoning does not end."""
        return self.finish_reason == "length" or after_reasoning(self.text) is None

    def at_no_cost(self) -> "Reply":
        """A copy without cost, for a pair that reuses another pair's answer."""
        return replace(self, prompt_tokens=0, completion_tokens=0, usd=0.0)


@dataclass(slots=True)
class Check:
    """One check, and why it failed; `why` is empty if it passed."""

    name: str
    why: str = ""


REFUSED, UNREADABLE = "refused", "unreadable"
"""Names of the failure of an attempt that ended early: a step got no answer, or one that could not be parsed."""


def failure_of(step: str, error: Exception) -> str:
    """Why an attempt ended at a step: `rules: no JSON object ...`, or `rules: refused: <the server's words>`."""
    return f"{step}: {REFUSED}: {error.words}" if isinstance(error, RequestRefused) else f"{step}: {error}"


def refusal(failure: str) -> str:
    """The step and the server's words of a refused request; empty for every other failure of a trace."""
    step, _, words = failure.partition(": ")
    return f"{step}: {words.removeprefix(f'{REFUSED}: ')}" if words.startswith(f"{REFUSED}: ") else ""


def failed_checks(failure: str, checks: list[Check]) -> list[str]:
    """Names of the checks that an attempt failed; `refused` or `unreadable` if a step failed."""
    if failure:
        return [REFUSED if refusal(failure) else UNREADABLE]
    return [check.name for check in checks if check.why]


@dataclass(slots=True)
class Draft:
    """One attempt at a pair. draw: number of the sample; hinted: the teacher saw the human label.

    failure: why a step's answer is missing or could not be parsed, which ends the attempt. verdicts: every tier that the last
    step's text names as its verdict. hopeless: another attempt would end in the same way. unanswered: the failure is that
    there is no whole answer, so it counts for section `unanswered` of the recipe.
    """

    draw: int = 0
    hinted: bool = False
    wishes: list[Wish] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    rulings: list[Ruling] = field(default_factory=list)
    caption: str | None = None
    facts: list[str] = field(default_factory=list)
    tier: str | None = None
    verdicts: list[str] = field(default_factory=list)
    demands: list[Demand] = field(default_factory=list)
    rationale: str = ""
    failure: str = ""
    hopeless: bool = False
    unanswered: bool = False
    replies: list[Reply] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> list[str]:
        return failed_checks(self.failure, self.checks)


@dataclass(slots=True)
class Attempt:
    """Summary of one attempt."""

    draw: int
    hinted: bool
    tier: str | None
    failed: list[str]


@dataclass(slots=True)
class Trace:
    """The result of one pair: the accepted attempt, or the best rejected one. One row of traces/part-*.parquet."""

    pair_id: str
    query: str
    title: str
    image: str | None
    """Path of the photo, or a note that its bytes are in the pairs file."""
    label: str
    slices: list[str]
    accepted: bool
    tier: str | None
    hinted: bool
    rationale: str
    mismatch: str | None
    rules: list[str]
    demands: list[Demand]
    words: list[str]
    """The query's words for each demand."""
    caption: str | None
    facts: list[str]
    """Evidence that the teacher saw; judges never see it."""
    failure: str
    checks: list[Check]
    attempts: list[Attempt]
    replies: list[Reply]

    @property
    def failed(self) -> list[str]:
        """Failed checks of the kept attempt."""
        return failed_checks(self.failure, self.checks)

    def row(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> "Trace":
        lists = {"demands": Demand, "checks": Check, "attempts": Attempt, "replies": Reply}
        row = {**row, **{key: [kind(**item) for item in row[key]] for key, kind in lists.items()}}
        for reply in row["replies"]:
            reply.finish_reason = reply.finish_reason or "stop"  # null in a part that an older version wrote
        return cls(**row)


def _struct(**fields: pa.DataType) -> pa.DataType:
    return pa.list_(pa.struct(list(fields.items())))


_TEXT, _TEXTS = pa.string(), pa.list_(pa.string())
_REPLY = dict.fromkeys(("step", "key", "prompt_hash", "teacher", "text"), _TEXT) | {
    "prompt_tokens": pa.int64(),
    "completion_tokens": pa.int64(),
    "usd": pa.float64(),
    "finish_reason": _TEXT,
}
TRACE_SCHEMA = pa.schema(
    [
        *[(name, _TEXT) for name in ("pair_id", "query", "title", "image", "label")],
        ("slices", _TEXTS),
        ("accepted", pa.bool_()),
        ("tier", _TEXT),
        ("hinted", pa.bool_()),
        ("rationale", _TEXT),
        ("mismatch", _TEXT),
        ("rules", _TEXTS),
        PAIR_SCHEMA.field("demands"),
        ("words", _TEXTS),
        ("caption", _TEXT),
        ("facts", _TEXTS),
        ("failure", _TEXT),
        ("checks", _struct(name=_TEXT, why=_TEXT)),
        ("attempts", _struct(draw=pa.int32(), hinted=pa.bool_(), tier=_TEXT, failed=_TEXTS)),
        ("replies", _struct(**_REPLY)),
    ]
)


def trace_store(run: Path, stamp: str | None = None) -> ChunkStore:
    """The traces of a run: a part for each chunk of pairs, written whole when its last pair is done. stamp: of the prompts,
    checks and pairs that a part has to be made by; None: parts are read whatever made them.
    """
    repair = "run the recipe again: answers are not asked twice"
    return ChunkStore(run / "traces", TRACE_SCHEMA, stamp, holds="traces", repair=repair)


def read_traces(store: ChunkStore, number: int) -> Iterator[Trace]:
    """The traces of a part in the order of their pairs, a batch in memory at a time."""
    for batch in store.batches(number, TRACE_SCHEMA.names):
        for row in batch.to_pylist():
            yield Trace.of_row(row)


def refused_places(store: ChunkStore, number: int) -> list[int]:
    """Places in a part of the rejected pairs with a refused attempt: the next start asks them again."""
    rows = [row for batch in store.batches(number, ["accepted", "attempts"]) for row in batch.to_pylist()]
    refused = [any(REFUSED in attempt["failed"] for attempt in row["attempts"]) for row in rows]
    return [at for at, row in enumerate(rows) if refused[at] and not row["accepted"]]


class Unreadable(ValueError):
    """A step's answer in a wrong form. The message is stored in the trace."""


class AnswerCut(Unreadable):
    """A step's answer that ends at max_tokens. Nothing in it is read: its last object may be a draft inside the reasoning."""


def whole_answer(reply: Reply) -> str:
    """The text of a reply that the teacher finished. Raises AnswerCut."""
    if reply.finish_reason == "length":
        raise AnswerCut(f"the answer was cut at max_tokens, after {reply.completion_tokens:,} tokens: {reply.text[:120]!r}")
    return reply.text


def spoken(text: str) -> str:
    """An answer without its reasoning. Raises AnswerCut if the reasoning does not end."""
    rest = after_reasoning(text)
    if rest is None:
        raise AnswerCut(f"the reasoning does not end, so there is no answer: {text[:120]!r}")
    return rest


def json_objects(text: str) -> list[dict[str, Any]]:
    """Every standalone JSON object in a text, in order. Reasoning and code fences around them are skipped. Raises AnswerCut, and
    Unreadable for a text with many braces that begin none.
    """
    found, at, decoder, wrong = [], 0, json.JSONDecoder(), 0
    text = spoken(text)
    while (start := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, start)
            found.append(value)
        except (ValueError, RecursionError):
            at, wrong = start + 1, wrong + 1
            if wrong > MAX_BRACES:
                raise Unreadable(f"over {MAX_BRACES} braces that begin no JSON object: {text[:120]!r}") from None
    return found


def one_object(text: str, key: str) -> dict[str, Any]:
    """The last JSON object with the key `key`. Raises Unreadable if there is none."""
    if len(text) > MAX_ANSWER:
        raise Unreadable(f"an answer of {len(text):,} characters, more than {MAX_ANSWER:,}")
    found = [value for value in json_objects(text) if key in value]
    if not found:
        raise Unreadable(f"no JSON object with {key!r} in {text[:120]!r}")
    return found[-1]


def rows_of(value: dict[str, Any], key: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The list `value[key]` as rows of short one-line texts. Raises Unreadable for any other form."""
    rows = value[key]
    if not isinstance(rows, list) or len(rows) > MAX_DEMANDS:
        raise Unreadable(
            f"{key!r} is {type(rows).__name__} of {len(rows) if isinstance(rows, list) else 0}, not 1 to {MAX_DEMANDS}"
        )
    out = []
    for row in rows:
        if not isinstance(row, dict) or any(not isinstance(row.get(name), str | int | float | None) for name in columns):
            raise Unreadable(f"{key!r} holds {str(row)[:80]!r}, not an object with {', '.join(columns)}")
        out.append({name: _short_line(row.get(name)) for name in columns})
    return out


def _short_line(value: str | int | float | None) -> str:
    return " ".join(encodable("" if value is None else str(value)).split())[:MAX_TEXT]
