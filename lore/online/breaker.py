"""A circuit breaker: after several failures in a row, a server is left alone for a while, then one request tries it.

closed: every request is admitted. open: none is, for `open_seconds`. half-open: one request is; its success closes the breaker, its
failure opens it again. Pure: it keeps no tasks and reads the time from `clock`.
"""

import time
from collections.abc import Callable
from math import inf
from typing import Literal

State = Literal["closed", "open", "half_open"]


class Breaker:
    """`admit` gives a ticket, with which the caller then reports `success`, `failure` or `left`, once. Reports of requests that
    were admitted before the breaker last opened or closed change nothing."""

    def __init__(self, failures: int, open_seconds: float, clock: Callable[[], float] = time.monotonic):
        self.failures, self.open_seconds, self.clock = failures, open_seconds, clock
        self.in_a_row = 0
        self._round = 0
        self._until: float = -inf
        self._is_open = self._is_tried = False

    @property
    def state(self) -> State:
        if not self._is_open:
            return "closed"
        return "half_open" if self._is_tried or self.clock() >= self._until else "open"

    def admit(self) -> int | None:
        """A ticket; None if no request may be sent now."""
        if self._is_open:
            if self._is_tried or self.clock() < self._until:
                return None
            self._is_tried = True
        return self._round

    def success(self, ticket: int) -> None:
        """The server answered, if only to refuse a prompt."""
        if ticket == self._round:
            self.in_a_row = 0
            if self._is_open:
                self._is_open = self._is_tried = False
                self._round += 1

    def failure(self, ticket: int) -> None:
        """No answer, or not in time."""
        if ticket == self._round:
            self.in_a_row += 1
            if self._is_open or self.in_a_row >= self.failures:
                self.trip()

    def left(self, ticket: int) -> None:
        """The request ended without a word about the server."""
        if ticket == self._round:
            self._is_tried = False

    def trip(self) -> None:
        """Opens the breaker, whatever was before."""
        self._is_open, self._is_tried = True, False
        self._until = self.clock() + self.open_seconds
        self._round += 1
