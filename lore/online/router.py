"""The one scoring path behind every schema: cache, judge and student, by the frequency of the query.

    band of the query -> the cache, where the band asks it -> for the rest student and judge -> the answer at the deadline

The student is asked about every pair that the cache does not know, also where the judge is to answer: its answer is there when the
judge's does not come. Both start at once, unless `ask_below` can save the judge's work and the time allows one after the other.

A request is answered at its deadline, whatever has not come by then: a pair of the judge gets the student's answer, marked late,
and a pair that not even the student has answered gets the failure TOO_LATE. What the judge says later goes into the cache. A
request of which most pairs would get that failure is refused as soon as that is known.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lore.data.pair import Pair
from lore.judge.verdict import Verdict
from lore.online.answer import TOO_LATE, Answer, Band, Cache, Draining, Overloaded, TooManyPairs, band_of, relevance
from lore.online.batcher import Batcher, Ticket
from lore.online.config import RouteSection

MOST_LAG, LAG_KEPT = 0.2, 0.9
"""Share of a deadline by which answers leave earlier if the event loop is late; of the known lag, what a deadline that passes
keeps."""
MOST_WAIT = 0.5
"""Share of the time until the deadline that the queue may take when a request is accepted. The rest is for what delays a batch and
is not in its measured rate: rows that fill it badly, tokenization, and the event loop under load."""
LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 0.1, 30.0
SHARE_OF_NEWEST = 0.1
TURN_SECONDS = 2e-3
"""Longest time in the event loop without a turn for others."""
Observer = Callable[[str, float], None]
"""Told of a stage (cache, queue, encode, model, student, judge) and its seconds."""


class LiveJudge(Protocol):
    """The large judge (lore.online.judge_client.JudgeClient)."""

    ask_below: float
    deadline_seconds: float
    typical_seconds: float
    """Seconds that an answer takes, as measured; 0 before the first."""

    def ask(self, pair: Pair, content: bytes | None) -> "asyncio.Future[Verdict | None] | None":
        """Asks about a pair. None if the judge cannot be asked now: too many pairs are, or it fails. The result is None if the
        judge gives no answer. The caller may stop waiting; the verdict is stored in the cache all the same. Never raises."""


@dataclass
class _Asked:
    """A pair that the judge should answer. place: of the pair among those of the student; verdict: the judge's, if it came in
    time."""

    place: int = 0
    verdict: Verdict | None = None
    late: bool = False


@dataclass
class _Request:
    """A request under way. due: in seconds of time.monotonic; seconds: of its stages; contents: keys by index of the pair."""

    pairs: Sequence[Pair]
    bands: list[Band]
    due: float
    seconds: dict[str, float]
    contents: dict[int, bytes] = field(default_factory=dict)
    answers: list[Any] = field(init=False)

    def __post_init__(self):
        self.answers = [None] * len(self.pairs)


class Router:
    """See lore.online.answer.Answering. frequency: searches of a query in the market of its slices. key: content
    key of a pair, for the cache. max_pairs: pairs of accepted requests that may be under way."""

    def __init__(
        self,
        batcher: Batcher,
        route: RouteSection,
        *,
        deadline_seconds: float,
        max_pairs: int,
        frequency: Callable[[str, Sequence[str]], float | None] = lambda query, slices: None,
        cache: Cache | None = None,
        key: Callable[[Pair], bytes] | None = None,
        judge: LiveJudge | None = None,
        observe: Observer = lambda stage, seconds: None,
    ):
        self.batcher, self.route, self.frequency = batcher, route, frequency
        self.cache, self.key, self.judge, self.observe = cache, key, judge, observe
        self.deadline_seconds, self.max_pairs = deadline_seconds, max_pairs
        self.tier_ids = batcher.scorer.tier_ids
        self.draining = False
        self.pairs_under_way = self.requests_under_way = 0
        self._pairs_per_second: float | None = None
        self._lag = 0.0  # seconds by which deadlines are noticed too late, because the event loop is busy

    # Admission

    async def answer(
        self, pairs: Sequence[Pair], deadline_seconds: float | None = None, seconds: dict[str, float] | None = None
    ) -> list[Answer]:
        """See Answering.answer. Also raises Overloaded if the cache does not know all pairs, others go first, and the deadline
        would pass before the student is done."""
        began = time.monotonic()
        left = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        due = began + left - min(self._lag, MOST_LAG * left)
        self._admit(len(pairs))
        self.pairs_under_way += len(pairs)
        self.requests_under_way += 1
        try:
            answers = await self._answered(pairs, due, {} if seconds is None else seconds)
            self._measure(time.monotonic() - began)
            return answers
        finally:
            self.pairs_under_way -= len(pairs)
            self.requests_under_way -= 1

    def _admit(self, count: int) -> None:
        if self.draining:
            raise Draining("the service is shutting down", MOST_RETRY_SECONDS)
        if self.pairs_under_way and self.pairs_under_way + count > self.max_pairs:
            raise Overloaded(
                f"{self.pairs_under_way:,} pairs are under way, and {self.max_pairs:,} may be", self._retry_seconds(count)
            )

    def _retry_seconds(self, count: int) -> float:
        """Seconds until there is room for so many pairs, at the measured rate."""
        over = self.pairs_under_way + count - self.max_pairs
        return _bounded(over / self._pairs_per_second) if self._pairs_per_second else 1.0

    def _measure(self, seconds: float) -> None:
        """Pairs per second while several requests are under way: those that one request gets, times the requests' share."""
        if self.pairs_under_way and seconds > 0:
            rate = self.pairs_under_way / seconds
            known = self._pairs_per_second
            self._pairs_per_second = rate if known is None else known + SHARE_OF_NEWEST * (rate - known)

    # One request

    async def _answered(self, pairs: Sequence[Pair], due: float, seconds: dict[str, float]) -> list[Answer]:
        request = _Request(pairs, self._bands(pairs), due, seconds)
        if self.cache is not None and self.key is not None:
            await self._from_cache(request)
        if left := [index for index, answer in enumerate(request.answers) if answer is None]:
            await self._from_models(request, left)
        return request.answers

    async def _from_cache(self, request: _Request) -> None:
        began = time.monotonic()
        asked = [index for index, band in enumerate(request.bands) if "cache" in self._steps(band)]
        if not asked:
            return
        request.contents = await self._keys(request, asked)
        try:
            async with asyncio.timeout(max(0.0, request.due - began)):
                found = await self.cache.get(list(request.contents.values()))
        except TimeoutError:
            found = [None] * len(asked)
        now = time.time()
        for index, one in zip(asked, found, strict=True):
            if one is not None:
                verdict = replace(one.verdict, source="cache", pair_id=request.pairs[index].pair_id)  # the store's may be shared
                age = None if one.stored_seconds is None else max(0.0, now - one.stored_seconds)
                self._settle(request, index, verdict, age_seconds=age)
        self._note(request, "cache", time.monotonic() - began)

    async def _keys(self, request: _Request, asked: Sequence[int]) -> dict[int, bytes]:
        """The contents of pairs. Other requests get their turn between them: a thousand long items take tens of milliseconds."""
        found, until = {}, time.monotonic() + TURN_SECONDS
        for index in asked:
            found[index] = self.key(request.pairs[index])
            if time.monotonic() > until:
                await asyncio.sleep(0)
                until = time.monotonic() + TURN_SECONDS
        return found

    async def _from_models(self, request: _Request, left: Sequence[int]) -> None:
        began = time.monotonic()
        wait, most = self.batcher.wait_seconds(request.due, len(left)), MOST_WAIT * max(request.due - began, 0.0)
        if wait > most:
            raise Overloaded(f"the queue takes {wait:.3f} s, too long for the deadline", _bounded(wait - most))
        ticket = self.batcher.submit([request.pairs[index] for index in left], request.due)
        places = {index: at for at, index in enumerate(left)}
        asked: dict[int, _Asked] = {}
        if self.judge is not None:
            asked = {index: _Asked() for index in left if "judge" in self._steps(request.bands[index])}
        try:
            if asked:
                await self._judge(request, ticket, places, asked)
                self._note(request, "judge", time.monotonic() - began)
            if not ticket.done.done() and any(index not in asked or asked[index].verdict is None for index in left):
                await asyncio.wait([ticket.done], timeout=max(0.0, request.due - time.monotonic()))
        finally:
            if not ticket.done.done():
                self.batcher.leave(ticket)
                self._lag = max(self._lag * LAG_KEPT, time.monotonic() - request.due)
        if ticket.too_long_seconds is not None:
            raise _too_many(ticket)
        self._note(request, "student", time.monotonic() - began)
        for stage, spent in ticket.seconds.items():
            request.seconds[stage] = request.seconds.get(stage, 0.0) + spent
        for index, at in places.items():
            one = asked.get(index, _Asked())
            verdict = one.verdict or ticket.verdicts[at] or _too_late(request.pairs[index], self.batcher.scorer.judge_id)
            self._settle(request, index, verdict, late=one.late)

    async def _judge(self, request: _Request, ticket: Ticket, places: dict[int, int], asked: dict[int, _Asked]) -> None:
        """Fills `asked`. Waits for the judge until its deadline or the request's, whichever is first."""
        judge = self.judge
        now = time.monotonic()
        due = min(request.due, now + judge.deadline_seconds)
        unsure = judge.ask_below < 1.0
        student_seconds = self.batcher.wait_seconds(request.due) + self.batcher.typical_seconds
        if unsure and now + student_seconds + judge.typical_seconds < due:
            await asyncio.wait([ticket.done], timeout=max(0.0, due - judge.typical_seconds - now))
        waiting: dict[asyncio.Future, list[_Asked]] = {}  # two pairs with the same content share an answer
        for index, one in asked.items():
            one.place = places[index]
            if not self._is_sure(ticket.verdicts[one.place]):
                future, one.late = judge.ask(request.pairs[index], request.contents.get(index)), True
                if future is not None:
                    waiting.setdefault(future, []).append(one)
        while waiting and (rest := due - time.monotonic()) > 0:
            watched = set(waiting) if ticket.done.done() else {*waiting, ticket.done}
            done, _ = await asyncio.wait(watched, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            if not done or ticket.too_long_seconds is not None:
                break
            for future in done & waiting.keys():
                for one in waiting.pop(future):
                    one.verdict = future.result()
                    one.late = one.verdict is None
            if unsure and ticket.done.done():
                for future, ones in list(waiting.items()):
                    if self._is_sure(ticket.verdicts[ones[0].place]):
                        del waiting[future]
                        for one in ones:
                            one.late = False

    def _settle(
        self, request: _Request, index: int, verdict: Verdict, *, late: bool = False, age_seconds: float | None = None
    ) -> None:
        if verdict.pair_id != request.pairs[index].pair_id:  # cached, or the judge's answer to another pair of the same content
            verdict = replace(verdict, pair_id=request.pairs[index].pair_id)
        score = relevance(verdict, self.tier_ids)
        request.answers[index] = Answer(verdict, score, request.bands[index], late=late, age_seconds=age_seconds)

    def _is_sure(self, verdict: Verdict | None) -> bool:
        """Whether the student's answer stands without the judge."""
        if self.judge.ask_below >= 1.0 or verdict is None or not verdict.probabilities:
            return False
        return max(verdict.probabilities) >= self.judge.ask_below

    # Bands

    def _bands(self, pairs: Sequence[Pair]) -> list[Band]:
        known: dict[tuple[str, ...], Band] = {}
        bands = []
        for pair in pairs:
            asked = (pair.query, *pair.slices)
            if asked not in known:
                known[asked] = band_of(self.frequency(pair.query, pair.slices), self.route.head_from, self.route.torso_from)
            bands.append(known[asked])
        return bands

    def _steps(self, band: Band) -> Sequence[str]:
        return getattr(self.route, band)

    def _note(self, request: _Request, stage: str, spent: float) -> None:
        request.seconds[stage] = request.seconds.get(stage, 0.0) + spent
        self.observe(stage, spent)


def _too_late(pair: Pair, judge_id: str) -> Verdict:
    failed = Verdict(pair.pair_id, None, failure=TOO_LATE, judge_id=judge_id, source="student")
    failed.detail = "nobody answered before the request's deadline; ask about fewer pairs, or set a longer deadline"
    return failed


def _too_many(ticket: Ticket) -> TooManyPairs:
    count, needed, left = len(ticket.pairs), ticket.too_long_seconds, ticket.due - ticket.entered
    fitting = max(1, int(count * left / needed))
    return TooManyPairs(
        f"{count:,} pairs take the student {needed:.2g} s ({count / needed:,.0f} pairs a second), and there are {left:.2g} s until "
        f"the deadline, so most would have no answer; send at most {fitting:,} pairs at a time, or allow at least "
        f"{needed * 1000:,.0f} ms"
    )


def _bounded(seconds: float) -> float:
    return min(MOST_RETRY_SECONDS, max(LEAST_RETRY_SECONDS, seconds))
