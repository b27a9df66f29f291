"""A small OpenAI-compatible server on loopback, in a thread. A function of the request returns the response.

with serve(lambda request: reply("L4")) as server: ... server.url, server.requests
"""

import asyncio
import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

MODEL = "tiny"
START_SECONDS = 180


@dataclass
class Request:
    """One request: the body as an object, its headers, and the number of earlier requests."""

    body: dict[str, Any]
    headers: dict[str, str]
    number: int

    @property
    def text(self) -> str:
        """The text of the last message."""
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@dataclass
class Answer:
    """A response. `half`: the connection breaks in the middle of the body. `silent`: the server never responds."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    half: bool = False
    silent: bool = False


def reply(
    *texts: str, model: str = MODEL, reason: str = "stop", prompt_tokens: int = 7, tokens: int = 3, cached: Any = None, **more: Any
) -> Answer:
    """A successful response with one choice per text. cached: tokens of the prompt that the server reports as cached."""
    choices = [
        {"index": i, "finish_reason": reason, "message": {"role": "assistant", "content": text}} for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens * len(texts)}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return Answer(body={"object": "chat.completion", "model": model, "choices": choices, "usage": usage}, **more)


def error(status: int, message: str, **headers: str) -> Answer:
    """An error in the format of OpenAI's API: error(429, "slow down", **{"Retry-After": "1"})."""
    return Answer(status, {"error": {"message": message, "type": "error"}}, headers)


@dataclass
class Server:
    """Records of the server. peak: maximum number of concurrent requests."""

    url: str = ""
    models: list[str] = field(default_factory=lambda: [MODEL])
    requests: list[Request] = field(default_factory=list)
    under_way: int = 0
    peak: int = 0


@contextmanager
def serve(answer: Callable[[Request], Answer], *, port: int = 0) -> Iterator[Server]:
    """Serves until the block ends. `answer` runs in the thread of the server."""
    server, loop, started = Server(), asyncio.new_event_loop(), threading.Event()

    async def chat(request: web.Request) -> web.StreamResponse:
        seen = Request(await request.json(), dict(request.headers), len(server.requests))
        server.requests.append(seen)
        server.under_way += 1
        server.peak = max(server.peak, server.under_way)
        try:
            return await _respond(request, answer(seen))
        finally:
            server.under_way -= 1

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in server.models]})

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=2**28)
        app.router.add_post("/v1/chat/completions", chat)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(10), "the server did not start"
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


async def _respond(request: web.Request, answer: Answer) -> web.StreamResponse:
    if answer.silent:
        await asyncio.sleep(60)
    await asyncio.sleep(answer.seconds)
    data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
    if not answer.half:
        return web.Response(status=answer.status, body=data, headers={"Content-Type": "application/json", **answer.headers})
    response = web.StreamResponse(status=answer.status, headers={"Content-Length": str(len(data)), **answer.headers})
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    request.transport.abort()
    return response


def wait_for(process: subprocess.Popen, url: str, log: Path) -> None:
    """Waits until a server in another process answers at `url`; fails with its log once the process has ended."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no server after {START_SECONDS} s: {log.read_text()[-3000:]}")
