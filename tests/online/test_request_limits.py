"""Keys, limits, errors, probes and log lines of the service."""

import asyncio
import hmac
import json
import logging

import httpx
import pytest
from online_for_tests import StubRouter, StubService, app_of, get, post, send

from lore.online.answer import Draining, Overloaded, TooManyPairs
from lore.support.errors import LoreError

ONE = {"query": "red mug", "documents": ["mug"]}
KEYS = {"authorization": "Bearer key-of-shop-2"}


async def call(app, messages, headers=(), path="/rerank"):
    """The messages of the server to a request whose body comes in these messages, and how many of them it took."""
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""}
    scope |= {"headers": [(b"content-type", b"application/json"), *headers], "http_version": "1.1", "scheme": "http"}
    scope |= {"server": ("lore", 80), "client": ("client", 1), "state": {}}
    taken, sent = 0, []

    async def receive():
        nonlocal taken
        taken += 1
        return next(messages)

    async def send_(message):
        sent.append(message)

    await app(scope, receive, send_)
    return sent, taken


def endless():
    while True:
        yield {"type": "http.request", "body": b"a" * 1000, "more_body": True}


def test_a_body_is_read_little_further_than_its_limit(monkeypatch):
    monkeypatch.setattr("lore.online.body.DISCARDED_BYTES", 5_000)
    app = app_of(max_body_bytes=10_000)
    for headers, expected in (
        ([], 16),
        ([(b"content-length", b"10001")], 16),
        ([(b"content-length", b"10001"), (b"expect", b"100-continue")], 0),  # the client waits with its body
        ([(b"content-length", b"15001")], 0),
        ([(b"content-length", b"9" * 400)], 0),
    ):
        sent, taken = asyncio.run(call(app, endless(), headers))
        assert sent[0]["status"] == 413 and taken == expected and (b"connection", b"close") in sent[0]["headers"]
    assert post(app, "/rerank", b" " * 9_900 + json.dumps(ONE).encode()).status_code == 200


def test_a_body_that_does_not_arrive_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("lore.online.body.BODY_SECONDS", 0.01)

    async def stalled():
        scope_messages = iter([{"type": "http.request", "body": b"{", "more_body": True}])
        app = app_of()

        class Slow:
            def __next__(self):
                return next(scope_messages)

        async def late_app(scope, receive, send_):
            async def receive_late():
                try:
                    return await receive()
                except (StopIteration, RuntimeError):
                    await asyncio.sleep(60)

            await app(scope, receive_late, send_)

        return await call(late_app, Slow())

    sent, _ = asyncio.run(stalled())
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b'{"query": "red mug", "documents": ["a"]} x', "no JSON"),
        (b'{"query": NaN, "documents": ["a"]}', "NaN"),
        (b'{"query": "a", "documents": [-Infinity]}', "Infinity"),
        (b'{"query": "a", "query": "b", "documents": ["a"]}', "twice"),
        (b'{"query": "a", "documents": [' + b'{"a":' * 20 + b"1" + b"}" * 20 + b"]}", "nested"),
        (b"[" * 100_000, "nested"),
        ('{"query": "red mug", "documents": ["a"]}'.encode("utf-16"), "UTF-8"),
        (b'{"query": "\xed\xa0\x80", "documents": ["a"]}', "UTF-8"),
    ],
)
def test_what_is_no_json_is_refused(content, said):
    reply = post(app_of(), "/rerank", content)
    assert reply.status_code == (400 if content else 422)
    assert said in reply.json()["error"]["message"] or not content


def test_a_body_that_would_take_seconds_to_parse_is_not_parsed(monkeypatch):
    """Four megabytes of empty arrays take more than a second."""
    monkeypatch.setattr("lore.online.body.parse_json", None)
    for content in (b"[" + b"[]," * 100_000 + b"[]]", b'{"a":' * 70_000, b"1," * 100_000):
        reply = post(app_of(max_body_bytes=1_000_000), "/rerank", content)
        assert reply.status_code == 413 and reply.json()["error"]["type"] == "too_large"


def test_a_list_of_errors_ends_with_the_first():
    for path, body in (("/rerank", {"query": "a", "documents": [5] * 5000}), ("/judge", {"pairs": [[]] * 5000})):
        reply = post(app_of(), path, body)
        assert reply.status_code == 422 and len(reply.json()["error"]["errors"]) <= 2


def test_a_large_body_is_parsed_and_read_beside_other_requests(monkeypatch):
    monkeypatch.setattr("lore.online.app.TURN_SECONDS", 0.0)
    router = StubRouter()
    app = app_of(StubService(router))
    body = {"query": "red mug", "documents": ["a mug " * 200] * 300}
    done = []

    async def both():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://lore") as client:

            async def ask(name, work):
                assert (await work).status_code == 200
                done.append(name)

            large = asyncio.create_task(ask("large", client.post("/rerank", json=body)))
            await asyncio.sleep(0)
            await asyncio.gather(large, *(ask("small", client.get("/health")) for _ in range(3)))

    asyncio.run(both())
    assert done == ["small"] * 3 + ["large"] and len(router.asked) == 300


@pytest.mark.parametrize(
    "headers",
    [{"content-encoding": "gzip"}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}],
)
def test_compressed_bodies_and_other_types_are_refused(headers):
    reply = post(app_of(), "/rerank", json.dumps(ONE), headers=headers)
    assert reply.status_code == 415 and reply.json()["error"]["type"] == "unsupported_media_type"


def test_the_number_of_pairs_is_bounded():
    app = app_of(max_pairs=2)
    assert post(app, "/rerank", ONE | {"documents": ["a", "b"]}).status_code == 200
    reply = post(app, "/rerank", ONE | {"documents": ["a", "b", "c"]})
    assert reply.status_code == 413 and reply.json()["error"]["type"] == "too_many_pairs"


def test_every_key_is_compared_and_the_body_is_not_read_without_one(monkeypatch):
    monkeypatch.setenv("SHOP_KEYS", "key-of-shop-1, key-of-shop-2")
    app = app_of(keys_variable="SHOP_KEYS")
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append(b) or compare(a, b))
    assert post(app, "/rerank", ONE, headers=KEYS).status_code == 200
    assert compared == [b"key-of-shop-1", b"key-of-shop-2"]
    for wrong in ({}, {"authorization": "Bearer key-of-shop-3"}, {"authorization": "key-of-shop-1"}, {"authorization": "Bearer"}):
        reply = post(app, "/rerank", ONE, headers=wrong)
        assert reply.status_code == 401 and "key-of" not in reply.text and reply.headers["www-authenticate"] == "Bearer"
    sent, taken = asyncio.run(call(app, endless(), [(b"authorization", b"Bearer \xff\xfe")]))
    assert sent[0]["status"] == 401 and taken == 0
    assert get(app, "/health").status_code == get(app, "/ready").status_code == 200
    assert "HTTPBearer" in get(app, "/openapi.json").json()["components"]["securitySchemes"]


@pytest.mark.parametrize("keys", ["", " , ", "short", "key-of-shop-1,abc"])
def test_keys_that_can_be_guessed_do_not_start(keys, monkeypatch):
    monkeypatch.setenv("SHOP_KEYS", keys)
    with pytest.raises(LoreError, match="SHOP_KEYS"):
        app_of(keys_variable="SHOP_KEYS")


@pytest.mark.parametrize(
    ("refuse", "status", "kind"), [(Overloaded("queue full", 1.2), 429, "overloaded"), (Draining("ends", 0.1), 503, "draining")]
)
def test_refused_work_says_when_to_come_back(refuse, status, kind):
    reply = post(app_of(StubService(StubRouter(refuse))), "/score", {"text_1": "a", "text_2": "b"})
    assert reply.status_code == status and reply.json()["error"]["type"] == kind
    assert reply.headers["retry-after"] == ("2" if status == 429 else "1")


@pytest.mark.parametrize(("state", "kind"), [({"ready": False}, "warming_up"), ({"draining": True}, "draining")])
def test_a_service_that_is_not_ready_lives(state, kind):
    app = app_of(StubService(**state))
    assert get(app, "/health").status_code == 200
    for reply in (get(app, "/ready"), post(app, "/rerank", ONE)):
        assert reply.status_code == 503 and reply.json()["error"]["type"] == kind and int(reply.headers["retry-after"]) >= 1


def test_a_request_that_cannot_be_done_in_time_says_what_to_change():
    reply = post(app_of(StubService(StubRouter(TooManyPairs("send at most 9 pairs")))), "/rerank", ONE)
    assert reply.status_code == 413 and "retry-after" not in reply.headers
    assert reply.json()["error"]["type"] == "too_many_pairs" and reply.json()["error"]["message"] == "send at most 9 pairs"


def test_an_unexpected_error_is_told_without_its_words(caplog):
    caplog.set_level(logging.INFO, "lore.online.requests")
    reply = post(app_of(StubService(StubRouter(RuntimeError("about the red mug")))), "/rerank", ONE)
    assert reply.status_code == 500 and reply.json()["error"]["type"] == "internal_error"
    line = json.loads(caplog.messages[-1])
    assert line["exception"] == "RuntimeError" and "online_for_tests.py" in line["where"]
    assert "red mug" not in reply.text + caplog.text and "Traceback" not in reply.text + caplog.text


def test_a_pair_that_was_refused_counts_for_no_source():
    app = app_of(max_pairs=10)
    post(app, "/rerank", ONE | {"documents": ["mug", ""]})
    counted = [line for line in get(app, "/metrics").text.splitlines() if line.startswith("lore_pairs_total{")]
    assert len(counted) == 2 and 'lore_pairs_total{band="none",source="none",tier="none"} 1.0' in counted


def test_every_request_leaves_one_log_line_without_its_queries(caplog):
    caplog.set_level(logging.INFO, "lore.online.requests")
    reply = post(app_of(), "/v1/rerank", ONE | {"documents": ["mug", ""]}, headers={"x-request-id": "shop-17"})
    line = json.loads(caplog.messages[-1])
    assert line["id"] == reply.headers["x-request-id"] == "shop-17" and reply.json()["id"] == "shop-17"
    assert (line["path"], line["status"], line["pairs"], line["sources"]) == ("/v1/rerank", 200, 2, {"student": 1, "failed": 1})
    assert list(line["stages_ms"]) == ["read", "parse", "answer", "write"]
    assert [part.partition(";dur=")[0] for part in reply.headers["server-timing"].split(", ")] == list(line["stages_ms"])
    post(app_of(), "/secret-path?query=mug", ONE)
    post(app_of(), "/rerank", b'{"query": "red mug"')
    assert len(caplog.messages) == 3 and "mug" not in caplog.text and "secret" not in caplog.text
    post(app_of(log_queries=True), "/rerank", ONE)
    assert json.loads(caplog.messages[-1])["queries"] == ["red mug"]


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", "a\u00e9"])
def test_a_request_id_that_is_long_or_odd_is_replaced(given):
    reply = asyncio.run(send(app_of(), {"method": "GET", "url": "/health", "headers": {"x-request-id": given.encode()}}))[0]
    assert len(reply.headers["x-request-id"]) == 32


def test_unknown_paths_and_methods_have_the_form_of_errors():
    for reply, status in ((get(app_of(), "/nothing"), 404), (get(app_of(), "/rerank"), 405)):
        assert reply.status_code == status and set(reply.json()["error"]) == {"message", "type", "request_id"}
    assert get(app_of(), "/rerank").headers["allow"] == "POST"


def test_a_slash_too_many_is_not_redirected():
    # behind a proxy that ends TLS, a redirect would name http:// and a host that the client has sent
    reply = post(app_of(), "/rerank/", ONE)
    assert reply.status_code == 404 and "location" not in reply.headers and reply.json()["error"]["type"] == "not_found"


def test_probes_answer_for_their_headers_alone():
    warming = app_of(StubService(ready=False))
    assert [get(app_of(), path, method="HEAD").status_code for path in ("/health", "/ready")] == [200, 200]
    assert [get(warming, path, method="HEAD").status_code for path in ("/health", "/ready")] == [200, 503]


def test_whoever_hangs_up_ends_the_work():
    router = StubRouter(seconds=60)
    messages = iter([{"type": "http.request", "body": json.dumps(ONE).encode()}, {"type": "http.disconnect"}])
    asyncio.run(call(app_of(StubService(router)), messages))
    assert router.canceled == 1


def test_the_shorter_deadline_counts():
    router = StubRouter()
    app = app_of(StubService(router), deadline_ms=200)
    header = {"x-envoy-expected-rq-timeout-ms": "50"}
    post(app, "/rerank", ONE)
    post(app, "/rerank", ONE, headers=header)
    post(app, "/judge", {"pairs": [{"query": "a", "title": "b"}], "deadline_ms": 900})
    post(app, "/judge", {"pairs": [{"query": "a", "title": "b"}], "deadline_ms": 900}, headers=header)
    for wrong in ("nan", "-5", "soon", "1e300"):
        post(app, "/rerank", ONE, headers={"x-envoy-expected-rq-timeout-ms": wrong})
    given = [0.2, 0.05, 0.9, 0.05, 0.2, 0.2, 0.2, 0.2]
    assert all(0 < found <= most for found, most in zip(router.deadlines, given, strict=True))
    assert router.deadlines[2] > 0.2


def test_a_service_that_is_behind_refuses_before_it_reads_a_body():
    service = StubService()
    service.behind = Overloaded("the service is 0.5 s behind", 1.0)
    app = app_of(service)
    sent, taken = asyncio.run(call(app, endless()))
    assert sent[0]["status"] == 429 and taken == 0 and (b"retry-after", b"1") in sent[0]["headers"]
    assert get(app, "/health").status_code == get(app, "/ready").status_code == 200
