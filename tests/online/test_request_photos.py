"""Photos that requests bring, from a real server on this machine."""

import asyncio
import base64
import io
import struct
import zlib

import pytest
from aiohttp import web
from online_for_tests import StubRouter, StubService, StudentRouter, post, recipe
from PIL import Image

from lore.data.images import ImageError, load_image
from lore.online.app import build_app
from lore.online.photos import Photos, is_public


def photo(kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, kind)
    return file.getvalue()


PHOTO = photo()
DATA_URL = "data:image/png;base64," + base64.b64encode(PHOTO).decode()


def anyone(address: str) -> bool:
    return True


def bomb() -> bytes:
    """A small PNG that says it has 50,000 x 50,000 pixels."""

    def part(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(bytes(10_000))) + part(b"IEND", b"")


class PhotoServer:
    """Serves photos and traps on loopback. asked: the paths that were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __aenter__(self):
        app = web.Application()
        app.router.add_get("/{path:.*}", self.answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_):
        await self._runner.cleanup()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.asked.append(path)
        if path == "/near":
            raise web.HTTPFound("/photo.png")
        if path == "/far":
            raise web.HTTPFound(f"http://127.0.0.2:{self.port}/photo.png")
        if path == "/round":
            raise web.HTTPFound("/round")
        if path == "/slow":
            await asyncio.sleep(30)
        if path in ("/endless", "/gzip"):
            headers = {"Content-Encoding": "gzip"} if path == "/gzip" else {}
            reply = web.StreamResponse(headers=headers)
            await reply.prepare(request)
            for _ in range(200):
                await reply.write(b"a" * 10_000)
            return reply
        contents = {"/photo.png": PHOTO, "/bomb": bomb(), "/text": b"no photo", "/empty": b""}
        if path not in contents:
            raise web.HTTPNotFound()
        return web.Response(body=contents[path], content_type="text/html")


def read(sources, *, hosts=("127.0.0.1",), allows=anyone, seconds=5.0, **serve):
    """(images, failures, paths that were asked for). {port} in a source or host is the server's."""

    async def go():
        async with PhotoServer() as server:
            ported = [f"{host}:{server.port}" for host in hosts]
            photos = Photos(recipe(image_hosts=ported, **serve).serve, allows)
            wanted = [one.replace("PORT", str(server.port)) if isinstance(one, str) else one for one in sources]
            found = await photos.read(wanted, seconds)
            await photos.close()
            return [image for image, _ in found], [failure for _, failure in found], server.asked

    return asyncio.run(go())


def test_a_photo_of_an_allowed_host_is_fetched_once_whatever_its_type_says():
    url = "http://127.0.0.1:PORT/photo.png"
    images, failures, asked = read([url, DATA_URL, url, "http://127.0.0.1:PORT/near"])
    assert failures == [None] * 4 and all(image["bytes"] == PHOTO for image in images)
    assert sorted(asked) == ["/near", "/photo.png", "/photo.png"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("http://127.0.0.1:PORT/far", "image_outside"),
        ("http://127.0.0.1:PORT/round", "image_missing"),
        ("http://127.0.0.1:PORT/endless", "image_too_large"),
        ("http://127.0.0.1:PORT/gzip", "image_too_large"),
        ("http://127.0.0.1:PORT/bomb", "image_too_large"),
        ("http://127.0.0.1:PORT/text", "image_corrupt"),
        ("http://127.0.0.1:PORT/empty", "image_corrupt"),
        ("http://127.0.0.1:PORT/none", "image_missing"),
        ("http://127.0.0.1:1/photo.png", "image_outside"),
        ("http://127.0.0.2:PORT/photo.png", "image_outside"),
        ("http://user@127.0.0.1:PORT/photo.png", "image_outside"),
        ("http://127.0.0.1:PORT@127.0.0.2/photo.png", "image_outside"),
        ("ftp://127.0.0.1:PORT/photo.png", "image_outside"),
        ("file:///etc/passwd", "image_outside"),
        ("/etc/passwd", "image_outside"),
        ("http://[", "image_outside"),
        ("http://127.0.0.1:PORT/" + "a" * 5000, "image_outside"),
        ("data:image/png,abc", "image_corrupt"),
        ("data:image/png;base64,!!!!", "image_corrupt"),
        ("data:image/png;base64," + "A" * 100_000, "image_too_large"),
        ("data:image/png;base64," + base64.b64encode(bomb()).decode(), "image_too_large"),
        ("", "image_outside"),
        ({"path": "/etc/passwd"}, "image_missing"),
    ],
)
def test_other_photos_are_refused_with_a_reason(source, reason):
    images, failures, _ = read([source], max_image_bytes=50_000)
    assert failures[0].startswith(f"{reason}: ")
    with pytest.raises(ImageError):
        load_image(images[0])


def test_a_slow_photo_is_not_waited_for():
    _, failures, _ = read(["http://127.0.0.1:PORT/slow", DATA_URL], image_timeout_ms=100)
    assert "in time" in failures[0] and failures[1] is None
    _, failures, _ = read(["http://127.0.0.1:PORT/slow"], seconds=0.05)
    assert "in time" in failures[0]


HERE = ["127.0.0.1", "localhost", "2130706433", "127.1", "0177.0.0.1", "0x7f.0.0.1", "[::ffff:127.0.0.1]"]


@pytest.mark.parametrize("host", HERE)
def test_no_connection_is_opened_to_this_machine_even_if_its_name_is_allowed(host):
    images, failures, asked = read([f"http://{host}:PORT/photo.png"], hosts=(host,), allows=is_public)
    assert failures[0] is not None and asked == []
    # The control: without the check of the address the same name leads to the photo, where the client takes such a name at all.
    if host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
        assert "private" in failures[0]
        assert read([f"http://{host}:PORT/photo.png"], hosts=(host,))[1] == [None]


def test_the_address_that_is_checked_is_the_one_that_is_connected_to():
    """A name server that answers differently the second time has no second time."""
    checked = []
    _, failures, asked = read(
        ["http://localhost:PORT/photo.png"], hosts=("localhost",), allows=lambda address: checked.append(address) or True
    )
    assert failures == [None] and asked and "127.0.0.1" in checked
    answers = iter([True, False])
    _, failures, _ = read(["http://127.0.0.1:PORT/photo.png"], allows=lambda address: next(answers) and False)
    assert "private" in failures[0]


PUBLIC = ("8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8")
OTHERS = """127.0.0.1 10.0.0.1 172.16.0.1 172.31.255.255 192.168.0.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 239.1.1.1
240.0.0.1 255.255.255.255 192.0.0.8 192.0.2.1 198.18.0.1 203.0.113.5 192.88.99.1 :: ::1 ::ffff:127.0.0.1 ::ffff:169.254.169.254
fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254 fec0::1 ff02::1 64:ff9b::7f00:1 64:ff9b:1::1 2002:7f00:1:: 2001:0:1::1 ::7f00:1
2001:db8::1 2130706433 0177.0.0.1 127.1 0x7f.0.0.1 localhost"""


def test_only_public_addresses_are_public():
    assert all(map(is_public, PUBLIC))
    assert [address for address in [*OTHERS.split(), "", "127.0.0.1 "] if is_public(address)] == []


@pytest.mark.parametrize("host", ["https://img.example.com", "img.example.com/photos", "*.example.com", "", "a b", "é.example.com"])
def test_a_host_that_no_url_has_is_an_error_of_the_recipe(host):
    given = recipe(image_hosts=["img.example.com:8443", host, "[2606:4700::1111]"]).serve
    assert [(conflict.keys, conflict.found) for conflict in given.conflicts()] == [(("image_hosts",), host)]


def test_a_student_reads_the_photo_of_a_request(tmp_path):
    tower = {"image_size": 28, "hidden": 16, "heads": 2, "layers": 1, "mlp": 24}
    router = StudentRouter(tmp_path, photo="tower", tower=tower)
    app = build_app(recipe(), StubService(router))
    images = [DATA_URL, "data:image/png;base64,AAAA", None]
    pairs = [{"query": "red mug", "title": "a mug", "image": image} for image in images]
    seen, failed, without = post(app, "/judge", {"pairs": pairs}).json()["verdicts"]
    assert [one["photo"] for one in (seen, failed, without)] == ["seen", "failed", "none"]
    assert failed["p_L1"] == pytest.approx(without["p_L1"]) != seen["p_L1"]


def test_a_pair_is_judged_by_its_text_if_its_photo_fails():
    router = StubRouter()
    app = build_app(recipe(), StubService(router))
    pairs = [{"query": "mug", "title": "a", "image": image} for image in (DATA_URL, "http://127.0.0.1/photo.png", None)]
    verdicts = post(app, "/judge", {"pairs": pairs}).json()["verdicts"]
    assert router.asked[0].image == {"bytes": PHOTO, "path": None} and router.asked[2].image is None
    assert [one["failure"] for one in verdicts] == [None] * 3
    assert verdicts[0]["photo"] == "seen" and verdicts[2]["photo"] == "none"
    assert verdicts[1]["photo_failure"].startswith("image_outside: ")
    results = post(app, "/rerank", {"query": "mug", "documents": [{"title": "a", "image": "x"}]}).json()["results"]
    assert results[0]["lore"]["photo_failure"].startswith("image_outside: ") and results[0]["lore"]["failure"] is None


def test_the_photo_of_a_verdict_is_failed_where_the_model_reads_none():
    router = StubRouter()
    router._answer = lambda pair: _hidden(StubRouter()._answer(pair))
    url = "data:image/tiff;base64," + base64.b64encode(photo("TIFF")).decode()
    pairs = [{"query": "mug", "title": "a", "image": url}, {"query": "mug", "title": "a", "image": DATA_URL}]
    verdicts = post(build_app(recipe(), StubService(router)), "/judge", {"pairs": pairs}).json()["verdicts"]
    assert [one["photo"] for one in verdicts] == ["failed", "hidden"]


def _hidden(answer):
    answer.verdict.photo = "hidden"
    return answer
