"""A service whose answers depend on the texts alone, and requests to its interface without a socket."""

import asyncio
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from lore.data.pair import Pair, item_key, query_key
from lore.judge.verdict import Verdict
from lore.online.answer import Answer, relevance
from lore.online.app import build_app
from lore.online.config import OnlineRecipe

TIERS = ["L1", "L2", "L3", "L4"]


class StubRouter:
    """Answers with probabilities that are drawn from the content of a pair. refuse: what it raises instead."""

    tier_ids = TIERS

    def __init__(self, refuse: Exception | None = None, seconds: float = 0.0):
        self.refuse, self.seconds = refuse, seconds
        self.asked: list[Pair] = []
        self.deadlines: list[float | None] = []
        self.canceled = 0

    async def answer(
        self, pairs: Sequence[Pair], deadline_seconds: float | None = None, seconds: dict[str, float] | None = None
    ) -> list[Answer]:
        self.asked += pairs
        self.deadlines.append(deadline_seconds)
        if self.refuse is not None:
            raise self.refuse
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.canceled += 1
            raise
        return [self._answer(pair) for pair in pairs]

    def _answer(self, pair: Pair) -> Answer:
        drawn = hashlib.blake2b(f"{query_key(pair.query)}|{item_key(pair)}".encode(), digest_size=4).digest()
        shares = [1 + one for one in drawn]
        probabilities = [one / sum(shares) for one in shares]
        tier = TIERS[probabilities.index(max(probabilities))]
        photo = "none" if pair.image is None else "seen"
        verdict = Verdict(pair.pair_id, tier, probabilities, judge_id="j", source="student", photo=photo)
        return Answer(verdict, relevance(verdict, TIERS), "tail")


class StudentRouter:
    """A student of random weights, asked as it is."""

    def __init__(self, folder: Path, **section: Any):
        from students_for_tests import write_student  # loads torch, which most of these tests do not need

        from lore.student.scorer import open_student

        self.student = open_student(write_student(folder, **section))
        self.tier_ids = self.student.tier_ids

    async def answer(
        self, pairs: Sequence[Pair], deadline_seconds: float | None = None, seconds: dict[str, float] | None = None
    ) -> list[Answer]:
        verdicts = self.student.score(list(pairs))
        return [Answer(verdict, relevance(verdict, self.tier_ids), "tail") for verdict in verdicts]


class StubService:
    def __init__(self, router: Any = None, *, ready: bool = True, draining: bool = False):
        self.router, self.ready, self.draining = router or StubRouter(), ready, draining
        self.behind: Exception | None = None

    def refuse_if_behind(self) -> None:
        if self.behind is not None:
            raise self.behind


def recipe(**serve: Any) -> OnlineRecipe:
    return OnlineRecipe.model_validate(
        {"lore": 1, "stage": "online", "run": "runs/online", "student": {"path": "runs/distill"}, "serve": serve}
    )


def app_of(service: Any = None, **serve: Any) -> Any:
    return build_app(recipe(**serve), service or StubService()) if service or serve else default_app()


@cache
def default_app() -> Any:
    return build_app(recipe(), StubService())


async def send(app: Any, *requests: dict[str, Any]) -> list[httpx.Response]:
    """The replies to requests, each {"method", "url", ...} of httpx."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://lore") as client:
        return [await client.request(**{"method": "POST"} | request) for request in requests]


def post(app: Any, url: str, content: Any, **request: Any) -> httpx.Response:
    """The reply to one body, JSON or bytes."""
    kind = "content" if isinstance(content, bytes | str) else "json"
    headers = {"content-type": "application/json"} | request.pop("headers", {})
    return asyncio.run(send(app, {"url": url, kind: content, "headers": headers} | request))[0]


def get(app: Any, url: str, **request: Any) -> httpx.Response:
    return asyncio.run(send(app, {"method": "GET", "url": url} | request))[0]
