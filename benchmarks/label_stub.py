"""The judge of benchmarks/label_faults.py: a function of the title that costs nothing, and a record of every pair that it is asked.

All systems ask this function, in their own process or through the small OpenAI server below, so that only their mechanics differ.
"""

import json
import os
import sys
import time
import zlib
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TIERS = ("L1", "L2", "L3", "L4")  # of the rubric rair
POISON = "poisoned"


@dataclass(frozen=True)
class Job:
    """One job of a system. pairs: folder of Parquet files with pair_id, query, title; judge: folder of its weights; asked: the
    record; seconds: what a pair costs; url: the server, for systems that cannot call a function; keep: keep the record of finished
    work after success, where a system deletes it."""

    pairs: str
    out: str
    judge: str
    asked: str
    seconds: float
    url: str = ""
    keep: bool = True


def weights_of(judge: str | Path) -> Path:
    return Path(judge) / "model.safetensors"


def read_job() -> Job:
    return Job(**json.loads(Path(sys.argv[1]).read_text()))


def ask(titles: list[str], job: Job) -> list[str]:
    """The tier of each item. Raises ValueError if one is poisoned."""
    record = os.open(job.asked, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(record, "".join(f"{title}\n" for title in titles).encode())
    os.close(record)
    time.sleep(job.seconds * len(titles))
    if any(POISON in title for title in titles):
        raise ValueError("the tokenizer cannot read this title")
    weights = weights_of(job.judge).read_bytes()
    return [TIERS[zlib.crc32(weights + title.encode()) % len(TIERS)] for title in titles]


class Handler(BaseHTTPRequestHandler):
    """Chat completions: the title is the last line of the prompt, the tier is the answer."""

    server: "Server"
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            (tier,) = ask([body["messages"][-1]["content"].splitlines()[-1]], self.server.job)
            choice = {"index": 0, "message": {"role": "assistant", "content": tier}, "finish_reason": "stop"}
            status, reply = 200, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}}
        except ValueError as error:
            status, reply = 500, {"error": {"message": str(error)}}
        reply |= {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """job: whose judge answers."""

    job: Job

    def handle_error(self, *_: object) -> None:
        pass  # a client that was killed


def serve() -> Server:
    """A server on a free port of loopback; the caller runs serve_forever."""
    return Server(("127.0.0.1", 0), Handler)
