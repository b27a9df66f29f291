"""The HTTP interface of the service: keys, limits, the formats of lore.online.schemas, health, request ids and one log line each.

`build_app(recipe, service)` is all that a server needs; lore.online.service makes the service.

A request is bounded before it is read: its key is compared first, then its body is read up to serve.max_body_bytes. Errors are
`{"error": {"message", "type", "request_id"}}` and never hold a traceback, a key or a text of the request. Whoever hangs up ends the
work on the request. Log lines are JSON without query texts, unless serve.log_queries.
"""

import asyncio
import hmac
import json
import logging
import math
import os
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, TypeVar

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi import Body as InBody
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic_core import to_json
from starlette.exceptions import HTTPException as StarletteHTTPException

from lore.online import schemas
from lore.online.answer import Answer, Answering, Draining, Refused
from lore.online.body import ApiError, BoundedRequest
from lore.online.config import MAX_MILLISECONDS, OnlineRecipe, ServeSection
from lore.support.errors import LoreError

DEADLINE_HEADER = "x-envoy-expected-rq-timeout-ms"
"""Envoy and Istio set it to the time that the caller still has; other clients may set it themselves.
https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter"""
WARM_SECONDS = 5.0
"""When to try again while the service warms up."""
MAX_SHOWN_ERRORS = 10
MAX_LOGGED_QUERIES = 20
SHORTEST_KEY = 8
KINDS = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed"}
log = logging.getLogger("lore.online.requests")
_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
T = TypeVar("T")


class Service(Protocol):
    """What answers behind the interface, see lore.online.service."""

    router: Answering
    ready: bool
    draining: bool


@dataclass(slots=True)
class Exchange:
    """A request and what is known about it by its end."""

    id: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage."""
    said: dict[str, Any] = field(default_factory=dict)
    """What the log line adds."""
    _marked: float = 0.0

    def __post_init__(self) -> None:
        self._marked = self.started

    def mark(self, stage: str) -> None:
        """Ends a stage."""
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._marked
        self._marked = now

    def elapsed_seconds(self) -> float:
        return time.perf_counter() - self.started


def api_keys(section: ServeSection, environment: dict[str, str] | None = None) -> list[bytes]:
    """The keys that clients may send; [] if none is asked for. Raises LoreError if the variable holds none, or a short one."""
    if section.keys_variable is None:
        return []
    given = (os.environ if environment is None else environment).get(section.keys_variable, "")
    keys = [key.strip().encode(errors="surrogateescape") for key in given.split(",") if key.strip()]
    if not keys or min(map(len, keys)) < SHORTEST_KEY:
        found = "holds no key" if not keys else f"holds a key of fewer than {SHORTEST_KEY} characters"
        raise LoreError(
            f"The variable {section.keys_variable} (serve.keys_variable) {found}, so the service would be open to guesses.\n"
            f"Set it to keys of at least {SHORTEST_KEY} characters, separated by commas, or set serve.keys_variable: null."
        )
    return keys


def build_app(recipe: OnlineRecipe, service: Service) -> FastAPI:
    """The ASGI application. Raises LoreError for unusable API keys."""
    serve = recipe.serve
    app = FastAPI(
        title="LORE",
        summary="Judges how well items answer queries.",
        version="1",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    endpoints = Endpoints(serve, service)
    app.include_router(endpoints.router)
    app.include_router(endpoints.probes)
    app.add_middleware(Observed)
    for error, handler in (
        (StarletteHTTPException, _http_error),
        (RequestValidationError, _invalid),
        (schemas.BadForm, _bad_form),
        (Refused, _refused),
    ):
        app.add_exception_handler(error, handler)
    return app


class Endpoints:
    """The paths of the service."""

    def __init__(self, serve: ServeSection, service: Service):
        self.serve, self.service = serve, service
        self.keys = api_keys(serve)
        self.reader = schemas.PairReader(serve.max_text_characters)
        errors = {status: {"model": schemas.ErrorReply} for status in (400, 408, 413, 415, 422, 429, 500, 503)}
        secured = []
        if self.keys:
            errors[401] = {"model": schemas.ErrorReply}
            secured = [Depends(HTTPBearer(auto_error=False))]  # for OpenAPI; `_admitted` compares the keys before the body is read
        self.router = APIRouter(route_class=self._route_class(), dependencies=secured, responses=errors)
        for path, call, model in (
            ("/v1/rerank", self.rerank_v1, schemas.RerankReply),
            ("/v2/rerank", self.rerank_v2, schemas.RerankReply),
            ("/rerank", self.rerank, schemas.RerankReply | list[schemas.TextResult]),
            ("/score", self.score, schemas.ScoreReply),
            ("/v1/score", self.score, schemas.ScoreReply),
            ("/judge", self.judge, schemas.JudgeReply),
        ):
            self.router.add_api_route(path, call, methods=["POST"], response_model=model)
        self.probes = APIRouter()
        self.probes.add_api_route("/health", self.health, methods=["GET"], response_model=State)
        unready = {503: {"model": schemas.ErrorReply}}
        self.probes.add_api_route("/ready", self.ready, methods=["GET"], response_model=State, responses=unready)

    def _route_class(self) -> type[APIRoute]:
        admitted, serve = self._admitted, self.serve

        class OnlineRequest(BoundedRequest):
            max_body_bytes = serve.max_body_bytes

        class OnlineRoute(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Any]:
                answer = super().get_route_handler()

                async def handler(request: Request) -> Response:
                    admitted(request)
                    return await answer(OnlineRequest(request.scope, request.receive))

                return handler

        return OnlineRoute

    def _admitted(self, request: Request) -> None:
        """Raises ApiError for a request without a valid key, and while the service does not answer."""
        if self.keys:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            key = given.strip().encode("latin-1")
            fits = [hmac.compare_digest(key, known) for known in self.keys]  # all of them: the time says nothing
            if scheme.lower() != "bearer" or not any(fits):
                raise ApiError(401, "unauthorized", "no valid API key; send Authorization: Bearer KEY", close=True)
        if (state := self._state()) != "ready":
            raise ApiError(503, state, f"the service is {state.replace('_', ' ')}", retry_seconds=WARM_SECONDS)

    def _state(self) -> str:
        return "draining" if self.service.draining else "ready" if self.service.ready else "warming_up"

    async def rerank_v1(self, request: Request, body: schemas.RerankBody) -> Response:
        """Cohere's v1 and Jina's format: documents, best first."""
        return await self._rerank(request, body, "1")

    async def rerank_v2(self, request: Request, body: schemas.RerankBody) -> Response:
        """Cohere's v2 format: documents, best first."""
        return await self._rerank(request, body, "2")

    async def rerank(self, request: Request, body: Annotated[schemas.AnyRerankBody, InBody()]) -> Response:
        """Cohere's and Jina's format (`documents`), or text-embeddings-inference's (`texts`)."""
        if isinstance(body, schemas.TextsBody):
            reply = await self._reply(request, schemas.text_rows(body))
            return _written(request, reply.texts(body))
        return await self._rerank(request, body, "2")

    async def score(self, request: Request, body: Annotated[schemas.ScoreBody, InBody()]) -> Response:
        """vLLM's format: scores in the order of the request."""
        reply = await self._reply(request, schemas.score_rows(body))
        return _written(request, reply.scores(body.model, int(time.time())))

    async def judge(self, request: Request, body: schemas.JudgeBody) -> Response:
        """LORE's format: a Verdict row per pair, in the order of the request."""
        reply = await self._reply(request, schemas.judge_rows(body), body.deadline_ms)
        return _written(request, reply.verdicts())

    async def health(self) -> dict[str, str]:
        """200 as long as the process lives."""
        return {"status": "alive"}

    async def ready(self) -> dict[str, str]:
        """200 while requests are answered; 503 while the service warms up or drains."""
        if (state := self._state()) != "ready":
            raise ApiError(503, state, f"the service is {state.replace('_', ' ')}", retry_seconds=WARM_SECONDS)
        return {"status": "ready"}

    async def _rerank(self, request: Request, body: schemas.RerankBody, version: str) -> Response:
        reply = await self._reply(request, schemas.rerank_rows(body))
        return _written(request, reply.rerank(body, version))

    async def _reply(self, request: Request, rows: list[schemas.Row], deadline_ms: float | None = None) -> schemas.Reply:
        """The answers to the rows, in their order."""
        exchange: Exchange = request.scope["lore"]
        if len(rows) > self.serve.max_pairs:
            message = f"{len(rows):,} pairs; expected at most {self.serve.max_pairs:,} (serve.max_pairs) in one request"
            raise ApiError(413, "too_many_pairs", message)
        total_ms = min(given for given in (deadline_ms, _header_ms(request), MAX_MILLISECONDS) if given is not None)
        if deadline_ms is None and total_ms == MAX_MILLISECONDS:
            total_ms = self.serve.deadline_ms
        exchange.mark("read")
        answers: list[Any] = [self.reader.read(row) for row in rows]
        asked = [index for index, pair in enumerate(answers) if not isinstance(pair, Answer)]
        exchange.mark("parse")
        photos: dict[int, str] = {}
        if asked:
            left = max(total_ms / 1000 - exchange.elapsed_seconds(), 1e-3)
            found = await while_connected(request, self.service.router.answer([answers[index] for index in asked], left))
            for index, answer in zip(asked, found, strict=True):
                answers[index] = answer
        exchange.mark("answer")
        exchange.said |= {"pairs": len(rows), "sources": schemas.sources_of(answers), "late": sum(one.late for one in answers)}
        if self.serve.log_queries:
            exchange.said["queries"] = list(dict.fromkeys(str(row.get("query")) for row in rows))[:MAX_LOGGED_QUERIES]
        return schemas.Reply(exchange.id, self.service.router.tier_ids, answers, photos)


class State(schemas.BaseModel):
    status: Literal["alive", "ready"]


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of the work, which is canceled if the client hangs up. Raises ApiError then."""
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


def _header_ms(request: Request) -> float | None:
    """The deadline of the header; None without a valid one."""
    try:
        found = float(request.headers.get(DEADLINE_HEADER, ""))
    except ValueError:
        return None
    return found if 0 < found <= MAX_MILLISECONDS else None


def _written(request: Request, content: Any) -> Response:
    exchange: Exchange = request.scope["lore"]
    response = Response(to_json(content), media_type="application/json")
    exchange.mark("write")
    return response


class Observed:
    """Gives every exchange an id, the timings of its stages and a log line, and turns what nobody expected into a plain 500."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = scope["lore"] = Exchange(_request_id(scope))

        async def observed(message: Any) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                timings = ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in exchange.stages.items())
                message["headers"] = [*message["headers"], (b"x-request-id", exchange.id.encode())]
                if timings:
                    message["headers"].append((b"server-timing", timings.encode()))
            await send(message)

        try:
            await self.app(scope, receive, observed)
        except Exception as error:
            # Its message could hold a text of the request.
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
            exchange.said |= {"error": type(error).__name__, "where": where}
            if not exchange.status:
                response = _error(scope, 500, "internal_error", "the service could not answer; its log has the request id")
                await response(scope, receive, observed)
        finally:
            _log(scope, exchange)


def _request_id(scope: Any) -> str:
    """The client's x-request-id if it is short and plain; else a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    return given if _ID.fullmatch(given) else os.urandom(16).hex()


def _log(scope: Any, exchange: Exchange) -> None:
    if not log.isEnabledFor(logging.INFO):
        return
    line = {
        "time": round(time.time(), 3),
        "id": exchange.id,
        "method": scope["method"],
        "path": getattr(scope.get("route"), "path", None),  # an unknown path could hold anything
        "status": exchange.status,
        "ms": round(exchange.elapsed_seconds() * 1000, 2),
        "stages_ms": {name: round(seconds * 1000, 2) for name, seconds in exchange.stages.items()},
        **exchange.said,
    }
    log.info(json.dumps(line))


def _error(
    scope: Any,
    status: int,
    kind: str,
    message: str,
    *,
    retry_seconds: float | None = None,
    close: bool = False,
    errors: Any = None,
) -> Response:
    said: dict[str, Any] = {"message": message, "type": kind, "request_id": scope["lore"].id}
    if errors:
        said["errors"] = errors
    headers = {}
    if retry_seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_seconds)))
    if close:
        headers["Connection"] = "close"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    scope["lore"].said["error"] = kind
    return Response(to_json({"error": said}), status, headers, media_type="application/json")


async def _http_error(request: Request, error: HTTPException) -> Response:
    if isinstance(error, ApiError):
        rest = {"retry_seconds": error.retry_seconds, "close": error.close, "errors": error.errors}
        return _error(request.scope, error.status_code, error.kind, error.detail, **rest)
    response = _error(request.scope, error.status_code, KINDS.get(error.status_code, "error"), str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    """Says where the body does not fit, without what it holds."""
    found = [
        {"loc": [str(part)[:100] for part in one["loc"]], "message": one["msg"][:200]} for one in error.errors()[:MAX_SHOWN_ERRORS]
    ]
    place = ".".join(found[0]["loc"]) if found else "body"
    message = f"{place}: {found[0]['message']}" if found else "the body does not fit"
    return _error(request.scope, 422, "invalid_request", message, errors=found)


async def _bad_form(request: Request, error: schemas.BadForm) -> Response:
    return _error(request.scope, 422, "invalid_request", str(error))


async def _refused(request: Request, error: Refused) -> Response:
    status, kind = (503, "draining") if isinstance(error, Draining) else (429, "overloaded")
    return _error(request.scope, status, kind, str(error), retry_seconds=error.retry_seconds)
