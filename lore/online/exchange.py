"""What surrounds every request: its id, the timings of its stages, its log line, and the form of errors.

Errors are `{"error": {"message", "type", "request_id"}}`. No error and no log line holds a traceback, a key or a text of the
request; serve.log_queries adds the queries to the log.
"""

import json
import logging
import math
import os
import re
import time
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException as StarletteHTTPException

from lore.online.answer import Draining, Refused, TooManyPairs

MAX_SHOWN_ERRORS = 10
KINDS = {404: "not_found", 405: "method_not_allowed"}
SHED = ("overloaded", "draining")
UNANSWERED_HEADER = b"x-lore-unanswered"
"""Pairs of the reply that nobody answered by the deadline. Without it, there are none."""
TRACE_HEADERS = (b"traceparent", b"tracestate")
log = logging.getLogger("lore.online.requests")
_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


class ApiError(HTTPException):
    """An error that is said to the client. kind: its `type`; retry_seconds: when to try again; close: ends the connection;
    challenge: how to send a key, for status 401."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        retry_seconds: float | None = None,
        close: bool = False,
        challenge: str = "Bearer",
    ):
        super().__init__(status, message)
        self.kind, self.retry_seconds, self.close, self.challenge = kind, retry_seconds, close, challenge


@dataclass(slots=True)
class Exchange:
    """A request and what is known about it by its end."""

    id: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage, one after the other."""
    within: dict[str, float] = field(default_factory=dict)
    """Seconds of what happened within the stage `answer`, see lore.online.answer.Answering; some of it at the same time."""
    said: dict[str, Any] = field(default_factory=dict)
    """What the log line adds."""
    after: BackgroundTask | None = None
    """Is run after the reply has been sent."""
    _marked: float = 0.0

    def mark(self, stage: str) -> None:
        """Ends a stage, which began with the end of the one before."""
        elapsed = self.elapsed_seconds()
        self.stages[stage] = elapsed - self._marked
        self._marked = elapsed

    def all_seconds(self) -> dict[str, float]:
        return self.stages | self.within

    def elapsed_seconds(self) -> float:
        return time.perf_counter() - self.started


def exchange_of(request: Request) -> Exchange:
    """The exchange that `Observed` began."""
    return request.scope["lore"]


class Observed:
    """Begins every exchange and ends it with its headers and its log line. What nobody expected becomes a plain 500."""

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
                headers = [*message["headers"], (b"x-request-id", exchange.id.encode())]
                if unanswered := exchange.said.get("unanswered"):
                    headers.append((UNANSWERED_HEADER, str(unanswered).encode()))
                if exchange.stages:
                    timings = (f"{name};dur={seconds * 1000:.2f}" for name, seconds in exchange.all_seconds().items())
                    headers.append((b"server-timing", ", ".join(timings).encode()))
                message = message | {"headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, observed)
        except Exception as error:  # its message could hold a text of the request, so the log gets its kind and its place
            exchange.said |= {"exception": type(error).__name__, "where": _place(error)}
            if not exchange.status:
                message = "the service could not answer; its log knows the request by its id"
                response = _reply(exchange, ApiError(500, "internal_error", message))
                await response(scope, receive, observed)
        finally:
            _report(scope, exchange)
            _log(scope, exchange)


def new_app(title: str, summary: str, lifespan: Any = None) -> FastAPI:
    """An application without routes: all errors in one form, and no page or redirect that FastAPI adds by itself."""
    app = FastAPI(
        title=title,
        summary=summary,
        version="1",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect names http://, and would take a client's key past the proxy that ends TLS
        lifespan=lifespan,
    )
    app.add_middleware(Observed)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(TooManyPairs, _too_many)
    return app


def _request_id(scope: Any) -> str:
    """The client's x-request-id if it is short and plain; else a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    return given if _ID.fullmatch(given) else os.urandom(16).hex()


def _place(error: Exception) -> str:
    """File and line of the error."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return "" if at is None else f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}"


def _report(scope: Any, exchange: Exchange) -> None:
    """Tells metrics and traces of a request to one of the counted paths."""
    metrics, traces = scope["app"].state.metrics, scope["app"].state.traces
    path = getattr(scope.get("route"), "path", "")
    if scope["method"] != "POST" or path not in metrics.paths:
        return
    seconds = exchange.elapsed_seconds()
    metrics.request(path, exchange.status, seconds)
    for stage, spent in exchange.stages.items():
        metrics.stage(stage, spent)
    if (kind := exchange.said.get("error")) in SHED:
        metrics.shed(kind)
    if traces is not None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"] if name in TRACE_HEADERS}
        more = {f"lore.{name}": exchange.said[name] for name in ("pairs", "late", "error") if name in exchange.said}
        more |= {f"lore.answers.{source}": count for source, count in exchange.said.get("sources", {}).items()}
        traces.request(path, exchange.status, seconds, exchange.all_seconds(), more | {"lore.request_id": exchange.id}, headers)


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
        "stages_ms": {name: round(seconds * 1000, 2) for name, seconds in exchange.all_seconds().items()},
        **exchange.said,
    }
    log.info(json.dumps(line))


def _reply(exchange: Exchange, error: ApiError, errors: list[dict[str, Any]] | None = None) -> Response:
    said: dict[str, Any] = {"message": error.detail, "type": error.kind, "request_id": exchange.id}
    if errors:
        said["errors"] = errors
    headers = {}
    if error.retry_seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_seconds)))
    if error.close:
        headers["Connection"] = "close"
    if error.status_code == 401:
        headers["WWW-Authenticate"] = error.challenge
    exchange.said["error"] = error.kind
    return Response(to_json({"error": said}), error.status_code, headers, media_type="application/json")


async def _http_error(request: Request, error: HTTPException) -> Response:
    exchange = exchange_of(request)
    if isinstance(error, ApiError):
        return _reply(exchange, error)
    response = _reply(exchange, ApiError(error.status_code, KINDS.get(error.status_code, "error"), str(error.detail)))
    response.headers.update(error.headers or {})
    return response


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    """Says where the body does not fit, without what it holds."""
    wrong = error.errors()[:MAX_SHOWN_ERRORS]
    found = [{"loc": [str(part)[:100] for part in one["loc"]], "message": one["msg"][:200]} for one in wrong]
    message = f"{'.'.join(found[0]['loc'])}: {found[0]['message']}"
    return _reply(exchange_of(request), ApiError(422, "invalid_request", message), found)


async def _too_many(request: Request, error: TooManyPairs) -> Response:
    return _reply(exchange_of(request), ApiError(413, "too_many_pairs", str(error)))


async def _refused(request: Request, error: Refused) -> Response:
    status, kind = (503, "draining") if isinstance(error, Draining) else (429, "overloaded")
    return _reply(exchange_of(request), ApiError(status, kind, str(error), retry_seconds=error.retry_seconds))
