"""Checks, before a judge is trained or asked, that one conversation has the same token ids everywhere: in training rows, where
`score` reads the tier, and in the chat template's own conversation."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from lore.codec.chat_template import (
    conversation_ids,
    fold_system,
    folds_system,
    in_parts,
    own_conversation,
    server_options,
    text_after_answer,
    text_ids,
)
from lore.codec.judgement import FormatFailure, Judgement, parse, render_answer
from lore.codec.prompt import PromptFormat, render
from lore.codec.reasoning import after_reasoning
from lore.codec.verdict_tokens import verdict_tokens, with_verdict_prefix
from lore.data.pair import Pair
from lore.engines.chat import prompt_text, stop_ids, turn_end
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError

_PAIR = Pair(pair_id="-", query="a", title="a")
JOINED = "The tokenizer joins the answer with the text around it: use the checkpoint's own tokenizer and template."
REWRITTEN = "The template changes prompt or answer, or writes other text around them: use one that copies both unchanged."


def check_conversation(processor: Any, rubric: Rubric, fmt: PromptFormat, *, written: bool) -> None:
    """Compares the ids of one conversation, for every tier, and reads the answer as an engine does.

    processor: a tokenizer or a multimodal processor with a chat template. written: the judge writes answers; else it only scores
    tiers. Raises LoreError that names the part that differs.
    """
    messages = render(_PAIR, rubric, replace(fmt, photo=False, max_prompt_tokens=2**31), tokenizer=processor)
    prompt, _ = prompt_text(processor, messages)
    prompt_ids, end = text_ids(processor, prompt), turn_end(processor)
    header = prompt.rpartition(str(messages[-1]["content"]).strip())[2]
    if after_reasoning(header) is None:
        raise LoreError(
            f"The chat template opens a reasoning block before the answer ({header!r}) and has no switch that LORE knows, so "
            "the judge's answer would be part of its reasoning.\nUse a template whose finished conversation has no open block."
        )
    verdict = verdict_tokens(processor, rubric)
    for tier_id, token in zip(rubric.tier_ids, verdict.tier_ids, strict=True):
        judgement = Judgement(tier_id, rationale="" if fmt.order == "answer_only" else "why")
        answer = render_answer(judgement, rubric, fmt, tokenizer=processor)
        row, length = conversation_ids(processor, prompt, answer + end)
        if row[:length] != prompt_ids:
            raise _differs(processor, "the prompt that an engine reads", prompt_ids, row[:length], JOINED)
        begun = with_verdict_prefix(messages, fmt, verdict, judgement.rationale)
        read = text_ids(processor, prompt_text(processor, begun)[0])
        if row[: len(read)] != read or row[len(read)] != token:
            raise _differs(processor, f"where `score` reads tier {tier_id}", [*read, token], row[: len(read) + 1], JOINED)
        theirs = text_ids(processor, own_conversation(processor, messages, answer))
        ended = end in text_after_answer(processor)
        mine = row if ended else conversation_ids(processor, prompt, answer)[0]
        if theirs[: len(mine)] != mine:
            raise _differs(processor, "the chat template's own conversation", theirs[: len(mine)], mine, REWRITTEN)
        if not ended and text_after_answer(processor).strip():
            raise LoreError(
                f"The chat template ends an answer with {text_after_answer(processor)!r}, no token of this tokenizer, so "
                f"training would end it with {end!r} and the template otherwise.\nAdd the template's end of turn to the "
                "tokenizer, or use the template that belongs to it."
            )
        if written:
            _check_reading(processor, rubric, fmt, row[length:], judgement)


def _check_reading(processor: Any, rubric: Rubric, fmt: PromptFormat, ids: list[int], expected: Judgement) -> None:
    """Raises LoreError if an answer with the ids of a training row is not read as that answer."""
    tokenizer, stops = getattr(processor, "tokenizer", processor), set(stop_ids(processor, set()))
    kept = ids[: next((place for place, token in enumerate(ids) if token in stops), len(ids))]
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    found = parse(text, rubric, fmt)
    if isinstance(found, FormatFailure) or found.tier != expected.tier:
        why = found.reason if isinstance(found, FormatFailure) else f"tier {found.tier}"
        raise LoreError(
            f"A judge that writes exactly what it was trained on would be read as {text!r} ({why}), not as {expected.tier}, so "
            "every answer would be a format failure.\nCauses: `<verdict>` or the tiers are special tokens, which an answer's text "
            "leaves out; the template writes text of its own around an answer; or the tokenizer does not keep text as it is."
        )


def check_server_template(processor: Any, *, begun: bool) -> None:
    """Raises LoreError if a server that applies the chat template itself would ask a judge with another text than its training.

    A server can be told to switch reasoning off, but not where a prompt ends, nor what day it is. begun: the request holds the
    beginning of the answer, which the server continues; else it writes its generation prompt.
    """
    if told := _server_differs(processor, processor.chat_template, begun):
        raise LoreError(told)


@lru_cache(maxsize=8)
def _server_differs(processor: Any, template: str, begun: bool) -> str | None:
    messages: list[dict] = [{"role": "system", "content": "b"}, {"role": "user", "content": "a"}]
    messages = fold_system(messages) if folds_system(processor) else messages
    messages += [{"role": "assistant", "content": "<verdict>"}] if begun else []
    ours, _ = prompt_text(processor, messages)
    shown = in_parts(messages) if hasattr(processor, "tokenizer") else messages
    how = {"continue_final_message": True} if begun else {"add_generation_prompt": True}
    theirs = processor.apply_chat_template(shown, tokenize=False, **how, **server_options(processor))
    if theirs == ours:
        return None
    same = _common_length(ours, theirs)
    return (
        f"A server that applies this chat template writes {theirs[max(0, same - 20) : same + 60]!r} where the judge was trained on "
        f"{ours[max(0, same - 20) : same + 60]!r}, so it would answer other prompts than in its training.\n"
        "Use vLLM in this process or the transformers engine. Or serve it with a chat template whose generation prompt ends as a "
        "finished conversation does before an answer, without today's date (vllm serve --chat-template), and save the same "
        "template with the tokenizer."
    )


def _common_length(one: Sequence, other: Sequence) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _differs(processor: Any, part: str, found: list[int], expected: list[int], advice: str) -> LoreError:
    tokenizer = getattr(processor, "tokenizer", processor)
    at = _common_length(found, expected)
    near = slice(max(0, at - 3), at + 4)
    return LoreError(
        f"With this tokenizer and chat template, {part} has other tokens than the training rows: "
        f"{tokenizer.convert_ids_to_tokens(found[near])} instead of {tokenizer.convert_ids_to_tokens(expected[near])}, near "
        f"{tokenizer.decode(expected[max(0, at - 12) : at + 4])!r}.\nThe judge would be trained on other tokens than it is asked "
        f"with. {advice}"
    )
