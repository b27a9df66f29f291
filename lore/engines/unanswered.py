"""Stops a run whose requests get no answer: a server that refuses every prompt must not become an accuracy of zero.

All askers use it: the evaluation with its probes, the pool and the synthesis. Only requests without an answer count: prompts
that the server or the engine refuses, that do not fit, or that keep failing. A format failure of a judge is an answer and never
counts. The counts start anew with every start of a run.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from lore.engines.config import UnansweredSection
from lore.support.errors import LoreError

SMALLEST_CHUNK = 8
"""In smaller chunks, a share says nothing; only requests in a row count."""
SHOWN_REASONS, SHOWN_CHARACTERS = 3, 500


class TooManyUnanswered(LoreError):
    """More requests got no answer than section `unanswered` of the recipe allows."""


@dataclass
class AnswerWatch:
    """Counts the answers of one judge or teacher. who: its name in errors."""

    bound: UnansweredSection
    who: str
    advice: dict[str, str] = field(default_factory=dict)
    """More advice, by the beginning of the reasons that it helps against."""
    answered: bool = False
    """Whether any request of a chunk has got an answer; the caller sets it for those of earlier starts."""
    in_a_row: Counter[str] = field(default_factory=Counter, init=False)
    """Requests in a row without an answer, by their kind."""
    _lost: list[str] = field(default_factory=list, init=False)

    @property
    def off(self) -> bool:
        """Whether the recipe sets no bound."""
        return self.bound.max_in_a_row is None and self.bound.max_share is None

    def add(self, why: str | None, kind: str = "") -> None:
        """Counts one request. why: why it got no answer, in the server's words; None for an answer. kind: only requests of the
        same kind are in a row, since a server can answer one step of the synthesis and refuse another. Raises TooManyUnanswered.
        """
        self.in_a_row[kind] = 0 if why is None else self.in_a_row[kind] + 1
        if self.bound.max_in_a_row is not None and self.in_a_row[kind] >= self.bound.max_in_a_row:
            raise self._stop(f"{self.in_a_row[kind]} requests in a row got no answer", "max_in_a_row", [why])

    def chunk(self, whys: Sequence[str | None]) -> None:
        """Counts the requests of a chunk before it is stored. Raises TooManyUnanswered."""
        self.share(whys)
        for why in whys:
            if why is not None or self.in_a_row[""]:  # one answer after the other changes nothing
                self.add(why)

    def share(self, whys: Sequence[str | None]) -> None:
        """Raises TooManyUnanswered if too large a share of a chunk got no answer."""
        failed = [why for why in whys if why is not None]
        self.answered = self.answered or len(failed) < len(whys)
        if not self.may_store:
            self._lost += failed
        if self.bound.max_share is None or len(whys) < SMALLEST_CHUNK or len(failed) <= self.bound.max_share * len(whys):
            return
        raise self._stop(f"{len(failed):,} of {len(whys):,} requests of a chunk got no answer", "max_share", failed)

    @property
    def may_store(self) -> bool:
        """Whether chunks may be stored. Until the first answer they are held: without any answer there is no result, even where
        the chunks are too few and too small for the bounds."""
        return self.answered or self.off

    def end(self) -> None:
        """Raises TooManyUnanswered if no request of any chunk got an answer."""
        if self._lost and not self.may_store:
            key = "max_share" if self.bound.max_share is not None else "max_in_a_row"
            raise self._stop(f"none of {len(self._lost):,} requests got an answer", key, self._lost)

    def _stop(self, what: str, key: str, whys: list[str]) -> TooManyUnanswered:
        reasons = Counter(why[:SHOWN_CHARACTERS] for why in whys).most_common(SHOWN_REASONS)
        lines = "".join(f"\n  {times:,} x {why}" if len(whys) > 1 else f"\n  {why}" for why, times in reasons)
        advice = [text for start, text in self.advice.items() if any(why.startswith(start) for why in whys)]
        return TooManyUnanswered(
            f"{self.who}: {what}, so results would measure the failure and not the model. The reason given:{lines}\n"
            "Answers of finished chunks are stored. Correct the cause, then run the same command again; it asks the others again. "
            f"{''.join(f'{text} ' for text in advice)}"
            f"To go on in spite of failures, raise unanswered.{key} ({getattr(self.bound, key)}), or set it to null."
        )
