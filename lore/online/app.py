"""The HTTP application of the service."""

import asyncio
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from lore.data.pair import Pair
from lore.online.answer import Draining, Refused
from lore.online.config import OnlineRecipe


def build_app(recipe: OnlineRecipe, service: Any) -> FastAPI:
    """The application over a lore.online.service.Service."""
    app = FastAPI(title="LORE")

    @app.get("/ready")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.post("/judge")
    async def judge(request: Request) -> JSONResponse:
        body = await request.json()
        pairs = [Pair(**{"pair_id": str(at)} | pair) for at, pair in enumerate(body["pairs"])]
        seconds: dict[str, float] = {}
        asking = asyncio.ensure_future(service.router.answer(pairs, body.get("deadline_seconds"), seconds))
        leaving = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait([asking, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                asking.cancel()
                with suppress(asyncio.CancelledError):
                    await asking
                return JSONResponse(None, 499)
            answers = asking.result()
        except Refused as error:
            status = 503 if isinstance(error, Draining) else 429
            return JSONResponse({"error": str(error)}, status, {"Retry-After": str(max(1, round(error.retry_seconds)))})
        finally:
            leaving.cancel()
        rows = [
            {"pair_id": one.verdict.pair_id, "tier": one.verdict.tier, "probabilities": one.verdict.probabilities}
            | {"score": one.score, "source": one.source, "band": one.band, "late": one.late, "failure": one.verdict.failure}
            for one in answers
        ]
        return JSONResponse({"answers": rows, "seconds": seconds})

    return app


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
