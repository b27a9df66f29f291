"""Malformed, oversized and hostile requests, made by hand and from the service's OpenAPI description.

Each is sent over a connection of its own as raw bytes. It ends well with an answer below 500, or with a closed connection where it
is no HTTP or its client left. A trap on loopback counts connections: no photo may be fetched from there.
"""

import asyncio
import base64
import json
import random
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

REPLY_SECONDS = 45.0
"""Longer than the service waits for a body."""
AT_ONCE, MOST_SHOWN = 16, 20
PATHS = ("/judge", "/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score")
SLOW_SECONDS = 2.0
PRIVATE = ("127.0.0.1", "169.254.169.254", "[::1]", "2130706433", "0x7f000001", "017700000001", "127.1", "localhost", "0.0.0.0")
PRIVATE += ("[::ffff:127.0.0.1]", "[::]", "10.0.0.1", "192.168.0.1", "[fe80::1]", "[64:ff9b::7f00:1]", "metadata.google.internal")


@dataclass
class Hostile:
    """A request as bytes. pause: seconds between its two halves; leaves: the client hangs up after the first half; closes: the
    service may close the connection without an answer."""

    kind: str
    data: bytes
    pause: float = 0.0
    leaves: bool = False
    closes: bool = False


@dataclass
class Outcome:
    """sent: by kind; statuses; bad: answers of 500 and more, and requests without an answer."""

    sent: Counter = field(default_factory=Counter)
    statuses: Counter = field(default_factory=Counter)
    bad: int = 0
    shown: list[str] = field(default_factory=list)


def post(body: bytes, path: str = "/judge", kind: str = "application/json", more: bytes = b"", length: int | None = None) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: lore\r\nConnection: close\r\nContent-Type: {kind}\r\n".encode()
    return head + more + f"Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def judge_body(**pair: Any) -> bytes:
    return json.dumps({"pairs": [{"query": "red mug", "title": "mug"} | pair]}).encode()


def bomb(side: int, *, real: bool = False) -> str:
    """A PNG whose header says side x side pixels. real: it has them, packed to a thousandth."""
    rows = zlib.compress(b"\0" * ((side + 1) * side if real else 64), 9)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


def by_hand(trap_port: int, draw: random.Random) -> Iterator[Hostile]:
    """Requests without end, in turns of all kinds. trap_port: of the trap."""
    large = b'{"pairs": [{"query": "a", "title": "' + b"x" * 5_000_000 + b'"}]}'
    bombs = [bomb(100_000), bomb(2_000_000_000), bomb(8000, real=True), bomb(3400, real=True)]
    gif = base64.b64encode(b"GIF89a" + b"\xff\xff\xff\xff" + b"\0" * 40).decode()
    many = json.dumps({"pairs": [{"query": "a", "title": "b"}] * 5000}).encode()
    noise = base64.b64encode(b"\xff\xd8" + draw.randbytes(3000)).decode()
    while True:
        yield Hostile("broken JSON", post(judge_body()[: draw.randrange(1, 40)], draw.choice(PATHS)))
        yield Hostile("random bytes", post(draw.randbytes(draw.randrange(1, 2000)), draw.choice(PATHS)))
        yield Hostile("deep nesting", post(b'{"pairs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", draw.choice(PATHS)))
        yield Hostile("deep objects", post(b'{"a": ' * 50_000 + b"1" + b"}" * 50_000))
        yield Hostile("NaN", post(b'{"pairs": [{"query": "a", "title": "b", "price": NaN}]}'))
        yield Hostile("huge integer", post(judge_body().replace(b'"mug"', b"9" * 5000)))
        yield Hostile("huge numbers", post(b'{"pairs": [{"query": "a", "title": "b", "price": 1e999999}], "deadline_ms": 1e308}'))
        yield Hostile("wrong types", post(json.dumps({"pairs": draw.choice([{}, "x", 5, [[]], [None], [5], None])}).encode()))
        yield Hostile("wrong types in a pair", post(judge_body(query=[1], title={"a": 1}, price=[], attributes="x", brand=7)))
        yield Hostile("surrogates", post(b'{"pairs": [{"query": "\\ud83d", "title": "\\udc00 \\ud800 mug"}]}'))
        yield Hostile("no UTF-8", post(b'{"pairs": [{"query": "\xff\xfe", "title": "\xc3\x28"}]}'))
        yield Hostile("control characters", post(judge_body(query="\0" * 50, title="a\0b\x1b[2J\r\n")))
        yield Hostile("key twice", post(b'{"pairs": [{"query": "a", "title": "b"}], "pairs": []}'))
        yield Hostile("long text", post(judge_body(title="a " * 400_000)))
        yield Hostile("long words", post(judge_body(query="a" * 19_000, title="b" * 19_000)))
        yield Hostile("many keys", post(judge_body(attributes={f"k{at}": "v" for at in range(20_000)})))
        yield Hostile("5 MB", post(large, draw.choice(PATHS)))
        yield Hostile("5 MB in chunks", chunked(large))
        yield Hostile("too many pairs", post(many))
        yield Hostile("slow body", post(judge_body()), pause=SLOW_SECONDS)
        yield Hostile("leaves in the body", post(judge_body()), leaves=True)
        yield Hostile("leaves in the head", b"POST /judge HTTP/1.1\r\nHost: lore\r\nX-A: " + b"a" * 100, leaves=True)
        yield Hostile("content-length too long", post(judge_body(), length=10**6), leaves=True)
        bad = post(judge_body()).replace(b"Content-Length: ", b"Content-Length: x")
        yield Hostile("content-length no number", bad, closes=True)
        yield Hostile("content-length of 20 digits", post(b"", length=10**20), closes=True)
        yield Hostile("compressed", post(zlib.compress(b"0" * 10**6), more=b"Content-Encoding: gzip\r\n"))
        yield Hostile("other content-type", post(judge_body(), kind=draw.choice(["text/xml", "multipart/form-data", "", "\xff"])))
        yield Hostile("two lengths", post(judge_body(), more=b"Transfer-Encoding: chunked\r\n"), closes=True)
        yield Hostile("CR in a header", post(judge_body(), more=b"X-Request-Id: a\rSet-Cookie: b\r\n"), closes=True)
        yield Hostile("CRLF in a header", post(judge_body(), more=b"X-Request-Id: a%0d%0aSet-Cookie: b=1\r\n"))
        yield Hostile("long header", post(judge_body(), more=b"X-A: " + b"a" * 200_000 + b"\r\n"), closes=True)
        yield Hostile("many headers", post(judge_body(), more=b"X-A: a\r\n" * 3000), closes=True)
        yield Hostile("wrong deadline", post(judge_body(), more=b"X-Envoy-Expected-Rq-Timeout-Ms: -1e9\r\n"))
        yield Hostile("no HTTP", draw.randbytes(300) + b"\r\n\r\n", closes=True)
        yield Hostile("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(500), closes=True)
        yield Hostile("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", closes=True)
        path = draw.choice(["../../etc/passwd", "%2e%2e/", "a" * 5000, "?x=" + "y" * 999])
        yield Hostile("unknown path", post(judge_body(), "/" + path))
        yield Hostile("other method", post(judge_body()).replace(b"POST", draw.choice([b"PUT", b"TRACE", b"DELETE", b"PATCH"])))
        yield Hostile("image bomb", post(judge_body(image=draw.choice(bombs))))
        yield Hostile("image bomb, GIF", post(judge_body(image="data:image/gif;base64," + gif)))
        yield Hostile("image of noise", post(judge_body(image="data:image/jpeg;base64," + noise)))
        yield Hostile("image, SVG", post(judge_body(image="data:image/svg+xml;base64,PHN2Zy8+")))
        yield Hostile("image, no base64", post(judge_body(image="data:image/png;base64,????")))
        where = draw.choice(["file:///etc/passwd", "/etc/passwd", "ftp://127.0.0.1/a", "javascript:1", "data:,x"])
        yield Hostile("image of a file", post(judge_body(image=where)))
        for host in PRIVATE:
            yield Hostile("private address", post(judge_body(image=f"http://{host}:{trap_port}/a.png")))
        yield Hostile("CRLF in a URL", post(judge_body(image=f"http://127.0.0.1:{trap_port}/a\r\nX-B: c")))
        yield Hostile("user in a URL", post(judge_body(image=f"http://img.example.com@127.0.0.1:{trap_port}/")))
        yield Hostile("images", post(json.dumps({"pairs": [{"query": "a", "title": "b", "image": bombs[2]}] * 20}).encode()))


def chunked(body: bytes) -> bytes:
    parts = (body[at : at + 65_536] for at in range(0, len(body), 65_536))
    head = post(b"", more=b"Transfer-Encoding: chunked\r\n").replace(b"Content-Length: 0\r\n", b"")
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def by_description(description: dict[str, Any], count: int) -> list[Hostile]:
    """About so many requests that break the description, made by schemathesis."""
    import schemathesis  # loads slowly
    from hypothesis import HealthCheck, given, settings

    schema, found = schemathesis.openapi.from_dict(description), []
    some = settings(
        max_examples=-(-count // len(PATHS)),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )

    def made(case: Any) -> None:
        body = case.body if isinstance(case.body, bytes) else json.dumps(case.body, default=str).encode()
        found.append(Hostile("schemathesis", post(body, case.path)))

    for path in PATHS:
        some(given(case=schema[path]["POST"].as_strategy(schemathesis.GenerationMode.NEGATIVE))(made))()
    return found


async def attack(host: str, port: int, requests: list[Hostile]) -> Outcome:
    """Sends all of them, several at a time."""
    outcome, turns = Outcome(), asyncio.Semaphore(AT_ONCE)

    async def one(request: Hostile) -> None:
        async with turns:
            outcome.sent[request.kind] += 1
            status, why = await sent(host, port, request)
        outcome.statuses[status] += 1
        fine = status < 500 if status else request.leaves or request.closes
        if not fine:
            outcome.bad += 1
            if len(outcome.shown) < MOST_SHOWN:
                outcome.shown.append(f"{request.kind}: {status or 'no answer'} {why}")

    await asyncio.gather(*map(one, requests))
    return outcome


async def sent(host: str, port: int, request: Hostile) -> tuple[int, str]:
    """(status, words); status 0 without an answer."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        async with asyncio.timeout(REPLY_SECONDS):
            half = len(request.data) if not request.pause and not request.leaves else len(request.data) - 20
            writer.write(request.data[:half])
            try:
                await writer.drain()
                if request.leaves:
                    return 0, "left"
                await asyncio.sleep(request.pause)
                writer.write(request.data[half:])
                await writer.drain()
            except ConnectionError:
                pass  # it was answered before all of it was sent
            line = await reader.readline()
            if not line.startswith(b"HTTP/1.1 "):
                return 0, repr(line[:100])
            said = await reader.read(2000)
            return int(line[9:12]), repr(said[-300:])
    except (ConnectionError, TimeoutError) as error:
        return 0, type(error).__name__
    finally:
        writer.transport.abort()


class Trap:
    """Listens on loopback, IPv4 and IPv6, and counts connections."""

    def __init__(self) -> None:
        self.connections = 0

    async def __aenter__(self) -> "Trap":
        def came(_: Any, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            writer.close()

        self._servers = [await asyncio.start_server(came, "127.0.0.1", 0)]
        self.port = self._servers[0].sockets[0].getsockname()[1]
        try:
            self._servers.append(await asyncio.start_server(came, "::1", self.port))
        except OSError:
            pass  # a machine without IPv6
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
