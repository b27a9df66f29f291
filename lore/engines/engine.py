"""Engines run a judge: `generate` writes answers, `score` reads tier probabilities in one forward pass, no decoding.

All engines take the messages of `lore.codec.judgement.render` and give the same results within tolerance. `open_engine`
imports the heavy libraries when it is called.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lore.support.errors import LoreError

if TYPE_CHECKING:
    import numpy as np


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
    """One answer. tokens counts the decoded ones, the end of turn included; finish_reason is `stop` or `length`.

    prompt_tokens: of its prompt, photos included, the same for each of n samples; 0 where an endpoint does not say.
    An endpoint's `generate` also gives finish_reason `refused`, with an empty text, for a prompt that the server will
    not take.
    """

    text: str
    tokens: int
    finish_reason: str
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int


class Gate(Protocol):
    """Decides whether a request may be sent, such as a budget. Each HTTP attempt is admitted and settled by itself."""

    async def admit(self, bound: Usage) -> Any:
        """Waits until a request of at most `bound` may be sent; raises when it never may. Returns its ticket."""

    def settle(self, ticket: Any, used: Usage | None) -> None:
        """What it took; None: unknown, so the bound counts."""


class RequestRefused(LoreError):
    """The server will not take this one prompt (too long, withheld by a filter); others may go on."""


class EndpointFailed(LoreError):
    """A request has failed as often as max_attempts allows."""


class EndpointStopped(LoreError):
    """No request can succeed: a wrong key, an unknown model, a server that is down. Going on is of no use."""


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


