"""Tier probabilities of sampled answers, for rewards that need them."""

from dataclasses import replace
from typing import Any

from lore.codec.judgement import FormatFailure
from lore.codec.verdict_tokens import with_verdict_prefix
from lore.engines.transformers import TransformersEngine
from lore.judge.answer import Answer
from lore.train.watch.policy_engine import policy


def with_probabilities(trainer: Any, messages: list[list[dict]], answers: list[Answer]) -> list[Answer]:
    """The answers with the trained judge's tier probabilities, scored after each answer's own reason. Format failures get none.
    trainer: a GRPO."""
    out, prompts = list(answers), trainer.prompts
    read = [place for place, answer in enumerate(answers) if not isinstance(answer.judgement, FormatFailure)]
    with policy(trainer) as model:
        engine = TransformersEngine(model, prompts.processor, prompts.rubric)
        begun = [
            with_verdict_prefix(messages[place], prompts.fmt, engine.verdict, answers[place].judgement.rationale)
            for place in read
        ]
        scored = engine.score(begun)
    for place, row in zip(read, scored, strict=True):
        out[place] = replace(out[place], probabilities=row.tolist())
    return out
