"""How late the event loop is. One that has more to do than it can do answers nobody in time, so requests are refused until it has
caught up.

As in CoDel (Nichols and Jacobson: Controlling Queue Delay, https://queue.acm.org/detail.cfm?id=2209336, 2012), even the shortest
delay of an interval has to be above the target, since a single burst is worked off by itself. CoDel drops one request after the
other; here all are refused while the delay lasts, which costs little and ends soon.
"""

import asyncio
from math import inf

TICK_SECONDS, INTERVAL_SECONDS = 0.01, 0.1


class LoopLag:
    """Use it in the event loop that it measures, between `start` and `close`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """The shortest delay of a call within the last interval."""
        self._least, self._since = inf, 0.0
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._plan(self._since)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def note(self, delay: float, now: float) -> None:
        """Takes the delay of one call."""
        self._least = min(self._least, delay)
        if now - self._since >= INTERVAL_SECONDS:
            self.seconds, self._least, self._since = self._least, inf, now

    def _plan(self, now: float) -> None:
        self._handle = self._loop.call_at(now + TICK_SECONDS, self._tick, now + TICK_SECONDS)

    def _tick(self, due: float) -> None:
        now = self._loop.time()
        self.note(max(0.0, now - due), now)
        self._plan(now)
