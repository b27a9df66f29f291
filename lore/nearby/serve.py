"""`lore serve nearby`: questions and recommendations over HTTP, and a page with a map.

    lore serve nearby town.db --port 8080

    GET  /            the page
    POST /ask         {"question": "somewhere quiet to work", "at": [41.88, -87.63]}   what `lore nearby ask --json` prints
    POST /recommend   {"visits": [{"place_id": "123", "time": "2026-11-29 09:00"}], "at": [41.88, -87.63]}
    GET  /map?bbox=   what lies between south,west,north,east
    GET  /health, /ready, /metrics

Keys, limits of a body, errors, logs and shutdown are those of lore.online. Visits live as long as their request: they are in no
log, metric, file or error. A question is answered in a thread of a small pool. With a judge or an encoder, which may not be asked
twice at the same time, the pool has one thread; a language model has a thread of its own (ModelInTime). A question that outlasts
its deadline keeps its thread until it ends, and is counted as waiting.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import to_json

from lore.nearby.answer import as_json
from lore.nearby.ask import ask, clock, open_layers
from lore.nearby.familiarity import recommend, recommendation_json
from lore.nearby.intent import MAX_QUESTION, MINUTES, Corrections, read_position
from lore.nearby.map_shapes import map_shapes, read_box
from lore.nearby.model_in_time import ModelInTime
from lore.nearby.times import read_time
from lore.nearby.town import Town, check_point
from lore.nearby.visits import COLUMNS, collected_visits
from lore.online.admission import Admission, api_keys, probes, while_connected
from lore.online.answer import Draining, Overloaded
from lore.online.config import ServeSection
from lore.online.exchange import ApiError, exchange_of, new_app
from lore.online.log_lines import logged
from lore.online.loop_lag import LoopLag
from lore.online.metrics import RequestMetrics
from lore.online.schemas import ErrorReply
from lore.online.server import Server, address_of, bound_socket, ended_by_signals
from lore.places.question import WALK_MINUTES
from lore.places.walk import DETOUR, METRES_PER_MINUTE
from lore.support.errors import LoreError
from lore.support.html import page_style, page_template
from lore.support.nearest import nearest_hint
from lore.support.terminal import print_line
from lore.support.text import printable

PATHS = ("/ask", "/recommend", "/map")
MAX_PLACES, MAX_VISITS, MAX_BODY_BYTES = 100, 10_000, 2**21
THREADS, MOST_WAITING = 4, 64
DEADLINE_MS = 30_000.0
MOST_LAG_SECONDS = 1.0
"""Delay of the event loop from which on requests are refused."""
DRAIN_STEP_SECONDS = 0.02
ERRORS = (400, 401, 408, 413, 415, 422, 429, 500, 503)
NOT_KEPT = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
Position = Annotated[list[float], Field(min_length=2, max_length=2)] | Annotated[str, Field(max_length=60)]
"""[latitude, longitude] or "latitude,longitude", in degrees."""


def _known_fields(cls: type[BaseModel], given: Any) -> Any:
    """Says which fields there are, instead of that one is forbidden."""
    unknown = next((name for name in given if name not in cls.model_fields), None) if isinstance(given, dict) else None
    if unknown is not None:
        names = ", ".join(cls.model_fields)
        hint = nearest_hint(unknown[:80], cls.model_fields)
        raise ValueError(f"{printable(unknown[:80])!r} is no field, so it would change nothing. Fields: {names}.{hint}")
    return given


STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class AskBody(Corrections):
    """A question from a position. The other fields replace what was understood of it."""

    model_config = STRICT

    question: str = Field(min_length=1, max_length=MAX_QUESTION)
    at: Position
    k: int = Field(4, ge=1, le=MAX_PLACES)
    known_fields = model_validator(mode="before")(classmethod(_known_fields))


class Visit(BaseModel):
    """A place_id, or lat and lon, and a time of the town's clock. One that cannot be read is counted, with its reason."""

    model_config = STRICT

    place_id: Annotated[str, Field(max_length=200)] | int | None = None
    lat: float | None = None
    lon: float | None = None
    time: Annotated[str, Field(max_length=80)] | float
    known_fields = model_validator(mode="before")(classmethod(_known_fields))


class RecommendBody(BaseModel):
    """The visits of one person, and where the person is."""

    model_config = STRICT

    visits: Annotated[list[Visit], Field(max_length=MAX_VISITS, fail_fast=True)]
    at: Position
    time: Annotated[str, Field(max_length=100)] | None = None
    minutes: float = Field(WALK_MINUTES, ge=MINUTES[0], le=MINUTES[1])
    k: int = Field(5, ge=1, le=MAX_PLACES)
    known_fields = model_validator(mode="before")(classmethod(_known_fields))


class Service:
    """Answers about one town. layers: of `open_layers`."""

    def __init__(self, town: Town, layers: dict[str, Any], serve: ServeSection):
        self.town, self.layers, self.serve = town, layers, serve
        if "engine" in layers:
            self.layers = layers | {"engine": ModelInTime(layers["engine"])}
        self.ready = self.draining = False
        self.lag = LoopLag()
        alone = layers.keys() - {"graph", "engine"} or sqlite3.threadsafety < 3
        self._pool = ThreadPoolExecutor(1 if alone else THREADS, thread_name_prefix="nearby")
        self._running: set[Future] = set()

    def ask(self, body: AskBody) -> dict[str, Any]:
        """What `lore nearby ask --json` prints."""
        correction = Corrections(**body.model_dump(include=Corrections.model_fields.keys()))
        lat, lon = _position(body.at)
        now, layers = clock(self.town), self.layers
        answer = ask(self.town, body.question, lat, lon, now=now, k=body.k, corrections=[correction], **layers)
        return as_json(answer, self.town.place_ids)

    def recommend(self, body: RecommendBody) -> dict[str, Any]:
        """What `lore nearby recommend --json` prints."""
        now = clock(self.town)
        when = now if body.time is None else read_time(body.time, now)
        given = ((number, visit.model_dump(), {}) for number, visit in enumerate(body.visits, 1))
        read = collected_visits(given, self.town, "visits")
        person = read.visits.person(None)
        found = recommend(self.town, read.visits, person, when, _position(body.at), minutes=body.minutes, k=body.k)
        return recommendation_json(found, read, when)

    async def answer(self, call: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """What a call gives, from a thread of the pool. Raises Overloaded, Draining, or ApiError for what the call refuses."""
        if self.draining:
            raise Draining("the service is shutting down", 5.0)
        if len(self._running) >= MOST_WAITING:
            raise Overloaded(f"{len(self._running)} requests wait already; try again later", 1.0)
        future = self._pool.submit(call, *arguments)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        try:
            async with asyncio.timeout(self.serve.deadline_ms / 1000):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            message = f"no answer within {self.serve.deadline_ms / 1000:g} seconds; try again later"
            raise ApiError(503, "too_late", message, retry_seconds=5.0) from None
        except LoreError as error:
            raise ApiError(422, "invalid_request", str(error)) from None

    def refuse_if_behind(self) -> None:
        if self.lag.seconds > MOST_LAG_SECONDS:
            raise Overloaded(f"the service is {self.lag.seconds:.3f} s behind", 1.0)

    async def start(self) -> None:
        """Asks one question, so that the first client waits for no table. Raises LoreError for what no question could use."""
        self.lag.start()
        layers = {name: one for name, one in self.layers.items() if name != "engine"}
        now, where = clock(self.town), self.middle()
        await asyncio.get_running_loop().run_in_executor(
            self._pool, lambda: ask(self.town, "a cafe, open now", *where, now=now, **layers)
        )
        self.ready = True

    async def drain(self) -> None:
        """Takes no new requests, and waits for the others, at most drain_seconds."""
        self.ready, self.draining = False, True
        until = time.monotonic() + self.serve.drain_seconds
        while self._running and time.monotonic() < until:
            await asyncio.sleep(DRAIN_STEP_SECONDS)

    async def close(self) -> None:
        self.ready, self.draining = False, True
        self.lag.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def middle(self) -> tuple[float, float]:
        """Latitude and longitude in the middle of the square, 0.01 degrees wide, that has the most places."""
        if not len(self.town):
            return 0.0, 0.0
        points = np.stack([self.town.lats, self.town.lons], axis=1)
        _, square, counts = np.unique(points.round(2), axis=0, return_inverse=True, return_counts=True)
        lat, lon = points[square.ravel() == counts.argmax()].mean(axis=0).tolist()
        return lat, lon


def build_app(service: Service) -> FastAPI:
    """The ASGI application. Raises LoreError for unusable API keys."""
    metrics, admission, error = RequestMetrics(PATHS), Admission(service.serve, service), {"model": ErrorReply}
    content, headers = page(service)
    router = APIRouter(
        route_class=admission.route_class(browser=True), dependencies=admission.secured, responses=dict.fromkeys(ERRORS, error)
    )

    async def written(request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> Response:
        exchange = exchange_of(request)
        exchange.mark("read")
        found = await while_connected(request, work)
        exchange.mark("answer")
        return Response(to_json(found, inf_nan_mode="null"), media_type="application/json", headers=NOT_KEPT)

    @router.post("/ask")
    async def ask(request: Request, body: AskBody) -> Response:
        """A cited answer with the evidence of each layer."""
        return await written(request, service.answer(service.ask, body))

    @router.post("/recommend")
    async def recommend(request: Request, body: RecommendBody) -> Response:
        """Your places now, and new places nearby; none is in both. The visits are kept nowhere."""
        return await written(request, service.answer(service.recommend, body))

    @router.get("/map")
    async def shapes(request: Request, bbox: Annotated[str, Query(max_length=200)]) -> Response:
        """Outlines, places and streets between south,west,north,east."""
        return await written(request, service.answer(lambda: map_shapes(service.town, *read_box(bbox))))

    def shown_page(request: Request) -> Response:
        admission.admit_browser(request)
        return HTMLResponse(content, headers=headers)

    app = new_app("LORE nearby", "Finds places within a walk.")
    app.state.metrics, app.state.traces = metrics, None
    app.include_router(router)
    app.include_router(probes(admission, metrics, error))
    app.add_api_route("/", shown_page, methods=["GET"], response_class=HTMLResponse, include_in_schema=False)
    return app


def page(service: Service) -> tuple[str, dict[str, str]]:
    """The page and its headers: nothing is loaded from anywhere, and only the page's own script runs."""
    town, folder = service.town, Path(__file__).parent
    needs = service.layers["graph"].relations.needs
    known = {
        "middle": service.middle(),
        "places": len(town),
        "timezone": town.meta.get("timezone"),
        "metres_per_minute": METRES_PER_MINUTE / (1.0 if town.array("streets_lats") is not None else DETOUR),
        "needs": [{"key": need.key, "en": need.en[0], "zh": need.zh[0]} for need in needs],
        "columns": COLUMNS,
        "most_visits": MAX_VISITS,
    }
    script = (folder / "page.js").read_text(encoding="utf-8")
    style = page_style() + (folder / "page.css").read_text(encoding="utf-8")
    shown = page_template(folder, "page.html.jinja").render(known=json.dumps(known), script=script, style=style)
    policy = POLICY.format(script=_hash(script), style=_hash(style))
    return shown, NOT_KEPT | {"content-security-policy": policy, "permissions-policy": "geolocation=()"}


def serve_nearby(town: Path, host: str, port: int, keys_variable: str | None = None, **files: Any) -> int:
    """Runs the service until a signal ends it. Returns the exit status. files: see open_layers."""
    section = ServeSection(
        host=host, port=port, keys_variable=keys_variable, deadline_ms=DEADLINE_MS, max_body_bytes=MAX_BODY_BYTES
    )
    api_keys(section)  # keys that are missing are said before models are loaded
    listener = bound_socket(host, port)
    try:
        with ended_by_signals(), Town.open(town) as opened:
            service = Service(opened, open_layers(opened, **files), section)
            server = Server(build_app(service), section, service)
            print_line(f"answers at {address_of(listener)} once it is warm", flush=True)
            with logged():
                server.run(sockets=[listener])
        return 0
    finally:
        listener.close()


def _position(at: list[float] | str) -> tuple[float, float]:
    if isinstance(at, str):
        return read_position(at)
    check_point(*at)
    return at[0], at[1]


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
