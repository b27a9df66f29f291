"""A parsed completion. Rewards, periodic evaluation, the pool and the evaluation all read it."""

from collections.abc import Sequence
from dataclasses import dataclass

from lore.codec.judgement import FormatFailure, Judgement, parse
from lore.codec.prompt import PromptFormat
from lore.engines.engine import Completion
from lore.rubric.rubric import Rubric


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion. tokens: its length; truncated: it reached the token limit; probabilities [K]: of the tiers at the verdict."""

    text: str
    tokens: int
    truncated: bool
    judgement: Judgement | FormatFailure
    probabilities: Sequence[float] | None = None

    @property
    def tier(self) -> str | None:
        """The verdict; None for a format failure."""
        return self.judgement.tier if isinstance(self.judgement, Judgement) else None

    @property
    def failure(self) -> str | None:
        """The reason of a format failure, see `lore.codec.judgement.parse`; None for a valid answer."""
        return self.judgement.reason if isinstance(self.judgement, FormatFailure) else None


def read_answer(
    completion: Completion, rubric: Rubric, fmt: PromptFormat, probabilities: Sequence[float] | None = None
) -> Answer:
    """Parses an engine's completion. probabilities: see Answer."""
    judgement = parse(completion.text, rubric, fmt)
    return Answer(completion.text, completion.tokens, completion.finish_reason == "length", judgement, probabilities)
