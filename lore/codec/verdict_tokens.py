"""Where in an answer the tier is decided: the tokens whose logits give the tier probabilities."""

from dataclasses import dataclass
from typing import Any

from lore.codec.sanitize import clean_rationale
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError

ADVICE = "Use short ASCII tier ids that the tokenizer knows and that differ in one character, such as L1, L2, L3."


@dataclass(frozen=True)
class VerdictTokens:
    """After `prefix_text` (`prefix_ids` when it stands alone) the next token is one of `tier_ids`, in rubric order."""

    prefix_text: str
    prefix_ids: tuple[int, ...]
    tier_ids: tuple[int, ...]


def verdict_tokens(tokenizer: Any, rubric: Rubric) -> VerdictTokens:
    """The shared start of `<verdict>{tier}</verdict>` over all tiers, and each tier's next token.

    That token may be the whole tier, its last character, or the tier with the bracket before it. Raises LoreError when
    no single position tells all tiers apart, or when the tokens are others after a rationale than without one.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    answers = [f"<verdict>{tier_id}</verdict>" for tier_id in rubric.tier_ids]
    ids, shared = _until_parting(answers, tokenizer)
    first = _tokens_at(shared, ids)
    if len(set(first)) < len(first) or None in first or tokenizer.unk_token_id in first:
        rows = "; ".join(" ".join(map(repr, tokenizer.convert_ids_to_tokens(row))) for row in ids[:4])
        raise LoreError(
            f"This tokenizer does not tell the tiers of rubric {rubric.name} ({', '.join(rubric.tier_ids)}) apart by "
            f"one token, so tier probabilities cannot be read: {rows}. {ADVICE}"
        )
    prefix_ids = tuple(ids[0][:shared])
    prefix_text = _text_of(prefix_ids, answers[0], tokenizer)
    again = tuple(_ids(prefix_text, tokenizer))
    if again != prefix_ids or not all(answer.startswith(prefix_text) for answer in answers):
        raise LoreError(
            f"With this tokenizer the tiers of rubric {rubric.name} part inside a character or a merged token (after "
            f"{prefix_text!r}), so no prompt can end right before the tier. {ADVICE}"
        )
    if _tokens_at_parting([f"<reason>why</reason>\n{answer}" for answer in answers], tokenizer) != first:
        raise LoreError(
            f"With this tokenizer the tiers of rubric {rubric.name} have other tokens after a rationale than without, "
            f"so one set of tier tokens cannot serve both. {ADVICE}"
        )
    return VerdictTokens(prefix_text, prefix_ids, tuple(first))


def with_verdict_prefix(
    messages: list, rubric: Rubric, fmt: Any, tokens: VerdictTokens | None, rationale: str | None = None
) -> list:
    """`messages` and the start of an answer, up to where the tier is decided.

    Only reason_first puts `rationale` before the verdict. Without `tokens` (an endpoint that hides its tokenizer) the
    answer stops after `<verdict>`.
    """
    text = tokens.prefix_text if tokens else "<verdict>"
    rationale = clean_rationale(rationale or "")
    if rationale and fmt.order == "reason_first":
        text = f"<reason>{rationale}</reason>\n{text}"
    in_parts = isinstance(messages[-1]["content"], list)
    return [*messages, {"role": "assistant", "content": [{"type": "text", "text": text}] if in_parts else text}]


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _until_parting(texts: list[str], tokenizer: Any) -> tuple[list[list[int]], int]:
    """Token ids of every text, and how many of the first ones all share."""
    ids = [_ids(text, tokenizer) for text in texts]
    shared = 0
    while all(len(row) > shared for row in ids) and len({row[shared] for row in ids}) == 1:
        shared += 1
    return ids, shared


def _tokens_at(position: int, ids: list[list[int]]) -> list[int | None]:
    return [row[position] if len(row) > position else None for row in ids]


def _tokens_at_parting(texts: list[str], tokenizer: Any) -> list[int | None]:
    ids, shared = _until_parting(texts, tokenizer)
    return _tokens_at(shared, ids)


def _text_of(prefix_ids: tuple[int, ...], answer: str, tokenizer: Any) -> str:
    if not prefix_ids:
        return ""
    if tokenizer.is_fast:  # offsets are exact where decoding adds spaces or has lost the case
        offsets = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return answer[: offsets[len(prefix_ids) - 1][1]]
    return tokenizer.decode(list(prefix_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False).lstrip()
