"""`lore serve online`: the HTTP server around lore.online.service.

    lore serve online recipes/online.yaml

One worker runs in this process. Several are processes of their own that share the port; each opens its own student. SIGTERM or
Ctrl-C ends the service: /ready answers 503, new requests are refused with 503, accepted ones are answered, and the command exits
with status 0. A second signal ends it at once.
"""

import asyncio
import math
import multiprocessing
import signal
import socket
import time
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

import uvicorn

from lore.online.app import build_app
from lore.online.config import OnlineRecipe
from lore.online.service import Service, open_service
from lore.run.entry import exit_status
from lore.support.errors import LoreError, reason
from lore.support.processes import end_with
from lore.support.terminal import print_line, print_note

KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s for which load balancers keep an idle connection: the side that closes must be theirs."""
BACKLOG = 2048
CLOSE_SECONDS = 10.0
"""For a worker to end after it has drained."""
FIRST_RESTART_SECONDS, LONGEST_RESTART_SECONDS = 0.5, 30.0
HEALTHY_SECONDS = 60.0
"""A worker that ran for so long is started again at once."""


class OnlineServer(uvicorn.Server):
    """uvicorn's server, which starts and drains a service."""

    def __init__(self, service: Service):
        serve = service.recipe.serve
        super().__init__(
            uvicorn.Config(
                build_app(service.recipe, service),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, math.ceil(serve.drain_seconds)),
                backlog=BACKLOG,
                ws="none",
                proxy_headers=False,
            )
        )
        self.service = service
        self._draining: asyncio.Task | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.service.start()
        await super().startup(sockets)
        print_line(f"answers at {address_of(sockets[0])}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        await self.service.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; the second ends at once."""
        if self.leaving or not self.started:
            self.should_exit = True
            self.force_exit = self.leaving
        self.leaving = True

    leaving = False

    async def on_tick(self, counter: int) -> bool:
        if self.leaving and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        await self.service.drain()
        self.should_exit = True


def serve(recipe: OnlineRecipe) -> int:
    """Runs the service until a signal ends it. Returns the exit status."""
    listener = bound_socket(recipe.serve.host, recipe.serve.port)
    try:
        if recipe.serve.workers > 1:
            return _supervise(recipe, listener)
        _run_worker(recipe, listener)
        return 0
    finally:
        listener.close()


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket at an address. It does not listen yet: until the service answers, connections are refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise LoreError(
            f"{host}:{port} cannot be listened on: {reason(error)}.\nStop the program that has the port, or set serve.host and "
            "serve.port (0 takes any free port)."
        ) from error
    listener.set_inheritable(True)
    return listener


def address_of(listener: socket.socket) -> str:
    """http://host:port of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _run_worker(recipe: OnlineRecipe, listener: socket.socket) -> None:
    service = open_service(recipe)
    for line in service.described():
        print_line(line, flush=True)
    OnlineServer(service).run(sockets=[listener])


# Several workers


def _worker(recipe: OnlineRecipe, listener: socket.socket, owner: int) -> None:
    """The main function of a worker process."""
    end_with(owner)
    raise SystemExit(exit_status(lambda: _run_worker(recipe, listener)))


def _supervise(recipe: OnlineRecipe, listener: socket.socket) -> int:
    """Runs the workers, and starts one that dies again. A worker that cannot start ends the service, since the others would not
    start either."""
    spawn = multiprocessing.get_context("spawn")  # onnxruntime and torch do not survive a fork
    owner = multiprocessing.current_process().pid
    stopping: list[int] = []
    before = {sig: signal.signal(sig, lambda sig, frame: stopping.append(sig)) for sig in (signal.SIGTERM, signal.SIGINT)}

    def start() -> Any:
        process = spawn.Process(target=_worker, args=(recipe, listener, owner))
        process.start()
        return process, time.monotonic()

    workers = [start() for _ in range(recipe.serve.workers)]
    pause, status = FIRST_RESTART_SECONDS, 0
    try:
        while not stopping:
            wait([process.sentinel for process, _ in workers], timeout=0.2)
            for at, (process, began) in enumerate(workers):
                if process.is_alive() or stopping:
                    continue
                if process.exitcode == 1:  # a LoreError, which the worker has printed
                    status = 1
                    stopping.append(signal.SIGTERM)
                    break
                if time.monotonic() - began > HEALTHY_SECONDS:
                    pause = FIRST_RESTART_SECONDS
                print_note(f"a worker ended with status {process.exitcode}; another one starts in {pause:g} s")
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_RESTART_SECONDS)
                workers[at] = start()
        for process, _ in workers:
            process.terminate()
        until = time.monotonic() + recipe.serve.drain_seconds + CLOSE_SECONDS
        for process, _ in workers:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                print_note("a worker did not end in time and is killed")
                process.kill()
                process.join()
                status = 1
        return status
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
