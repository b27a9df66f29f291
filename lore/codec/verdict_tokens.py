"""Finds the position in an answer that decides the tier, and the tokens whose logits give the tier probabilities."""

import os
from dataclasses import dataclass
from typing import Any

from lore.codec.chat_template import answer_ids
from lore.codec.sanitize import clean_rationale
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError

ADVICE = "Use short ASCII tier ids that the tokenizer knows and that differ in one character, such as L1, L2, L3."
_REASONED = "<reason>why</reason>\n"


@dataclass(frozen=True)
class VerdictTokens:
    """After `prefix_text`, the next token is one of `tier_ids` (rubric order)."""

    prefix_text: str
    tier_ids: tuple[int, ...]


def verdict_tokens(processor: Any, rubric: Rubric) -> VerdictTokens:
    """The common prefix of `<verdict>{tier}</verdict>` over all tiers, and the next token of each tier, behind a prompt.

    processor: a tokenizer or a multimodal processor with its chat template. The next token may be the whole tier id, its last
    character, or the tier id with the preceding bracket. Raises LoreError if no single position distinguishes all tiers, or if
    a preceding rationale changes the tier tokens.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    answers = [f"<verdict>{tier_id}</verdict>" for tier_id in rubric.tier_ids]
    ids, shared = _common_prefix(processor, answers)
    first = _tokens_at(shared, ids)
    if len(set(first)) < len(first) or None in first or tokenizer.unk_token_id in first:
        rows = "; ".join(" ".join(map(repr, tokenizer.convert_ids_to_tokens(row))) for row in ids[:4])
        raise LoreError(
            f"With this tokenizer no single token distinguishes the tiers of rubric {rubric.name} "
            f"({', '.join(rubric.tier_ids)}), so tier probabilities cannot be read: {rows}. {ADVICE}"
        )
    common = os.path.commonprefix(answers)
    lengths = range(len(common), -1, -1)
    prefix_text = next((common[:n] for n in lengths if answer_ids(processor, common[:n]) == ids[0][:shared]), None)
    if prefix_text is None:
        raise LoreError(
            f"With this tokenizer the tiers of rubric {rubric.name} first differ inside a character or a merged token (after "
            f"{common!r}), so a prompt cannot end right before the tier. {ADVICE}"
        )
    reasoned, start = _common_prefix(processor, [_REASONED + answer for answer in answers])
    begun = answer_ids(processor, _REASONED + prefix_text)
    if _tokens_at(start, reasoned) != first or begun != reasoned[0][:start]:
        raise LoreError(
            f"With this tokenizer the tiers of rubric {rubric.name} have different tokens after a rationale than without "
            f"one, so one set of tier tokens cannot serve both. {ADVICE}"
        )
    return VerdictTokens(prefix_text, tuple(first))


def with_verdict_prefix(
    messages: list, fmt: Any, tokens: VerdictTokens | None, rationale: str | None = None
) -> list:
    """`messages` with an answer prefix that ends right before the tier.

    `rationale` is used only with reason_first, where it precedes the verdict. Without `tokens` (an endpoint with an unknown
    tokenizer) the prefix ends with `<verdict>`.
    """
    text = tokens.prefix_text if tokens else "<verdict>"
    rationale = clean_rationale(rationale or "")
    if rationale and fmt.order == "reason_first":
        text = f"<reason>{rationale}</reason>\n{text}"
    in_parts = isinstance(messages[-1]["content"], list)
    return [*messages, {"role": "assistant", "content": [{"type": "text", "text": text}] if in_parts else text}]


def _common_prefix(processor: Any, answers: list[str]) -> tuple[list[list[int]], int]:
    """Token ids of every answer behind a prompt, and the length of their common prefix."""
    ids = [answer_ids(processor, answer) for answer in answers]
    shared = 0
    while all(len(row) > shared for row in ids) and len({row[shared] for row in ids}) == 1:
        shared += 1
    return ids, shared


def _tokens_at(position: int, ids: list[list[int]]) -> list[int | None]:
    return [row[position] if len(row) > position else None for row in ids]
