"""What `lore plan` expects of the service, beside what the service then does: quality, cost and latency on a replayed log.

    python benchmarks/online_replay.py --pairs runs/quickstart/world/pairs/test.parquet --run runs/distill --student student \
        --judge runs/quickstart/sft --labels labels --bands 200,50 --bands 2000,2000 --bands 100,0

The log is that of the embedded shop: each query of the pairs with its query_frequency, and each search asks about all pairs of its
query. Searches are drawn at random by frequency and sent to `lore serve online` (POST /judge, --clients at a time, with photos).
For every choice of head_from,torso_from the service starts anew. Its cache holds the judge's labels of the head's pairs. Its judge
is a stub on loopback that answers from the judge's labels after --judge-ms, and the service keeps what the stub answers.

    quality   of all answers against the human labels. The plan knows the verdicts of --run on the same pairs (--half: on those of
              a random half of the queries).
    cost      pairs labelled beforehand, asked live and answered by the student, times the same made-up prices on both sides
    latency   of a request as the client sees it. The plan knows those of a rehearsal through the same service: REHEARSED requests
              that the student answers, that the judge answers, and that the cache answers.

There is no drift in a replay: no new items, no new queries.
"""

import argparse
import asyncio
import base64
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from lore.data.images import image_bytes
from lore.data.pair import Pair, query_key
from lore.data.parquet import read_pairs
from lore.eval.measures.metrics import Counts, measure
from lore.judge.confusion import NO_VERDICT, confusion_matrix
from lore.judge.served import served_name
from lore.judge.trained import trained_judge
from lore.label.config import InputSection
from lore.label.read import label_files, read_labels
from lore.online.plan.inputs import Input, Judge, Latency, Price, probe_student
from lore.online.plan.plan import Plan, Point, Prices, Setting, make_plan
from lore.online.plan.quality import PREDICTIONS, read_quality
from lore.online.plan.traffic import read_traffic
from lore.rubric.rubric import load_rubric
from lore.support.console import Console, Table

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from openai_server import Answer, Request, error, reply, serve, wait_for  # noqa: E402  the stub server of the tests

DAYS = 30.0
USD_LABEL, USD_LIVE, USD_STUDENT = 0.5e-3, 1.0e-3, 0.01e-3
METRICS = ("macro_f1", "acc_2")
DEADLINE_MS = 10_000.0
REHEARSED = 200
FIELDS = ("item_id", "title", "attributes", "description", "category", "brand", "shop", "price")


def body_of(pairs: list[Pair]) -> bytes:
    """The request of one search."""
    rows = []
    for pair in pairs:
        row = {"pair_id": pair.pair_id, "query": pair.query}
        row |= {name: value for name in FIELDS if (value := getattr(pair, name)) not in (None, "", {})}
        if pair.image is not None:
            data = image_bytes(pair.image)
            kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"
            row["image"] = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        rows.append(row)
    return json.dumps({"pairs": rows, "deadline_ms": DEADLINE_MS}).encode()


def words_of(text: str) -> str:
    return " ".join(text.split())


class Stub:
    """Answers like the judge: the text and the tier probabilities of its label. A pair is known by the last lines of its prompt."""

    def __init__(self, labels: list[dict[str, Any]], pairs: dict[str, Pair], tiers: list[str], model: str, seconds: float):
        self.tiers, self.model, self.seconds = tiers, model, seconds
        self.by_title: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for label in labels:
            if (pair := pairs.get(label["pair_id"])) is not None:
                self.by_title.setdefault(words_of(pair.title), []).append((words_of(pair.query), label))
        self.known: dict[str, dict[str, Any] | None] = {}
        self.asked: Counter[str] = Counter()

    def label_of(self, text: str) -> dict[str, Any] | None:
        """The label of the pair whose query and title are in a prompt; the longest ones of several."""
        if text not in self.known:
            titles = [title for title in self.by_title if title in text]
            found = [(len(title) + len(query), label) for title in titles for query, label in self.by_title[title] if query in text]
            self.known[text] = max(found, key=lambda one: one[0])[1] if found else None
        return self.known[text]

    def __call__(self, request: Request) -> Answer:
        asked = next(one for one in reversed(request.body["messages"]) if one["role"] == "user")["content"]
        texts = [asked] if isinstance(asked, str) else [part["text"] for part in asked if "text" in part]
        label = self.label_of(words_of(" ".join(texts)))
        if label is None:
            self.asked["unknown"] += 1
            return error(400, "no label of this pair")
        if "logprobs" not in request.body:
            self.asked["pairs"] += 1
            return reply(label["text"] or "", model=self.model, seconds=self.seconds)
        shares = [max(label[f"p_{tier}"] or 0.0, 1e-9) for tier in self.tiers]
        ids = request.body["logprob_token_ids"]
        listed = [{"token": f"token_id:{one}", "logprob": math.log(share)} for one, share in zip(ids, shares, strict=True)]
        answer = reply(self.tiers[int(np.argmax(shares))], model=self.model)
        answer.body["choices"][0]["logprobs"] = {"content": [listed[int(np.argmax(shares))] | {"top_logprobs": listed}]}
        return answer


def head_labels(labels: Path, folder: Path, is_head: Callable[[str], bool]) -> int:
    """Label files with the rows of the head alone; returns their number."""
    count = 0
    for path in label_files(labels):
        table = pq.read_table(path)
        kept = table.filter(pa.array([is_head(query) for query in table["query"].to_pylist()]))
        count += kept.num_rows - kept["tier"].null_count
        (folder / "verdicts").mkdir(parents=True, exist_ok=True)
        if kept.num_rows:
            pq.write_table(kept, folder / "verdicts" / path.name)
    return count


@contextmanager
def service(recipe: dict[str, Any], folder: Path) -> Iterator[str]:
    """The address of `lore serve online` with a recipe."""
    path, log = folder / "online.yaml", folder / "service.log"
    header = 'lore: 1; from lore.run import main; main(__name__, __file__); r"""\n'
    path.write_text(header + yaml.safe_dump(recipe, sort_keys=False) + '# """\n')
    address = f"http://127.0.0.1:{recipe['serve']['port']}"
    with open(log, "wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "lore", "serve", "online", str(path)], stdout=out, stderr=out)
        try:
            wait_for(process, f"{address}/ready", log)
            yield address
        finally:
            process.terminate()
            process.wait(60)


async def replay(address: str, bodies: list[bytes], order: np.ndarray, clients: int) -> tuple[list[dict[str, Any]], list[float]]:
    """The reply to every search, and its milliseconds."""
    replies: list[Any] = [None] * len(order)
    times = [0.0] * len(order)
    waiting = iter(range(len(order)))

    async def client(session: aiohttp.ClientSession) -> None:
        for at in waiting:
            while True:
                began = time.perf_counter()
                headers = {"Content-Type": "application/json"}
                async with session.post(f"{address}/judge", data=bodies[order[at]], headers=headers) as response:
                    said = await response.json()
                if response.status != 429:
                    break
                await asyncio.sleep(0.1)
            if response.status != 200:
                raise SystemExit(f"{response.status}: {json.dumps(said)[:500]}")
            times[at], replies[at] = 1000 * (time.perf_counter() - began), said

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return replies, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, type=Path, help="labeled pairs with query_frequency")
    parser.add_argument("--run", required=True, type=Path, help="run of stage distill with the judge's row")
    parser.add_argument("--student", required=True, type=Path, help="the same student, exported")
    parser.add_argument("--judge", required=True, type=Path)
    parser.add_argument("--labels", required=True, type=Path, help="the judge's labels of the pairs")
    parser.add_argument("--bands", action="append", default=[], metavar="HEAD_FROM,TORSO_FROM")
    parser.add_argument("--searches", type=int, default=3000)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--judge-ms", type=float, default=60.0)
    parser.add_argument("--half", action="store_true", help="measure the quality for the plan on half of the queries")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=8471)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    pairs = list(read_pairs(given.pairs))
    by_query: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_query.setdefault(query_key(pair.query, pair.slices), []).append(pair)
    names = list(by_query)
    frequency = np.asarray([max(pair.query_frequency or 0.0 for pair in by_query[name]) for name in names])
    bodies = [body_of(by_query[name]) for name in names]
    order = rng.choice(len(names), given.searches, p=frequency / frequency.sum())
    candidates = sum(len(by_query[names[at]]) for at in order) / given.searches
    labels = [row for batch in read_labels(given.labels) for row in batch.to_pylist() if row["tier"] is not None]
    judge = trained_judge(str(given.judge))
    table = Table(title=f"{given.searches:,} searches of {len(names):,} queries, {candidates:.2f} pairs each", title_justify="left")
    for heading in ("head from, torso from", "what", "planned", "replayed", "difference"):
        table.add_column(heading, justify="left" if heading in ("what",) else "right", no_wrap=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = half_of(given.run, folder, rng) if given.half else given.run
        section = InputSection(path=str(given.pairs))
        traffic, found = read_traffic(section, work=folder / "work", table=folder / "frequencies.arrow", days=DAYS)
        quality, _ = read_quality(run, "judge", "student", found, traffic)
        # The replay lasts as long as the log needs for so many searches, and the judge lives as long.
        lasts = DAYS * given.searches / float(traffic.searches.sum())
        nothing = Input(0.0, "given", "the replay")
        setting = Setting(replace(nothing, value=candidates), nothing, nothing, lasts, lasts, DEADLINE_MS, 2.0, 0.5, METRICS[0])
        cost = [Price(Input(usd, "given", "the replay")) for usd in (USD_LABEL, USD_LIVE, USD_STUDENT)]
        known = {pair.pair_id: pair for pair in pairs}
        stub = Stub(labels, known, quality.tiers, served_name(judge), given.judge_ms / 1000)
        with serve(stub) as server:
            server.models = [served_name(judge)]
            cache, of_student, of_judge = rehearse(given, server.url, folder, bodies, rng)
            student = replace(probe_student(given.student, round(candidates)), ms=of_student)
            speed = Judge(Input(given.judge_ms / 1000, "given", "the stub"), of_judge, None)
            plan = make_plan(traffic, quality, student, speed, cache, Prices(*cost, nothing), setting)
            chosen = [tuple(float(part) for part in text.split(",")) for text in given.bands]
            for number, bands in enumerate(chosen or [(plan.chosen.head_from, plan.chosen.torso_from)]):
                point = next((one for one in plan.points if (one.head_from, one.torso_from) == bands), None)
                if point is None:
                    tried = sorted({one.head_from for one in plan.points})
                    raise SystemExit(f"no choice {bands}; head_from and torso_from are of {tried}, or torso_from 0")
                inner = folder / str(number)
                done = one_choice(point, inner, given, server.url, stub, found.of, bodies, order)
                compare(table, point, plan, done, known, lasts)
    Console(width=132).print(table)


def half_of(run: Path, folder: Path, rng: np.random.Generator) -> Path:
    """The run with the verdicts on half of the queries."""
    place = folder / "half"
    place.mkdir()
    (place / "table.json").write_bytes((run / "table.json").read_bytes())
    rows = pq.read_table(run / PREDICTIONS)
    queries = sorted(set(rows["query"].to_pylist()))
    kept = pa.array([queries[at] for at in rng.permutation(len(queries))[: len(queries) // 2].tolist()])
    pq.write_table(rows.filter(pc.is_in(rows["query"], kept)), place / PREDICTIONS)
    return place


def recipe_of(given: Any, url: str, folder: Path, head_from: float, torso_from: float, labels: list[str]) -> dict[str, Any]:
    """The recipe of the service with one choice of bands."""
    return {
        "stage": "online",
        "run": "online",
        "student": {"path": str(given.student)},
        "judge": {"path": str(given.judge), "endpoint": {"url": url}, "deadline_ms": DEADLINE_MS, "concurrency": 64},
        "cache": {"store": str(folder / "verdicts.sqlite"), "timeout_ms": 2000, "labels": labels},
        "route": {
            "frequencies": str(folder.parent / "frequencies.arrow"),
            "head_from": head_from,
            "torso_from": torso_from,
            "head": ["cache", "student"],
            "torso": ["student"],
            "tail": ["cache", "judge", "student"] if torso_from > 0 else ["cache", "student"],
        },
        "serve": {"port": given.port, "deadline_ms": DEADLINE_MS},
    }


def rehearse(given: Any, url: str, folder: Path, bodies: list[bytes], rng: np.random.Generator) -> tuple[Latency, Latency, Latency]:
    """Latencies of requests through the service that the cache, the student and the judge answer; the two last ones less the
    middle of the first, because the plan adds it."""
    order = rng.permutation(len(bodies))[:REHEARSED]
    found = []
    for name, torso_from in (("student", 0.0), ("judge", 1e9)):
        inner = folder / f"rehearsal_{name}"
        inner.mkdir()
        with service(recipe_of(given, url, inner, 1e9, torso_from, []), inner) as address:
            for _ in range(1 if name == "student" else 2):
                found.append(np.asarray(asyncio.run(replay(address, bodies, order, given.clients))[1]))
    student, judge, cache = found
    middle = float(np.median(cache))
    return tuple(sampled(np.maximum(ms, 0.1)) for ms in (cache, student - middle, judge - middle))


def sampled(ms: np.ndarray) -> Latency:
    p50, p99 = (Input(float(np.quantile(ms, share)), "measured", "the rehearsal") for share in (0.5, 0.99))
    return Latency(p50, p99, tuple(ms.tolist()))


def one_choice(point: Point, folder: Path, given: Any, url: str, stub: Stub, searches: Any, bodies: list[bytes], order: np.ndarray):
    """Replays all searches with one choice of bands. Returns replies, milliseconds, pairs labelled and pairs asked live."""
    folder.mkdir()
    labelled = head_labels(given.labels, folder / "labels", lambda query: searches(query) >= point.head_from)
    recipe = recipe_of(given, url, folder, point.head_from, point.torso_from, [str(folder / "labels")] if labelled else [])
    stub.asked.clear()
    with service(recipe, folder) as address:
        replies, ms = asyncio.run(replay(address, bodies, order, given.clients))
    return replies, ms, labelled, stub.asked["pairs"], stub.asked["unknown"]


def compare(table: Table, point: Point, plan: Plan, done: Any, known: dict[str, Pair], lasts: float) -> None:
    replies, ms, labelled, asked, unknown = done
    rubric, tiers = load_rubric("shop"), plan.quality.tiers
    rows = [row for said in replies for row in said["verdicts"]]
    gold = np.asarray([rubric.index(rubric.tier_of(known[row["pair_id"]].label)) for row in rows])
    tier = np.asarray([NO_VERDICT if row["tier"] is None else tiers.index(row["tier"]) for row in rows])
    values = measure(Counts(confusion_matrix(gold, tier, len(tiers))), tiers, plan.quality.relevant)
    sources = Counter(row["source"] for row in rows)
    student_pairs = len(rows) - sources["cache"]
    usd = labelled * USD_LABEL + asked * USD_LIVE + student_pairs * USD_STUDENT
    frequency = plan.quality.frequency
    mix = ((frequency >= point.head_from) | (frequency < point.torso_from)).astype(float)
    lines: list[tuple[str, float, float, str]] = []
    for name in METRICS:
        planned = plan.quality.estimate(mix, name)
        low = f"{name} [{planned.low:.3f}, {planned.high:.3f}]"
        lines.append((low, planned.value, float(values[name][0]), "points"))
    lines.append(("cost of the work, USD", point.work_usd_per_day * lasts, usd, "%"))
    lines.append(("  labelled beforehand, pairs", point.label_pairs, labelled, "%"))
    lines.append(("  asked live, pairs", point.judge_pairs_per_day * lasts, asked, "%"))
    lines.append(("  answered by the student, pairs", point.student_pairs_per_day * lasts, student_pairs, "%"))
    lines.append(("from the cache, share", point.coverage, sources["cache"] / len(rows), "points"))
    lines.append(("p50, ms", point.p50_ms, float(np.median(ms)), "%"))
    lines.append(("p99, ms", point.p99_ms, float(np.quantile(ms, 0.99)), "%"))
    for at, (what, planned_value, seen, unit) in enumerate(lines):
        gap = 100 * (seen - planned_value) if unit == "points" else 100 * (seen / planned_value - 1) if planned_value else 0.0
        bands = f"{point.head_from:g}, {point.torso_from:g}" if at == 0 else ""
        table.add_row(bands, what, f"{planned_value:,.4g}", f"{seen:,.4g}", f"{gap:+.1f} {unit}")
    late, failed = sum(row["late"] for row in rows), sum(row["tier"] is None for row in rows)
    table.add_row("", f"late {late}, failed {failed}, unknown to the stub {unknown}", "", "", "")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
