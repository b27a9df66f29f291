"""One real request to a service that runs: it is sent through the socket, and printed with its answer."""

import base64
import json
import os
import time
from dataclasses import replace
from itertools import islice
from typing import Any

import aiohttp

from lore.data.images import ImageError, image_bytes
from lore.data.pair import Pair
from lore.data.parquet import read_pairs
from lore.online.config import OnlineRecipe, ServeSection
from lore.support.console import Console, Table
from lore.support.errors import LoreError, reason
from lore.support.terminal import print_line

ITEMS = 5
SHOWN_PHOTO = 40
"""Characters of a photo that are printed."""
REQUEST_SECONDS = 60.0
SCANNED_PAIRS = 10_000
SENT = ("item_id", "title", "attributes", "description", "category", "brand", "shop", "price")


def pairs_to_try(path: str) -> list[Pair]:
    """Pairs of one query with several items, if the file has such a query, and that query with an item of another one, which no
    cache knows. Raises LoreError for an empty file."""
    by_query: dict[str, list[Pair]] = {}
    for pair in islice(read_pairs(path), SCANNED_PAIRS):
        known = by_query.setdefault(pair.query, [])
        known.append(pair)
        if len(known) == ITEMS and len(by_query) > 1:
            break
    if not by_query:
        raise LoreError(f"{path} has no pairs, so there is nothing to try.")
    chosen = max(by_query.values(), key=len)[:ITEMS]
    other = next((pairs[0] for query, pairs in by_query.items() if query != chosen[0].query), None)
    return chosen if other is None else [*chosen, replace(other, query=chosen[0].query)]


def body_of(pairs: list[Pair], recipe: OnlineRecipe) -> dict[str, Any]:
    """The body of POST /judge with the pairs, photos included as far as there is room for them."""
    room = recipe.serve.max_body_bytes // 2
    rows = []
    for pair in pairs[: recipe.serve.max_pairs]:
        row: dict[str, Any] = {"query": pair.query}
        row |= {name: value for name in SENT if (value := getattr(pair, name)) not in (None, "", {})}
        if pair.image is not None and (photo := _photo(pair)) and len(photo) < room:
            row["image"], room = photo, room - len(photo)
        rows.append(row)
    return {"pairs": rows, "deadline_ms": recipe.serve.deadline_ms}


async def try_out(address: str, recipe: OnlineRecipe, pairs: list[Pair]) -> None:
    """Sends one request and prints it with its answer. Raises LoreError if it is not answered."""
    body = body_of(pairs, recipe)
    print_line(f"POST {address}/judge")
    print_line(json.dumps(_shown(body), ensure_ascii=False))
    began = time.perf_counter()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS)) as session:
            async with session.post(f"{address}/judge", json=body, headers=_headers(recipe.serve)) as response:
                status, said = response.status, await response.json()
                timing = response.headers.get("server-timing", "")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise LoreError(f"The service at {address} did not answer: {reason(error)}.") from error
    milliseconds = (time.perf_counter() - began) * 1000
    if status != 200:
        raise LoreError(f"The service at {address} answered {status}: {json.dumps(said)[:1000]}")
    table = Table(title=f"{status} in {milliseconds:.1f} ms ({timing})", title_justify="left")
    for column in ("item", "tier", "relevance", "from", "why"):
        table.add_column(column, overflow="fold")
    for row, verdict in zip(body["pairs"], said["verdicts"], strict=True):
        score = "" if verdict["score"] is None else f"{verdict['score']:.2f}"
        source = verdict["source"] + (", late" if verdict["late"] else "")
        table.add_row(row["title"], verdict["tier"] or "", score, source, verdict["rationale"] or verdict["failure"] or "")
    Console().print(table)


def _headers(serve: ServeSection) -> dict[str, str]:
    if serve.keys_variable is None:
        return {}
    return {"Authorization": f"Bearer {os.environ.get(serve.keys_variable, '').split(',')[0].strip()}"}


def _photo(pair: Pair) -> str | None:
    try:
        data = image_bytes(pair.image)
    except ImageError:
        return None
    kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _shown(body: dict[str, Any]) -> dict[str, Any]:
    rows = [row | ({"image": f"{row['image'][:SHOWN_PHOTO]}..."} if "image" in row else {}) for row in body["pairs"]]
    return body | {"pairs": rows}
