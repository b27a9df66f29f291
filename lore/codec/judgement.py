"""Writes and parses a judge's answers, and hashes everything that a judge reads and writes.

Synthesis, SFT, RL, evaluation, labeling and serving all use this module. An answer is

    <reason>colour: red | red (title) | colour-equal L4</reason>
    <verdict>L4</verdict>
    <mismatch>colour</mismatch>      only if a dimension failed
    <rules>colour-equal</rules>      only if the judgement names rules

In answer_first the reason comes last; answer_only has the verdict alone. Parsing is strict: text that is not exactly one
answer is a FormatFailure; the parser never guesses. It does not look up the names inside <mismatch> and <rules> in the
rubric, because a wrong name is a wrong answer, not a format failure.
"""

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from lore.codec.item_text import ItemText
from lore.codec.prompt import PromptFormat, system_text
from lore.codec.reasoning import after_first_reasoning, without_marks
from lore.codec.sanitize import clean_rationale, clean_words, control_strings
from lore.rubric.demand import Demand, written_value
from lore.rubric.rubric import Rubric

CODEC_VERSION = 1


def render_demands(demands: list[Demand], leave_out: Collection[str] = ()) -> str:
    """The short rationale: `colour: azure = blue | green (photo) | colour-other L2; ...`. `read_demands` returns the same demands.

    leave_out: capabilities to omit from the text: knowledge (the meaning of a word), photos (findings from the photo),
    rules (rule and tier of each demand).
    """
    return "; ".join(_demand_text(demand, leave_out) for demand in demands)


def _demand_text(demand: Demand, leave_out: Collection[str]) -> str:
    wanted, found = demand.wanted, demand.found
    if "knowledge" in leave_out:
        wanted, found = unresolved(wanted), unresolved(found)
    parts = [f"{demand.dimension}: {written_value(wanted)}"]
    if demand.source and not (demand.source == "photo" and "photos" in leave_out):
        parts.append(f"{written_value(found)} ({demand.source})")
    ruling = f"{demand.rule} {demand.tier}".strip()
    if ruling and "rules" not in leave_out:
        parts.append(ruling)
    return " | ".join(parts)


def unresolved(text: str) -> str:
    """A value without its resolved meaning: `samovar = kettle` becomes `samovar`."""
    return text.split(" = ")[0]


@dataclass(slots=True)
class Judgement:
    """A verdict with its rationale, mismatch and rules.

    The constructor normalizes the texts to the form that an answer can contain, so rendering and parsing are lossless.
    probabilities: one per tier in rubric order, summing to 1; they are never part of the answer text.
    """

    tier: str
    probabilities: list[float] | None = None
    mismatch: str | None = None
    rules: list[str] = field(default_factory=list)
    rationale: str = ""

    def __post_init__(self):
        self.rationale = clean_rationale(self.rationale or "")
        self.mismatch = without_marks(clean_words(self.mismatch or "")).strip() or None
        self.rules = without_marks(clean_words(" ".join(self.rules or []))).split()


@dataclass(slots=True)
class FormatFailure:
    """A text that is not a valid answer. `reason` is a short code (see `parse`), `text` the full text."""

    reason: str
    text: str


def render_answer(judgement: Judgement, rubric: Rubric, fmt: PromptFormat, *, tokenizer: Any = None) -> str:
    """The answer text that a model is trained on. With `tokenizer`, its control strings are removed from the rationale."""
    rubric.index(judgement.tier)
    verdict = f"<verdict>{judgement.tier}</verdict>"
    if fmt.order == "answer_only":
        return verdict
    blocks = [verdict]
    if judgement.mismatch:
        blocks.append(f"<mismatch>{judgement.mismatch}</mismatch>")
    if judgement.rules:
        blocks.append(f"<rules>{' '.join(judgement.rules)}</rules>")
    rationale = judgement.rationale
    if tokenizer is not None:
        rationale = clean_rationale(rationale, control_strings(tokenizer))
    if rationale:
        blocks.insert(0 if fmt.order == "reason_first" else len(blocks), f"<reason>{rationale}</reason>")
    return "\n".join(blocks)


_ANSWER = re.compile(
    r"\s*<verdict>(?P<tier>[^<>]*)</verdict>\s*"
    r"(?:<mismatch>(?P<mismatch>[^<>]*)</mismatch>\s*)?"
    r"(?:<rules>(?P<rules>[^<>]*)</rules>\s*)?"
)


def parse(text: str, rubric: Rubric, fmt: PromptFormat) -> Judgement | FormatFailure:
    """Parses one answer. Fields that the answer order does not have, or that are absent, are empty.

    Failure reasons: empty, unclosed_think, unclosed_reason, nested_reason, no_verdict, two_verdicts,
    unclosed_verdict, unknown_tier, leading_text, trailing_text, empty_mismatch, empty_rules.
    """
    rest, rationale = text.strip(), ""
    if not rest:
        return FormatFailure("empty", text)
    rest = after_first_reasoning(rest, own="<reason>")
    if rest is None:
        return FormatFailure("unclosed_think", text)
    before, opened, after = rest.partition("<reason>") if fmt.order != "answer_only" else (rest, "", "")
    if opened and (fmt.order == "answer_first" or not before):
        rationale, closed, after = after.partition("</reason>")
        if not closed:
            return FormatFailure("unclosed_reason", text)
        if "<reason>" in rationale:
            return FormatFailure("nested_reason", text)
        if fmt.order == "answer_first" and after.strip():
            return FormatFailure("trailing_text", text)
        rest = before + after
    found = _ANSWER.fullmatch(rest)
    if not found:
        return FormatFailure(_why_not(rest), text)
    if found["tier"] not in rubric.tier_ids:
        return FormatFailure("unknown_tier", text)
    if fmt.order == "answer_only":
        more = found["mismatch"] is not None or found["rules"] is not None
        return FormatFailure("trailing_text", text) if more else Judgement(found["tier"])
    judgement = Judgement(found["tier"], None, found["mismatch"], (found["rules"] or "").split(), rationale)
    if found["mismatch"] is not None and not judgement.mismatch:
        return FormatFailure("empty_mismatch", text)
    if found["rules"] is not None and not judgement.rules:
        return FormatFailure("empty_rules", text)
    return judgement


def _why_not(rest: str) -> str:
    """Failure code for text outside the reasoning that is not exactly one answer."""
    verdicts = rest.count("<verdict>")
    if verdicts != 1:
        return "two_verdicts" if verdicts else "no_verdict"
    before, _, after = rest.partition("<verdict>")
    if "</verdict>" not in after:
        return "unclosed_verdict"
    return "leading_text" if before.strip() else "trailing_text"


_PROBE_ITEM = ItemText("q", "t", ["<brand>b</brand>", "<price>1</price>"], ["k: v", "l: w"], "d")


def renderer_hash(rubric: Rubric, fmt: PromptFormat) -> str:
    """16 hex digits that identify what a model reads and writes: instructions, rubric, item layout, answer layout, codec
    version.

    `photo` and `max_prompt_tokens` are not part of the hash: callers may deliberately ask a judge without the photo or
    with a shorter prompt.
    """
    probe = Judgement(rubric.tier_ids[0], None, "m", ["r", "s"], "why")
    answer = render_answer(probe, rubric, fmt)
    parts = [
        CODEC_VERSION,
        rubric.hash,
        fmt.order,
        system_text(rubric, fmt),
        _PROBE_ITEM.block(True),
        _PROBE_ITEM.block(False),
        answer,
    ]
    if fmt.detail == "retrieved":
        parts.append(["retrieved", fmt.retrieved_rules])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
