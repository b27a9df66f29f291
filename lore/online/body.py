"""Reads the body of a request within bounds, and says what is wrong with one.

A body is read in parts and never kept beyond the limit, whatever content-length says. Compressed bodies are refused: a few bytes
can unpack to any number. JSON is strict: no NaN, no key twice with different values, no deep nesting, UTF-8 only. Four megabytes of
empty arrays take more than a second to parse, so the brackets and commas of a body are counted first, and a large body is parsed in
a thread.
"""

import asyncio
from typing import Any

from fastapi import Request

from lore.online.exchange import ApiError
from lore.support.text import encodable
from lore.support.untrusted_json import parse_json

MAX_DEPTH = 16
"""Nested brackets of a body; the formats need five."""
BODY_SECONDS = 30.0
"""Longest time in which a client sends a body."""
DISCARDED_BYTES = 16_777_216
"""Of a body that is too large, so many more are read and thrown away. A client that still sends would otherwise see a broken
connection instead of the answer (RFC 9112, section 9.6)."""
BYTES_PER_VALUE, FEWEST_VALUES = 16, 10_000
"""A body may have a bracket or a comma per so many bytes of the limit; any body may have FEWEST_VALUES."""
SHORT_BYTES = 65_536
"""Parsed in less than a millisecond or two; a thread would take longer."""


class BoundedRequest(Request):
    """A request whose body is read within bounds; FastAPI calls `body` and `json`. Raises ApiError."""

    max_body_bytes = 2**20

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._need_plain_json()
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    self._body = await self._read()
            except TimeoutError:
                raise ApiError(408, "timeout", f"the body did not arrive within {BODY_SECONDS:g} seconds", close=True) from None
        return self._body

    async def json(self) -> Any:
        body = await self.body()
        most = max(FEWEST_VALUES, self.max_body_bytes // BYTES_PER_VALUE)
        if len(body) > most and sum(map(body.count, (b"[", b"{", b","))) > most:
            message = f"the body has more than {most:,} brackets and commas; send less at a time"
            raise ApiError(413, "too_large", message)
        return _parsed(body) if len(body) <= SHORT_BYTES else await asyncio.to_thread(_parsed, body)

    def _need_plain_json(self) -> None:
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            message = "the content-type is not JSON; send content-type: application/json"
            raise ApiError(415, "unsupported_media_type", message, close=True)
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise ApiError(415, "unsupported_media_type", "compressed bodies are not read; send the body as it is", close=True)

    async def _read(self) -> bytes:
        length = self.headers.get("content-length", "")
        declared = int(length) if length.isascii() and length.isdigit() and len(length) <= 18 else 10**18 if length else 0
        is_too_large = declared > self.max_body_bytes
        if is_too_large and (declared > self.max_body_bytes + DISCARDED_BYTES or "expect" in self.headers):
            raise self._too_large()
        parts, total = [], 0
        async for part in self.stream():
            total += len(part)
            if total > self.max_body_bytes:
                is_too_large = True
            if total > self.max_body_bytes + DISCARDED_BYTES:
                break
            if is_too_large:
                parts.clear()
            else:
                parts.append(part)
        if is_too_large:
            raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        message = f"the body has more than {self.max_body_bytes:,} bytes (serve.max_body_bytes); send less at a time"
        return ApiError(413, "too_large", message, close=True)


def _parsed(body: bytes) -> Any:
    try:
        text = body.decode()
        value = parse_json(text, constants=False, depth=MAX_DEPTH)
    except UnicodeDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is not UTF-8 (byte {error.start:,}); send JSON in UTF-8") from None
    except ValueError as error:
        raise ApiError(400, "invalid_json", f"the body is no JSON: {encodable(str(error))[:200]}") from None
    return _whole_characters(value) if "\\ud" in text or "\\uD" in text else value


def _whole_characters(value: Any) -> Any:
    """The value with halves of surrogate pairs replaced in all texts, see `encodable`. No deeper than MAX_DEPTH."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list):
        return [_whole_characters(one) for one in value]
    if isinstance(value, dict):
        return {encodable(name): _whole_characters(one) for name, one in value.items()}
    return value
