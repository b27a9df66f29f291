"""What a worker of the service holds: the student, the cache, the judge, and the router over them."""

import asyncio
import os
import time

from lore.data.pair import Pair
from lore.online.batcher import Batcher
from lore.online.config import OnlineRecipe
from lore.online.router import Router
from lore.student.canary import CanaryCheck, check_canaries
from lore.student.card import StudentCard
from lore.student.exported import EXPORT, cpu_flags
from lore.student.scorer import StudentScorer, open_student
from lore.support.errors import LoreError

WARM_UP_LENGTHS = (16, 32, 64, 128, 256, 512)
"""Tokens of the batches that warm the student up, as far as it reads so many."""
DRAIN_STEP_SECONDS = 0.02


class Service:
    """One worker. `open` it anywhere, `start` and `drain` it in the server's event loop.

    ready: it answers; draining: it shuts down and takes no new requests.
    """

    def __init__(self, recipe: OnlineRecipe, scorer: StudentScorer, canaries: CanaryCheck | None = None):
        self.recipe, self.scorer, self.canaries = recipe, scorer, canaries
        self.ready = False
        serve = recipe.serve
        self.batcher = Batcher(scorer, batch_tokens=recipe.student.batch_tokens)
        self.router = Router(
            self.batcher,
            recipe.route,
            deadline_seconds=serve.deadline_ms / 1000,
            max_pairs=serve.max_queued_pairs,
        )

    @property
    def card(self) -> StudentCard:
        return self.scorer.card

    @property
    def draining(self) -> bool:
        return self.router.draining

    @property
    def judge_ids(self) -> dict[str, str]:
        """judge_id by the source of an answer."""
        return {"student": self.scorer.judge_id}

    def described(self) -> str:
        """One line for people."""
        session = self.scorer.session
        threads = f"{session.parallel} thread{'s' * (session.parallel > 1)}"
        found = f"student {self.card.folder} ({session.precision}, {threads}, {self.batcher.batch_tokens} tokens a batch)"
        if self.canaries is not None:
            found += f"; {self.canaries.pairs} canaries differ by {self.canaries.largest:.2g} at most"
        return found

    async def start(self) -> None:
        """Starts to answer: the student is warm, the cache and the judge are open."""
        await self.batcher.start()
        await warm_up(self.batcher)
        self.ready = True

    async def drain(self) -> None:
        """Takes no new requests, and waits for those that were accepted, at most drain_seconds."""
        self.ready, self.router.draining = False, True
        until = time.monotonic() + self.recipe.serve.drain_seconds
        while self.router.requests_under_way and time.monotonic() < until:
            await asyncio.sleep(DRAIN_STEP_SECONDS)

    async def close(self) -> None:
        """Ends what still runs and frees the memory."""
        self.ready, self.router.draining = False, True
        await self.batcher.close()
        self.scorer.close()


def open_service(recipe: OnlineRecipe) -> Service:
    """Opens the student of a recipe and compares its answers with those at its export. Raises LoreError if they differ by more
    than the tolerance: the service must not answer then."""
    section = recipe.student
    scorer = open_student(
        section.path,
        precision=section.precision,
        threads=section.threads or default_threads(recipe.serve.workers),
        photo_embeddings=section.photo_embeddings,
    )
    return Service(recipe, scorer, canary_gate(scorer, section.canary_tolerance))


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
