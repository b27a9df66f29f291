"""Asks the large judge about single pairs while a request waits: `lore serve judge`, or any server that lists this judge's name.

The judge is asked as everywhere else (lore.judge.ask), in a thread per pair, whose HTTP requests run in the service's event loop:
one attempt each, without the throttle and the retries of batch jobs. A breaker leaves the judge alone while it fails.

An answer that comes after its deadline is stored in the cache for the next request. Two requests about the same content ask once.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import numpy as np

from lore.data.pair import Pair
from lore.engines.engine import (
    Completion,
    EndpointFailed,
    EndpointStopped,
    EngineUsage,
    Messages,
    RequestRefused,
    Sampling,
    ScoresRefused,
)
from lore.engines.http.endpoint import EndpointEngine
from lore.judge.ask import TOO_LONG, judge_chunk
from lore.judge.card import judge_id
from lore.judge.served import check_served, served_name
from lore.judge.trained import TrainedJudge, trained_judge
from lore.judge.verdict import Verdict
from lore.online.answer import Cache
from lore.online.breaker import Breaker
from lore.online.config import OnlineJudgeSection
from lore.support.errors import LoreError

SHARE_OF_NEWEST = 0.1
CLOSE_SECONDS = 1.0
Outcome = str
"""answered, late (after the deadline), refused (no readable verdict), failed (no answer) or busy and open (not asked)."""


class JudgeClient:
    """See lore.online.router.LiveJudge. Create it anywhere, and use it in one event loop, between `start` and `close`.

    cache: where answers are stored. count: told of every outcome.
    """

    def __init__(
        self,
        judge: TrainedJudge,
        section: OnlineJudgeSection,
        *,
        cache: Cache | None = None,
        count: Callable[[Outcome], None] = lambda outcome: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Loads the tokenizer. Raises LoreError if the recipe names another model than this judge's, or holds no valid API key."""
        wanted = served_name(judge)
        if section.endpoint.model not in ("auto", wanted):
            raise LoreError(
                f"judge.endpoint.model is {section.endpoint.model}, and the judge in {section.path} is served as {wanted}.\nThe "
                "answers would be taken for this judge's, so it has to be this one: start it with "
                f"`lore serve judge {section.path}`."
            )
        self.judge, self.section, self.cache, self.count = judge, section, cache, count
        self.judge_id = judge_id(judge.weights, judge.rubric.hash, judge.renderer)
        self.ask_below, self.deadline_seconds = section.ask_below, section.deadline_ms / 1000
        self.longest_seconds = self.deadline_seconds + section.keep_seconds
        self.typical_seconds = 0.0
        self.breaker = Breaker(section.breaker.failures, section.breaker.open_seconds, clock)
        tokenizer = section.endpoint.tokenizer or judge.model.name
        once = {"model": wanted, "tokenizer": tokenizer, "timeout_seconds": self.longest_seconds}
        self._engine = EndpointEngine(section.endpoint.model_copy(update=once), judge.rubric)
        self._sampling = Sampling(max_tokens=section.max_tokens)
        self._threads = ThreadPoolExecutor(section.concurrency, "judge")
        self._turn = threading.Lock()
        self._running: dict[bytes, asyncio.Future] = {}
        self._tasks: set[asyncio.Task] = set()

    @property
    def under_way(self) -> int:
        """Pairs that the judge is asked about now."""
        return len(self._tasks)

    async def start(self) -> str | None:
        """Looks whether the server serves this judge. Returns why it cannot be asked; the breaker is then open. Raises LoreError if
        the server serves another judge."""
        self._loop = asyncio.get_running_loop()
        endpoint = self.section.endpoint
        try:
            await self._loop.run_in_executor(None, check_served, endpoint.url, self.judge, endpoint.key_variable)
        except EndpointStopped as error:
            self.breaker.trip()
            return str(error).partition("\n")[0]
        return None

    async def close(self) -> None:
        """Drops the answers that are still to come."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._engine.aclose()

    def ask(self, pair: Pair, content: bytes | None) -> "asyncio.Future[Verdict | None] | None":
        """See LiveJudge.ask."""
        if content is not None and content in self._running:
            return self._running[content]
        if len(self._tasks) >= self.section.concurrency:
            self.count("busy")
            return None
        ticket = self.breaker.admit()
        if ticket is None:
            self.count("open")
            return None
        future = self._loop.create_future()
        if content is not None:
            self._running[content] = future
        task = self._loop.create_task(self._ask(pair, content, ticket, future))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return future

    async def _ask(self, pair: Pair, content: bytes | None, ticket: int, future: asyncio.Future) -> None:
        began = time.monotonic()
        verdict, outcome, told = None, "failed", False

        def tell(report: Callable[[int], None]) -> None:
            nonlocal told
            if not told:
                told = True
                report(ticket)

        # While answers come too late for their requests, nobody should wait for the judge, so a late answer counts as a failure.
        late = self._loop.call_later(self.deadline_seconds, tell, self.breaker.failure)
        try:
            live = _LiveEngine(self._engine, self._loop, began + self.longest_seconds, self._turn)
            async with asyncio.timeout(self.longest_seconds + CLOSE_SECONDS):
                found = await self._loop.run_in_executor(self._threads, self._verdict, pair, live)
            tell(self.breaker.left if found.failure == TOO_LONG else self.breaker.success)  # too long: the judge was not asked
            outcome = "refused"
            if found.failure is None:
                verdict, seconds = found, time.monotonic() - began
                outcome = "answered" if seconds <= self.deadline_seconds else "late"
                self.typical_seconds += SHARE_OF_NEWEST * (seconds - self.typical_seconds)
        except asyncio.CancelledError:
            tell(self.breaker.left)
            raise
        except Exception:  # whatever a reply or a pair does, the student answers; the outcome is counted
            tell(self.breaker.failure)
        finally:
            late.cancel()
            if content is not None:
                del self._running[content]
            if not future.done():
                future.set_result(verdict)
            self.count(outcome)
        if verdict is not None and content is not None and self.cache is not None:
            await self.cache.put([content], [verdict])

    def _verdict(self, pair: Pair, live: "_LiveEngine") -> Verdict:
        """Asks about one pair, in a worker thread."""
        judge = self.judge
        with self._turn:
            (verdict,) = judge_chunk([pair], live, judge.rubric, judge.fmt, self._sampling)
        verdict.judge_id = self.judge_id
        return verdict


class _LiveEngine:
    """See lore.engines.engine.Engine: an endpoint for a worker thread, with one attempt per prompt, until a time.

    turn: a lock that the thread holds while it does not wait, because a tokenizer serves one thread at a time.
    """

    def __init__(self, engine: EndpointEngine, loop: asyncio.AbstractEventLoop, until: float, turn: threading.Lock):
        self.engine, self.loop, self.until, self.turn = engine, loop, until, turn
        self.tokenizer, self.processor, self.takes_images = engine.tokenizer, engine.processor, engine.takes_images
        self.usage: EngineUsage = engine.usage

    def generate(self, prompts: list[Messages], sampling: Sampling) -> list[list[Completion]]:
        out = []
        for prompt in prompts:
            try:
                out.append(self._wait(self.engine.complete_once(prompt, sampling)))
            except RequestRefused as error:
                out.append([Completion("", 0, "refused", detail=error.words)])
        return out

    def score(self, prompts: list[Messages]) -> np.ndarray:
        rows, refused = np.zeros((len(prompts), len(self.engine.rubric.tier_ids))), {}
        for index, prompt in enumerate(prompts):
            try:
                rows[index] = self._wait(self.engine.score_once(prompt))
            except RequestRefused as error:
                refused[index] = error.words
        if refused:
            raise ScoresRefused(rows, refused)
        return rows

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        left = self.until - time.monotonic()
        asked = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, max(0.0, left)), self.loop)
        self.turn.release()
        try:
            return asked.result(max(0.0, left) + CLOSE_SECONDS)
        except (TimeoutError, CancelledError) as error:
            asked.cancel()
            raise EndpointFailed("the judge did not answer in time") from error
        finally:
            self.turn.acquire()


def open_judge(section: OnlineJudgeSection, **more: Any) -> JudgeClient:
    """The client of a recipe's judge. Raises LoreError for a folder without a judge."""
    return JudgeClient(trained_judge(section.path, base=section.base), section, **more)
