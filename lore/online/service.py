"""What a worker of the service holds: the student, the cache, the judge, and the router over them."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lore.data.pair import Pair
from lore.judge.card import split_judge_id
from lore.online.answer import BANDS, Overloaded
from lore.online.batcher import Batcher
from lore.online.cache import content_key, load_labels, open_cache, say_what_is_there
from lore.online.cache_store import StoreUnreachable
from lore.online.config import OnlineRecipe
from lore.online.frequencies import Frequencies
from lore.online.loop_lag import LoopLag
from lore.online.metrics import Metrics
from lore.online.router import Router
from lore.online.shadow import Shadow
from lore.online.traces import Traces, open_traces
from lore.student.canary import CanaryCheck, check_canaries
from lore.student.card import StudentCard
from lore.student.exported import EXPORT, cpu_flags
from lore.student.scorer import StudentScorer, open_student
from lore.support.errors import LoreError
from lore.support.terminal import print_note

if TYPE_CHECKING:  # loads transformers, which a service without a judge does not need
    from lore.online.cache_store import FilledCache
    from lore.online.judge_client import JudgeClient

WARM_UP_LENGTHS = (16, 32, 64, 128, 256, 512)
"""Tokens of the batches that warm the student up, as far as it reads so many."""
DRAIN_STEP_SECONDS = 0.02
MOST_LAG = 0.1
"""Delay of the event loop, as a share of the recipe's deadline, from which on requests are refused: about eight turns of the loop
answer one."""


class Service:
    """One worker. `open_service` opens it; `start`, `drain` and `close` it in the server's event loop.

    ready: it answers; draining: it shuts down and takes no new requests.
    """

    def __init__(
        self,
        recipe: OnlineRecipe,
        scorer: StudentScorer,
        *,
        cache: "FilledCache | None" = None,
        judge: "JudgeClient | None" = None,
        frequency: Callable[[str, Sequence[str]], float | None] | None = None,
        canaries: CanaryCheck | None = None,
        metrics: Metrics | None = None,
        traces: Traces | None = None,
    ):
        self.metrics, self.traces = metrics or Metrics(), traces
        self.recipe, self.scorer, self.cache, self.judge, self.canaries = recipe, scorer, cache, judge, canaries
        self.ready, self.lag = False, LoopLag()
        self.batcher = Batcher(scorer, batch_tokens=recipe.student.batch_tokens, seen=self.metrics.stage)
        self.router = Router(
            self.batcher,
            recipe.route,
            deadline_seconds=recipe.serve.deadline_ms / 1000,
            max_pairs=recipe.serve.max_queued_pairs,
            cache=cache,
            key=content_key,
            judge=judge,
            observe=self.metrics.stage,
            **({} if frequency is None else {"frequency": frequency}),
        )

        self.shadow = None
        if recipe.shadow.share > 0:
            self.shadow = Shadow(recipe.shadow, scorer.tier_ids, self.metrics.shadow)
        self.metrics.watch(lambda: self.router.pairs_under_way, None if judge is None else lambda: judge.breaker.state)
        self.metrics.models(scorer.judge_id, self.judge_ids.get("judge", self.judge_ids.get("cache")))
        if canaries is not None:
            self.metrics.canary(canaries.largest)

    @property
    def card(self) -> StudentCard:
        return self.scorer.card

    @property
    def draining(self) -> bool:
        return self.router.draining

    @property
    def judge_ids(self) -> dict[str, str]:
        """judge_id by the source of an answer."""
        found = {"student": self.scorer.judge_id}
        if self.judge is not None:
            found["judge"] = self.judge.judge_id
        if self.cache is not None and self.cache.judge is not None:
            found["cache"] = self.cache.judge.judge_id
        return found

    def described(self) -> list[str]:
        """What answers, in lines for people."""
        session = self.scorer.session
        threads = f"{session.parallel} thread{'s' * (session.parallel > 1)}"
        student = f"student: {self.card.folder} ({session.precision}, {threads}, {self.batcher.batch_tokens} tokens a batch)"
        if self.canaries is not None:
            student += f"; {self.canaries.pairs} canaries differ by {self.canaries.largest:.2g} at most"
        missing = {"judge"} if self.judge is None else set()
        missing |= {"cache"} if self.cache is None else set()
        bands = BANDS if self.recipe.route.frequencies is not None else ("tail",)
        steps = {band: [step for step in getattr(self.recipe.route, band) if step not in missing] for band in bands}
        lines = [student, "; ".join(f"{band}: {', '.join(names)}" for band, names in steps.items())]
        if self.judge is not None:
            lines.append(f"judge: {self.recipe.judge.path} at {self.recipe.judge.endpoint.url}")
        if self.cache is not None and self.cache.judge is not None:
            lines.append(f"cache: {self.recipe.cache.store}, verdicts of {self.cache.judge.path}")
        if self.shadow is not None:
            lines.append(f"shadow: {self.recipe.shadow.share:.2%} of the student's pairs go to {self.recipe.shadow.folder}")
        return lines

    async def start(self) -> None:
        """Starts to answer: the student is warm, and the judge is looked for. A judge that is down does not keep it from starting.
        Raises LoreError if the judge's server serves another judge."""
        if self.shadow is not None:
            self.shadow.start()
        self.lag.start()
        await self.batcher.start()
        await warm_up(self.batcher)
        if self.judge is not None and (why := await self.judge.start()) is not None:
            print_note(f"warning: the service starts without its judge and tries it again: {why}")
        self.ready = True

    def refuse_if_behind(self) -> None:
        """Raises Overloaded while the event loop has more to do than it can do in time."""
        if self.lag.seconds > MOST_LAG * self.router.deadline_seconds:
            raise Overloaded(f"the service is {self.lag.seconds:.3f} s behind", 1.0)

    async def drain(self) -> None:
        """Takes no new requests, and waits for those that were accepted, at most drain_seconds."""
        self.ready, self.router.draining = False, True
        until = time.monotonic() + self.recipe.serve.drain_seconds
        while self.router.requests_under_way and time.monotonic() < until:
            await asyncio.sleep(DRAIN_STEP_SECONDS)

    async def close(self) -> None:
        """Ends what still runs, writes what the cache has not written yet, and frees the memory."""
        self.ready, self.router.draining = False, True
        self.lag.close()
        if self.judge is not None:
            await self.judge.close()
        await self.batcher.close()
        if self.cache is not None:
            await self.cache.close()
        if self.shadow is not None:
            await asyncio.to_thread(self.shadow.close)
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)
        self.scorer.close()


def open_service(recipe: OnlineRecipe) -> Service:
    """Opens all that a recipe names. Raises LoreError for what does not belong together, and if the student's answers differ from
    those at its export by more than the tolerance: the service must not answer then."""
    section = recipe.student
    scorer = open_student(
        section.path,
        precision=section.precision,
        threads=section.threads or default_threads(recipe.serve.workers),
        photo_embeddings=section.photo_embeddings,
    )
    canaries = canary_gate(scorer, section.canary_tolerance)
    metrics, cache = Metrics(), None
    if recipe.cache.store != "none":
        cache = _open_cache(recipe, metrics)
        check_tiers(scorer.card, cache.judge.judge_id, cache.judge.path)
    judge = None
    if recipe.judge is not None and any("judge" in getattr(recipe.route, band) for band in BANDS):
        from lore.online.judge_client import open_judge  # loads transformers: only for a service with a judge

        judge = open_judge(recipe.judge, cache=cache, count=metrics.judge_outcome)
        check_tiers(scorer.card, judge.judge_id, recipe.judge.path)
    frequency = None
    if recipe.route.frequencies is not None:
        frequency = Frequencies.open(recipe.route.frequencies).of
    traces = open_traces(recipe.serve.traces) if recipe.serve.traces is not None else None
    return Service(recipe, scorer, cache=cache, judge=judge, frequency=frequency, canaries=canaries, metrics=metrics, traces=traces)


def _open_cache(recipe: OnlineRecipe, observer: Metrics | None = None) -> "FilledCache":
    path, base = (None, None) if recipe.judge is None else (recipe.judge.path, recipe.judge.base)
    return open_cache(recipe.cache, path, base=base, observer=observer)


def load_cache(recipe: OnlineRecipe) -> None:
    """Loads the label folders of a recipe into its store, and says so if the store has no verdict of the judge after that. Once a
    service, before its workers start and outside of an event loop. A store that cannot be reached does not keep the service from
    starting."""
    if recipe.cache.store == "none":
        return
    cache = _open_cache(recipe)
    try:
        try:
            load_labels(cache, recipe.cache.labels)
        except StoreUnreachable:
            print_note("warning: cache.labels are not loaded. Load them with `lore cache load` when the store is back.")
        say_what_is_there(cache, recipe.cache.store)
    finally:
        asyncio.run(cache.close())


def check_tiers(card: StudentCard, judge_id: str, path: str) -> None:
    """Raises LoreError for a judge of another rubric than the student's: their tiers would mean different things."""
    _, rubric, _ = split_judge_id(judge_id)
    if rubric != card.rubric_hash:
        raise LoreError(
            f"{path} judges by the rubric {rubric}, and the student {card.folder} by {card.rubric} ({card.rubric_hash}).\n"
            "Their tiers mean different things, and one service answers with both. Take a student and a judge of one rubric."
        )


def canary_gate(scorer: StudentScorer, tolerance: float | None) -> CanaryCheck | None:
    """Scores the pairs of an exported student again. None for a student that was never exported, which has none. Raises LoreError
    for scores that differ by more than the tolerance, with both numbers and the CPU's instruction sets."""
    folder = scorer.card.folder
    if not (folder / EXPORT).is_file():
        return None
    try:
        return check_canaries(scorer, folder, tolerance)
    except LoreError as error:
        flags = ", ".join(cpu_flags()) or "none known"
        raise LoreError(f"The service does not start: its student fails its canaries.\n{error}\nThis CPU has {flags}.") from error


def default_threads(workers: int) -> int:
    """Threads of one worker: the cores of this process, divided by the workers."""
    return max(1, len(os.sched_getaffinity(0)) // workers)


async def warm_up(batcher: Batcher) -> None:
    """One full batch of each length, through the queue: the first request then waits for nothing, and the rate is known."""
    most = batcher.scorer.card.fmt.max_tokens
    for length in [*(one for one in WARM_UP_LENGTHS if one < most), most]:
        count = max(1, batcher.batch_tokens // length) * batcher.parallel
        words = "a " * length
        pairs = [Pair(pair_id=f"{at}", query="a", title=words) for at in range(count)]
        await batcher.submit(pairs, time.monotonic() + 600).done
