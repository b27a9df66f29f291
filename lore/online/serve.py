"""`lore serve online`: the HTTP server around lore.online.service.

    lore serve online recipes/online.yaml

One worker runs in this process. Several are processes of their own that share the port; each opens its own student. SIGTERM or
Ctrl-C ends the service: /ready answers 503, new requests are refused with 503, accepted ones are answered, and the command exits
with status 0. A second signal ends it at once, and so does the first one before the service answers.
"""

import asyncio
import gc
import math
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

import uvicorn

from lore.online.app import api_keys, build_app
from lore.online.config import OnlineRecipe
from lore.online.log_lines import logged
from lore.online.metrics_folder import forget_worker, shared_metrics
from lore.online.service import Service, load_cache, open_service
from lore.online.try_out import pairs_to_try, try_out
from lore.run.entry import exit_status
from lore.support.errors import LoreError, reason
from lore.support.processes import end_with
from lore.support.terminal import print_line, print_note

KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s for which load balancers keep an idle connection: the side that closes must be theirs."""
BACKLOG = 2048
REFUSED = 78
"""Exit status of a worker that has printed a LoreError. A worker that crashes exits with 1 and is started again."""
CLOSE_SECONDS = 10.0
"""For a worker to end after it has drained."""
FIRST_RESTART_SECONDS, LONGEST_RESTART_SECONDS = 0.5, 30.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)
SIGNAL_SECONDS = 0.05
"""How often a service that warms up looks whether a signal came."""
ENDED_EARLY = "the service ends before it has answered anything"
HEALTHY_SECONDS = 60.0
"""A worker that ran for so long is started again at once."""


class OnlineServer(uvicorn.Server):
    """uvicorn's server, which starts and drains a service. then: is awaited with the server's address once it answers; the server
    drains afterwards. supervised: by the process that has started this worker, and that kills it where a second signal comes."""

    def __init__(self, service: Service, then: Callable[[str], Awaitable[None]] | None = None, supervised: bool = False):
        serve = service.recipe.serve
        super().__init__(
            uvicorn.Config(
                build_app(
                    service.recipe, service, metrics=service.metrics, traces=service.traces, shadow=service.shadow
                ),
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
        self.service, self.then, self.supervised = service, then, supervised
        self.leaving = False
        self.then_task: asyncio.Task | None = None
        self._draining: asyncio.Task | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            if not await self._warm():
                return
            gc.collect()
            gc.freeze()  # with what a judge loads, a full collection takes half a second, in which nothing is answered
            for listener in sockets or ():
                try:
                    listener.listen(BACKLOG)  # uvloop would not say that another program, which bound the port too, listens already
                except OSError as error:
                    raise _taken(*listener.getsockname()[:2], error) from error
            await super().startup(sockets)
        finally:
            if not self.started:
                gc.unfreeze()
                await self.service.close()
        if self.then is not None:
            self.then_task = asyncio.create_task(self.then(address_of(sockets[0])))
            self.then_task.add_done_callback(lambda _: setattr(self, "leaving", True))

    async def _warm(self) -> bool:
        """Starts the service. False if a signal came first."""
        starting = asyncio.create_task(self.service.start())
        while not starting.done() and not self.should_exit:
            await asyncio.wait([starting], timeout=SIGNAL_SECONDS)
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
            if not self.supervised:
                print_note(ENDED_EARLY)
            return False
        starting.result()  # raises its error
        return not self.should_exit

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        gc.unfreeze()
        await self.service.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; the second ends at once, unless a supervisor decides on that."""
        if not self.started or self.leaving and not self.supervised:
            self.should_exit = True
            self.force_exit = self.leaving
        self.leaving = True

    async def on_tick(self, counter: int) -> bool:
        if self.leaving and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        await self.service.drain()
        self.should_exit = True


def serve(recipe: OnlineRecipe, *, try_pairs: str | None = None) -> int:
    """Runs the service until a signal ends it. Returns the exit status. try_pairs: a file of pairs, see lore.online.try_out; the
    service then takes any free port."""
    api_keys(recipe.serve)  # keys that are missing are said before labels and models are loaded
    then = None
    if try_pairs is not None:
        recipe = recipe.model_copy(update={"serve": recipe.serve.model_copy(update={"port": 0, "workers": 1})})
        then = partial(try_out, recipe=recipe, pairs=pairs_to_try(try_pairs))
    listener = bound_socket(recipe.serve.host, recipe.serve.port)
    try:
        with ended_by_signals():
            load_cache(recipe)
            if recipe.serve.workers > 1:
                with shared_metrics(recipe.serve.workers):
                    return _supervise(recipe, listener)
            _run_worker(recipe, listener, then=then)
            return 0
    finally:
        listener.close()


@contextmanager
def ended_by_signals(says: str | None = ENDED_EARLY) -> Iterator[None]:
    """Inside the block, SIGTERM and Ctrl-C end the process with status 0 unless others take them: nothing was accepted yet."""

    def end(*_: Any) -> None:
        if says is not None:
            print_note(says)
        raise SystemExit(0)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {sig: signal.signal(sig, end) for sig in SIGNALS}
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket at an address. It does not listen yet: until the service answers, connections are refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _taken(host, port, error) from error
    listener.set_inheritable(True)
    return listener


def _taken(host: str, port: int, error: OSError) -> LoreError:
    return LoreError(
        f"{host}:{port} cannot be listened on: {reason(error)}.\nStop the program that has the port, or set serve.host and "
        "serve.port (0 takes any free port)."
    )


def address_of(listener: socket.socket) -> str:
    """http://host:port of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _run_worker(
    recipe: OnlineRecipe,
    listener: socket.socket,
    *,
    number: int = 0,
    then: Callable[[str], Awaitable[None]] | None = None,
    supervised: bool = False,
) -> None:
    """Runs the service in this process. number: of the worker; the first one says what answers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # student.threads says how many threads a worker has
    service = open_service(recipe)
    server = OnlineServer(service, then, supervised)
    if number == 0:
        for line in service.described():
            print_line(line, flush=True)
        if then is None:
            print_line(f"answers at {address_of(listener)} once it is warm", flush=True)
    with logged():
        server.run(sockets=[listener])
    if server.then_task is not None and not server.then_task.cancelled():
        server.then_task.result()  # raises its error


# Several workers


def _worker(recipe: OnlineRecipe, listener: socket.socket, owner: int, number: int) -> None:
    """The main function of a worker process."""
    end_with(owner)
    with ended_by_signals(says=None):
        status = exit_status(lambda: _run_worker(recipe, listener, number=number, supervised=True))
    raise SystemExit(REFUSED if status == 1 else status)


def _supervise(recipe: OnlineRecipe, listener: socket.socket) -> int:
    """Runs the workers, and starts one that dies again. A worker that cannot start ends the service, since the others would not
    start either."""
    spawn = multiprocessing.get_context("spawn")  # onnxruntime and torch do not survive a fork
    owner = multiprocessing.current_process().pid
    stopping: list[int] = []
    before = {sig: signal.signal(sig, lambda sig, frame: stopping.append(sig)) for sig in SIGNALS}
    resource_tracker.ensure_running()  # it would unblock the signals below

    def start(number: int) -> Any:
        process = spawn.Process(target=_worker, args=(recipe, listener, owner, number))
        # Ctrl-C goes to the workers too, who would print tracebacks while they import. They end with SIGTERM.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        return process, time.monotonic()

    workers = [start(number) for number in range(recipe.serve.workers)]
    pause, status = FIRST_RESTART_SECONDS, 0
    try:
        while not stopping:
            wait([process.sentinel for process, _ in workers], timeout=0.2)
            for at, (process, began) in enumerate(workers):
                if process.is_alive() or stopping:
                    continue
                if process.exitcode == REFUSED:
                    status = 1
                    stopping.append(signal.SIGTERM)
                    break
                if time.monotonic() - began > HEALTHY_SECONDS:
                    pause = FIRST_RESTART_SECONDS
                print_note(f"a worker ended with status {process.exitcode}; another one starts in {pause:g} s")
                time.sleep(pause)
                if stopping:
                    break
                pause = min(2 * pause, LONGEST_RESTART_SECONDS)
                forget_worker(process.pid)
                workers[at] = start(at)
        for process, _ in workers:
            process.terminate()
        until = time.monotonic() + recipe.serve.drain_seconds + CLOSE_SECONDS
        signals = len(stopping)
        while any(process.is_alive() for process, _ in workers) and time.monotonic() < until and len(stopping) == signals:
            wait([process.sentinel for process, _ in workers if process.is_alive()], timeout=0.2)
        for process, _ in workers:
            if process.is_alive():
                why = "a second signal came" if len(stopping) > signals else "it did not end in time"
                print_note(f"a worker is killed: {why}")
                process.kill()
                status = 1
            process.join()
        return status
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
