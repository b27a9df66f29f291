"""A completion as the codec reads it: what the rewards, the probe of a training run, the pool and the evaluation look at."""

from collections.abc import Sequence
from dataclasses import dataclass

from lore.codec.judgement import FormatFailure, Judgement, parse
from lore.codec.prompt import PromptFormat
from lore.engines.engine import Completion
from lore.rubric.rubric import Rubric


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion. tokens: its length; truncated: it was cut at the limit; probabilities [K]: of the tiers at the verdict."""

    text: str
    tokens: int
    truncated: bool
    judgement: Judgement | FormatFailure
    probabilities: Sequence[float] | None = None

    @property
    def tier(self) -> str | None:
        """None for a format failure."""
        return self.judgement.tier if isinstance(self.judgement, Judgement) else None

    @property
    def failure(self) -> str | None:
        """The reason of a format failure, see `lore.codec.judgement.parse`; None for an answer."""
        return self.judgement.reason if isinstance(self.judgement, FormatFailure) else None


def read_answer(completion: Completion, rubric: Rubric, fmt: PromptFormat) -> Answer:
    """An engine's completion, parsed."""
    judgement = parse(completion.text, rubric, fmt)
    return Answer(completion.text, completion.tokens, completion.finish_reason == "length", judgement)
