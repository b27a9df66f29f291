"""Asks an engine about many prompts so that a prompt that it cannot answer fails alone.

An engine in this process answers all prompts of a call or raises. A failed call is repeated with halves of its prompts until the
prompts are found. Errors of every prompt are raised: if none of the prompts gets an answer, a harmless one decides whether the
engine works. Used by the evaluation with its probes, the pool and the synthesis.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from lore.engines.engine import (
    Completion,
    EndpointFailed,
    EndpointStopped,
    Engine,
    Messages,
    RequestRefused,
    Sampling,
    ScoresRefused,
)
from lore.support.errors import LoreError

HARMLESS = "Answer with one word: is a lamp a fruit?"
NO_PROMPT = "The engine answers no prompt, not even a harmless one."
T = TypeVar("T")
# torch.OutOfMemoryError and torch.AcceleratorError are matched by class; its CPU allocator raises a plain RuntimeError.
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def answers_apart(ask: Callable[[list[Messages]], Sequence[T]], prompts: list[Messages]) -> list[T | RequestRefused]:
    """ask(prompts), with a RequestRefused for each prompt on which alone `ask` raises.

    Raises the error of `ask` if it also raises for a harmless prompt (`engine_failed`), or if it says that the engine itself has
    failed: out of memory, a lost device, or an endpoint, which refuses single prompts itself.
    """
    try:
        return list(ask(prompts))
    except Exception as error:
        if _is_about_every_prompt(error):
            raise
        answers = _halves(ask, prompts, error)
        if all(isinstance(answer, RequestRefused) for answer in answers) and not _answers_harmless(ask):
            error.add_note(NO_PROMPT)
            raise
        return answers


def generate_apart(engine: Engine, prompts: list[Messages], sampling: Sampling) -> list[list[Completion]]:
    """Engine.generate. A prompt on which alone the engine raises gets completions with finish_reason `refused`, as behind a server.
    """
    answers = answers_apart(lambda some: engine.generate(some, sampling), prompts)
    return [
        [Completion("", 0, "refused", detail=answer.words)] * sampling.n if isinstance(answer, RequestRefused) else answer
        for answer in answers
    ]


def score_apart(engine: Engine, prompts: list[Messages], tiers: int) -> np.ndarray:
    """Engine.score, float64 [N, tiers]. Raises ScoresRefused, with the scores of the others, if the engine raises for some prompts
    alone or returns no numbers for them, and LoreError if it returns none for any."""

    def ask(some: list[Messages]) -> np.ndarray:
        found = np.asarray(engine.score(some), dtype=np.float64)
        if found.shape != (len(some), tiers) or not np.isfinite(found).all():
            what = "nan or inf" if found.shape == (len(some), tiers) else f"an array {found.shape}"
            raise LoreError(
                f"the engine returned {what}; expected tier probabilities {(len(some), tiers)}, so no verdict can be read. "
                "A model can overflow in float16: set model.dtype to bfloat16 or float32."
            )
        return found

    answers = answers_apart(ask, prompts)
    refused = {index: answer.words for index, answer in enumerate(answers) if isinstance(answer, RequestRefused)}
    rows = np.asarray([np.zeros(tiers) if index in refused else row for index, row in enumerate(answers)])
    if refused:
        raise ScoresRefused(rows, refused)
    return rows


def _halves(ask: Callable[[list[Messages]], Sequence[Any]], prompts: list[Messages], error: Exception) -> list[Any]:
    """The answers of both halves of prompts whose call raised `error`."""
    if len(prompts) == 1:
        words = error.words if isinstance(error, RequestRefused) else f"the model rejects this prompt: {str(error)[:300]}"
        return [RequestRefused(words, words)]
    answers: list[Any] = []
    middle = len(prompts) // 2
    for half in (prompts[:middle], prompts[middle:]):
        try:
            found = list(ask(half))
        except Exception as inner:
            if _is_about_every_prompt(inner):
                raise
            found = _halves(ask, half, inner)
        answers.extend(found)
    return answers


def _answers_harmless(ask: Callable[[list[Messages]], Sequence[Any]]) -> bool:
    try:
        ask([[{"role": "user", "content": HARMLESS}]])
    except Exception:
        return False
    return True


def engine_failed(error: Exception) -> bool:
    """Whether an error says that the engine answers no prompt at all: it also raised for a harmless one, or its device is lost,
    which this process cannot use any more."""
    return NO_PROMPT in getattr(error, "__notes__", ()) or _lost_device(error)


def _lost_device(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # not imported here: an endpoint needs none
    return torch is not None and isinstance(error, torch.AcceleratorError)


def _is_about_every_prompt(error: Exception) -> bool:
    if isinstance(error, MemoryError | EndpointFailed | EndpointStopped | ScoresRefused) or _lost_device(error):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return any(words in str(error).lower() for words in NO_MEMORY)
