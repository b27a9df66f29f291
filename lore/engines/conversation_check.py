"""Checks, before a judge is trained or asked, that one conversation has the same token ids everywhere: in training rows, where
`score` reads the tier, and in the chat template's own conversation."""

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
    text_ids,
)
from lore.codec.judgement import Judgement, render_answer
from lore.codec.prompt import PromptFormat, render
from lore.codec.verdict_tokens import verdict_tokens, with_verdict_prefix
from lore.data.pair import Pair
from lore.engines.chat import prompt_text, turn_end
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError

_PAIR = Pair(pair_id="-", query="a", title="a")


def check_conversation(processor: Any, rubric: Rubric, fmt: PromptFormat) -> None:
    """Compares the ids of one conversation, for every tier. processor: a tokenizer or a multimodal processor with a chat template.

    Raises LoreError that names the part that differs.
    """
    messages = render(_PAIR, rubric, replace(fmt, photo=False, max_prompt_tokens=2**31), tokenizer=processor)
    prompt, _ = prompt_text(processor, messages)
    prompt_ids, end = text_ids(processor, prompt), turn_end(processor)
    verdict = verdict_tokens(processor, rubric)
    for tier_id, token in zip(rubric.tier_ids, verdict.tier_ids, strict=True):
        judgement = Judgement(tier_id, rationale="" if fmt.order == "answer_only" else "why")
        answer = render_answer(judgement, rubric, fmt, tokenizer=processor)
        row, length = conversation_ids(processor, prompt, answer + end)
        if row[:length] != prompt_ids:
            raise _differs(processor, "the prompt that an engine reads", prompt_ids, row[:length])
        begun = with_verdict_prefix(messages, fmt, verdict, judgement.rationale)
        read = text_ids(processor, prompt_text(processor, begun)[0])
        if row[: len(read)] != read or row[len(read)] != token:
            raise _differs(processor, f"where `score` reads tier {tier_id}", [*read, token], row[: len(read) + 1])
        theirs = text_ids(processor, own_conversation(processor, messages, answer))
        mine, _ = conversation_ids(processor, prompt, answer)
        if theirs[: len(mine)] != mine:
            raise _differs(processor, "the chat template's own conversation", theirs[: len(mine)], mine)


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
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return (
        f"A server that applies this chat template writes {theirs[max(0, same - 20) : same + 60]!r} where the judge was trained on "
        f"{ours[max(0, same - 20) : same + 60]!r}, so it would answer other prompts than in its training.\n"
        "Use vLLM in this process or the transformers engine. Or serve it with a chat template whose generation prompt ends as a "
        "finished conversation does before an answer, without today's date (vllm serve --chat-template), and save the same "
        "template with the tokenizer."
    )


def _differs(processor: Any, part: str, found: list[int], expected: list[int]) -> LoreError:
    tokenizer = getattr(processor, "tokenizer", processor)
    at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected)))
    near = slice(max(0, at - 3), at + 4)
    return LoreError(
        f"With this tokenizer and chat template, {part} has other tokens than the training rows: "
        f"{tokenizer.convert_ids_to_tokens(found[near])} instead of {tokenizer.convert_ids_to_tokens(expected[near])}.\n"
        "The judge would be trained on other tokens than it is asked with. Use the checkpoint's own tokenizer and template, "
        "tier ids that the tokenizer does not join with other text (L1, L2), or a template that copies the answer unchanged."
    )
