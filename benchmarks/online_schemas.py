"""CPU time that the HTTP interface of the service takes for a pair, apart from the answers themselves.

    python benchmarks/online_schemas.py

A router that has its answer at once stands behind lore.online.app. Requests of each format go through the whole application, in
turns, without a socket: reading, JSON, checks, pairs, the reply. `stages` is the last request of the middle turn, by the clock. The
other times are CPU time of this process, because the machine may be shared. A socket and uvicorn come on top, once a request.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from lore.data.pair import Pair
from lore.judge.verdict import Verdict
from lore.online.answer import Answer
from lore.online.app import build_app
from lore.online.config import OnlineRecipe

WORDS = "red blue green mug shoe lamp tee kitchen children ceramic large small cotton steel oak dishwasher safe set of two".split()


class AtOnce:
    """Answers every pair with one verdict of a cache."""

    tier_ids = ["L1", "L2", "L3", "L4"]

    async def answer(
        self, pairs: Sequence[Pair], deadline_seconds: float | None = None, seconds: dict[str, float] | None = None
    ) -> list[Answer]:
        verdicts = [Verdict(pair.pair_id, "L3", [0.1, 0.2, 0.3, 0.4], source="cache") for pair in pairs]
        return [Answer(verdict, 2 / 3, "head", False, 60.0) for verdict in verdicts]


class Ready:
    router, ready, draining = AtOnce(), True, False

    def refuse_if_behind(self) -> None: ...


def said(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def item(rng: random.Random) -> dict[str, Any]:
    """An item with all fields of text, about 400 characters."""
    attributes = {name: said(rng, 1) for name in ("color", "material", "size")}
    texts = {"title": said(rng, 8), "brand": said(rng, 1), "category": said(rng, 2), "description": said(rng, 40)}
    return texts | {"price": 9.5, "attributes": attributes, "item_id": str(rng.randrange(10**6))}


def requests(rng: random.Random, pairs: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> path and body."""
    texts, items = [said(rng, 9) for _ in range(pairs)], [item(rng) for _ in range(pairs)]
    return {
        "rerank, texts": ("/v2/rerank", {"query": "red mug", "documents": texts}),
        "rerank, items": ("/v2/rerank", {"query": "red mug", "documents": items}),
        "text-embeddings-inference": ("/rerank", {"query": "red mug", "texts": texts}),
        "score": ("/score", {"text_1": "red mug", "text_2": texts}),
        "judge, items": ("/judge", {"pairs": [{"query": "red mug", **one} for one in items]}),
    }


async def ask(app: Any, path: str, body: bytes) -> str:
    """The header server-timing of one request."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""}
    scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "server": ("lore", 80), "client": ("client", 1)}
    messages, ended, start = [{"type": "http.request", "body": body}], asyncio.Event(), {}

    async def receive() -> dict[str, Any]:
        if not messages:
            await ended.wait()
            return {"type": "http.disconnect"}
        return messages.pop()

    async def send(message: dict[str, Any]) -> None:
        start.update(message if message["type"] == "http.response.start" else {})

    await app(scope, receive, send)
    ended.set()
    assert start["status"] == 200, start
    return next(value.decode() for name, value in start["headers"] if name == b"server-timing")


def measure(pairs: int, count: int, turns: int, seed: int) -> dict[str, dict[str, Any]]:
    """Microseconds of CPU time for a pair, by the format."""
    recipe = {"lore": 1, "stage": "online", "run": "runs/online", "student": {"path": "runs/distill"}}
    app = build_app(OnlineRecipe.model_validate(recipe), Ready())
    bodies = {name: (path, json.dumps(body).encode()) for name, (path, body) in requests(random.Random(seed), pairs).items()}
    spent: dict[str, list[tuple[float, str]]] = {name: [] for name in bodies}

    async def turn(path: str, body: bytes) -> tuple[float, str]:
        timing, begun = "", time.process_time()
        for _ in range(count):
            timing = await ask(app, path, body)
        return (time.process_time() - begun) / count / pairs * 1e6, timing

    for _ in range(turns):
        for name, request in bodies.items():
            spent[name].append(asyncio.run(turn(*request)))
    return {name: described(times) for name, times in spent.items()}


def described(times: list[tuple[float, str]]) -> dict[str, Any]:
    values = sorted(value for value, _ in times)
    middle = statistics.median_low(values)
    stages = next(timing for value, timing in times if value == middle)
    return {"microseconds": [round(one, 1) for one in (values[0], middle, values[-1])], "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="requests in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for pairs in (1, 10, 100):
        for name, found in measure(pairs, options.count, options.turns, options.seed).items():
            print(json.dumps({"pairs": pairs, "format": name, **found}))


if __name__ == "__main__":
    main()
