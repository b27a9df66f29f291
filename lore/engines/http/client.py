"""Sends one HTTP request to an OpenAI-compatible server and classifies the outcome.

The client reads the API key from the environment when it is created and removes it from every text that it returns.
"""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from lore.engines.config import EndpointSection
from lore.engines.engine import MAX_WORDS, EndpointStopped, RequestRefused, Usage
from lore.engines.http.protocol import Dialect, Fault, Reply, error_text, read_reply, safe_words
from lore.engines.http.throttle import retry_after_seconds
from lore.support.errors import LoreError
from lore.support.nearest import nearest
from lore.support.untrusted_json import parse_json

MAX_REPLY_BYTES = 32 * 2**20
LEAST_REPLY_BYTES, TOKEN_BYTES = 2**20, 256  # a reply may have so many bytes, and so many more per token that was asked for
MAX_ERROR_BYTES = 2**18
SHOWN_FAULT = 200  # characters
MODELS_READ, MODEL_CHARACTERS, LISTING_SECONDS = 1000, 100, 10.0
UNLISTED = "The url has to end with the version, such as /v1."
KEEP_OPEN_SECONDS = 4.0  # uvicorn, and so vLLM, closes an idle connection after 5
NOTHING = Usage(0, 0)


@dataclass
class Outcome:
    """The result of one attempt.

    kind: answered, refused (the server works and rejects the request; an error EndpointStopped means that it rejects every request,
    if it is not about this prompt alone), again (resend without fields that the server does not
    support), busy (rate limit), fault (no usable reply) or unreached (no connection, nothing was sent).
    used: token usage; None if the server may have generated tokens but the number is unknown.
    """

    kind: str
    used: Usage | None
    what: str = ""
    pause_seconds: float = 0.0
    value: Any = None
    error: LoreError | None = None


class Client:
    """Keeps connections to one server open. Use it in one event loop at a time."""

    def __init__(self, section: EndpointSection, needed: frozenset[str] = frozenset()):
        """needed: fields that are never omitted, see Dialect.

        Raises LoreError if the environment variable section.key_variable holds no valid key.
        """
        self.section, self.dialect = section, Dialect(needed)
        self._key = _key(section)
        self._session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def send(self, body: dict[str, Any], read: Callable[[Reply], Any]) -> Outcome:
        """Sends `body` in this server's dialect. The value of an answered outcome is read(reply)."""
        sent, url = self.dialect.fields(body), f"{self.section.url}/chat/completions"
        most = min(MAX_REPLY_BYTES, LEAST_REPLY_BYTES + TOKEN_BYTES * body.get("n", 1) * body["max_tokens"])
        try:
            async with asyncio.timeout(self.section.timeout_seconds):
                async with self._connections().post(url, data=json.dumps(sent).encode(), allow_redirects=False) as response:
                    good = response.status == 200
                    data = await _body(response, most if good else MAX_ERROR_BYTES)
        except aiohttp.ClientConnectorError as error:
            return Outcome("unreached", NOTHING, f"no connection ({self._words(error)})")
        except TimeoutError:
            return Outcome("fault", None, f"no complete reply within {self.section.timeout_seconds:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return Outcome("fault", None, f"a broken reply ({type(error).__name__}: {self._words(error)})")
        if not good:
            return await self._refusal(response, error_text(data, self._key), sent)
        used = None
        try:
            if len(data) > most:  # parsing it would hold up all other requests
                raise Fault(f"a reply of more than {most:,} bytes")
            reply = read_reply(data, self.section.model, self._key)
            used = reply.used()
            return Outcome("answered", used, value=read(reply))
        except Fault as error:
            return Outcome("fault", None, self._words(error))
        except RequestRefused as error:
            words = self._words(error.words, MAX_WORDS)
            return Outcome("refused", used, error=RequestRefused(f"{self.section.url} refuses to answer a prompt: {words}", words))

    def _words(self, said: object, most: int = SHOWN_FAULT) -> str:
        return safe_words(str(said), self._key, most)

    def stop(self, what: str, advice: str) -> EndpointStopped:
        return EndpointStopped(f"{self.section.url} {what}.\nStored results are kept. {advice} Then run the same command again.")

    def rejected(self, shown: str) -> RequestRefused:
        return RequestRefused(f"{self.section.url} rejects a prompt: {shown}", shown)

    async def _refusal(self, response: aiohttp.ClientResponse, said: str, sent: dict[str, Any]) -> Outcome:
        """The outcome of a status other than 200. The server generated nothing, so the usage is zero."""
        status, shown = response.status, f"{response.status} {self._words(response.reason or '', 100)}: {said}"
        pause_seconds = retry_after_seconds(response.headers.get("Retry-After"))
        if status == 429:
            return Outcome("busy", NOTHING, shown, pause_seconds)
        if status in (408, 409, 425) or status >= 500:
            return Outcome("fault", NOTHING, shown, pause_seconds)
        if status in (400, 422) and self.dialect.learn(sent, said):
            return Outcome("again", NOTHING)
        error: LoreError = self.rejected(shown)
        if status in (400, 422) and "continue_final_message" in sent and "continue_final_message" in said:
            error = self.stop(f"does not support prefill (continue_final_message: {said})", "Use a vLLM or SGLang server.")
        elif status in (400, 422) and (needed := [name for name in self.dialect.needed if name in sent and name in said]):
            error = self.stop(
                f"does not take {needed[0]} ({said}), so its chat template would write other prompts than those in training",
                "Use a server that takes it (vLLM, SGLang), or one with a template that needs no options.",
            )
        elif status in (401, 403):
            error = self._denied(shown)
        elif status == 404:
            error = self.stop(f"has no model {self.section.model!r} ({shown})", await self._models())
        elif status not in (400, 413, 422):
            error = self.stop(f"answers {shown}", "Correct the url: it has to end with the version, such as /v1.")
        return Outcome("refused", NOTHING, shown, error=error)

    async def model_names(self) -> list[str]:
        """Names of the models that the server lists, at most MODELS_READ. Raises EndpointStopped if it answers none."""
        try:
            async with asyncio.timeout(LISTING_SECONDS):
                async with self._connections().get(f"{self.section.url}/models", allow_redirects=False) as response:
                    data = await _body(response, MAX_ERROR_BYTES)
        except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError
            words = self._words(error) or f"no reply within {LISTING_SECONDS:g} s"
            raise self.stop(f"cannot be reached ({words})", "Start the server, or correct the url.") from error
        if response.status in (401, 403):
            raise self._denied(f"{response.status}: {error_text(data, self._key)}")
        try:
            listed = parse_json(data)["data"][:MODELS_READ]
            names = [self._words(model["id"], MODEL_CHARACTERS) for model in listed if isinstance(model["id"], str)]
        except (ValueError, LookupError, TypeError):
            names = []
        if not names:
            raise self.stop(f"lists no models (status {response.status})", UNLISTED)
        return names

    async def _models(self) -> str:
        """Advice that lists the server's models, the closest name first."""
        try:
            names = await self.model_names()
        except EndpointStopped:
            return f"It does not list its models. {UNLISTED}"
        first = nearest(self.section.model, names)
        names.sort(key=lambda name: name != first)
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return f"Set model to one that it serves: {', '.join(names[:8])}{more}."

    def _denied(self, shown: str) -> EndpointStopped:
        variable = self.section.key_variable
        where = f"the environment variable {variable}" if variable else "an environment variable and its name in key_variable"
        return self.stop(f"denies access ({shown})", f"Put a valid key in {where}.")

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            # No compressed replies: their unpacked size is unbounded.
            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
            if self._key is not None:
                headers["Authorization"] = f"Bearer {self._key}"
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_OPEN_SECONDS),
                timeout=aiohttp.ClientTimeout(total=None),
                headers=headers,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                proxy=_proxy(self.section.url),
            )
        return self._session


def _key(section: EndpointSection) -> str | None:
    if section.key_variable is None:
        return None
    key = os.environ.get(section.key_variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        found = "does not hold a valid key" if key else "is not set"
        raise LoreError(
            f"The environment variable {section.key_variable} {found}, so requests to {section.url} would fail.\n"
            "Export the API key under this name, or remove key_variable if the server needs no key."
        )
    return key


def _proxy(url: str) -> str | None:
    """The proxy from HTTP_PROXY, HTTPS_PROXY and NO_PROXY; None for servers on this machine."""
    parts = urlsplit(url)
    if parts.hostname in ("localhost", "127.0.0.1", "::1") or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)


async def _body(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body; reading stops once it exceeds `most` bytes."""
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > most:
            break
    return b"".join(chunks)
