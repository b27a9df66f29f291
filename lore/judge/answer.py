"""A parsed completion. Rewards, periodic evaluation, the pool and the evaluation all read it."""

from collections.abc import Sequence
from dataclasses import dataclass

from lore.codec.judgement import FormatFailure, Judgement, parse
from lore.codec.prompt import PromptFormat
from lore.codec.reasoning import after_first_reasoning
from lore.codec.sanitize import clean_rationale
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


def written_reason(text: str, fmt: PromptFormat) -> str:
    """The reason in an answer that `parse` rejects, as far as it is written; reasoning that is not closed is one, too.

    Text around the reason is left out, and so is everything from a verdict on.
    """
    rest = after_first_reasoning(text, own="<reason>")
    rest = text if rest is None else rest
    before, opened, after = rest.partition("<reason>") if fmt.order != "answer_only" else ("", "", "")
    reason = after if opened else before
    for mark in ("</reason>", "<verdict>"):
        reason = reason.partition(mark)[0]
    return clean_rationale(reason)


def read_answer(
    completion: Completion, rubric: Rubric, fmt: PromptFormat, probabilities: Sequence[float] | None = None
) -> Answer:
    """Parses an engine's completion. probabilities: see Answer."""
    judgement = parse(completion.text, rubric, fmt)
    return Answer(completion.text, completion.tokens, completion.finish_reason == "length", judgement, probabilities)
