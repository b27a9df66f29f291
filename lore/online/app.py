"""The HTTP interface of the service: keys, limits, the formats of lore.online.schemas, health and readiness.

`build_app(recipe, service)` is all that a server needs; lore.online.service makes the service.

A request is bounded before it is read: its key is compared first, then its body is read up to serve.max_body_bytes. Its deadline
is that of the header x-envoy-expected-rq-timeout-ms, which Envoy and Istio set to the time that their caller still has. Whoever
hangs up ends the work on the request.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi import Body as InBody
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic_core import to_json
from starlette.background import BackgroundTask

from lore.data.pair import Pair
from lore.online import admission, schemas
from lore.online.admission import Admission, probes, while_connected
from lore.online.answer import TOO_LATE, Answer, Answering
from lore.online.config import MAX_MILLISECONDS, OnlineRecipe, ServeSection
from lore.online.dashboard import Dashboard
from lore.online.exchange import ApiError, Exchange, exchange_of, new_app
from lore.online.metrics import Metrics
from lore.online.photos import Photos
from lore.online.router import TURN_SECONDS
from lore.online.shadow import Shadow
from lore.online.traces import Traces

DEADLINE_HEADER = "x-envoy-expected-rq-timeout-ms"
"""https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter"""
MAX_LOGGED_QUERIES = 20
NOT_KEPT = {"cache-control": "no-store"}
SHORTEST_SECONDS = 1e-3
ERRORS = (400, 408, 413, 415, 422, 429, 500, 503)


class Service(admission.State, Protocol):
    """What answers behind the interface, see lore.online.service."""

    router: Answering


def build_app(
    recipe: OnlineRecipe,
    service: Service,
    photos: Photos | None = None,
    metrics: Metrics | None = None,
    traces: Traces | None = None,
    shadow: Shadow | None = None,
) -> FastAPI:
    """The ASGI application. photos: null: those of the recipe. metrics: shown at /metrics. shadow: is offered every answer. Raises
    LoreError for unusable API keys."""
    metrics = metrics or Metrics()
    endpoints = Endpoints(recipe.serve, service, photos or Photos(recipe.serve), metrics, shadow)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        endpoints.dashboard.start()
        yield
        await endpoints.dashboard.close()
        await endpoints.photos.close()

    app = new_app("LORE", "Judges how well items answer queries.", lifespan)
    app.state.metrics, app.state.traces = metrics, traces
    app.include_router(endpoints.router)
    app.include_router(endpoints.probes)
    return app


class Endpoints:
    """The paths of the service."""

    def __init__(self, serve: ServeSection, service: Service, photos: Photos, metrics: Metrics, shadow: Shadow | None = None):
        self.serve, self.service, self.photos, self.metrics, self.shadow = serve, service, photos, metrics, shadow
        self.dashboard = Dashboard(metrics)
        self.admission = Admission(serve, service)
        keys, secured = self.admission.keys, self.admission.secured
        self.reader = schemas.PairReader(serve.max_text_characters)
        error = {"model": schemas.ErrorReply}
        self.router = APIRouter(
            route_class=self.admission.route_class(),
            dependencies=secured,
            responses=dict.fromkeys((*ERRORS, *([401] if keys else [])), error),
        )
        for path, call, model in (
            ("/v1/rerank", self.rerank_v1, schemas.RerankReply),
            ("/v2/rerank", self.rerank_v2, schemas.RerankReply),
            ("/rerank", self.rerank, schemas.RerankReply | list[schemas.TextResult]),
            ("/score", self.score, schemas.ScoreReply),
            ("/v1/score", self.score, schemas.ScoreReply),
            ("/judge", self.judge, schemas.JudgeReply),
        ):
            self.router.add_api_route(path, call, methods=["POST"], response_model=model)
        self.probes = probes(self.admission, metrics, error)
        secured_page = {"dependencies": secured, "responses": {401: error} if keys else {}}
        self.probes.add_api_route("/dashboard", self.shown_dashboard, methods=["GET"], response_class=HTMLResponse, **secured_page)
        self.probes.add_api_route("/dashboard.json", self.dashboard_numbers, methods=["GET"], **secured_page)

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

    def shown_dashboard(self, request: Request) -> Response:
        """A page with the numbers of the last minutes, of all workers."""
        self.admission.admit_browser(request)
        return HTMLResponse(self.dashboard.page(), headers=NOT_KEPT)

    def dashboard_numbers(self, request: Request) -> Response:
        """The numbers of the page."""
        self.admission.admit_browser(request)
        return JSONResponse(self.dashboard.numbers(), headers=NOT_KEPT)

    async def _rerank(self, request: Request, body: schemas.RerankBody, version: str) -> Response:
        reply = await self._reply(request, schemas.rerank_rows(body))
        return _written(request, reply.rerank(body, version))

    async def _reply(self, request: Request, rows: list[schemas.Row], deadline_ms: float | None = None) -> schemas.Reply:
        """The answers to the rows, in their order."""
        exchange = exchange_of(request)
        if len(rows) > self.serve.max_pairs:
            message = f"{len(rows):,} pairs; expected at most {self.serve.max_pairs:,} (serve.max_pairs) in one request"
            raise ApiError(413, "too_many_pairs", message)
        given = [one for one in (deadline_ms, _header_ms(request)) if one is not None]
        deadline_seconds = min(given, default=self.serve.deadline_ms) / 1000
        exchange.mark("read")
        pairs = await self._read(rows)
        exchange.mark("parse")
        answers, photos = await while_connected(request, self._answered(exchange, rows, pairs, deadline_seconds))
        self.metrics.answered(answers)
        if self.shadow is not None:
            exchange.after = BackgroundTask(_offer, self.shadow, pairs, answers)
        late = sum(answer.late for answer in answers)
        exchange.said |= {"pairs": len(rows), "sources": schemas.sources_of(answers), "late": late}
        if unanswered := sum(answer.verdict.failure == TOO_LATE for answer in answers):
            exchange.said["unanswered"] = unanswered
        if self.serve.log_queries:
            exchange.said["queries"] = list(dict.fromkeys(str(row.get("query")) for row in rows))[:MAX_LOGGED_QUERIES]
        return schemas.Reply(exchange.id, self.service.router.tier_ids, answers, photos)

    async def _read(self, rows: list[schemas.Row]) -> list[Pair | Answer]:
        """The pairs of the rows. Other requests get their turn between them: a thousand long items take tenths of a second."""
        pairs: list[Pair | Answer] = []
        until = time.perf_counter() + TURN_SECONDS
        for row in rows:
            pairs.append(self.reader.read(row))
            if time.perf_counter() > until:
                await asyncio.sleep(0)
                until = time.perf_counter() + TURN_SECONDS
        return pairs

    async def _answered(
        self, exchange: Exchange, rows: list[schemas.Row], pairs: list[Any], deadline_seconds: float
    ) -> tuple[list[Answer], dict[int, str]]:
        """The answers, and why photos could not be read, by index. pairs: some are answers already, because no pair could be
        made of their row."""
        # The other half of the time is the model's.
        photos = await self._add_photos(exchange, rows, pairs, deadline_seconds / 2)
        asked = [index for index, pair in enumerate(pairs) if not isinstance(pair, Answer)]
        answers = list(pairs)
        if asked:
            left = max(deadline_seconds - exchange.elapsed_seconds(), SHORTEST_SECONDS)
            found = await self.service.router.answer([pairs[index] for index in asked], left, exchange.within)
            for index, answer in zip(asked, found, strict=True):
                answers[index] = answer
        exchange.mark("answer")
        return answers, photos

    async def _add_photos(
        self, exchange: Exchange, rows: list[schemas.Row], pairs: list[Any], until_seconds: float
    ) -> dict[int, str]:
        """Reads the photos of the pairs into them, until so many seconds after the begin of the exchange."""
        shown = [index for index, row in enumerate(rows) if row.get("image") is not None and not isinstance(pairs[index], Answer)]
        if not shown:
            return {}
        left = max(until_seconds - exchange.elapsed_seconds(), SHORTEST_SECONDS)
        found = await self.photos.read([rows[index]["image"] for index in shown], left)
        failures = {}
        for index, (image, failure) in zip(shown, found, strict=True):
            pairs[index].image = image
            if failure is not None:
                failures[index] = failure
                self.metrics.photo_refused(failure.partition(":")[0])
        exchange.mark("photos")
        return failures


async def _offer(shadow: Shadow, pairs: list[Any], answers: list[Answer]) -> None:
    shadow.offer(pairs, answers)


def _header_ms(request: Request) -> float | None:
    """The deadline of the header; None without a valid one."""
    try:
        found = float(request.headers.get(DEADLINE_HEADER, ""))
    except ValueError:
        return None
    return found if 0 < found <= MAX_MILLISECONDS else None


def _written(request: Request, content: Any) -> Response:
    # A returned document may hold 1e999, which is no number for others.
    exchange = exchange_of(request)
    response = Response(to_json(content, inf_nan_mode="null"), media_type="application/json", background=exchange.after)
    exchange.mark("write")
    return response
