"""Engines run a judge: `generate` writes answers, `score` reads tier probabilities in one forward pass, no decoding.

All engines take the messages of `lore.judgement.render` and give the same results within tolerance. `open_engine`
imports the heavy libraries when it is called.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from lore.recipe import ModelSection
    from lore.rubric import Rubric

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Sampling:
    """How to decode. temperature 0 is greedy; n: samples per prompt; seed matters where temperature > 0."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    n: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """One answer. tokens counts the decoded ones, the end of turn included; finish_reason is `stop` or `length`."""

    text: str
    tokens: int
    finish_reason: str


class Engine(Protocol):
    """What every engine offers."""

    tokenizer: Any

    def generate(self, prompts: list[Messages], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts."""

    def score(self, prompts: list[Messages]) -> "np.ndarray":
        """Tier probabilities, float [N, tiers] in rubric order, each row summing to 1.

        A prompt whose last message is the assistant's is scored behind that text, which has to end right before the
        tier; any other prompt is scored behind the opening of a verdict.
        """


def open_engine(model: "ModelSection", rubric: "Rubric", *, batch_tokens: int = 16384, device: str | None = None) -> Engine:
    """The transformers engine for a checkpoint with or without an adapter. batch_tokens: padded tokens per pass."""
    from lore.engines.transformers_engine import TransformersEngine

    return TransformersEngine.load(model, rubric, batch_tokens=batch_tokens, device=device)
