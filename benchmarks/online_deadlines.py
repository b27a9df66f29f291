"""Load on a service with short deadlines: how late its answers are at the server, and what it costs beside the student alone.

    lore export student runs/quickstart/distill -o student
    python benchmarks/online_deadlines.py student runs/quickstart/world/pairs/test.parquet --clients 4 --pairs 8 --deadline-ms 50

Starts `lore serve online` on the exported student (int8, one thread), sends requests from this process without photos, and reads
the milliseconds from the service's own log. `late` counts answers more than 10 ms after the deadline. The CPU time per pair is that
of the service's process; `bare` is that of tokenization and onnxruntime for the same texts, 32 pairs at a time, in this process.
"""

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

import aiohttp
import numpy as np

from lore.data.pair import Pair
from lore.data.parquet import read_pairs
from lore.student.encode import shared_batches
from lore.student.scorer import open_student

GRACE_MS = 10.0
BODIES, BARE_PAIRS, BARE_BATCH = 200, 640, 32
TICKS = os.sysconf("SC_CLK_TCK")
RECIPE = 'lore: 1; from lore.run import main; main(__name__, __file__); r"""\nstage: online\nrun: online\n'


def row(pair: Pair) -> dict[str, object]:
    fields = {name: getattr(pair, name) for name in ("query", "title", "attributes", "description", "brand", "category", "price")}
    return {name: value for name, value in fields.items() if value}


async def send(address: str, bodies: list[bytes], requests: int, clients: int) -> dict[str, object]:
    """Sends all requests; each client has one under way."""
    statuses: Counter[int] = Counter()
    left, answered, too_late = iter(range(requests)), 0, 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client() -> None:
            nonlocal answered, too_late
            for number in left:
                body = bodies[number % len(bodies)]
                async with session.post(f"{address}/judge", data=body, headers={"Content-Type": "application/json"}) as response:
                    said = await response.json()
                statuses[response.status] += 1
                if response.status == 200:
                    failed = sum(verdict["failure"] is not None for verdict in said["verdicts"])
                    answered, too_late = answered + len(said["verdicts"]) - failed, too_late + failed
                else:
                    await asyncio.sleep(0.02)

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        seconds = time.perf_counter() - began
    return {"statuses": dict(statuses), "answered": answered, "too_late": too_late, "pairs_per_s": round(answered / seconds)}


def bare_microseconds(student: str, pairs: list[Pair]) -> float:
    """CPU microseconds per pair of the student without a service."""
    scorer = open_student(student, threads=1)
    pairs = pairs[:BARE_PAIRS]
    taken = []
    for _ in range(3):
        began = time.process_time()
        for at in range(0, len(pairs), BARE_BATCH):
            rows = scorer.encoder.rows(pairs[at : at + BARE_BATCH])
            for batch in shared_batches([one["length"] for one in rows], scorer.batch_tokens, 1):
                scorer.session.logits(scorer.encoder.batch([rows[index] for index in batch]))
        taken.append((time.process_time() - began) / len(pairs) * 1e6)
    return min(taken)


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("pairs_file")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--deadline-ms", type=float, default=50.0)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    pairs = list(read_pairs(options.pairs_file, limit=2000))
    for pair in pairs:
        pair.image = None
    draw = random.Random(0)
    drawn = ([row(pair) for pair in draw.sample(pairs, options.pairs)] for _ in range(BODIES))
    bodies = [json.dumps({"pairs": rows, "deadline_ms": options.deadline_ms}).encode() for rows in drawn]
    with tempfile.TemporaryDirectory() as folder:
        recipe, log = Path(folder) / "online.yaml", Path(folder) / "log"
        student = {"path": str(Path(options.student).resolve()), "threads": 1}
        recipe.write_text(f'{RECIPE}student: {json.dumps(student)}\nserve: {{port: 0}}\n# """\n')
        with log.open("w") as file:
            command = [sys.executable, "-m", "lore", "serve", "online", str(recipe)]
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            address = ""
            while not address:
                time.sleep(0.5)
                if process.poll() is not None:
                    sys.exit(log.read_text())
                found = re.search(r"answers at (http://\S+)", log.read_text())
                address = found[1] if found and is_ready(found[1]) else ""
            before = cpu_seconds(process.pid)
            found = asyncio.run(send(address, bodies, options.requests, options.clients))
            spent = cpu_seconds(process.pid) - before
        finally:
            process.terminate()
            status = process.wait(60)
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    milliseconds = np.asarray([line["ms"] for line in lines if line["path"] == "/judge"])
    late = milliseconds > options.deadline_ms + GRACE_MS
    found |= {
        "server_ms": {f"p{q:g}": round(float(np.percentile(milliseconds, q)), 1) for q in (50, 90, 99, 100)},
        "late": int(late.sum()),
        "cpu_us_per_answered_pair": round(spent / max(1, found["answered"]) * 1e6),
        "bare_us_per_pair": round(bare_microseconds(options.student, pairs)),
        "load_average": os.getloadavg()[0],
        "exit_status": status,
    }
    print(json.dumps(vars(options) | found, indent=1))


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ready", timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


if __name__ == "__main__":
    main()
