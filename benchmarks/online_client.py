"""The load on a service, from a process of its own: requests that arrive at random times (open loop) or one after the other.

An open loop does not wait for answers before it sends the next request, as a shop's visitors do not, and times an answer from the
moment at which its request was to be sent.
"""

import asyncio
import multiprocessing
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
import orjson

MOST_OPEN = 2000
"""Requests under way; more are not sent, and counted."""
REQUEST_SECONDS = 30.0
MOST_SHOWN = 3
DURATION = re.compile(r"\b(?:read|parse|photos|answer|write);dur=([\d.]+)")  # the others lie within `answer`
Expected = dict[str, dict[str, tuple[str, str, list[float]]]]
"""pair_id -> source -> judge_id, tier, probabilities."""


@dataclass
class Load:
    """What to send. rate: requests a second, as a Poisson process; None: one after the other, by so many clients. seconds or count:
    when to end. expected: what may be answered."""

    address: str
    bodies: list[bytes]
    rate: float | None = None
    clients: int = 4
    seconds: float | None = None
    count: int | None = None
    expected: Expected | None = None
    tolerance: float = 1e-3
    path: str = "/judge"
    headers: dict[str, str] = field(default_factory=dict)
    name: str = "load"
    seed: int = 0


@dataclass
class Seen:
    """What came back. sent, took: seconds, of each answered request, from the begin of the load and from its planned time;
    server_ms: by the service's own clock, NaN without a stage; status: of each."""

    sent: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    server_ms: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    waking: list[float] = field(default_factory=list)
    """Seconds by which a request was sent too late, because this process did not get a core."""
    sources: Counter = field(default_factory=Counter)
    """Pairs by the source of their answer."""
    counts: Counter = field(default_factory=Counter)
    """unsent, lost (no answer), wrong, failed, late, without_retry_after."""
    shown: list[str] = field(default_factory=list)
    """Some of what was wrong."""
    lost: list[str] = field(default_factory=list)
    """Ids of requests without an answer."""
    refused: int = 0
    """Connections that nobody accepted."""
    wall: float = 0.0

    def of(self, status: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(sent, took, server_ms) of the requests with this status."""
        kept = np.asarray(self.status) == status
        return np.asarray(self.sent)[kept], np.asarray(self.took)[kept], np.asarray(self.server_ms)[kept]

    def note(self, what: str, more: str = "") -> None:
        self.counts[what] += 1
        if self.counts[what] <= MOST_SHOWN:
            self.shown.append(f"{what}: {more}"[:300])


def check(rows: list[dict[str, Any]], load: Load, seen: Seen) -> None:
    """Compares verdicts with what may be answered."""
    for row in rows:
        seen.sources[row["source"]] += 1
        seen.counts["late"] += row["late"]
        if row["failure"] is not None:
            seen.note("failed", f"{row['pair_id']} {row['failure']}")
            continue
        if load.expected is None:
            continue
        judge_id, tier, probabilities = load.expected[row["pair_id"]].get(row["source"], ("none", "", []))
        found = [value for name, value in row.items() if name.startswith("p_") and value is not None]
        close = len(found) == len(probabilities) and max(map(abs, np.subtract(found, probabilities)), default=1) <= load.tolerance
        ranked = sorted(probabilities)
        same = row["tier"] == tier or close and ranked[-1] - ranked[-2] <= 2 * load.tolerance
        if row["judge_id"] != judge_id or not close or not same:
            what = (
                f"{row['pair_id']} {row['source']} {row['judge_id']} {row['tier']} {found}, not {judge_id} {tier} {probabilities}"
            )
            seen.note("wrong", what)


async def ask(session: aiohttp.ClientSession, load: Load, number: int, body: bytes, began: float, due: float, seen: Seen) -> None:
    """One request. due: when it was to be sent."""
    sent, name = time.perf_counter(), f"{load.name}-{number}"
    seen.waking.append(sent - due)
    try:
        async with session.post(load.address + load.path, data=body, headers={"x-request-id": name}) as response:
            said = await response.read()
    except aiohttp.ClientConnectorError:
        seen.refused += 1
        return
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        seen.lost.append(name)
        seen.note("lost", f"{name} {type(error).__name__} {error}")
        return
    seen.sent.append(sent - began)
    seen.took.append(time.perf_counter() - due)
    seen.status.append(response.status)
    stages = DURATION.findall(response.headers.get("server-timing", ""))
    seen.server_ms.append(sum(map(float, stages)) if stages else float("nan"))
    if response.status == 200:
        if load.path == "/judge":
            check(orjson.loads(said)["verdicts"], load, seen)
    elif response.status in (429, 503):
        if "retry-after" not in response.headers:
            seen.note("without_retry_after", name)
    else:
        seen.note(f"status_{response.status}", said[:200].decode(errors="replace"))


async def send(load: Load) -> Seen:
    """Sends the whole load."""
    seen, draw = Seen(), random.Random(load.seed)
    headers = {"content-type": "application/json"} | load.headers
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        began = time.perf_counter()
        ends = began + (load.seconds or float("inf"))
        numbers = iter(range(load.count if load.count is not None else 10**9))
        if load.rate is None:

            async def client() -> None:
                for number in numbers:
                    if time.perf_counter() >= ends or seen.refused:
                        return
                    await ask(session, load, number, draw.choice(load.bodies), began, time.perf_counter(), seen)

            await asyncio.gather(*(client() for _ in range(load.clients)))
        else:
            due, tasks = began, set()
            for number in numbers:
                due += draw.expovariate(load.rate)
                if due >= ends:
                    break
                if (rest := due - time.perf_counter()) > 0:
                    await asyncio.sleep(rest)
                if len(tasks) >= MOST_OPEN:
                    seen.note("unsent")
                    continue
                task = asyncio.create_task(ask(session, load, number, draw.choice(load.bodies), began, due, seen))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if tasks:
                await asyncio.wait(tasks)
        seen.wall = time.perf_counter() - began
    return seen


def drive(load: Load) -> Seen:
    return asyncio.run(send(load))


class Client:
    """The process."""

    def __init__(self, pool: ProcessPoolExecutor):
        self._pool = pool

    def start(self, load: Load) -> "Future[Seen]":
        return self._pool.submit(drive, load)

    def run(self, load: Load) -> Seen:
        return self.start(load).result()


@contextmanager
def client() -> Iterator[Client]:
    """A process for the load, ready to send."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(int).result()
        yield Client(pool)
