"""The server around a service that starts, answers, drains and closes: sockets and signals, and nothing of what is answered."""

import asyncio
import gc
import math
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import uvicorn

from lore.online.config import ServeSection
from lore.support.errors import LoreError, reason
from lore.support.terminal import print_note

KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s for which load balancers keep an idle connection: the side that closes must be theirs."""
BACKLOG = 2048
SIGNALS = (signal.SIGTERM, signal.SIGINT)
SIGNAL_SECONDS = 0.05
"""How often a service that warms up looks whether a signal came."""
ENDED_EARLY = "the service ends before it has answered anything"


class Served(Protocol):
    """A service, in the server's event loop."""

    async def start(self) -> None:
        """Returns once it can answer."""

    async def drain(self) -> None:
        """Takes no new requests, and returns when the accepted ones are answered, or have had the time for it."""

    async def close(self) -> None: ...


class Server(uvicorn.Server):
    """uvicorn's server, which starts and drains a service. then: is awaited with the server's address once it answers; the server
    drains afterwards. supervised: by the process that has started this worker, and that kills it where a second signal comes."""

    def __init__(
        self,
        app: Any,
        serve: ServeSection,
        service: Served,
        then: Callable[[str], Awaitable[None]] | None = None,
        supervised: bool = False,
    ):
        super().__init__(
            uvicorn.Config(
                app,
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
                    raise taken(*listener.getsockname()[:2], error) from error
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
        raise taken(host, port, error) from error
    listener.set_inheritable(True)
    return listener


def taken(host: str, port: int, error: OSError) -> LoreError:
    return LoreError(
        f"{host}:{port} cannot be listened on: {reason(error)}.\nStop the program that has the port, or set serve.host and "
        "serve.port (0 takes any free port)."
    )


def address_of(listener: socket.socket) -> str:
    """http://host:port of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
