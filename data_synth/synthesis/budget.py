"""Budget of a teacher. A request starts only if its maximum cost, added to that of all requests in flight, fits the budget;
its actual cost replaces the maximum when the answer arrives. If the cost is unknown (a timeout, a killed process), the maximum
stays.
"""

import asyncio
import time
from dataclasses import dataclass, field

from lore.data_synth.synthesis.config import BudgetSection, PriceSection
from lore.data_synth.synthesis.journal import Journal
from lore.engines.engine import Usage
from lore.support.errors import LoreError
from lore.support.processes import say

ROUNDING = 1e-9


class BudgetReached(LoreError):
    """The next request could exceed a limit. All answers so far are stored."""


@dataclass
class Spent:
    """Tokens, US dollars and seconds of work, over all starts of a run."""

    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0


def cost(usage: Usage, price: PriceSection | None) -> Spent:
    if price is None:
        return Spent(usage.prompt_tokens + usage.completion_tokens)
    usd = (usage.prompt_tokens * price.prompt_usd + usage.completion_tokens * price.completion_usd) / 1e6
    return Spent(usage.prompt_tokens + usage.completion_tokens, usd)


@dataclass
class Budget:
    """Limits of one run. Belongs to one event loop."""

    limits: BudgetSection
    spent: Spent = field(default_factory=Spent)
    held: Spent = field(default_factory=Spent)
    in_flight: int = 0
    reached: str = ""
    beyond: float = 1.0
    """Highest ratio of actual cost to bound so far. All later bounds are multiplied by it, for servers that count more tokens."""

    def __post_init__(self):
        self._started, self._before = time.monotonic(), self.spent.seconds
        self._waiters: list[asyncio.Future] = []

    @property
    def seconds(self) -> float:
        """Seconds of work so far, earlier starts included."""
        return self._before + time.monotonic() - self._started

    async def hold(self, most: Spent) -> None:
        """Waits until `most` fits beside the requests in flight. Raises BudgetReached if it does not fit even alone."""
        while not self.reached and (limit := self._limit_passed_by(most)):
            if limit == "max_seconds" or not self.in_flight:
                self.reached = limit
                self._wake()
            else:
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter
        if self.reached:
            raise BudgetReached(self._message())
        self.held.tokens += most.tokens
        self.held.usd += most.usd
        self.in_flight += 1

    def settle(self, most: Spent, took: Spent) -> None:
        self._raise_bounds(most, took)
        self.held.tokens -= most.tokens
        self.held.usd -= most.usd
        self.spent.tokens += took.tokens
        self.spent.usd += took.usd
        self.in_flight -= 1
        self._wake()

    def _raise_bounds(self, most: Spent, took: Spent) -> None:
        times = max((spent / bound for spent, bound in ((took.tokens, most.tokens), (took.usd, most.usd)) if bound), default=0.0)
        if times <= self.beyond:
            return
        self.beyond = times
        say(
            f"warning: a request took {took.tokens:,} tokens, but only {most.tokens:,} were reserved for it; from now on "
            f"{times:.2f} times as many are reserved. For photos, raise endpoint.max_image_tokens."
        )

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _limit_passed_by(self, most: Spent) -> str:
        limits, held, beyond = self.limits, self.held, self.beyond
        if limits.max_seconds is not None and self.seconds >= limits.max_seconds:
            return "max_seconds"
        if limits.max_tokens is not None and self.spent.tokens + beyond * (held.tokens + most.tokens) > limits.max_tokens:
            return "max_tokens"
        if limits.max_usd is not None and self.spent.usd + beyond * (held.usd + most.usd) > limits.max_usd + ROUNDING:
            return "max_usd"
        return ""

    def _message(self) -> str:
        at = {"max_usd": f"{self.spent.usd:.4f} US dollars", "max_tokens": f"{self.spent.tokens:,} tokens"}
        reached = at.get(self.reached, f"{self.seconds:.0f} seconds")
        return (
            f"budget.{self.reached} is {getattr(self.limits, self.reached):g}; {reached} are spent, and the next request could "
            f"exceed it. All answers are stored: run the same command with a larger budget.{self.reached} to resume."
        )


@dataclass
class RequestGate:
    """The gate of one request (see lore.engines.engine.Gate): the budget admits it, the journal records it."""

    budget: Budget
    price: PriceSection | None
    journal: Journal
    key: str

    async def admit(self, bound: Usage) -> tuple[int, Spent]:
        most = cost(bound, self.price)
        await self.budget.hold(most)
        try:
            return self.journal.asked(self.key, most.tokens, most.usd), most
        except BaseException:  # such as a full disk: nothing was sent, so the reservation must not block waiting requests
            self.budget.settle(most, Spent())
            raise

    def settle(self, ticket: tuple[int, Spent], used: Usage | None) -> None:
        number, most = ticket
        took = most if used is None else cost(used, self.price)
        try:
            self.journal.settled(number, took.tokens, took.usd)
        finally:
            self.budget.settle(most, took)
