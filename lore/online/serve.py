"""`lore serve online`: the HTTP server around lore.online.service.

    lore serve online recipes/online.yaml

One worker runs in this process. Several are processes of their own that share the port; each opens its own student. SIGTERM or
Ctrl-C ends the service: /ready answers 503, new requests are refused with 503, accepted ones are answered, and the command exits
with status 0. A second signal ends it at once, and so does the first one before the service answers.
"""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any

from lore.online.admission import api_keys
from lore.online.app import build_app
from lore.online.config import OnlineRecipe
from lore.online.log_lines import logged
from lore.online.metrics_folder import forget_worker, shared_metrics
from lore.online.server import SIGNALS, Server, address_of, bound_socket, ended_by_signals
from lore.online.service import Service, load_cache, open_service
from lore.online.try_out import pairs_to_try, try_out
from lore.run.entry import exit_status
from lore.support.processes import end_with
from lore.support.terminal import print_line, print_note

REFUSED = 78
"""Exit status of a worker that has printed a LoreError. A worker that crashes exits with 1 and is started again."""
CLOSE_SECONDS = 10.0
"""For a worker to end after it has drained."""
FIRST_RESTART_SECONDS, LONGEST_RESTART_SECONDS = 0.5, 30.0
HEALTHY_SECONDS = 60.0
"""A worker that ran for so long is started again at once."""


class OnlineServer(Server):
    """The server of one worker."""

    def __init__(self, service: Service, then: Callable[[str], Awaitable[None]] | None = None, supervised: bool = False):
        app = build_app(service.recipe, service, metrics=service.metrics, traces=service.traces, shadow=service.shadow)
        super().__init__(app, service.recipe.serve, service, then, supervised)


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
