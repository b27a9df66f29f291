"""Photos that requests bring: data: URLs, and URLs of the hosts that the recipe allows.

A URL is a stranger's wish to make this server connect somewhere, so a photo is fetched only from serve.image_hosts, and no
connection is opened to an address that is not public. The address is checked where the socket is made: whatever name, number or
redirect led to it, and whatever the name server says the second time. Redirects stay on their host. Bytes and time are bounded, the
content type is not looked at, and the bytes are decoded by lore.data.images before a model sees them.

A photo that is refused or cannot be read does not fail its pair, which is judged by its text.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from yarl import URL

from lore.data.images import ImageError, check_image, decode_base64, refusal
from lore.online.config import ServeSection

MAX_PIXELS = 12_000_000
"""4000 x 3000. Decoding one takes about 200 MB; the photos of a table may be larger, since nobody waits for them."""
MAX_URL = 4096
MAX_REDIRECTS = 3
CONNECTIONS, DECODERS = 32, 2
CHUNK_BYTES = 65_536
REFUSED = tuple(
    ipaddress.ip_network(net) for net in ("64:ff9b::/96", "2002::/16", "2001::/32", "::/96", "192.0.0.0/24", "192.88.99.0/24")
)
"""Beyond what Python counts as private: IPv6 addresses that stand for an IPv4 address, which may be private (NAT64, 6to4, Teredo,
compatible addresses), and IPv4 addresses of protocols (RFC 6890, RFC 7526)."""
ALLOWED = "a data: URL, or a URL of a host in serve.image_hosts"


class PrivateAddress(OSError):
    """A host of a photo leads to an address that is not public."""


def is_public(address: str) -> bool:
    """Whether an address in its usual form is one of the public internet. False for every other text."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif found.scope_id is not None or found.is_site_local:
            return False
    if found.is_multicast or found.is_reserved or found.is_unspecified:
        return False
    return found.is_global and not any(found in net for net in REFUSED)


class Photos:
    """Reads the photos of requests. Use it in one event loop.

    allows: which addresses may be connected to.
    """

    def __init__(self, section: ServeSection, allows: Callable[[str], bool] = is_public):
        self.max_bytes, self.seconds = section.max_image_bytes, section.image_timeout_ms / 1000
        allowed = [URL(f"http://{host}") for host in section.image_hosts]
        self.hosts = frozenset((url.raw_host, url.explicit_port) for url in allowed)
        self._allows = allows
        self._session: aiohttp.ClientSession | None = None
        self._decoders = ThreadPoolExecutor(DECODERS, "photo")

    async def read(self, sources: Sequence[Any], seconds: float) -> list[tuple[dict[str, Any], str | None]]:
        """For each source the image of a pair, and why it could not be read. seconds: for all of them; serve.image_timeout_ms is
        the longest time of one."""
        different = list(dict.fromkeys(source if isinstance(source, str) else None for source in sources))
        found = await asyncio.gather(*(self._read(source, min(seconds, self.seconds)) for source in different))
        known = dict(zip(different, found, strict=True))
        return [known[source if isinstance(source, str) else None] for source in sources]

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def _read(self, source: str | None, seconds: float) -> tuple[dict[str, Any], str | None]:
        try:
            async with asyncio.timeout(seconds):
                return {"bytes": await self._bytes(source), "path": None}, None
        except TimeoutError:
            error = ImageError("image_missing", "a photo that did not arrive in time", f"one within {seconds * 1000:.0f} ms")
        except aiohttp.ClientError as failed:
            private = isinstance(getattr(failed, "os_error", None), PrivateAddress)
            error = _private() if private else ImageError("image_missing", f"no photo ({type(failed).__name__})", "a photo")
        except ImageError as refused:
            error = refused
        return {"bytes": refusal(error), "path": None}, f"{error.reason}: {error}"

    async def _bytes(self, source: str | None) -> bytes:
        if source is None:
            raise ImageError("image_missing", "a photo that is no text", ALLOWED)
        if source[:5].lower() == "data:":
            if ";base64," not in source[:200]:
                raise ImageError("image_corrupt", "a data: URL without ;base64,", "data:image/jpeg;base64,...")
            return await self._decoded(lambda: decode_base64(f"data:{source[5:]}", max_bytes=self.max_bytes))
        data = await self._fetched(self._allowed(source))
        return await self._decoded(lambda: data)

    async def _decoded(self, data: Callable[[], bytes]) -> bytes:
        """The bytes of a photo that can be decoded, because it has been."""

        def check() -> bytes:
            return check_image(data(), max_pixels=MAX_PIXELS, max_bytes=self.max_bytes)

        return await asyncio.get_running_loop().run_in_executor(self._decoders, check)

    def _allowed(self, source: str) -> URL:
        """The URL of a photo. Raises ImageError for one that may not be fetched."""
        if len(source) > MAX_URL:
            raise ImageError("image_outside", f"a URL of {len(source):,} characters", f"at most {MAX_URL:,}")
        try:
            url = URL(source)
            host, port = url.raw_host, url.port
        except ValueError:
            raise ImageError("image_outside", "a text that is no URL", ALLOWED) from None
        known = (host, port) in self.hosts or url.is_default_port() and (host, None) in self.hosts
        if url.scheme not in ("http", "https") or not known:
            raise ImageError("image_outside", f"a photo of the host {(host or 'none')[:100]}", ALLOWED)
        if url.user is not None or url.password is not None:
            raise ImageError("image_outside", "a URL with a user or a password", "a URL without them")
        return url

    async def _fetched(self, url: URL) -> bytes:
        session = self._opened()
        for _ in range(MAX_REDIRECTS + 1):
            async with session.get(url, allow_redirects=False) as response:
                if response.status not in (301, 302, 303, 307, 308):
                    return await self._body(response)
                where = response.headers.get("location", "")
            if len(where) > MAX_URL:
                raise ImageError("image_outside", "a redirect to a long URL", f"at most {MAX_URL:,} characters")
            try:
                following = url.join(URL(where))
            except ValueError:
                raise ImageError("image_outside", "a redirect to a text that is no URL", "a photo") from None
            if following.host != url.host:
                raise ImageError("image_outside", "a redirect to another host", "a photo, or a redirect on its host")
            url = self._allowed(str(following))
        raise ImageError("image_missing", f"more than {MAX_REDIRECTS} redirects", "a photo")

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status != 200:
            raise ImageError("image_missing", f"HTTP {response.status} instead of a photo", "HTTP 200")
        parts, total = [], 0
        async for part in response.content.iter_chunked(CHUNK_BYTES):
            total += len(part)
            if total > self.max_bytes:
                most = f"{self.max_bytes:,} bytes"
                raise ImageError("image_too_large", f"a photo of over {most}", f"at most {most}")
            parts.append(part)
        return b"".join(parts)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS, socket_factory=self._socket),
                auto_decompress=False,  # a photo is compressed already; what is packed twice could be of any size
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "lore"},
                trust_env=False,
            )
        return self._session

    def _socket(self, address: Any) -> socket.socket:
        """The socket of a new connection. Raises PrivateAddress."""
        family, kind, protocol, _, place = address
        if not self._allows(place[0]):
            raise PrivateAddress("an address that is not public")
        return socket.socket(family, kind, protocol)


def _private() -> ImageError:
    return ImageError("image_outside", "a photo of a host with a private or local address", ALLOWED)
