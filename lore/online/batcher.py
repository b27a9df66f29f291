"""The queue in front of the student. One asyncio task owns it.

A request becomes rows of token ids in a worker thread, in small pieces, so that a large request holds up no other. The task then
fills batches, the earliest deadline first, up to a budget of tokens, and gives each to a free worker thread. A batch starts as soon
as a thread is free; nothing waits for a batch to become full. Rows of callers that have left, or whose deadline has passed, are
skipped before they cost anything.

A batch that fails is scored again pair by pair, so that one pair fails alone. The design is that of text-embeddings-inference
(core/src/queue.rs, core/src/infer.rs); deadlines are not in it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from typing import Any, Literal

from lore.data.pair import Pair
from lore.engines.engine import MAX_WORDS
from lore.judge.ask import RAISED
from lore.judge.verdict import Verdict
from lore.student.encode import QueryTooLong
from lore.student.scorer import StudentScorer
from lore.support.errors import LoreError

ENCODED_PAIRS = 64
"""Pairs that are tokenized in one piece."""
CLOSE_SECONDS = 5.0
"""For the batches that are under way at the end."""
LEAST_SHARE = 0.5
"""A request is refused if less than this share of its pairs could be scored by its deadline. Above it, some answers are better than
none, and the measured rate is not exact."""
FRESH_SECONDS = 10.0
"""After so long without a batch, the measured rate says little: a request is refused only if the best one would not do."""
SHARE_OF_NEWEST = 0.1
"""Weight of the newest batch in the measured rate."""
Stage = Literal["queue", "encode", "model"]
Seen = Callable[[Stage, float], None]
"""Told of a stage and its seconds: queue and encode of a request, model of a batch."""


@dataclass(slots=True, eq=False)
class Ticket:
    """The pairs of one request in the queue. verdicts: None for those without an answer so far. due: time by which it has to be
    answered, in seconds of time.monotonic. seconds: of its stages; those of its batches are summed up."""

    pairs: Sequence[Pair]
    due: float
    verdicts: list[Verdict | None]
    done: asyncio.Future
    entered: float
    seconds: dict[str, float] = field(default_factory=dict)
    left: bool = False
    """The caller is gone: rows that wait are dropped."""
    open: int = 0
    """Pairs without an answer."""
    rows: deque[tuple[int, Any]] = field(default_factory=deque)
    """(index of the pair, its row), those with a photo first, then by length, the longest first."""
    pieces: int = 0
    """Pieces that are still to be tokenized."""
    too_long_seconds: float | None = None
    """Set for a request that is refused, because its pairs alone would take so many seconds. It is done then, without verdicts."""

    def answer(self, index: int, verdict: Verdict) -> None:
        """Takes the verdict of one pair."""
        if self.verdicts[index] is None:
            self.verdicts[index] = verdict
            self.open -= 1
        if not self.open and not self.done.done():
            self.done.set_result(None)



@dataclass(frozen=True, slots=True)
class _Row:
    ticket: Ticket
    index: int
    row: Any


class Batcher:
    """Answers pairs with a student. Create it anywhere, and use it in one event loop, between `start` and `close`.

    batch_tokens: tokens of a batch, padding included; None takes the student's own. threads: batches at the same time; None takes
    what the student allows.
    """

    def __init__(
        self,
        scorer: StudentScorer,
        *,
        batch_tokens: int | None = None,
        seen: Seen = lambda stage, seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.scorer, self.seen, self.clock = scorer, seen, clock
        self.batch_tokens = batch_tokens or scorer.batch_tokens
        self.tokens_per_second: float | None = None
        """Measured, over all threads; None before the first batch."""
        self.best_tokens_per_second = 0.0
        """The highest that `tokens_per_second` has been."""
        self._measured = 0.0
        self.typical_seconds = 0.0
        """Seconds that a request takes here, as measured; 0 before the first."""
        self.batch_seconds = 0.0
        """Seconds that a batch takes from its start to its verdicts, as measured."""
        self._tokens_per_pair = 0.0
        self._tickets: set[Ticket] = set()  # that are tokenized, wait or are scored
        self._free = self.parallel = scorer.session.parallel
        self._queue: list[tuple[float, int, Ticket]] = []  # a heap
        self._entered = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._task: asyncio.Task | None = None
        self._jobs: set[asyncio.Future] = set()

    async def start(self) -> None:
        """Starts the task and the threads."""
        self._threads = ThreadPoolExecutor(self.parallel, "student")
        self._encoding = ThreadPoolExecutor(1, "encode")
        self._task = asyncio.create_task(self._run(), name="batcher")

    async def close(self) -> None:
        """Ends the task after the batches that are under way. Rows that still wait are not answered."""
        if self._task is None:
            return
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=CLOSE_SECONDS)
        for threads in (self._threads, self._encoding):
            threads.shutdown(wait=not self._jobs, cancel_futures=True)

    def submit(self, pairs: Sequence[Pair], due: float) -> Ticket:
        """Puts pairs into the queue. `ticket.done` is set once all have a verdict. Whoever stops waiting calls `leave`."""
        loop = asyncio.get_running_loop()
        ticket = Ticket(pairs, due, [None] * len(pairs), loop.create_future(), self.clock(), open=len(pairs))
        if not pairs:
            ticket.done.set_result(None)
            return ticket
        ticket.pieces = -(-len(pairs) // ENCODED_PAIRS)
        self._tickets.add(ticket)
        ticket.done.add_done_callback(lambda _: self._tickets.discard(ticket))
        self._encode_next(ticket, 0)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Drops the rows of a ticket that wait: nobody waits for them any more, or they would come too late."""
        ticket.left = True
        ticket.rows.clear()
        self._tickets.discard(ticket)

    def wait_seconds(self, due: float, pairs: int = 0) -> float:
        """Seconds until all is scored that goes before a request with this deadline, and so many pairs of its own; 0 if nothing
        goes before it, and while nothing was measured. Pairs that are not tokenized yet count as much as pairs do on average."""
        if not self.tokens_per_second:
            return 0.0
        ahead = sum(ticket.open for ticket in self._tickets if ticket.due <= due and not ticket.left)
        return (ahead + pairs) * self._tokens_per_pair / self.tokens_per_second if ahead else 0.0

    # Tokenization

    def _encode_next(self, ticket: Ticket, at: int) -> None:
        pairs = ticket.pairs[at : at + ENCODED_PAIRS]
        began = self.clock()
        job = asyncio.get_running_loop().run_in_executor(self._encoding, partial(self._encode, ticket, pairs))
        self._jobs.add(job)
        job.add_done_callback(partial(self._encoded, ticket, at, began))

    def _encode(self, ticket: Ticket, pairs: Sequence[Pair]) -> tuple[list[Any], float]:
        """(a row per pair, seconds), in the encoding thread; an exception in the place of a pair that cannot be encoded."""
        began = self.clock()
        return [] if ticket.left else self._rows(pairs), self.clock() - began

    def _rows(self, pairs: Sequence[Pair]) -> list[Any]:
        try:
            return self.scorer.encoder.rows(pairs)
        except Exception as error:
            return [error] if len(pairs) == 1 else [self._rows([pair])[0] for pair in pairs]

    def _encoded(self, ticket: Ticket, at: int, began: float, job: asyncio.Future) -> None:
        self._jobs.discard(job)
        now = self.clock()
        ticket.pieces -= 1
        if ticket.left or now >= ticket.due or self._task is None:
            self.leave(ticket)
            return
        self._note(ticket, "encode", now - began)
        rows: list[tuple[int, Any]] = []
        encoded, seconds = job.result()
        for index, row in enumerate(encoded, at):
            if isinstance(row, QueryTooLong):
                ticket.answer(index, self.scorer.score_batch([ticket.pairs[index]], [row])[0])
            elif isinstance(row, Exception):
                ticket.answer(index, self._failed(ticket.pairs[index], row))
            else:
                rows.append((index, row))
        if not at and rows and self._takes_too_long(ticket, sum(row["length"] for _, row in rows), seconds):
            self.leave(ticket)
            ticket.done.set_result(None)
            return
        if ticket.pieces:
            self._encode_next(ticket, at + ENCODED_PAIRS)
        rows.sort(key=lambda one: (one[1]["photo"] is None, -one[1]["length"]))
        ticket.rows.extend(rows)
        if rows:
            self._entered += 1
            heappush(self._queue, (ticket.due, self._entered, ticket))
            self._wake.set()

    def _takes_too_long(self, ticket: Ticket, tokens: int, encode_seconds: float) -> bool:
        """Whether the pairs of a ticket, by the tokens and the seconds of its first piece, take much longer than its deadline
        allows even if nothing else is to do. What fits into one batch a thread is always tried."""
        pieces = len(ticket.pairs) / min(len(ticket.pairs), ENCODED_PAIRS)
        is_fresh = self.clock() - self._measured < FRESH_SECONDS
        rate = self.tokens_per_second if is_fresh else self.best_tokens_per_second
        if not rate or pieces * tokens <= self.batch_tokens * self.parallel:
            return False
        seconds = pieces * max(tokens / rate, encode_seconds)
        if (ticket.due - ticket.entered) / seconds >= LEAST_SHARE:
            return False
        ticket.too_long_seconds = seconds
        return True

    # Batches

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._free and (batch := self._next_batch()):
                self._free -= 1
                job = asyncio.get_running_loop().run_in_executor(self._threads, partial(self._score, batch))
                self._jobs.add(job)
                job.add_done_callback(partial(self._scored, batch, self.clock()))

    def _next_batch(self) -> list[_Row]:
        """The rows of the next batch: those of the earliest deadline, then of the next, while the padded batch is within its
        budget. Rows with a photo are not mixed with others, which would take the vision tower's time for nothing."""
        batch: list[_Row] = []
        longest, photos, now = 0, False, self.clock()
        while self._queue:
            ticket = self._queue[0][2]
            if ticket.left or self._comes_too_late(ticket, now):
                self.leave(ticket)
            while ticket.rows:
                index, row = ticket.rows[0]
                wide, with_photo = max(longest, row["length"]), row["photo"] is not None
                if batch and ((len(batch) + 1) * wide > self.batch_tokens or with_photo != photos):
                    return batch
                if not batch:
                    photos = with_photo
                longest = wide
                if "queue" not in ticket.seconds:
                    self._note(ticket, "queue", now - ticket.entered - ticket.seconds.get("encode", 0.0))
                batch.append(_Row(ticket, *ticket.rows.popleft()))
            heappop(self._queue)
        return batch

    def _comes_too_late(self, ticket: Ticket, now: float) -> bool:
        """Whether a batch that starts now would end after the ticket's deadline: its rows would only delay others. A ticket with
        half of its time left is always tried, since the measured time may be wrong."""
        return ticket.due - now <= min(self.batch_seconds, (ticket.due - ticket.entered) / 2)

    def _score(self, batch: list[_Row]) -> tuple[list[Verdict], float]:
        """(verdicts, seconds), in a worker thread. A pair that raises alone gets a failure. No verdicts if nobody waits for one."""
        began = self.clock()
        if all(one.ticket.left for one in batch):
            return [], 0.0
        try:
            verdicts = self.scorer.score_batch([one.ticket.pairs[one.index] for one in batch], [one.row for one in batch])
        except Exception as error:
            if len(batch) > 1:
                verdicts = [self._score_alone(one) for one in batch]
            else:
                verdicts = [self._failed(batch[0].ticket.pairs[batch[0].index], error)]
        return verdicts, self.clock() - began

    def _score_alone(self, one: _Row) -> Verdict:
        pair = one.ticket.pairs[one.index]
        try:
            return self.scorer.score_batch([pair], [one.row])[0]
        except Exception as error:
            return self._failed(pair, error)

    def _scored(self, batch: list[_Row], began: float, job: asyncio.Future) -> None:
        self._jobs.discard(job)
        self._free += 1
        self._wake.set()
        verdicts, seconds = job.result()
        if not verdicts:
            return
        self._measure(batch, self.clock() - began)
        self.seen("model", seconds)
        for one, verdict in zip(batch, verdicts, strict=True):
            one.ticket.answer(one.index, verdict)
        for ticket in {id(one.ticket): one.ticket for one in batch}.values():
            ticket.seconds["model"] = ticket.seconds.get("model", 0.0) + seconds
            if not ticket.open:
                self.typical_seconds += SHARE_OF_NEWEST * (self.clock() - ticket.entered - self.typical_seconds)

    def _measure(self, batch: list[_Row], seconds: float) -> None:
        self._measured = self.clock()
        tokens = sum(one.row["length"] for one in batch)
        rate, mean = tokens / max(seconds, 1e-6) * self.parallel, tokens / len(batch)
        if self.tokens_per_second is None:
            self.tokens_per_second, self.batch_seconds, self._tokens_per_pair = rate, seconds, mean
            self.best_tokens_per_second = rate
            return
        self.tokens_per_second += SHARE_OF_NEWEST * (rate - self.tokens_per_second)
        self.best_tokens_per_second = max(self.best_tokens_per_second, self.tokens_per_second)
        self.batch_seconds += SHARE_OF_NEWEST * (seconds - self.batch_seconds)
        self._tokens_per_pair += SHARE_OF_NEWEST * (mean - self._tokens_per_pair)

    def _note(self, ticket: Ticket, stage: Stage, seconds: float) -> None:
        ticket.seconds[stage] = ticket.seconds.get(stage, 0.0) + max(0.0, seconds)
        self.seen(stage, max(0.0, seconds))

    def _failed(self, pair: Pair, error: Exception) -> Verdict:
        # A LoreError is made of known words. Others may quote the pair.
        words = str(error) if isinstance(error, LoreError) else f"the student raised {type(error).__name__} for this pair"
        failed = Verdict(pair.pair_id, None, failure=RAISED, detail=words[:MAX_WORDS], source="student")
        failed.judge_id = self.scorer.judge_id
        return failed

