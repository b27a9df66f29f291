"""What the service answers for one pair, and what its parts promise one another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from lore.data.pair import Pair
from lore.judge.verdict import Source, Verdict

Band = Literal["head", "torso", "tail"]
"""Queries by frequency, from frequent to rare. A query that the frequency table does not hold is in the tail."""
TOO_LATE = "no_answer_in_time"
"""Failure of a pair that nobody answered by the request's deadline."""
BANDS: tuple[Band, ...] = get_args(Band)


def band_of(searches: float | None, head_from: float, torso_from: float) -> Band:
    """The band of a query with so many searches; None if the frequency table does not hold it."""
    if searches is None or searches < torso_from:
        return "tail"
    return "head" if searches >= head_from else "torso"


@dataclass(slots=True)
class Answer:
    """The answer to one pair."""

    verdict: Verdict
    score: float | None
    """Relevance in [0, 1], see `relevance`; None for a failure."""
    band: Band | None
    """None for a pair that was refused before its query was looked up."""
    late: bool = False
    """The judge should have answered and did not in time, or could not be asked: the student answers in its place."""
    age_seconds: float | None = None
    """Age of a cached verdict; None for an answer of now, and if the age is unknown."""

    @property
    def source(self) -> Source:
        return self.verdict.source


def relevance(verdict: Verdict, tier_ids: Sequence[str]) -> float | None:
    """The expected place of the verdict's tier among the tiers, from 0 (the first) to 1 (the last): the mean, over all borders
    between tiers, of the probability that the tier lies above the border. Each of these is a calibrated probability if the
    verdict's are. A verdict without probabilities has the place of its tier. None for a failure."""
    if verdict.failure is not None or verdict.tier is None:
        return None
    last = len(tier_ids) - 1
    if verdict.probabilities is None:
        return tier_ids.index(verdict.tier) / last
    return min(1.0, max(0.0, sum(place * share for place, share in enumerate(verdict.probabilities)) / last))


@dataclass(slots=True)
class Cached:
    """A verdict from the cache. stored_seconds: when it was stored, in seconds since 1970; None if unknown."""

    verdict: Verdict
    stored_seconds: float | None = None


class Cache(Protocol):
    """Verdicts of one judge, by the content of the pair (`lore.online.cache.content_key`). It never holds a verdict of another
    judge, renderer or rubric. A cache that cannot be reached answers nothing and counts the error; it never raises."""

    async def get(self, contents: Sequence[bytes]) -> list[Cached | None]:
        """One entry per content, in order; None for a content that is not stored. The verdicts' pair_id is empty."""

    async def put(self, contents: Sequence[bytes], verdicts: Sequence[Verdict]) -> None:
        """Stores answers. Failures are left out."""

    async def close(self) -> None: ...


class Answering(Protocol):
    """The one scoring path behind every schema (lore.online.router.Router)."""

    tier_ids: list[str]

    async def answer(
        self, pairs: Sequence[Pair], deadline_seconds: float | None = None, seconds: dict[str, float] | None = None
    ) -> list[Answer]:
        """One answer per pair, in the order of the pairs, within the deadline (None: the recipe's). Raises Overloaded or Draining
        before anything is computed, and TooManyPairs once the first pairs are tokenized. seconds: is filled with the seconds of
        each stage: cache, judge and student as they were waited for; queue, encode and model within the student."""


class Refused(Exception):
    """The service takes no more work now. retry_seconds: when to try again."""

    def __init__(self, words: str, retry_seconds: float):
        super().__init__(words)
        self.retry_seconds = retry_seconds


class Overloaded(Refused):
    """The queue is full: HTTP 429."""


class TooManyPairs(Exception):
    """Most pairs of the request could not be answered by its deadline, however little else there was to do: HTTP 413. The message
    says what to change."""


class Draining(Refused):
    """The service is shutting down: HTTP 503."""
