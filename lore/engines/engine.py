"""The engine interface: `generate` samples completions; `score` computes tier probabilities in one forward pass per prompt.

All engines accept the messages of `lore.codec.prompt.render` and agree within numerical tolerance. The implementations are
lore.engines.transformers, lore.engines.vllm and lore.engines.http.endpoint; `lore.engines.open_engine` picks one.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from lore.support.errors import LoreError

Messages = list[dict[str, Any]]
MAX_WORDS = 500  # characters of a server's words that are stored with an answer


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. temperature 0 is greedy decoding; n: samples per prompt; seed: used only if temperature > 0."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    n: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """One completion. tokens: generated tokens, including the end of turn; finish_reason: `stop` or `length`.

    prompt_tokens: length of the prompt including photos, the same for each of n samples; 0 if an endpoint does not report
    it. An endpoint's `generate` returns finish_reason `refused` and an empty text for a prompt that the server rejects; `detail`
    then has the server's words, without the API key.
    """

    text: str
    tokens: int
    finish_reason: str
    prompt_tokens: int = 0
    detail: str = field(default="", compare=False)


@dataclass(frozen=True)
class Usage:
    """Token counts of one request. cached_tokens: those of the prompt that were not processed again; 0 if that is unknown."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass
class EngineUsage:
    """Token counts of an engine since it was opened.

    prompt_tokens: tokens of all prompts, photos included; cached_tokens: those of them that were not processed again, because an
    earlier prompt began with the same tokens; generated_tokens: tokens of all completions. Zeros where a server reports no counts.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0

    def add(self, prompt_tokens: int, cached_tokens: int, generated_tokens: int) -> None:
        """Counts one request."""
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens
        self.generated_tokens += generated_tokens


class Gate(Protocol):
    """Decides whether a request may be sent, for example within a budget. Every HTTP attempt is admitted and settled separately."""

    async def admit(self, bound: Usage) -> Any:
        """Waits until a request of at most `bound` tokens may be sent and returns its ticket. Raises if it can never be sent."""

    def settle(self, ticket: Any, used: Usage | None) -> None:
        """Reports the actual usage of a request; None if it is unknown, in which case the bound is charged."""


class RequestRefused(LoreError):
    """The server rejects this one prompt (too long, content filter). Other prompts are unaffected.

    words: the server's words, without its address; they are stored with the answer.
    """

    def __init__(self, message: str, words: str = ""):
        super().__init__(message)
        self.words = (words or message)[:MAX_WORDS]


class ScoresRefused(RequestRefused):
    """Some prompts of one `score` were refused.

    probabilities: float [N, tiers], with zeros for the refused prompts; refused: the server's words by index of the prompt.
    """

    def __init__(self, probabilities: np.ndarray, refused: dict[int, str]):
        words = next(iter(refused.values()))
        super().__init__(f"{len(refused)} of {len(probabilities)} prompts were refused. One of the reasons: {words}", words)
        self.probabilities, self.refused = probabilities, refused


class EngineDied(LoreError):
    """The engine's process has ended, for example for lack of memory. Another engine can be opened."""


class EndpointFailed(LoreError):
    """A request has failed max_attempts times."""


class EndpointStopped(LoreError):
    """No request can succeed: invalid key, unknown model or server down. Do not send further requests."""


class Engine(Protocol):
    """The methods of every engine."""

    tokenizer: Any
    usage: EngineUsage

    def generate(self, prompts: list[Messages], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions per prompt, in prompt order."""

    def score(self, prompts: list[Messages]) -> np.ndarray:
        """Tier probabilities, float [N, tiers] in rubric order, each row summing to 1.

        A trailing assistant message is used as prefill and has to end right before the tier. For any other prompt the
        engine adds the text that opens the verdict.
        """


