"""What benchmarks/online.py and benchmarks/online_load.py share: a student, a judge, their answers, and servers in processes.

The student is all-MiniLM-L6-v2 with a random head (benchmarks/student.py), or any that `lore export student` wrote. The judge is
the tiny one of the tests, whose server (benchmarks/online_judge.py) draws the tiers' probabilities from the prompt: every pair has
one right answer of the judge and one of the student, which are computed before the service starts.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from lore.codec.pair_text import PairTextFormat
from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.data_synth.shop.world import World
from lore.engines.config import EndpointSection
from lore.engines.engine import Sampling
from lore.engines.http.endpoint import EndpointEngine
from lore.judge.card import judge_id
from lore.judge.scorer import JudgeScorer
from lore.judge.served import served_name
from lore.judge.trained import TrainedJudge, trained_judge
from lore.judge.verdict import Verdict
from lore.label.inputs.search_log import count_log
from lore.label.inputs.tables import Table
from lore.online.cache import content_key, open_store_of
from lore.online.cache_store import cached_judge
from lore.online.config import CacheSection
from lore.online.frequencies import write_frequencies
from lore.student.card import read_student

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS, STOP_SECONDS = 180.0, 60.0
SENT = ("pair_id", "query", "item_id", "title", "attributes", "description", "category", "brand", "shop", "price")


# Pairs, student and judge


def shop_pairs(count: int, seed: int) -> list[Pair]:
    """Different pairs of the embedded shop, without photos."""
    found: dict[bytes, Pair] = {}
    for number, pair in enumerate(World(seed).pairs("train", 3 * count)):
        pair = replace(pair, pair_id=f"p{number}", image=None)
        found.setdefault(content_key(pair), pair)
        if len(found) == count:
            break
    return list(found.values())


def body_of(pairs: Sequence[Pair], **more: Any) -> bytes:
    """The body of POST /judge."""
    rows = [{name: value for name in SENT if (value := getattr(pair, name)) not in (None, "", {})} for pair in pairs]
    return json.dumps({"pairs": rows} | more).encode()


def write_pairs(path: Path, pairs: Sequence[Pair]) -> Path:
    with PairWriter(path) as writer:
        for pair in pairs:
            writer.write(pair)
    return path


def exported_student(work: Path, pairs: Sequence[Pair], kind: str) -> Path:
    """Folder of an exported student. kind: minilm, tiny (of the tests, for trying the programs out), or a folder that there is."""
    if kind not in ("minilm", "tiny"):
        return Path(kind)
    from lore.distill.export import export_student  # loads torch: only where a student is made

    if kind == "minilm":
        from student import new_student

        model = new_student(work / "model", "shop", ["title", "attributes", "brand", "price"], 128)
    else:
        with test_modules():
            from students_for_tests import write_student

            model = write_student(work / "model", fmt=PairTextFormat(max_tokens=256))
    sample = write_pairs(work / "sample.parquet", pairs[:512])
    export_student(model, work / "student", pairs=sample, precisions=["fp32", "int8"], f1_loss=1, changed=1)
    return work / "student"


def tiny_judge(work: Path, student: Path) -> TrainedJudge:
    """A judge with random weights and the student's rubric. Only its tokenizer, prompt and card are used."""
    with test_modules():
        import tiny

        folder = tiny.adapter_judge(tiny.make(work / "tiny").text, work / "judge", "answer_first", read_student(student).rubric)
    return trained_judge(folder)


@contextmanager
def test_modules() -> Iterator[None]:
    """The modules of tests/ can be imported."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        yield
    finally:
        sys.path.remove(str(ROOT / "tests"))


def judge_answers(judge: TrainedJudge, url: str, pairs: list[Pair]) -> list[Verdict]:
    """What the judge's server answers when it is asked as in batch jobs."""
    section = EndpointSection(url=url, model=served_name(judge), tokenizer=judge.model.name, max_concurrency=8)
    own = judge_id(judge.weights, judge.rubric.hash, judge.renderer)
    scorer = JudgeScorer(EndpointEngine(section, judge.rubric), judge.rubric, judge.fmt, Sampling(max_tokens=64), own)
    try:
        return scorer.score(pairs)
    finally:
        scorer.close()


def fill_cache(store: str, judge: TrainedJudge, pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> None:
    """Stores the judge's verdicts, and for the same pairs other verdicts of an older judge, which must never be answered."""
    section, now = CacheSection(store=store, timeout_ms=60_000.0), cached_judge(str(judge.folder))
    older = replace(now, judge_id=f"{'0' * 16}:{now.judge_id.partition(':')[2]}")
    older = replace(older, name=now.name.replace(now.judge_id, older.judge_id))
    wrong = [
        replace(one, judge_id=older.judge_id, tier=other(one.tier, now.tier_ids), probabilities=(one.probabilities or [])[::-1])
        for one in verdicts
    ]

    async def put(owner: Any, answers: Sequence[Verdict]) -> None:
        cache = open_store_of(section, owner)
        await cache.put([content_key(pair) for pair in pairs], answers)
        await cache.close()

    for owner, answers in ((older, wrong), (now, verdicts)):
        asyncio.run(put(owner, answers))


def other(tier: str | None, tiers: Sequence[str]) -> str:
    """Another tier."""
    return tiers[(tiers.index(tier) + 1) % len(tiers)] if tier in tiers else tiers[0]


def frequency_table(work: Path, head: Sequence[str], torso: Sequence[str]) -> Path:
    """A table in which queries of the head have 200 searches, and those of the torso 20."""
    log, out = work / "log.parquet", work / "frequencies.arrow"
    pq.write_table(pa.table({"query": [*head] * 200 + [*torso] * 20}), log)
    database = count_log(Table(str(log)), {"query": "query"}, work / "log.sqlite", "benchmark")
    write_frequencies(out, database, days=1.0, source=log.name)
    return out


# Processes


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Program:
    """A program of its own, whose output goes into a file. url: answers 200 once the program does; None: a port that accepts."""

    def __init__(self, command: Sequence[str | Path], log: Path, port: int, path: str | None):
        self.log, self.port, self.path = log, port, path
        self._command, self._process = [str(part) for part in command], None
        self.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, again after `kill`, and waits until it answers."""
        with self.log.open("ab") as file:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, stdout=file, stderr=file, env=os.environ | {"PYTHONPATH": ROOT}
            )
        until = time.monotonic() + START_SECONDS
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise SystemExit(f"{' '.join(self._command)} did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.1)

    def answers(self) -> bool:
        with suppress(OSError):
            if self.path is None:
                socket.create_connection(("127.0.0.1", self.port), 2).close()
            else:
                urllib.request.urlopen(self.address + self.path, timeout=5).close()
            return True
        return False

    @property
    def exit_status(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """Ends it by SIGTERM and returns its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def processes(self) -> list[psutil.Process]:
        """The process and its children."""
        own = psutil.Process(self._process.pid)
        return [own, *own.children(recursive=True)]

    def rss_bytes(self) -> int:
        return sum(one.memory_info().rss for one in self.processes())

    def cpu_seconds(self) -> float:
        return sum(sum(one.cpu_times()[:2]) for one in self.processes())


@contextmanager
def running(*command: str | Path, log: Path, port: int, path: str | None = None) -> Iterator[Program]:
    """A program until the end of the block."""
    program = Program(command, log, port, path)
    try:
        yield program
    finally:
        program.kill()


@contextmanager
def service(work: Path, name: str, recipe: dict[str, Any]) -> Iterator[Program]:
    """`lore serve online` until the end of the block, killed if it still runs then. recipe: sections; the port is chosen here."""
    port = free_port()
    body = {"stage": "online", "run": "online"} | recipe
    body["serve"] = {"port": port} | body.get("serve", {})
    path = work / f"{name}.yaml"
    path.write_text(recipe_text(body))
    with running(
        sys.executable, "-m", "lore", "serve", "online", path, log=work / f"{name}.log", port=port, path="/ready"
    ) as found:
        yield found


def recipe_text(body: dict[str, Any]) -> str:
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in body.items())
    return f'lore: 1; from lore.run import main; main(__name__, __file__); r"""\n{lines}\n# """\n'


@contextmanager
def judge_server(work: Path, judge: TrainedJudge, low_ms: float, high_ms: float) -> Iterator[Program]:
    """The judge's server, which takes between low_ms and high_ms for an answer."""
    port = free_port()
    command = (sys.executable, ROOT / "benchmarks" / "online_judge.py", str(port), served_name(judge), str(low_ms), str(high_ms))
    with running(*command, log=work / "judge.log", port=port, path="/v1/models") as found:
        yield found


@contextmanager
def redis_server(work: Path) -> Iterator[Program]:
    port = free_port()
    command = ("redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1")
    with running(*command, log=work / "redis.log", port=port) as found:
        yield found


def log_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of the service's log that are about a request."""
    with path.open() as file:
        for line in file:
            if line.startswith("{"):
                yield json.loads(line)
