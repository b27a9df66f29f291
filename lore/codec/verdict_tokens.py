"""Finds the position in an answer that decides the tier, and the tokens whose logits give the tier probabilities."""

from dataclasses import dataclass
from typing import Any

from lore.codec.sanitize import clean_rationale
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError

ADVICE = "Use short ASCII tier ids that the tokenizer knows and that differ in one character, such as L1, L2, L3."


@dataclass(frozen=True)
class VerdictTokens:
    """After `prefix_text`, the next token is one of `tier_ids` (rubric order). prefix_ids: tokens of prefix_text by itself."""

    prefix_text: str
    prefix_ids: tuple[int, ...]
    tier_ids: tuple[int, ...]


def verdict_tokens(tokenizer: Any, rubric: Rubric) -> VerdictTokens:
    """The common prefix of `<verdict>{tier}</verdict>` over all tiers, and the next token of each tier.

    That token may be the whole tier id, its last character, or the tier id with the preceding bracket. Raises LoreError
    if no single position distinguishes all tiers, or if a preceding rationale changes the tier tokens.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    answers = [f"<verdict>{tier_id}</verdict>" for tier_id in rubric.tier_ids]
    ids, shared = _common_prefix(answers, tokenizer)
    first = _tokens_at(shared, ids)
    if len(set(first)) < len(first) or None in first or tokenizer.unk_token_id in first:
        rows = "; ".join(" ".join(map(repr, tokenizer.convert_ids_to_tokens(row))) for row in ids[:4])
        raise LoreError(
            f"With this tokenizer no single token distinguishes the tiers of rubric {rubric.name} "
            f"({', '.join(rubric.tier_ids)}), so tier probabilities cannot be read: {rows}. {ADVICE}"
        )
    prefix_ids = tuple(ids[0][:shared])
    prefix_text = _text_of(prefix_ids, answers[0], tokenizer)
    again = tuple(_ids(prefix_text, tokenizer))
    if again != prefix_ids or not all(answer.startswith(prefix_text) for answer in answers):
        raise LoreError(
            f"With this tokenizer the tiers of rubric {rubric.name} first differ inside a character or a merged token (after "
            f"{prefix_text!r}), so a prompt cannot end right before the tier. {ADVICE}"
        )
    if _tokens_after_prefix([f"<reason>why</reason>\n{answer}" for answer in answers], tokenizer) != first:
        raise LoreError(
            f"With this tokenizer the tiers of rubric {rubric.name} have different tokens after a rationale than without "
            f"one, so one set of tier tokens cannot serve both. {ADVICE}"
        )
    return VerdictTokens(prefix_text, prefix_ids, tuple(first))


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


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _common_prefix(texts: list[str], tokenizer: Any) -> tuple[list[list[int]], int]:
    """Token ids of every text, and the length of their common prefix."""
    ids = [_ids(text, tokenizer) for text in texts]
    shared = 0
    while all(len(row) > shared for row in ids) and len({row[shared] for row in ids}) == 1:
        shared += 1
    return ids, shared


def _tokens_at(position: int, ids: list[list[int]]) -> list[int | None]:
    return [row[position] if len(row) > position else None for row in ids]


def _tokens_after_prefix(texts: list[str], tokenizer: Any) -> list[int | None]:
    ids, shared = _common_prefix(texts, tokenizer)
    return _tokens_at(shared, ids)


def _text_of(prefix_ids: tuple[int, ...], answer: str, tokenizer: Any) -> str:
    if not prefix_ids:
        return ""
    if tokenizer.is_fast:  # decoding may add spaces or lose case; offsets are exact
        offsets = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return answer[: offsets[len(prefix_ids) - 1][1]]
    return tokenizer.decode(list(prefix_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False).lstrip()
