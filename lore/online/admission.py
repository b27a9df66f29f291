"""Who may ask, and when: API keys, readiness and its probes, bounded bodies, and clients that hang up."""

import asyncio
import base64
import binascii
import hmac
import os
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal, Protocol, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from lore.online.body import BoundedRequest
from lore.online.config import ServeSection
from lore.online.exchange import ApiError
from lore.online.metrics import RequestMetrics
from lore.support.errors import LoreError

WARM_SECONDS = 5.0
"""When to try again while the service warms up or drains."""
SHORTEST_KEY = 8
T = TypeVar("T")


class State(Protocol):
    """What a service says about itself."""

    ready: bool
    """Warmed up."""
    draining: bool
    """Takes no more requests."""

    def refuse_if_behind(self) -> None:
        """Raises Overloaded while the service could not answer in time."""


def api_keys(section: ServeSection, environment: Mapping[str, str] = os.environ) -> list[bytes]:
    """The keys that clients may send; [] if none is asked for. Raises LoreError if the variable holds none, or a short one."""
    if section.keys_variable is None:
        return []
    given = environment.get(section.keys_variable, "")
    keys = [key.strip().encode(errors="surrogateescape") for key in given.split(",") if key.strip()]
    if not keys or min(map(len, keys)) < SHORTEST_KEY:
        found = "holds no key" if not keys else f"holds a key of fewer than {SHORTEST_KEY} characters"
        raise LoreError(
            f"The variable {section.keys_variable} (serve.keys_variable) {found}, so anyone could guess one.\n"
            f"Set it to keys of at least {SHORTEST_KEY} characters, separated by commas, or set serve.keys_variable: null."
        )
    return keys


class Admission:
    """Raises LoreError for unusable API keys. secured: dependencies that name the keys in OpenAPI; `admit` compares them, before
    the body is read."""

    def __init__(self, serve: ServeSection, state: State):
        self.serve, self.state, self.keys = serve, state, api_keys(serve)
        self.secured = [Depends(HTTPBearer(auto_error=False))] if self.keys else []

    def route_class(self, *, browser: bool = False) -> type[APIRoute]:
        """Routes that admit a request and read its body within bounds. browser: also for the scripts of a page of the service, for
        which the browser sends the key as a password."""
        serve = self.serve

        def admit(request: Request) -> None:
            if browser:
                self.admit_browser(request)
                self._need_time()
            else:
                self.admit(request)

        class OnlineRequest(BoundedRequest):
            max_body_bytes = serve.max_body_bytes

        class OnlineRoute(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                answer = super().get_route_handler()

                async def handler(request: Request) -> Response:
                    admit(request)
                    return await answer(OnlineRequest(request.scope, request.receive))

                return handler

        return OnlineRoute

    def admit(self, request: Request) -> None:
        """Raises ApiError for a request without a valid key, and while the service does not answer; Overloaded while it is
        behind."""
        if self.keys:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self._is_key(given.strip().encode("latin-1")):
                raise ApiError(401, "unauthorized", "no valid API key; send Authorization: Bearer KEY", close=True)
        self._need_time()

    def admit_browser(self, request: Request) -> None:
        """Raises ApiError without a valid key, as a bearer's or as the password of a browser's dialog."""
        if not self.keys:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        key = given.strip().encode("latin-1")
        if scheme.lower() == "basic":
            try:
                key = base64.b64decode(key, validate=True).partition(b":")[2]
            except binascii.Error:
                key = b""
        if scheme.lower() not in ("bearer", "basic") or not self._is_key(key):
            message = "no valid API key; give it as the password, or send Authorization: Bearer KEY"
            raise ApiError(401, "unauthorized", message, challenge='Basic realm="lore", charset="UTF-8"')

    def need_ready(self) -> None:
        """Raises ApiError while the service warms up or drains."""
        if self.state.draining or not self.state.ready:
            state = "draining" if self.state.draining else "warming_up"
            message = f"the service is {'shutting down' if self.state.draining else 'warming up'}"
            raise ApiError(503, state, message, retry_seconds=WARM_SECONDS)

    def _need_time(self) -> None:
        self.need_ready()
        self.state.refuse_if_behind()

    def _is_key(self, key: bytes) -> bool:
        same = [hmac.compare_digest(key, known) for known in self.keys]  # all of them: the time says nothing
        return any(same)


class Probed(BaseModel):
    """Reply of the probes."""

    status: Literal["alive", "ready"]


def probes(admission: Admission, metrics: RequestMetrics, error: dict[str, Any]) -> APIRouter:
    """/health, /ready and /metrics. error: what OpenAPI says about a failed probe."""
    router = APIRouter()

    async def health() -> dict[str, str]:
        """200 as long as the process lives."""
        return {"status": "alive"}

    async def is_ready() -> dict[str, str]:
        """200 while requests are answered; 503 while the service warms up or drains."""
        admission.need_ready()
        return {"status": "ready"}

    async def shown_metrics(request: Request) -> Response:
        """Metrics in Prometheus' format, of all workers."""
        content, content_type = metrics.rendered(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": content_type})

    router.add_api_route("/health", health, methods=["GET"], response_model=Probed)
    router.add_api_route("/ready", is_ready, methods=["GET"], response_model=Probed, responses={503: error})
    router.add_api_route("/metrics", shown_metrics, methods=["GET"], response_class=PlainTextResponse)
    for path, call in (("/health", health), ("/ready", is_ready)):  # load balancers may ask for the headers only
        router.add_api_route(path, call, methods=["HEAD"], include_in_schema=False)
    return router


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is canceled if the client hangs up; ApiError is raised then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "client_gone", "the client hung up")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
