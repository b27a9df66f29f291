"""Limits the load on a server: adaptive concurrency, backoff, and a circuit breaker over all requests.

Concurrency starts at max_concurrency (above 64: at half of it, but at least 64) and grows by one with each answer.
When the server is busy or fails, concurrency is halved, at most once per round of requests, and then grows by one per round.
After BREAKER_FAULTS consecutive faults the breaker opens: one probe request is sent at a time, at increasing intervals, until
one is answered. If none is for `max_down_seconds`, the server is down. The caller probes with a request that is known to be
harmless, because consecutive faults can also come from a few prompts that the server cannot answer.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from math import inf

from lore.support.errors import LoreError

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
MAX_RETRY_AFTER_SECONDS = 120.0
FIRST_PROBE_SECONDS = 1.0
BREAKER_FAULTS = 10
SMALLEST_START = 64


def backoff_seconds(attempt: int) -> float:
    """Seconds to wait after `attempt` failures: doubles each time, with random jitter down to one half so that requests that
    failed together are not retried together.
    """
    return min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)


def retry_after_seconds(header: str | None) -> float:
    """The delay of a Retry-After header (seconds or an HTTP date), at most MAX_RETRY_AFTER_SECONDS; 0 if it is missing or
    invalid.
    """
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError, OSError, LookupError, AttributeError):  # the parser is not strict
            return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS) if seconds == seconds else 0.0


class Throttle:
    """Admits requests (`enter`) and adapts to their outcomes (`answered`, `busy`, `fault`, `left`).

    Use it in one event loop. most: largest concurrency; stop(last_fault, seconds): creates the error for a server that stays
    down.
    """

    def __init__(
        self,
        most: int,
        *,
        max_down_seconds: float,
        stop: Callable[[str, float], LoreError],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.most, self.max_down_seconds, self.stop, self.clock = most, max_down_seconds, stop, clock
        self.limit = float(max(min(most, SMALLEST_START), most // 2))
        self.under_way = 0
        self._waiting: deque[asyncio.Future] = deque()
        self._starting = True  # no failure yet, so concurrency grows fast
        self._cut_at = -inf
        self._hold_until = -inf
        self._faults, self._first_fault_at, self._last_fault = 0, 0.0, ""
        self._probe: float | None = None  # when the probe under way was admitted
        self._probed, self._probe_at, self._probe_wait = False, 0.0, FIRST_PROBE_SECONDS

    @property
    def open(self) -> bool:
        """Whether the circuit breaker is open: the server is considered down."""
        return self._faults >= BREAKER_FAULTS

    async def enter(self) -> float:
        """Waits for a slot and returns the current time, which the caller passes to `busy` or `fault`. Raises the error of
        stop() if the server has been down for max_down_seconds.
        """
        while (seconds := self._to_wait()) is not None:
            place = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                async with asyncio.timeout(None if seconds == inf else seconds):
                    await place
            except TimeoutError:
                pass
            except asyncio.CancelledError:
                self._wake()  # passes on the slot that this request may have been given
                raise
        self.under_way += 1
        entered = self.clock()
        self._probe = entered if self.open else None
        return entered

    def answered(self) -> None:
        """The server answered or rejected one prompt, so it is up."""
        self._up()
        self.limit = min(self.most, self.limit + (1 if self._starting else 1 / self.limit))
        self._leave()

    def busy(self, entered: float, pause_seconds: float) -> None:
        """The server is up and limits the rate; admits no request for pause_seconds."""
        self._up()
        self._hold_until = max(self._hold_until, self.clock() + pause_seconds)
        self._cut(entered)
        self._leave()

    def fault(self, entered: float, what: str, pause_seconds: float = 0.0) -> None:
        """No usable reply: connection refused, 5xx, timeout or malformed reply."""
        now = self.clock()
        if not self._faults:
            self._first_fault_at = now
        self._faults += 1
        self._last_fault = what
        probe = entered == self._probe
        if probe:
            self._probe, self._probed = None, True
        self._hold_until = max(self._hold_until, now + pause_seconds)
        if probe or self._faults == BREAKER_FAULTS:  # later faults of requests under way say nothing new
            self._probe_at = now + self._probe_wait
            self._probe_wait = min(2 * self._probe_wait, LONGEST_WAIT_SECONDS)
        self._cut(entered)
        self._leave()

    def left(self, entered: float) -> None:
        """The caller abandoned the request, so its end says nothing about the server."""
        if entered == self._probe:
            self._probe = None
        self._leave()

    def _to_wait(self) -> float | None:
        """None to send now; otherwise seconds until the next check, or inf to wait until another request ends."""
        now = self.clock()
        if self.open:
            down_seconds = now - self._first_fault_at
            if self._probe is not None:
                return inf
            if down_seconds >= self.max_down_seconds and self._probed:  # slow prompts can fail for longer without any probe
                raise self.stop(self._last_fault, down_seconds)
            if now < self._probe_at:
                until_stop = self.max_down_seconds - down_seconds if self._probed else inf
                return min(self._probe_at - now, until_stop)
        if now < self._hold_until:
            return self._hold_until - now
        return None if self.under_way < max(1, int(self.limit)) or self.open else inf

    def _up(self) -> None:
        self._faults, self._probe, self._probed, self._probe_wait = 0, None, False, FIRST_PROBE_SECONDS

    def _cut(self, entered: float) -> None:
        """Halves the limit, only once for all requests that were sent before the last cut."""
        self._starting = False
        if entered > self._cut_at:
            self.limit = max(1.0, self.limit / 2)
            self._cut_at = self.clock()

    def _leave(self) -> None:
        self.under_way -= 1
        self._wake()

    def _wake(self) -> None:
        free = max(1, int(self.limit)) - self.under_way
        if self.open:
            free = len(self._waiting)  # each waiter checks the clock and the breaker itself
        while free > 0 and self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                free -= 1
