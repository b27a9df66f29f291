"""Prompts for GRPO and PPO: the pool's pairs, rendered as the engines render them, and the start of their gold reasoning."""

import copy
from collections.abc import Iterable
from typing import Any

from lore.codec.chat_template import answer_ids, text_ids
from lore.codec.judgement import render_answer
from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.data.rejected_rows import RejectedWriter
from lore.engines.chat import prompt_text
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError
from lore.support.progress import track
from lore.train.judge.rows import gold, rejection_of, shown_messages

MESSAGE_CACHE_SIZE = 256  # cached messages, for prompts that repeat within a step


class Prompts:
    """Pairs and their messages, by row number. Omits a photo that the model's processor rejects, as in training rows."""

    def __init__(self, pairs: list[Pair], rubric: Rubric, fmt: PromptFormat, processor: Any):
        self.pairs, self.rubric, self.fmt, self.processor = pairs, rubric, fmt, processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self._messages: dict[int, list[dict]] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def messages(self, row: int) -> list[dict]:
        """The messages of a pair, with its photo."""
        if row not in self._messages:
            if len(self._messages) >= MESSAGE_CACHE_SIZE:
                self._messages.clear()
            self._messages[row], _ = shown_messages(self.pairs[row], self.rubric, self.fmt, self.processor)
        return self._messages[row]

    def reasoning_start(self, row: int, share: float) -> list[int]:
        """Token ids of the first `share` of a pair's gold reasoning, to start an answer with; empty for a pair without
        reasoning."""
        pair = self.pairs[row]
        if not pair.rationale:
            return []
        answer = render_answer(gold(pair), self.rubric, self.fmt, tokenizer=self.tokenizer)
        reasoning = answer_ids(self.processor, answer.partition("</reason>")[0])
        return reasoning[: int(share * len(reasoning))]


def renderable_rows(
    pairs: Iterable[Pair], rubric: Rubric, fmt: PromptFormat, processor: Any, rejected: RejectedWriter, file: str
) -> list[int]:
    """Numbers of the pairs that can be rendered. Writes the others to `rejected` with reasons. Raises LoreError when none can."""
    good, first = [], None
    for number, pair in enumerate(track(list(pairs), "checking prompts")):
        try:
            shown_messages(pair, rubric, fmt, processor)
        except LoreError as error:
            rejection = rejection_of(pair, error, file, number + 1)
            first = first or rejection
            rejected.write(rejection)
            continue
        good.append(number)
    if not good:
        raise LoreError(f"None of the pool's pairs can be rendered as a prompt. The first one: {first}")
    return good


def trainer_processor(processor: Any) -> Any:
    """A copy of the processor for TRL's trainers, which apply the chat template themselves.

    Its `apply_chat_template` writes prompts as the engines do (lore.codec.chat_template says why the template's own generation
    prompt is another). It pads on the left, as TRL pads prompts: TRL finds photo tokens in the processor's padded rows.
    """

    def apply_chat_template(self: Any, conversation: list, *arguments: Any, **options: Any) -> Any:
        if not options.get("add_generation_prompt"):
            return super(type(self), self).apply_chat_template(conversation, *arguments, **options)
        several = bool(conversation) and isinstance(conversation[0], list)
        read = [prompt_text(processor, messages) for messages in (conversation if several else [conversation])]
        texts, images = [text for text, _ in read], [photos for _, photos in read]
        if not options.get("tokenize", True):
            return texts if several else texts[0]
        shown = {"images": images} if any(images) else {}
        return self(text=texts, add_special_tokens=False, **shown)

    copied, known = copy.deepcopy(processor), type(processor)
    # The class keeps its name, which is saved with a checkpoint.
    copied.__class__ = type(known.__name__, (known,), {"apply_chat_template": apply_chat_template})
    getattr(copied, "tokenizer", copied).padding_side = "left"
    return copied


def check_same_prompt(prompts: Prompts, tokenize: Any, rows: Iterable[int]) -> None:
    """Raises LoreError when the trainer and the engines tokenize a prompt differently."""
    for row in rows:
        messages = prompts.messages(row)
        text, images = prompt_text(prompts.processor, messages)
        if images:
            ours = prompts.processor(text=[text], images=[images], add_special_tokens=False)["input_ids"][0]
        else:
            ours = text_ids(prompts.processor, text)
        theirs = tokenize([messages])[0][0]
        if list(ours) != list(theirs):
            raise LoreError(
                f"pair {prompts.pairs[row].pair_id}: the trainer reads its prompt as {len(theirs)} tokens, the engines as "
                f"{len(ours)}, so the judge would train on prompts that differ from those in use.\n"
                "The chat template renders text and tokens differently: use the checkpoint's own template."
            )
